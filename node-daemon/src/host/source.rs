//! Which host this is: the machine that the daemon runs on, or one that a host file describes.
#![expect(clippy::disallowed_methods, reason = "adapter: reads the host file")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use thiserror::Error;

use super::{
    gpu_driver::{GpuDriver, NoDriver},
    simulated::{HostFile, HostFileError, Latency, SimulatedHost},
    simulated_driver::{SimulatedDriver, list_file},
    sysfs,
};
use crate::topology::HostFacts;

/// Why there is no host.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The host file cannot be opened.
    #[error("the host file {path}: {source}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The host file describes no host.
    #[error("{path}: {source}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: HostFileError,
    },
}

/// The host.
#[derive(Clone)]
pub struct HostSource {
    facts: Facts,
    gpus: Arc<dyn GpuDriver>,
}

#[derive(Clone)]
enum Facts {
    Machine(PathBuf),
    Simulated(Box<SimulatedHost>),
}

impl HostSource {
    /// This machine.
    pub fn machine() -> Self {
        Self { facts: Facts::Machine("/".into()), gpus: Arc::new(NoDriver) }
    }

    /// The host that `file` describes. Its shares are kept in a list below `state_dir`.
    ///
    /// # Errors
    /// [`SourceError`], naming the file.
    pub fn simulated(file: &Path, node: &str, state_dir: &Path) -> Result<Self, SourceError> {
        let text =
            fs::read_to_string(file).map_err(|source| SourceError::Open { path: file.into(), source })?;
        let host = HostFile::parse(&text).and_then(|file| file.host(node));
        let host = host.map_err(|source| SourceError::Parse { path: file.into(), source })?;
        let gpus = SimulatedDriver::new(&host, list_file(state_dir));
        Ok(Self { facts: Facts::Simulated(Box::new(host)), gpus: Arc::new(gpus) })
    }

    /// Whether the host exists only as a description.
    pub fn is_simulated(&self) -> bool {
        matches!(self.facts, Facts::Simulated(_))
    }

    /// What drives its cards.
    pub fn gpus(&self) -> &Arc<dyn GpuDriver> {
        &self.gpus
    }

    /// What it is, with what the drivers say of its cards. Blocks.
    pub fn facts(&self) -> HostFacts {
        let mut facts = match &self.facts {
            Facts::Machine(root) => sysfs::read(root),
            Facts::Simulated(host) => host.facts.clone(),
        };
        self.gpus.describe(&mut facts.cards);
        facts
    }

    /// How long things take there.
    pub fn latency(&self) -> Latency {
        match &self.facts {
            Facts::Machine(_) => Latency::default(),
            Facts::Simulated(host) => host.latency.clone(),
        }
    }

    /// Images that a simulated host lacks.
    pub fn missing_images(&self) -> Vec<String> {
        match &self.facts {
            Facts::Machine(_) => vec![],
            Facts::Simulated(host) => host.missing_images.clone(),
        }
    }
}
