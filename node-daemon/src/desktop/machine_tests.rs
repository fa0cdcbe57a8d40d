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
        .filter(|gpu| gpu.mode != ShareMode::Passthrough)
        .map(|gpu| GpuInstance {
            key: InstanceKey { desktop_uid: UID.into(), request: gpu.name.clone() },
            owner: "school/anna".into(),
            card: gpu.device,
            mode: gpu.mode,
            type_name: gpu.type_name.clone(),
            vgpu_type: None,
            start: None,
            mig_uuid: None,
            handle: Handle::Mdev("c0ffee00-0000-4000-8000-000000000001".into()),
        })
        .collect();
    let images = ImageStore::pretended("n", vec![]);
    let materials = Materials::find(&desktop, &template, &images, &AllowedRoots::new(vec!["/srv".into()]))?;
    let spec = domain(&Parts {
        owner: &owner,
        allocation,
        compute: allocation.compute.as_ref().unwrap(),
        template: &template,
        cpu: materials::cpu(&desktop, &template.spec),
        materials: &materials,
        folder: &DesktopFolders::new(std::path::Path::new("/state")).of(owner.uid),
        instances: &instances,
        cards: &cards,
        kind,
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
            "<source file=\"/srv/old.img\"/>",
            &format!("{folder}/seed.img"),
            "<boot order=\"1\"/>",
            &format!("{folder}/serial.log"),
            "<serial>system</serial>",
        ],
    );
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
            "<kernel>/simulated/images/vmlinuz</kernel>",
            "<cmdline>console=ttyS0</cmdline>",
        ],
    );
    let gpu = "[{name: g, device: '0000:08:00.0', product: p, mode: Passthrough, type: x, framebufferMiB: 1, profile: x}]";
    assert!(matches!(xml(spec, small, gpu, "T4", Kind::Qemu), Err(Problem::Invalid(_))));
}

#[test]
fn what_this_version_does_not_do_is_refused_and_named() {
    let spec =
        "{memory: {sizeMiB: 64}, machine: {tpm: true}, disks: [{name: d, nfs: {server: s, path: /x}}]}";
    let error = xml(spec, "{cores: 1, threadsPerCore: 1, memoryMiB: 64}", "[]", "T4", Kind::Kvm).unwrap_err();
    assert_eq!(error.to_string(), "not yet supported: machine.tpm, disks[].nfs");
}
