//! Settings of a rule, from the rule to the functions of the library: what the daemon plans, and what the library refuses.

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use gpudesk_crds::{
    GpuNodeSpec,
    gpu_node::VgpuScheduler,
    gpu_node_drives::DriveErase,
    gpu_node_status::Device,
    types::{PciAddress, ShareMode},
};
use gpudesk_inventory::{scan::DriveNow, topology::HostFacts};
use gpudesk_node_daemon::{
    devices::{
        Devices, Kernel,
        control::{ControlError, DriverControl},
        network::{NetworkNow, VfSettings},
    },
    host::{
        gpu_driver::{GpuDriver, InstanceKey, Setup, WantedInstance, What},
        nvml::{Nvml, SharedNvml},
        nvml_control::NvmlControl,
    },
    partition::Share,
};

use crate::library;

const CARD: &str = "0000:41:00.0";
const FUNCTION: &str = "0000:41:00.4";
const L40S: &str = "model: L40S, address: '0000:41:00.0'";
const RULE: &str = "persistenceMode: true, vgpuScheduler: FixedShare, powerLimitWatts: 250, \
                    lockClocksMHz: {min: 600, max: 1500}";

/// A card with one virtual function, on which a type can be written and 0.
struct Files {
    files: Mutex<BTreeMap<String, String>>,
    links: BTreeMap<String, String>,
}

impl Files {
    fn new() -> Self {
        let function = |address: &str| {
            [
                ("vendor", "0x10de"),
                ("device", "0x26b9"),
                ("class", "0x030200"),
                ("driver_override", "(null)"),
                ("reset_method", "flr"),
            ]
            .map(|(file, text)| (format!("sys/bus/pci/devices/{address}/{file}"), text.to_owned()))
        };
        let of = |address: &str, file: &str| format!("sys/bus/pci/devices/{address}/{file}");
        let mut files = BTreeMap::from([
            ("proc/sys/kernel/random/boot_id".to_owned(), "boot".to_owned()),
            (of(CARD, "sriov_totalvfs"), "1".into()),
            (of(FUNCTION, "nvidia/current_vgpu_type"), "0".into()),
            (of(FUNCTION, "nvidia/creatable_vgpu_types"), "ID    : vGPU Name\n1153  : NVIDIA L40S-8Q".into()),
            (format!("sys/kernel/iommu_groups/42/devices/{FUNCTION}"), String::new()),
        ]);
        files.extend([CARD, FUNCTION].into_iter().flat_map(function));
        let links = BTreeMap::from([
            (of(CARD, "driver"), "../nvidia".to_owned()),
            (of(FUNCTION, "driver"), "../nvidia".into()),
            (of(CARD, "iommu_group"), "../41".into()),
            (of(FUNCTION, "iommu_group"), "../42".into()),
            (of(CARD, "virtfn0"), format!("../{FUNCTION}")),
        ]);
        Self { files: Mutex::new(files), links }
    }

    /// The type on the function.
    fn vgpu(&self) -> String {
        let path = format!("sys/bus/pci/devices/{FUNCTION}/nvidia/current_vgpu_type");
        self.files.lock().unwrap()[&path].clone()
    }
}

impl Kernel for Files {
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let files = self.files.lock().unwrap();
        files.get(path).map(|text| text.clone().into_bytes()).ok_or(io::ErrorKind::NotFound.into())
    }
    fn write(&self, path: &str, value: &str) -> io::Result<()> {
        let mut files = self.files.lock().unwrap();
        *files.get_mut(path).ok_or(io::ErrorKind::NotFound)? = value.into();
        Ok(())
    }
    fn link(&self, path: &str) -> io::Result<String> {
        self.links.get(path).cloned().ok_or(io::ErrorKind::NotFound.into())
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let files = self.files.lock().unwrap();
        let inside =
            |name: &String| Some(name.strip_prefix(path)?.strip_prefix('/')?.split('/').next()?.to_owned());
        let mut names: Vec<String> = files.keys().chain(self.links.keys()).filter_map(inside).collect();
        names.dedup();
        if names.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(names) }
    }
    fn open_devices(&self) -> io::Result<BTreeMap<String, u32>> {
        Ok(BTreeMap::new())
    }
    fn peek(&self, _: &str) -> io::Result<u32> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn drive(&self, _: PciAddress) -> io::Result<DriveNow> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn erase(&self, _: PciAddress, _: DriveErase) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn network(&self, _: PciAddress) -> io::Result<Option<Result<NetworkNow, String>>> {
        Ok(None)
    }
    fn set_network(&self, _: PciAddress, _: &VfSettings) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn no_network_functions(&self) -> Option<String> {
        None
    }
    fn unable(&self) -> Option<String> {
        None
    }
}

/// A host with that card, and a copy of the library with a world of its own.
struct Host {
    folder: tempfile::TempDir,
    kernel: Arc<Files>,
    control: Arc<NvmlControl>,
}

impl Host {
    fn new(world: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libnvidia-ml.so.1");
        fs::copy(library(), &path).unwrap();
        fs::write(world_of(&path), world).unwrap();
        let nvml = SharedNvml::default();
        nvml.set(Nvml::open(Some(&path)).unwrap());
        Self { folder, kernel: Arc::new(Files::new()), control: Arc::new(NvmlControl::new(nvml)) }
    }

    /// Calls that changed something, without the name of the card, and how each ended.
    fn calls(&self) -> Vec<String> {
        let file = self.folder.path().join("calls");
        let calls = fs::read_to_string(&file).unwrap_or_default();
        let _ = fs::remove_file(file);
        calls.lines().map(|line| line.replace(&format!(" {CARD}"), "")).collect()
    }

    /// A daemon that was told of the card and of a rule for it.
    fn daemon(&self, rule: &str) -> Devices {
        let devices = Devices::open(
            Arc::<Files>::clone(&self.kernel),
            Arc::<NvmlControl>::clone(&self.control),
            self.folder.path(),
        );
        let cards = vec![Device::new(CARD.parse().unwrap(), "10de", "26b9")];
        devices.complete(&mut HostFacts { cards, ..HostFacts::default() });
        let spec = format!("devices: [{{name: a, selector: {{pciAddress: '{CARD}'}}, {rule}}}]");
        let spec: GpuNodeSpec = serde_yaml::from_str(&spec).unwrap();
        devices.settle(&spec);
        devices
    }

    /// Why no share is made under a rule; what was begun is taken back.
    fn refused(&self, rule: &str) -> String {
        let devices = self.daemon(rule);
        let why = devices.create(&wanted()).unwrap_err().to_string();
        assert_eq!((self.kernel.vgpu().as_str(), devices.instances().unwrap().len()), ("0", 0), "{why}");
        why
    }
}

fn world_of(library: &std::path::Path) -> PathBuf {
    let mut name = library.as_os_str().to_owned();
    name.push(".yaml");
    name.into()
}

fn wanted() -> WantedInstance {
    WantedInstance {
        key: InstanceKey { desktop_uid: "7f1c2a58-3c1e-4f0e-9a53-0d4f6f5b9a01".into(), request: "a".into() },
        owner: "school/anna".into(),
        allocation: None,
        card: CARD.parse().unwrap(),
        share: Share { mode: ShareMode::Vgpu, type_name: "L40S-8Q".into(), vgpu_type: None, start: None },
        setup: Setup::default(),
        partition: None,
        what: What::Card,
    }
}

#[test]
fn settings_of_a_rule_are_set_by_the_library_and_put_back() {
    let host = Host::new(&format!("{{recorder: calls, cards: [{{{L40S}}}]}}"));
    let (card, control) = (CARD.parse().unwrap(), Arc::clone(&host.control));
    let is = || {
        let power = control.power(card).unwrap().unwrap();
        (control.persistence(card).unwrap(), control.scheduler(card).unwrap(), power.limit)
    };
    let before = is();
    assert_eq!(before, (Some(false), Some(VgpuScheduler::BestEffort), 450_000));
    let devices = host.daemon(RULE);
    devices.create(&wanted()).unwrap();
    assert_eq!(
        host.calls(),
        [
            "nvmlDeviceSetVgpuSchedulerState_v2 policy 3 = 0",
            "nvmlDeviceSetPersistenceMode 1 = 0",
            "nvmlDeviceSetPowerManagementLimit 250000 = 0",
            "nvmlDeviceSetGpuLockedClocks 600 1500 = 0",
        ]
    );
    assert_eq!(is(), (Some(true), Some(VgpuScheduler::FixedShare), 250_000));
    assert_eq!(host.kernel.vgpu(), "1153");
    // A daemon that starts again has nothing to set.
    let devices = host.daemon(RULE);
    devices.create(&wanted()).unwrap();
    assert!(host.calls().is_empty());
    devices.destroy(&wanted().key).unwrap();
    let mut back = host.calls();
    back.sort();
    assert_eq!(
        back,
        [
            "nvmlDeviceResetGpuLockedClocks = 0",
            "nvmlDeviceSetPersistenceMode 0 = 0",
            "nvmlDeviceSetPowerManagementLimit 450000 = 0",
            "nvmlDeviceSetVgpuSchedulerState_v2 policy 1 = 0",
        ]
    );
    assert_eq!((is(), host.kernel.vgpu().as_str()), (before, "0"));
}

#[test]
fn a_power_limit_out_of_range_is_refused_before_anything_is_done() {
    let host = Host::new(&format!("{{recorder: calls, cards: [{{{L40S}}}]}}"));
    let why = host.refused("powerLimitWatts: 900");
    assert!(why.contains("has powerLimitWatts 900, and the card takes 200 to 600"), "{why}");
    assert!(host.calls().is_empty());
    // And the library itself calls it an invalid argument.
    let refused = host.control.set_power(CARD.parse().unwrap(), 900_000).unwrap_err();
    assert!(matches!(&refused, ControlError::Refused(why) if why.contains("(return code 2)")), "{refused}");
    assert_eq!(host.calls(), ["nvmlDeviceSetPowerManagementLimit 900000 = 2"]);
}

#[test]
fn what_the_library_refuses_makes_no_share_and_is_told() {
    let world =
        |more: &str, of_card: &str| format!("{{recorder: calls, {more} cards: [{{{L40S}{of_card}}}]}}");
    let cannot =
        |function: &str| world(&format!("faults: [{{function: {function}, error: NOT_SUPPORTED}}],"), "");
    for (world, rule, what, code) in [
        // Who is not root may set nothing.
        (world("privileged: false,", ""), "persistenceMode: true", "nvmlDeviceSetPersistenceMode", 4),
        (world("privileged: false,", ""), "powerLimitWatts: 250", "nvmlDeviceSetPowerManagementLimit", 4),
        (
            world("privileged: false,", ""),
            "vgpuScheduler: EqualShare",
            "nvmlDeviceSetVgpuSchedulerState_v2",
            4,
        ),
        // A card without that feature.
        (
            cannot("nvmlDeviceSetGpuLockedClocks"),
            "lockClocksMHz: {min: 600, max: 1500}",
            "nvmlDeviceSetGpuLockedClocks",
            3,
        ),
        (
            cannot("nvmlDeviceSetPowerManagementLimit"),
            "powerLimitWatts: 250",
            "nvmlDeviceSetPowerManagementLimit",
            3,
        ),
        // Any vGPU keeps the scheduler as it is, also one that only the driver knows.
        (
            world("", ", vgpus: [{type: L40S-8Q}]"),
            "vgpuScheduler: EqualShare",
            "nvmlDeviceSetVgpuSchedulerState_v2",
            3,
        ),
        // Fixed shares need equal sizes.
        (
            world("", ", mixedSize: true"),
            "vgpuScheduler: FixedShare",
            "nvmlDeviceSetVgpuSchedulerState_v2",
            3,
        ),
    ] {
        let host = Host::new(&world);
        let why = host.refused(rule);
        assert!(why.contains(what) && why.contains(&format!("(return code {code})")), "{rule}: {why}");
        let failed = host.calls().into_iter().filter(|call| !call.ends_with("= 0")).count();
        assert!(failed <= 1, "{rule}: it is not tried again and again");
        let control = &host.control;
        let card = CARD.parse().unwrap();
        assert_eq!(control.persistence(card).unwrap(), Some(false), "{rule}");
        assert_eq!(control.power(card).unwrap().unwrap().limit, 450_000, "{rule}");
        assert_eq!(control.scheduler(card).unwrap(), Some(VgpuScheduler::BestEffort), "{rule}");
    }
}

#[test]
fn a_card_of_a_driver_that_lacks_a_setting_says_which() {
    let missing = "nvmlDeviceGetPowerManagementLimit, nvmlDeviceGetPersistenceMode, \
                   nvmlDeviceGetVgpuSchedulerState, nvmlDeviceGetVgpuSchedulerState_v2";
    let host = Host::new(&format!("{{missing: [{missing}], recorder: calls, cards: [{{{L40S}}}]}}"));
    for (rule, name) in [
        ("powerLimitWatts: 250", "powerLimitWatts"),
        ("persistenceMode: true", "persistenceMode or lockClocksMHz"),
        ("vgpuScheduler: EqualShare", "vgpuScheduler"),
    ] {
        let why = host.refused(rule);
        assert!(why.contains(name), "{rule}: {why}");
    }
    assert!(host.calls().is_empty());
}
