use gpudesk_inventory::simulated::HostFile;

use super::*;
use crate::{
    desktop::{
        fixtures::{UID, desktop, template},
        materials,
    },
    host::{folder::DesktopFolders, gpu_driver::InstanceKey, images::ImageStore, paths::AllowedRoots},
};

const PINNED: &str = "{cores: 2, threadsPerCore: 2, memoryMiB: 4096, pageSize: 1Gi, numaCells: [1], numaStrict: true, \
    emulatorCpus: '8,24', vcpuPins: [{vcpu: 0, cpus: '9'}, {vcpu: 1, cpus: '25'}, {vcpu: 2, cpus: '10'}, {vcpu: 3, cpus: '26'}]}";

fn cards(model: &str) -> Vec<Device> {
    let file = format!("{{coresPerSocket: 4, memoryMiB: 8192, cards: [{{model: {model}, count: 1}}]}}");
    HostFile::parse(&file).unwrap().host("n").unwrap().facts.cards
}

/// The XML of a desktop, or why there is none.
fn xml(spec: &str, compute: &str, gpus: &str, model: &str, kind: Kind) -> Result<String, Problem> {
    let (desktop, template, cards) = (desktop("", compute, gpus), template(spec), cards(model));
    let owner = Owner { namespace: "school".into(), name: "anna".into(), uid: UID.parse().unwrap() };
    let allocation = desktop.status.as_ref().unwrap().allocation.as_ref().unwrap();
    let instances: Vec<GpuInstance> = allocation
        .gpus
        .iter()
        .map(|gpu| GpuInstance {
            key: InstanceKey { desktop_uid: UID.into(), request: gpu.name.clone() },
            owner: "school/anna".into(),
            card: gpu.device,
            mode: gpu.mode,
            type_name: gpu.type_name.clone(),
            vgpu_type: None,
            start: None,
            mig_uuid: None,
            gpu_instance: None,
            bar_mib: None,
            handle: match gpu.mode {
                ShareMode::Passthrough => Handle::Function(gpu.device),
                _ => Handle::Mdev("c0ffee00-0000-4000-8000-000000000001".into()),
            },
            companions: match (gpu.mode, &cards[0].iommu_group) {
                (ShareMode::Passthrough, Some(group)) => {
                    group.members.iter().map(|member| member.pci_address).collect()
                }
                _ => vec![],
            },
            pending: false,
        })
        .collect();
    let images = ImageStore::pretended("n", vec![]);
    let folder = DesktopFolders::new(std::path::Path::new("/state")).of(owner.uid);
    let roots = AllowedRoots::new(vec!["/srv".into()]);
    let materials = Materials::find(&desktop, &template, &images, &roots, folder.files())?;
    let spec = domain(&Parts {
        owner: &owner,
        allocation,
        compute: allocation.compute.as_ref().unwrap(),
        template: &template,
        cpu: materials::cpu(&desktop, &template.spec),
        materials: &materials,
        folder: &folder,
        instances: &instances,
        cards: &cards,
        host_devices: &[],
        kind,
        process: (kind != Kind::Test).then_some(QemuProcess { user: 64055, group: 2_113_000_001 }),
    })?;
    Ok(spec.render()?)
}

fn has(xml: &str, parts: &[&str]) {
    for part in parts {
        assert!(xml.contains(part), "{part} is missing in {xml}");
    }
}

#[test]
fn cpus_memory_and_places_come_from_the_allocation() {
    // The template, edited meanwhile, asks for more.
    let spec = "{cpu: {cores: 64}, memory: {sizeMiB: 999424}, disks: [{name: system, image: {name: win}}]}";
    let xml = xml(spec, PINNED, "[]", "T4", Kind::Kvm).unwrap();
    has(
        &xml,
        &[
            "<vcpu placement=\"static\">4</vcpu>",
            "<vcpupin vcpu=\"3\" cpuset=\"26\"/>",
            "<emulatorpin cpuset=\"8,24\"/>",
            "<iothreadpin iothread=\"1\" cpuset=\"8,24\"/>",
            "<memory unit=\"MiB\">4096</memory>",
            "<page size=\"1024\" unit=\"MiB\"/>",
            "<memory mode=\"strict\" nodeset=\"1\"/>",
            "cores=\"2\" threads=\"2\"",
        ],
    );
    assert!(!xml.contains("999424"));
}

#[test]
fn disks_stand_in_boot_order_with_the_seed_on_the_bus_of_the_first() {
    let spec = "{memory: {sizeMiB: 64}, cloudInit: {inline: {userData: x}}, disks: [\
        {name: system, bus: Sata, image: {name: win}}, {name: data, blank: {sizeGiB: 1}}, \
        {name: tmp, scratch: {sizeGiB: 1}}, {name: old, hostFile: {path: /srv/old.img, readOnly: true}}]}";
    let xml = xml(spec, "{cores: 1, threadsPerCore: 1, memoryMiB: 64}", "[]", "T4", Kind::Qemu).unwrap();
    let folder = format!("/state/desktops/{UID}");
    has(
        &xml,
        &[
            &format!("{folder}/disk-system.qcow2"),
            &format!("{folder}/disk-data.qcow2"),
            &format!("{folder}/scratch-tmp.qcow2"),
            "<source file=\"/srv/old.img\">",
            &format!("{folder}/seed.img"),
            "<boot order=\"1\"/>",
            &format!("{folder}/serial.log"),
            "<serial>system</serial>",
        ],
    );
    let disk = |path: &str| {
        let rest = &xml[xml.find(path).unwrap()..];
        let lines = rest[..rest.find("<target").unwrap()].lines().skip(1).map(str::trim);
        lines.collect::<Vec<_>>().join("")
    };
    // Each chain is written down to its end; what is not the desktop's own is not given away.
    let kept = "<seclabel model=\"dac\" relabel=\"no\"/></source>";
    let golden = format!(
        "<backingStore type=\"file\"><format type=\"qcow2\"/><source file=\"/simulated/images/win.qcow2\">{kept}\
         <backingStore/></backingStore>"
    );
    assert_eq!(disk("disk-system.qcow2"), golden);
    assert_eq!(disk("disk-data.qcow2"), "<backingStore/>");
    assert_eq!(disk("scratch-tmp.qcow2"), "<backingStore/>");
    assert_eq!(disk("/srv/old.img"), format!("{kept}<backingStore/>"));
    assert_eq!(disk("seed.img"), "<backingStore/>");
    let seed = &xml[xml.find("seed.img").unwrap()..];
    assert!(seed[..seed.find("</disk>").unwrap()].contains("bus=\"sata\""), "{seed}");
    assert!(seed[..seed.find("</disk>").unwrap()].contains("<readonly/>"), "{seed}");
}

#[test]
fn a_vgpu_is_a_mediated_device_and_a_whole_card_comes_with_its_group() {
    let spec = "{memory: {sizeMiB: 64}, disks: [{name: system, image: {name: win}}]}";
    let small = "{cores: 1, threadsPerCore: 1, memoryMiB: 64}";
    let gpu = |mode: &str| {
        format!(
            "[{{name: g, device: '0000:08:00.0', product: p, mode: {mode}, type: x, framebufferMiB: 1, profile: x}}]"
        )
    };
    let mdev = xml(spec, small, &gpu("Vgpu"), "T4", Kind::Test).unwrap();
    has(&mdev, &["type=\"mdev\"", "c0ffee00-0000-4000-8000-000000000001"]);
    let whole = xml(spec, small, &gpu("Passthrough"), "GeForce RTX 4090", Kind::Kvm).unwrap();
    assert_eq!(whole.matches("type=\"pci\" managed=\"no\"").count(), 2, "{whole}");
    has(
        &whole,
        &["bus=\"0x08\" slot=\"0x00\" function=\"0x0\"", "bus=\"0x08\" slot=\"0x00\" function=\"0x1\""],
    );
    // 32 GiB and a bit of regions: twice that, as a power of two.
    has(&whole, &["X-PciMmio64Mb,string=131072"]);
}

#[test]
fn a_microvm_boots_its_kernel_and_takes_no_gpu() {
    let spec = "{memory: {sizeMiB: 64}, guestAgent: false, machine: {type: microvm, firmware: DirectKernel, \
        directKernel: {kernel: vmlinuz, commandLine: 'console=ttyS0'}}}";
    let small = "{cores: 1, threadsPerCore: 1, memoryMiB: 64}";
    let microvm = xml(spec, small, "[]", "T4", Kind::Qemu).unwrap();
    has(
        &microvm,
        &[
            "machine=\"microvm\"",
            &format!("<kernel>/state/desktops/{UID}/kernel</kernel>"),
            "<cmdline>console=ttyS0</cmdline>",
        ],
    );
    let gpu = "[{name: g, device: '0000:08:00.0', product: p, mode: Passthrough, type: x, framebufferMiB: 1, profile: x}]";
    assert!(matches!(xml(spec, small, gpu, "T4", Kind::Qemu), Err(Problem::Invalid(_))));
}

const ON_TWO_CELLS: &str = "{cores: 4, threadsPerCore: 1, memoryMiB: 6144, numaCells: [0, 1], guestCells: \
    [{id: 1, hostCell: 1, vcpus: 2-3, memoryMiB: 2048}, {id: 0, hostCell: 0, vcpus: 0-1, memoryMiB: 4096}]}";

#[test]
fn a_guest_sees_the_cells_of_its_allocation_and_its_card_on_one_of_them() {
    let spec = "{memory: {sizeMiB: 64}, disks: [{name: system, image: {name: win}}]}";
    let gpu = "[{name: g, device: '0000:08:00.0', product: p, mode: Passthrough, type: x, framebufferMiB: 1, profile: x}]";
    let two = xml(spec, ON_TWO_CELLS, gpu, "GeForce RTX 4090", Kind::Kvm).unwrap();
    has(
        &two,
        &[
            "<memory unit=\"MiB\">6144</memory>",
            "<cell id=\"0\" cpus=\"0-1\" memory=\"4096\" unit=\"MiB\"/>",
            "<cell id=\"1\" cpus=\"2-3\" memory=\"2048\" unit=\"MiB\"/>",
            "<memnode cellid=\"1\" mode=\"preferred\" nodeset=\"1\"/>",
            "model=\"pcie-expander-bus\"",
            "<node>0</node>",
        ],
    );
    // The card and its sound, below the one bus.
    assert_eq!(two.matches("pcie-expander-bus").count(), 1);
    let strict = ON_TWO_CELLS.replace("numaCells", "numaStrict: true, numaCells");
    has(
        &xml(spec, &strict, gpu, "GeForce RTX 4090", Kind::Kvm).unwrap(),
        &["<memnode cellid=\"0\" mode=\"strict\" nodeset=\"0\"/>"],
    );
    let elsewhere = ON_TWO_CELLS.replace("hostCell: 0", "hostCell: 2");
    let elsewhere = xml(spec, &elsewhere, gpu, "GeForce RTX 4090", Kind::Kvm).unwrap();
    assert!(!elsewhere.contains("pcie-expander-bus"), "its card is of none of its cells: {elsewhere}");
    let microvm = "{memory: {sizeMiB: 64}, machine: {type: microvm, firmware: DirectKernel, directKernel: {kernel: k}}}";
    let microvm = xml(microvm, &strict, "[]", "T4", Kind::Kvm).unwrap();
    has(&microvm, &["<memory mode=\"strict\" nodeset=\"0-1\"/>"]);
    assert!(!microvm.contains("<numa>"), "{microvm}");
}

#[test]
fn cells_that_do_not_agree_with_the_rest_are_refused() {
    let spec = "{memory: {sizeMiB: 64}, disks: [{name: system, image: {name: win}}]}";
    for (from, to, says) in [
        ("id: 1", "id: 2", "ids [0, 2]"),
        ("memoryMiB: 6144", "memoryMiB: 6145", "hold 6144 MiB; memoryMiB is 6145"),
        ("vcpus: 2-3", "vcpus: '2'", "each of the 4 vCPUs exactly once"),
        ("vcpus: 2-3", "vcpus: ''", "guestCells[].vcpus is empty"),
        ("hostCell: 1", "hostCell: -1", "guestCells[].hostCell is -1"),
    ] {
        let compute = ON_TWO_CELLS.replace(from, to);
        let error = xml(spec, &compute, "[]", "T4", Kind::Kvm).unwrap_err().to_string();
        assert!(error.contains(says), "{error} / {says}");
    }
}

#[test]
fn how_it_was_decided_stays_out_of_what_the_domain_carries() {
    let (desktop, template) = (desktop("", PINNED, "[]"), template("{memory: {sizeMiB: 64}}"));
    let held = desktop.status.unwrap().allocation.unwrap();
    let decision = gpudesk_crds::DecisionRecord { nodes: 5, ..Default::default() };
    let decided = Allocation { decision: Some(decision), ..held.clone() };
    let carried = |allocation: &Allocation| {
        let parts = Parts {
            owner: &Owner { namespace: "school".into(), name: "anna".into(), uid: UID.parse().unwrap() },
            allocation,
            compute: allocation.compute.as_ref().unwrap(),
            template: &template,
            cpu: &template.spec.cpu,
            materials: &Materials { disks: vec![], kernel: None, cloud_init: None, has_seed: false },
            folder: &DesktopFolders::new(std::path::Path::new("/state")).of(UID.parse().unwrap()),
            instances: &[],
            cards: &[],
            host_devices: &[],
            kind: Kind::Test,
            process: None,
        };
        metadata(&parts).unwrap().allocation
    };
    assert_eq!(carried(&decided), carried(&held));
    assert_eq!(serde_json::from_str::<Allocation>(&carried(&decided)).unwrap(), held);
}

#[test]
fn a_drive_and_a_network_function_are_given_beside_the_rest() {
    let spec = template(
        "{memory: {sizeMiB: 64}, disks: [{name: system, image: {name: win}}, {name: data, nvme: {minimumSizeGiB: 1}}], \
         networks: [{name: out, user: {}}, {name: lan, sriov: {physicalNetwork: campus, vlan: 7}}, {name: far, user: {}}]}",
    );
    let mut desktop = desktop("", PINNED, "[]");
    let allocation = desktop.status.as_mut().unwrap().allocation.as_mut().unwrap();
    let devices = "[{name: lan, kind: NetworkFunction, device: '0000:81:01.0', parent: '0000:81:00.0'}, \
        {name: data, kind: NvmeDrive, device: '0000:64:00.0'}]";
    allocation.host_devices = serde_yaml::from_str(devices).unwrap();
    let allocation = allocation.clone();
    let images = ImageStore::pretended("n", vec![]);
    let folder = DesktopFolders::new(std::path::Path::new("/state")).of(UID.parse().unwrap());
    let materials =
        Materials::find(&desktop, &spec, &images, &AllowedRoots::new(vec![]), folder.files()).unwrap();
    assert_eq!(materials.disks.len(), 1, "a drive is made from no file");
    let instance = |device: &gpudesk_crds::HostDeviceAllocation, pending| GpuInstance {
        key: InstanceKey { desktop_uid: UID.into(), request: crate::desktop::conflict::request(device) },
        owner: "school/anna".into(),
        card: device.device,
        mode: ShareMode::Passthrough,
        type_name: "Passthrough".into(),
        bar_mib: None,
        vgpu_type: None,
        start: None,
        mig_uuid: None,
        gpu_instance: None,
        handle: Handle::Function(device.device),
        companions: vec![],
        pending,
    };
    let made = |pending: bool| {
        let instances: Vec<_> = allocation.host_devices.iter().map(|one| instance(one, pending)).collect();
        let parts = Parts {
            owner: &Owner { namespace: "school".into(), name: "anna".into(), uid: UID.parse().unwrap() },
            allocation: &allocation,
            compute: allocation.compute.as_ref().unwrap(),
            template: &spec,
            cpu: &spec.spec.cpu,
            materials: &materials,
            folder: &folder,
            instances: &instances,
            cards: &[],
            host_devices: &[],
            kind: Kind::Test,
            process: None,
        };
        domain(&parts).map(|spec| spec.render().unwrap())
    };
    assert!(made(true).unwrap_err().to_string().contains("(network:lan) is not made"));
    let xml = made(false).unwrap();
    assert_eq!(xml.matches("<hostdev").count(), 2, "{xml}");
    assert!(xml.contains(r#"bus="0x81" slot="0x01""#) && xml.contains(r#"bus="0x64" slot="0x00""#), "{xml}");
    assert_eq!(xml.matches("<interface").count(), 2, "{xml}");
    let uid: Uuid = UID.parse().unwrap();
    let address = |index| crate::domain::MacAddress::of_desktop(uid, index).to_string();
    assert!(xml.contains(&address(0)) && !xml.contains(&address(1)) && xml.contains(&address(2)), "{xml}");
}

#[test]
fn what_this_version_does_not_do_is_refused_and_named() {
    let spec =
        "{memory: {sizeMiB: 64}, machine: {tpm: true}, disks: [{name: d, nfs: {server: s, path: /x}}]}";
    let error = xml(spec, "{cores: 1, threadsPerCore: 1, memoryMiB: 64}", "[]", "T4", Kind::Kvm).unwrap_err();
    assert_eq!(error.to_string(), "not yet supported: machine.tpm, disks[].nfs");
}
