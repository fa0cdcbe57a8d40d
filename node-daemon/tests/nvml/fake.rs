//! The stand-in, in a folder of its own with a world of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use gpudesk_crds::gpu_node_status::Device;
use gpudesk_inventory::driver::{CardReadings, DriverReadings, describe};
use gpudesk_node_daemon::host::nvml::Nvml;

/// A copy of the library, and the file that tells it of the world. Each copy is a library of its own to
/// the loader, so that tests do not share one world.
pub(crate) struct Fake {
    folder: tempfile::TempDir,
}

/// Where the library is; it is built when nobody says that it was.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let name = "libgpudesk_fake_nvml.so";
        if let Some(folder) = std::env::var_os("GPUDESK_BIN_DIR") {
            return Path::new(&folder).join(name);
        }
        let mut cargo = Command::new(env!("CARGO"));
        let built = cargo.args(["build", "--quiet", "--package", "gpudesk-fake-nvml"]).status().unwrap();
        assert!(built.success(), "the stand-in for NVML is not built");
        // target/tmp is beside target/debug.
        Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("debug").join(name)
    })
}

impl Fake {
    pub(crate) fn new(world: &str) -> Self {
        let fake = Self { folder: tempfile::tempdir().unwrap() };
        fs::copy(library(), fake.path()).unwrap();
        fake.world(world);
        fake
    }

    /// A library that does not even have these functions, as that of an older driver.
    pub(crate) fn without(world: &str, functions: &[&str]) -> Self {
        let fake = Self::new(world);
        let mut bytes = fs::read(fake.path()).unwrap();
        for function in functions {
            // The loader finds a function by its name; under another name nobody finds it.
            let name: Vec<u8> = [&[0], function.as_bytes(), &[0]].concat();
            let places: Vec<usize> =
                (0..bytes.len() - name.len()).filter(|place| bytes[*place..].starts_with(&name)).collect();
            assert!(!places.is_empty(), "{function} is not in the library");
            for place in places {
                bytes[place + 1] = b'x';
            }
        }
        fs::write(fake.path(), bytes).unwrap();
        fake
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("libnvidia-ml.so.1")
    }

    /// Changes the world.
    pub(crate) fn world(&self, world: &str) {
        let new = self.folder.path().join("new.yaml");
        fs::write(&new, world).unwrap();
        fs::rename(new, self.folder.path().join("libnvidia-ml.so.1.yaml")).unwrap();
    }

    pub(crate) fn nvml(&self) -> Nvml {
        Nvml::open(Some(&self.path())).unwrap().unwrap()
    }

    pub(crate) fn impatient(&self, patience: Duration) -> Nvml {
        Nvml::open_with_patience(Some(&self.path()), patience).unwrap().unwrap()
    }
}

/// What a world's cards read as, all of which must be read without trouble.
pub(crate) fn read(world: &str) -> DriverReadings {
    let readings = Fake::new(world).nvml().read().unwrap();
    assert_eq!(readings.problems, Vec::<String>::new());
    for card in &readings.cards {
        assert_eq!((&card.fault, &card.failed_calls), (&None, &vec![]), "{world}");
    }
    readings
}

/// Devices of which sysfs knows only addresses and ids, with what the driver says of them.
pub(crate) fn devices(readings: &DriverReadings) -> Vec<Device> {
    let bare = |card: &CardReadings| {
        let (vendor, device) =
            card.pci_id.as_deref().and_then(|id| id.split_once(':')).unwrap_or(("10de", "0000"));
        Device::new(card.address, vendor, device)
    };
    let mut devices: Vec<Device> = readings.cards.iter().map(bare).collect();
    describe(&mut devices, readings);
    devices
}
