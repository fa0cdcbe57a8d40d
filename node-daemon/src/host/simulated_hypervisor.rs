//! The hypervisor of a simulated host: libvirt's test driver, whose domains are kept in files.
//!
//! The domains of the test driver live in this process and end with it; those of a real host outlive
//! the daemon. So a daemon that is started again gives the driver back what ran before it looks at any
//! desktop: to the rest of the daemon nothing has happened.
//!
//! ```text
//!   <state>/simulated-domains/<uuid>.xml      defined
//!                             <uuid>.running  and running
//! ```
#![expect(clippy::disallowed_methods, reason = "adapter: keeps domains in files")]

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use uuid::Uuid;

use super::hypervisor::{
    Answer, Capabilities, DomainDetails, DomainSummary, Events, GuestState, Hypervisor, HypervisorError,
    NetworkSummary, Screenshot, Versions,
};
use gpudesk_inventory::simulated::uuid;

/// The hypervisor of a simulated host.
pub struct SimulatedHypervisor<H> {
    driver: H,
    folder: PathBuf,
}

/// What has become of a domain.
enum Now {
    Defined(String),
    Runs,
    Off,
    Gone,
}

impl<H: Hypervisor> SimulatedHypervisor<H> {
    /// Over `driver`, with the domains kept below `state_dir`, which it is given back first.
    ///
    /// # Errors
    /// When a domain that ran could not be brought back.
    pub async fn new(driver: H, state_dir: &Path) -> Result<Self, HypervisorError> {
        let this = Self { driver, folder: state_dir.join("simulated-domains") };
        this.restore().await?;
        Ok(this)
    }

    async fn restore(&self) -> Result<(), HypervisorError> {
        let folder = self.folder.clone();
        for (uuid, xml, runs) in self.files("read the domains of before", move || kept(&folder)).await? {
            match self.driver.get(uuid).await {
                Ok(_) => continue,
                Err(HypervisorError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
            self.driver.define(xml).await?;
            if runs {
                self.driver.start(uuid).await?;
            }
        }
        Ok(())
    }

    async fn note(&self, uuid: Uuid, now: Now) -> Result<(), HypervisorError> {
        let folder = self.folder.clone();
        self.files("note down a domain", move || note(&folder, uuid, &now)).await
    }

    async fn files<T: Send + 'static>(
        &self,
        doing: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let answer =
            tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        let doing = format!("{doing} in {}", self.folder.display());
        answer.map_err(|error| HypervisorError::Transient { doing, message: error.to_string() })
    }
}

fn kept(folder: &Path) -> io::Result<Vec<(Uuid, String, bool)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error),
    };
    let mut found = vec![];
    for entry in entries {
        let path = entry?.path();
        let uuid = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        if let (Some(uuid), Some("xml")) = (uuid, path.extension().and_then(|end| end.to_str())) {
            found.push((uuid, fs::read_to_string(&path)?, path.with_extension("running").exists()));
        }
    }
    Ok(found)
}

fn note(folder: &Path, uuid: Uuid, now: &Now) -> io::Result<()> {
    let file = |end: &str| folder.join(format!("{uuid}.{end}"));
    let remove = |end: &str| match fs::remove_file(file(end)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    match now {
        Now::Defined(xml) => {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            fs::write(file("new"), xml)?;
            fs::rename(file("new"), file("xml"))
        }
        Now::Runs => fs::write(file("running"), ""),
        Now::Off => remove("running"),
        Now::Gone => remove("running").and_then(|()| remove("xml")),
    }
}

/// The boot of a simulated host: the same until it is `rebooted`, which no daemon's end is.
///
/// # Errors
/// When it cannot be kept below `state_dir`.
pub fn simulated_boot(state_dir: &Path, rebooted: bool) -> io::Result<String> {
    let file = state_dir.join("simulated-boot");
    if !rebooted && let Ok(boot) = fs::read_to_string(&file) {
        return Ok(boot);
    }
    // What ran does not any more.
    for (uuid, _, _) in kept(&state_dir.join("simulated-domains"))? {
        note(&state_dir.join("simulated-domains"), uuid, &Now::Off)?;
    }
    let boot = uuid(&["boot", &Timestamp::now().as_nanosecond().to_string()]).to_string();
    fs::write(&file, &boot)?;
    Ok(boot)
}

impl<H: Hypervisor> Hypervisor for SimulatedHypervisor<H> {
    fn list(&self) -> Answer<'_, Vec<DomainSummary>> {
        self.driver.list()
    }

    fn get(&self, uuid: Uuid) -> Answer<'_, DomainSummary> {
        self.driver.get(uuid)
    }

    fn define(&self, xml: String) -> Answer<'_, Uuid> {
        Box::pin(async move {
            let uuid = self.driver.define(xml.clone()).await?;
            self.note(uuid, Now::Defined(xml)).await?;
            Ok(uuid)
        })
    }

    fn start(&self, uuid: Uuid) -> Answer<'_, ()> {
        Box::pin(async move {
            self.driver.start(uuid).await?;
            self.note(uuid, Now::Runs).await
        })
    }

    fn shutdown(&self, uuid: Uuid) -> Answer<'_, ()> {
        Box::pin(async move {
            self.driver.shutdown(uuid).await?;
            self.note(uuid, Now::Off).await
        })
    }

    fn destroy(&self, uuid: Uuid) -> Answer<'_, ()> {
        Box::pin(async move {
            self.driver.destroy(uuid).await?;
            self.note(uuid, Now::Off).await
        })
    }

    fn undefine(&self, uuid: Uuid, state: GuestState) -> Answer<'_, ()> {
        Box::pin(async move {
            self.driver.undefine(uuid, state).await?;
            self.note(uuid, Now::Gone).await
        })
    }

    fn details(&self, uuid: Uuid) -> Answer<'_, DomainDetails> {
        self.driver.details(uuid)
    }

    fn confine(&self, uuid: Uuid, cpus: Vec<u32>) -> Answer<'_, ()> {
        self.driver.confine(uuid, cpus)
    }

    fn agent_ping(&self, uuid: Uuid) -> Answer<'_, bool> {
        self.driver.agent_ping(uuid)
    }

    fn agent_command(&self, uuid: Uuid, command: String) -> Answer<'_, String> {
        self.driver.agent_command(uuid, command)
    }

    fn screenshot(&self, uuid: Uuid) -> Answer<'_, Screenshot> {
        self.driver.screenshot(uuid)
    }

    fn versions(&self) -> Answer<'_, Versions> {
        self.driver.versions()
    }

    fn capabilities(&self) -> Answer<'_, Capabilities> {
        self.driver.capabilities()
    }

    fn open_screen(&self, uuid: Uuid) -> Answer<'_, OwnedFd> {
        self.driver.open_screen(uuid)
    }

    fn qemu_user(&self) -> Answer<'_, Option<u32>> {
        self.driver.qemu_user()
    }

    fn networks(&self) -> Answer<'_, Vec<NetworkSummary>> {
        self.driver.networks()
    }

    fn events(&self) -> Events {
        self.driver.events()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{hypervisor::DomainState, libvirt::LibvirtHypervisor};

    fn xml(uuid: Uuid) -> String {
        format!(
            "<domain type='test'><name>sim-{uuid}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory>\
             <vcpu>1</vcpu><os><type>hvm</type></os></domain>"
        )
    }

    /// Makes the driver forget a domain, as the end of its process does.
    async fn lose(driver: &LibvirtHypervisor, uuid: Uuid) {
        driver.destroy(uuid).await.unwrap();
        driver.undefine(uuid, GuestState::Keep).await.unwrap();
    }

    #[tokio::test]
    async fn what_ran_runs_again_and_what_was_off_stays_off() {
        let state = tempfile::tempdir().unwrap();
        let driver = LibvirtHypervisor::connect("test:///default").await.unwrap();
        let [ran, off, gone] = [1, 2, 3].map(|n| Uuid::from_u128(0x51_u128 << 96 | 0x8000_0000 | n));
        let hypervisor = SimulatedHypervisor::new(driver.clone(), state.path()).await.unwrap();
        for uuid in [ran, off, gone] {
            hypervisor.define(xml(uuid)).await.unwrap();
            hypervisor.start(uuid).await.unwrap();
        }
        hypervisor.shutdown(off).await.unwrap();
        hypervisor.destroy(gone).await.unwrap();
        hypervisor.undefine(gone, GuestState::Delete).await.unwrap();
        for uuid in [ran, off] {
            lose(&driver, uuid).await;
        }
        let again = SimulatedHypervisor::new(driver.clone(), state.path()).await.unwrap();
        assert_eq!(again.get(ran).await.unwrap().state, DomainState::Running);
        assert_eq!(again.get(off).await.unwrap().state, DomainState::Off);
        assert!(matches!(again.get(gone).await, Err(HypervisorError::NotFound { .. })));
        // A reboot ends what ran.
        lose(&driver, ran).await;
        simulated_boot(state.path(), true).unwrap();
        let rebooted = SimulatedHypervisor::new(driver.clone(), state.path()).await.unwrap();
        assert_eq!(rebooted.get(ran).await.unwrap().state, DomainState::Off);
        for uuid in [ran, off] {
            rebooted.undefine(uuid, GuestState::Delete).await.unwrap();
        }
    }

    #[test]
    fn a_boot_lasts_until_the_next() {
        let state = tempfile::tempdir().unwrap();
        let boot = simulated_boot(state.path(), false).unwrap();
        assert_eq!(simulated_boot(state.path(), false).unwrap(), boot);
        let next = simulated_boot(state.path(), true).unwrap();
        assert_ne!(next, boot);
        assert_eq!(simulated_boot(state.path(), false).unwrap(), next);
    }
}
