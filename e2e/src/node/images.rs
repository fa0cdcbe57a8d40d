//! Images of the operator and the node daemon, made of the programs that were built.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::processes::run;
use crate::programs::binaries;
use crate::state::checkout;

/// Registry and tag of the images, as settings of the chart.
pub const SETTINGS: [&str; 2] = ["image.registry=gpudesk.test", "image.tag=test"];
pub(crate) const PAUSE: &str = "gpudesk.test/pause:test";

/// The archives of a set of images.
#[derive(Debug, Clone)]
pub struct Images {
    /// The operator.
    pub operator: PathBuf,
    /// The node daemon.
    pub daemon: PathBuf,
    /// What holds the namespaces of a pod.
    pub pause: PathBuf,
}

/// Makes the archives in `folder`.
pub fn build(folder: &Path) -> Result<Images> {
    // It ends with this process: whoever then removes the folder is alone with it.
    let mut script = Command::new("setpriv");
    script.args(["--pdeathsig", "KILL"]).arg(checkout().join("e2e/node/build-images.sh"));
    run(script.arg(binaries()?).arg(folder))?;
    Ok(Images::at(folder))
}

impl Images {
    /// Those that were made in a folder.
    pub fn at(folder: &Path) -> Self {
        let archive = |name: &str| folder.join(format!("{name}.tar"));
        Self {
            operator: archive("gpudesk-operator"),
            daemon: archive("gpudesk-node-daemon"),
            pause: archive("pause"),
        }
    }
}
