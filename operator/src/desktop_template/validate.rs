//! Whether desktops can be made from a template: nothing it asks for is silently left out.

use gpudesk_crds::{
    DesktopTemplateSpec,
    desktop_template::{Lifecycle, Machine},
    desktop_template_devices::{Consoles, Disk, Network},
};

/// The fields that ask for what this version does not do, as paths.
pub fn unsupported(spec: &DesktopTemplateSpec) -> Vec<String> {
    let DesktopTemplateSpec {
        cpu: _,
        memory: _,
        gpus: _,
        numa: _,
        machine,
        disks,
        filesystems,
        networks,
        consoles,
        cloud_init: _,
        guest_agent: _,
        lifecycle,
        affinity: _,
        allow_overrides: _,
    } = spec;
    let Machine { machine_type: _, firmware: _, direct_kernel: _, tpm, hyperv: _ } = machine;
    let Lifecycle {
        release_gpu_on_stop,
        restart_policy: _,
        shutdown_grace_seconds: _,
        maximum_session_minutes,
        idle_stop_minutes,
    } = lifecycle;
    let Consoles { vnc, spice, on_gpu } = consoles;
    let password = vnc.as_ref().is_some_and(|vnc| vnc.password_secret_ref.is_some());
    let mut fields: Vec<String> = [
        (*tpm, "spec.machine.tpm"),
        (!filesystems.is_empty(), "spec.filesystems"),
        (password, "spec.consoles.vnc.passwordSecretRef"),
        (spice.is_some(), "spec.consoles.spice"),
        (*on_gpu, "spec.consoles.onGpu"),
        (!*release_gpu_on_stop, "spec.lifecycle.releaseGpuOnStop: false"),
        (maximum_session_minutes.is_some(), "spec.lifecycle.maximumSessionMinutes"),
        (idle_stop_minutes.is_some(), "spec.lifecycle.idleStopMinutes"),
    ]
    .into_iter()
    .filter(|(asked, _)| *asked)
    .map(|(_, field)| field.to_owned())
    .collect();
    fields.extend(disks.iter().flat_map(of_disk));
    fields.extend(networks.iter().flat_map(of_network));
    fields
}

fn of_disk(disk: &Disk) -> impl Iterator<Item = String> + use<> {
    let Disk { name, bus: _, image, blank: _, host_file: _, nfs, scratch: _, nvme: _ } = disk;
    let url = image.as_ref().is_some_and(|image| image.url.is_some());
    let asked = [(url, "image.url"), (nfs.is_some(), "nfs")];
    let name = name.clone();
    asked.into_iter().filter(|(asked, _)| *asked).map(move |(_, field)| format!("spec.disks[{name}].{field}"))
}

fn of_network(network: &Network) -> impl Iterator<Item = String> + use<> {
    let Network { name, user: _, bridge: _, libvirt_network: _, ovs, sriov: _ } = network;
    let asked = [(ovs.is_some(), "ovs")];
    let name = name.clone();
    asked
        .into_iter()
        .filter(|(asked, _)| *asked)
        .map(move |(_, field)| format!("spec.networks[{name}].{field}"))
}

/// Whether desktops of the template leave something on their node that their next start needs.
pub fn keeps_disks(spec: &DesktopTemplateSpec) -> bool {
    spec.disks.iter().any(|disk| disk.image.is_some() || disk.blank.is_some())
}
