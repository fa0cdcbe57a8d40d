//! Which host this is: the machine that the daemon runs on, or one that a host file describes.
#![expect(clippy::disallowed_methods, reason = "adapter: reads the host file")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gpudesk_inventory::{
    simulated::{HostFile, HostFileError, Latency, SimulatedHost},
    topology::{HostFacts, uevent::Change},
    tree::TreeError,
};
use thiserror::Error;

use super::{
    fabric::library::Nvfm,
    gpu_driver::{GpuDriver, NoDriver},
    kernel::HostKernel,
    nvml_control::NvmlControl,
    simulated_driver::{SimulatedDriver, list_file},
    survey::{Place, Survey},
};
use crate::devices::Devices;

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
    /// The root folder or capture cannot be opened.
    #[error(transparent)]
    Root(#[from] TreeError),
}

/// The host.
#[derive(Clone)]
pub struct HostSource {
    facts: Facts,
    gpus: Arc<dyn GpuDriver>,
}

#[derive(Clone)]
enum Facts {
    Machine(Arc<Mutex<Survey>>),
    Simulated(Box<SimulatedHost>),
}

impl HostSource {
    /// A machine; with `recording` what is read of it is remembered. Its cards are given to desktops where there is a
    /// state folder to note that down, and else only shown.
    ///
    /// # Errors
    /// [`SourceError::Root`], naming the folder.
    pub fn machine(place: Place, recording: bool) -> Result<Self, SourceError> {
        let root = place.root.clone().unwrap_or_else(|| "/".into());
        let (state_dir, networks) = (place.state_dir.clone(), place.network_functions);
        let manager = place.root.is_none().then(|| Nvfm::beside(place.nvml.as_deref()));
        let survey = Survey::new(place, recording)?;
        let gpus: Arc<dyn GpuDriver> = match state_dir {
            Some(folder) => {
                let kernel = Arc::new(HostKernel::new(&root).with_network_functions(networks));
                let control = Arc::new(NvmlControl::new(survey.shared_nvml()));
                let devices = Devices::open(kernel, control, &folder);
                // Of another root only files are seen.
                Arc::new(match manager {
                    Some(manager) => devices.with_fabric(Arc::new(manager)),
                    None => devices,
                })
            }
            None => Arc::new(NoDriver),
        };
        Ok(Self { facts: Facts::Machine(Arc::new(Mutex::new(survey))), gpus })
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

    /// What is known of a machine; `None` for a description, which never changes.
    pub fn survey(&self) -> Option<MutexGuard<'_, Survey>> {
        match &self.facts {
            // A reading that panicked left a survey that can be read again.
            Facts::Machine(survey) => Some(survey.lock().unwrap_or_else(PoisonError::into_inner)),
            Facts::Simulated(_) => None,
        }
    }

    /// What it is, with what the drivers say of its cards. What was read before is not read again but
    /// for `changes`. Blocks.
    pub fn look(&self, changes: &BTreeSet<Change>) -> HostFacts {
        match &self.facts {
            Facts::Machine(_) => {
                let mut facts = self.survey().map(|mut survey| survey.look(changes)).unwrap_or_default();
                self.gpus.complete(&mut facts);
                facts
            }
            Facts::Simulated(host) => host.facts.clone(),
        }
    }

    /// What it is, as last read; read now when it never was. Blocks.
    pub fn facts(&self) -> HostFacts {
        self.look(&BTreeSet::new())
    }

    /// Version of the GPU driver and of the vGPU manager in it, as they say themselves.
    pub fn driver_versions(&self) -> (Option<String>, Option<String>) {
        match self.survey() {
            Some(survey) => survey.readings().map_or((None, None), |readings| {
                (readings.driver_version.clone(), readings.vgpu_manager_version.clone())
            }),
            None => (self.gpus.version(), None),
        }
    }

    /// vGPUs that run without a licence; `None` when nobody could be asked.
    pub fn unlicensed_vgpus(&self) -> Option<usize> {
        let survey = self.survey()?;
        let vgpus = survey.readings()?.cards.iter().filter_map(|card| card.vgpu.as_ref());
        let instances = vgpus.flat_map(|vgpu| &vgpu.instances);
        Some(instances.filter(|instance| instance.licensed == Some(false)).count())
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
