//! Services beside NVIDIA's driver: the vGPU manager and the fabric manager, of the host or in a container.
//!
//! A service of systemd shows by its control group. One in a container has none of that name: its process
//! tells, where the processes of the host are seen, or what it keeps below `/run`. The GPU operator puts
//! its driver container's root at `/run/nvidia/driver`, and says below `/run/nvidia/validations` what is
//! ready.

use crate::{topology::KernelState, tree::Tree};

/// Where systemd's services are.
const SLICES: [&str; 2] = ["sys/fs/cgroup/system.slice", "sys/fs/cgroup/systemd/system.slice"];
/// Control groups of containers have one of these in their names.
const CONTAINERS: [&str; 5] = ["kubepods", "docker", "containerd", "libpod", "crio"];

/// A service, and by what it is known.
struct Service {
    unit: &'static str,
    program: &'static str,
    /// A folder in which it keeps its socket or process number, below `run` of the host or of the driver's
    /// container.
    folder: &'static str,
    /// What the GPU operator writes when it is ready.
    ready: &'static [&'static str],
}

const FABRIC_MANAGER: Service = Service {
    unit: "nvidia-fabricmanager",
    program: "nv-fabricmanager",
    folder: "nvidia-fabricmanager",
    ready: &[],
};

const VGPU_MANAGER: Service = Service {
    unit: "nvidia-vgpu-mgr",
    program: "nvidia-vgpu-mgr",
    folder: "nvidia-vgpu-mgr",
    ready: &["vgpu-manager-ready", "host-vgpu-manager-ready"],
};

pub(super) fn read(tree: &Tree, state: &mut KernelState) {
    let container = ["run/nvidia/driver/usr", "run/nvidia/validations/.driver-ctr-ready"];
    state.driver_in_container = container.iter().any(|path| tree.exists(path));
    state.fabric_manager = runs(tree, &FABRIC_MANAGER, &mut state.driver_in_container);
    state.vgpu_manager_service = runs(tree, &VGPU_MANAGER, &mut state.driver_in_container);
}

/// Whether a service runs; `None` where nothing that was read could tell.
fn runs(tree: &Tree, service: &Service, in_container: &mut bool) -> Option<bool> {
    let slice = SLICES.iter().find(|slice| tree.exists(slice));
    if slice.is_some_and(|slice| tree.exists(&format!("{slice}/{}.service", service.unit))) {
        return Some(true);
    }
    // To look at every process is dear, and without the driver neither service has anything to do.
    let is_driven = ["sys/module/nvidia", "proc/driver/nvidia"].iter().any(|path| tree.exists(path));
    let process = if is_driven { tree.process(service.program) } else { None };
    if let Some(pid) = process {
        let group = tree.text(&format!("proc/{pid}/cgroup")).unwrap_or_default();
        *in_container |= CONTAINERS.iter().any(|name| group.contains(name));
        return Some(true);
    }
    let sees_all = tree.sees_processes();
    let keeps = |path: String| {
        if tree.dir(&path).is_some() { !tree.names(&path, |_| true).is_empty() } else { tree.exists(&path) }
    };
    let mut kept =
        ["run", "var/run", "run/nvidia/driver/run"].iter().map(|run| format!("{run}/{}", service.folder));
    let mut ready = service.ready.iter().map(|file| format!("run/nvidia/validations/{file}"));
    // Files outlive a service that was killed: where processes are seen they decide.
    if !(sees_all && is_driven) && (kept.any(keeps) || ready.any(keeps)) {
        return Some(true);
    }
    // In a process namespace of its own the daemon sees no process of the host.
    let sees_own = !sees_all && tree.exists("proc/1/comm");
    if sees_own { None } else { slice.map(|_| false).or((sees_all && is_driven).then_some(false)) }
}
