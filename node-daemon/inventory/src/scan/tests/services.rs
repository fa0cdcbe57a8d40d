//! Services of the host and in containers.

use super::*;

fn state(change: impl FnOnce(&Path)) -> (Option<bool>, Option<bool>, bool) {
    let host = host();
    write(host.path(), "sys/module/nvidia/version", "570.133.20\n");
    fs::create_dir_all(host.path().join("sys/fs/cgroup/system.slice")).unwrap();
    change(host.path());
    let state = scanner(host.path()).read().kernel_state;
    (state.vgpu_manager_service, state.fabric_manager, state.driver_in_container)
}

fn process(root: &Path, pid: u32, comm: &str, group: &str) {
    write(root, &format!("proc/{pid}/comm"), &format!("{comm}\n"));
    write(root, &format!("proc/{pid}/cgroup"), &format!("0::{group}\n"));
}

#[test]
fn a_service_of_systemd_shows_by_its_control_group() {
    assert_eq!(state(|_| ()), (Some(false), Some(false), false));
    let folder = "sys/fs/cgroup/system.slice/nvidia-vgpu-mgr.service/cgroup.procs";
    assert_eq!(state(|root| write(root, folder, "")).0, Some(true));
}

#[test]
fn a_service_in_a_container_shows_by_its_process() {
    let found = state(|root| {
        process(root, 2, "kthreadd", "/");
        process(
            root,
            900,
            "nvidia-vgpu-mgr",
            "/kubepods.slice/kubepods-burstable.slice/cri-containerd-1.scope",
        );
        // The kernel keeps fifteen characters of a name.
        process(root, 901, "nv-fabricmanage", "/kubepods.slice/x");
    });
    assert_eq!(found, (Some(true), Some(true), true));
}

#[test]
fn what_a_service_in_a_container_keeps_tells_where_processes_do_not() {
    let found = state(|root| {
        write(root, "run/nvidia/driver/usr/bin/nvidia-smi", "");
        write(root, "run/nvidia/driver/run/nvidia-fabricmanager/socket", "");
        write(root, "run/nvidia/validations/vgpu-manager-ready", "");
    });
    assert_eq!(found, (Some(true), Some(true), true));
    let left = state(|root| {
        process(root, 2, "kthreadd", "/");
        write(root, "run/nvidia-fabricmanager/nv-fabricmanager.pid", "900\n");
    });
    assert_eq!(left.1, Some(false), "a file outlives its service");
}

#[test]
fn a_daemon_that_sees_only_its_own_processes_does_not_say_that_nothing_runs() {
    assert_eq!(state(|root| process(root, 1, "gpudesk-node-da", "/")), (None, None, false));
}
