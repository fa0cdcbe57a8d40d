//! The host of the benchmark: the kernel and the library of the tests, as slow as real ones, and what was done to them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use gpudesk_crds::{
    gpu_node::VgpuScheduler, gpu_node_drives::DriveErase, gpu_node_status::MigMode, types::PciAddress,
};
use gpudesk_inventory::scan::DriveNow;

use crate::{
    control::{ControlError, DriverControl, GpuInstanceSeen, PowerSeen},
    fake_control::FakeControl,
    fake_kernel::FakeKernel,
    kernel::Kernel,
    network::{NetworkNow, VfSettings},
};

/// How long the kernel and the driver take.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// For what nobody says; everything takes no time without it.
    pub(super) assumed: Option<Duration>,
}

/// One call that changes something.
#[derive(Clone)]
pub(super) enum Call {
    Write(String, String),
    Library(&'static str),
}

impl Pace {
    fn wait(self, call: &Call) {
        let Some(assumed) = self.assumed else { return };
        let long = match call {
            Call::Library("destroy a GPU instance") => Duration::from_secs(1),
            Call::Write(path, _) if path.ends_with("/reset") => Duration::from_millis(100),
            Call::Write(path, value) if path.ends_with("/sriov_numvfs") && value != "0" => {
                Duration::from_millis(100)
            }
            Call::Write(..) | Call::Library(_) => assumed,
        };
        thread::sleep(long);
    }
}

/// A host with one card.
pub(super) struct Host {
    kernel: Arc<FakeKernel>,
    pace: Pace,
    /// A file that is read, and one that is written, beside each of the host.
    folder: PathBuf,
    calls: Mutex<Vec<Call>>,
    looks: AtomicUsize,
}

impl Host {
    pub(super) fn new(kernel: Arc<FakeKernel>, pace: Pace, state: &Path) -> Self {
        let folder = state.join("files");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), "0x10de\n").unwrap();
        std::os::unix::fs::symlink("file", folder.join("link")).unwrap();
        Self { kernel, pace, folder, calls: Mutex::default(), looks: AtomicUsize::new(0) }
    }

    /// Forgets what was done.
    pub(super) fn forget(&self) {
        self.calls.lock().unwrap().clear();
        self.looks.store(0, Ordering::Relaxed);
    }

    /// What was done, and how often it was looked for who has devices open.
    pub(super) fn calls(&self) -> (Vec<Call>, usize) {
        (self.calls.lock().unwrap().clone(), self.looks.load(Ordering::Relaxed))
    }

    /// A call as it is without anybody who thinks.
    pub(super) fn bare(&self, call: &Call) {
        if let Call::Write(_, value) = call {
            let mut file = File::options().write(true).open(self.folder.join("file")).unwrap();
            file.write_all(value.as_bytes()).unwrap();
        }
        self.pace.wait(call);
    }

    fn done(&self, call: Call) {
        self.bare(&call);
        self.calls.lock().unwrap().push(call);
    }
}

impl Kernel for Host {
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        fs::read(self.folder.join("file"))?;
        self.kernel.read(path)
    }
    fn write(&self, path: &str, value: &str) -> io::Result<()> {
        self.done(Call::Write(path.into(), value.into()));
        self.kernel.write(path, value)
    }
    fn link(&self, path: &str) -> io::Result<String> {
        fs::read_link(self.folder.join("link"))?;
        self.kernel.link(path)
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        fs::read_dir(&self.folder)?.for_each(drop);
        self.kernel.list(path)
    }
    fn open_devices(&self) -> io::Result<BTreeMap<String, u32>> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        look_at_processes()?;
        self.kernel.open_devices()
    }
    fn peek(&self, path: &str) -> io::Result<u32> {
        self.kernel.peek(path)
    }
    fn drive(&self, address: PciAddress) -> io::Result<DriveNow> {
        self.kernel.drive(address)
    }
    fn erase(&self, address: PciAddress, method: DriveErase) -> io::Result<()> {
        self.kernel.erase(address, method)
    }
    fn network(&self, function: PciAddress) -> io::Result<Option<Result<NetworkNow, String>>> {
        self.kernel.network(function)
    }
    fn set_network(&self, function: PciAddress, settings: &VfSettings) -> io::Result<()> {
        self.done(Call::Write("vf".into(), settings.to_string()));
        self.kernel.set_network(function, settings)
    }
    fn no_network_functions(&self) -> Option<String> {
        None
    }
    fn unable(&self) -> Option<String> {
        None
    }
}

/// As the daemon does, but for processes that keep this one from looking.
fn look_at_processes() -> io::Result<()> {
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        let is_process =
            process.file_name().is_some_and(|name| name.to_string_lossy().parse::<u32>().is_ok());
        let files = if is_process { fs::read_dir(process.join("fd")).ok() } else { None };
        for file in files.into_iter().flatten().flatten() {
            // What has no path is no device.
            if fs::read_link(file.path()).is_ok_and(|target| target.is_absolute()) {
                drop(fs::metadata(file.path()));
            }
        }
    }
    Ok(())
}

/// NVIDIA's library over the same card.
pub(super) struct Library(pub(super) Arc<Host>);

impl Library {
    fn fake(&self) -> FakeControl {
        FakeControl(Arc::clone(&self.0.kernel))
    }

    fn call(&self, what: &'static str) -> FakeControl {
        self.0.done(Call::Library(what));
        self.fake()
    }
}

impl DriverControl for Library {
    fn mig_mode(&self, card: PciAddress) -> Result<Option<MigMode>, ControlError> {
        self.fake().mig_mode(card)
    }
    fn set_mig_mode(&self, card: PciAddress, on: bool) -> Result<(), ControlError> {
        self.call("set MIG mode").set_mig_mode(card, on)
    }
    fn gpu_instances(&self, card: PciAddress) -> Result<Vec<GpuInstanceSeen>, ControlError> {
        self.fake().gpu_instances(card)
    }
    fn create_gpu_instance(&self, card: PciAddress, profile: u32, start: i32) -> Result<(), ControlError> {
        self.call("create a GPU instance").create_gpu_instance(card, profile, start)
    }
    fn create_compute_instance(&self, card: PciAddress, gpu_instance: u32) -> Result<(), ControlError> {
        self.call("create a compute instance").create_compute_instance(card, gpu_instance)
    }
    fn destroy_gpu_instance(&self, card: PciAddress, gpu_instance: u32) -> Result<(), ControlError> {
        self.call("destroy a GPU instance").destroy_gpu_instance(card, gpu_instance)
    }
    fn mixed_size(&self, card: PciAddress) -> Result<Option<bool>, ControlError> {
        self.fake().mixed_size(card)
    }
    fn set_mixed_size(&self, card: PciAddress, on: bool) -> Result<(), ControlError> {
        self.call("set sizes side by side").set_mixed_size(card, on)
    }
    fn scheduler(&self, card: PciAddress) -> Result<Option<VgpuScheduler>, ControlError> {
        self.fake().scheduler(card)
    }
    fn set_scheduler(&self, card: PciAddress, scheduler: VgpuScheduler) -> Result<(), ControlError> {
        self.call("set the scheduler").set_scheduler(card, scheduler)
    }
    fn set_instance_scheduler(
        &self,
        card: PciAddress,
        gpu_instance: u32,
        scheduler: VgpuScheduler,
    ) -> Result<(), ControlError> {
        self.call("set the scheduler of a GPU instance").set_instance_scheduler(card, gpu_instance, scheduler)
    }
    fn persistence(&self, card: PciAddress) -> Result<Option<bool>, ControlError> {
        self.fake().persistence(card)
    }
    fn set_persistence(&self, card: PciAddress, on: bool) -> Result<(), ControlError> {
        self.call("set persistence mode").set_persistence(card, on)
    }
    fn power(&self, card: PciAddress) -> Result<Option<PowerSeen>, ControlError> {
        self.fake().power(card)
    }
    fn set_power(&self, card: PciAddress, milliwatts: u32) -> Result<(), ControlError> {
        self.call("set the power limit").set_power(card, milliwatts)
    }
    fn lock_clocks(&self, card: PciAddress, range: Option<(u32, u32)>) -> Result<(), ControlError> {
        self.call("lock clocks").lock_clocks(card, range)
    }
    fn let_go(&self, card: PciAddress) -> Result<Box<dyn Send>, ControlError> {
        self.fake().let_go(card)
    }
}
