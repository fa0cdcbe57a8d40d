//! The files of the kernel for tests, as the daemon reads and writes them.

use std::{collections::BTreeMap, io};

use gpudesk_crds::{gpu_node_drives::DriveErase, types::PciAddress};
use gpudesk_inventory::scan::DriveNow;
use rustix::io::Errno;

use super::{
    fake_kernel::{FakeKernel, Fun, State, at, fail},
    kernel::Kernel,
    network::{NetworkNow, VfSettings},
};

fn function_of(path: &str) -> Option<(PciAddress, &str)> {
    let rest = path.strip_prefix("sys/bus/pci/devices/")?;
    let (address, rest) = rest.split_once('/').unwrap_or((rest, ""));
    Some((address.parse().ok()?, rest))
}

impl Kernel for FakeKernel {
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let state = self.state.lock().unwrap();
        if let Some((address, rest)) = function_of(path) {
            // These are told under the lock of the device (drivers/pci/pci-sysfs.c, iov.c).
            let kept = matches!(rest, "driver_override" | "sriov_numvfs") && state.blocked.contains(&address);
            assert!(!kept, "{path} is not told as long as a write waits");
            if rest == "config" {
                let Some(fun) = state.world.functions.get(&address) else { return fail(Errno::NOENT) };
                let id = |text: &str| u16::from_str_radix(text, 16).unwrap().to_le_bytes();
                let mut config = vec![0; 64];
                config[..4].copy_from_slice(&[id(fun.ids.0), id(fun.ids.1)].concat());
                config[4] = u8::from(fun.decodes) << 1;
                config[9..12].copy_from_slice(&[0, 2, 3]);
                return Ok(if fun.lost { vec![0xff; 64] } else { config });
            }
            if let Some(minor) = rest.strip_prefix("drm/card").and_then(|rest| rest.strip_suffix("/dev")) {
                return Ok(format!("226:{minor}\n").into_bytes());
            }
            return state.attribute(address, rest).map(String::into_bytes);
        }
        if let Some(rest) = path.strip_prefix("proc/driver/nvidia/gpus/") {
            let (address, file) = rest.split_once('/').unwrap();
            let fun =
                state.world.functions.get(&at(address)).filter(|fun| fun.driver.as_deref() == Some("nvidia"));
            let Some(fun) = fun.filter(|fun| fun.vgpu.is_none()) else { return fail(Errno::NOENT) };
            return Ok(match file {
                "unbindLock" => format!("{}\n", u8::from(fun.locked)),
                _ => format!("Model: \t\t NVIDIA X\nDevice Minor: \t {}\n", fun.minor),
            }
            .into_bytes());
        }
        if let Some(group) = path.strip_prefix("sys/class/vfio/").and_then(|rest| rest.strip_suffix("/dev")) {
            return Ok(format!("511:{group}\n").into_bytes());
        }
        if let Some(uuid) = path
            .strip_prefix("sys/bus/mdev/devices/")
            .and_then(|rest| rest.strip_suffix("/nvidia/vgpu_params"))
        {
            let mdev = state.world.mdevs.get(uuid);
            return mdev.map_or(fail(Errno::NOENT), |mdev| Ok(mdev.params.clone().into_bytes()));
        }
        match path {
            "proc/sys/kernel/random/boot_id" => Ok(state.world.boot.clone().into_bytes()),
            // A process by its number, as others see its name.
            path if path.ends_with("/comm") => Ok(b"dcgm-exporter\n".to_vec()),
            _ => fail(Errno::NOENT),
        }
    }

    fn write(&self, path: &str, value: &str) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.fuse.as_ref().is_some_and(|fuse| fuse.point().is_err()) {
            return fail(Errno::INTR);
        }
        let note = |state: &mut State| state.writes.push((path.into(), value.into()));
        if let Some((address, rest)) = function_of(path) {
            note(&mut state);
            // These wait, without end, until everybody closes it (vm-facts; facts 3.2, 9.1).
            let waits = rest == "driver/unbind" || rest == "sriov_numvfs" && value == "0";
            let functions = |state: &State| match state.world.functions.get(&address) {
                Some(fun) if rest == "sriov_numvfs" => fun.vfs.clone(),
                _ => vec![address],
            };
            let mut waiting = false;
            while waits
                && functions(&state)
                    .iter()
                    .any(|one| state.world.functions.contains_key(one) && state.is_open(*one))
            {
                if !waiting {
                    state.blocked.push(address);
                }
                waiting = true;
                self.changed.notify_all();
                state = self.changed.wait(state).unwrap();
            }
            if waiting {
                state.blocked.retain(|blocked| *blocked != address);
            }
            return state.set(address, rest, value);
        }
        if path == "sys/bus/pci/drivers_probe" {
            note(&mut state);
            state.probe(at(value));
            return Ok(());
        }
        if let Some(address) =
            path.strip_prefix("proc/driver/nvidia/gpus/").and_then(|rest| rest.strip_suffix("/unbindLock"))
        {
            note(&mut state);
            // The write never fails; it is taken only where nobody has the card open (facts 9.1).
            let free = !state.is_open(at(address));
            state.world.functions.get_mut(&at(address)).unwrap().locked = value == "1" && free;
            return Ok(());
        }
        if let Some((uuid, file)) =
            path.strip_prefix("sys/bus/mdev/devices/").and_then(|rest| rest.split_once('/'))
        {
            note(&mut state);
            let device =
                |state: &State| state.world.mdevs.get(uuid).map(|mdev| state.vfio_node(mdev.parent) + "m");
            match file {
                "remove" => {
                    while device(&state).is_some_and(|node| state.opened.contains_key(&node)) {
                        state = self.changed.wait(state).unwrap();
                    }
                    return state.world.mdevs.remove(uuid).map_or(fail(Errno::NOENT), |_| Ok(()));
                }
                "nvidia/vgpu_params" => {
                    let open = device(&state).is_some_and(|node| state.opened.contains_key(&node));
                    let Some(mdev) = state.world.mdevs.get_mut(uuid) else { return fail(Errno::NOENT) };
                    if open {
                        return fail(Errno::BUSY);
                    }
                    mdev.params = value.into();
                    return Ok(());
                }
                _ => return fail(Errno::NOENT),
            }
        }
        fail(Errno::NOENT)
    }

    fn peek(&self, path: &str) -> io::Result<u32> {
        let state = self.state.lock().unwrap();
        match function_of(path).and_then(|(address, rest)| Some((address, rest.strip_prefix("resource")?))) {
            Some((address, region)) if state.world.functions.contains_key(&address) => {
                Ok(state.peek(address, region))
            }
            _ => fail(Errno::NOENT),
        }
    }

    fn link(&self, path: &str) -> io::Result<String> {
        let state = self.state.lock().unwrap();
        let found = if let Some((address, rest)) = function_of(path) {
            let Some(fun) = state.world.functions.get(&address) else { return fail(Errno::NOENT) };
            match rest {
                "driver" => fun.driver.as_ref().map(|driver| format!("../../../bus/pci/drivers/{driver}")),
                "physfn" => state.parent(address).map(|card| format!("../{card}")),
                "iommu_group" => fun.group.map(|group| format!("../../../kernel/iommu_groups/{group}")),
                _ => {
                    let index = rest.strip_prefix("virtfn").and_then(|index| index.parse::<usize>().ok());
                    index.and_then(|index| fun.vfs.get(index)).map(|vf| format!("../{vf}"))
                }
            }
        } else if let Some(rest) = path.strip_prefix("sys/bus/mdev/devices/") {
            let (uuid, file) = rest.split_once('/').unwrap_or((rest, ""));
            let mdev = state.world.mdevs.get(uuid);
            mdev.and_then(|mdev| match file {
                "" => Some(format!("../../../devices/pci0000:00/{}/{uuid}", mdev.parent)),
                "mdev_type" => Some(format!("../mdev_supported_types/{}", mdev.type_id)),
                "iommu_group" => {
                    let group = state.world.functions[&mdev.parent].group.unwrap();
                    Some(format!("../../kernel/iommu_groups/{group}m"))
                }
                _ => None,
            })
        } else {
            None
        };
        found.map_or(fail(Errno::NOENT), Ok)
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let state = self.state.lock().unwrap();
        if let Some((address, rest)) = function_of(path) {
            let Some(fun) = state.world.functions.get(&address) else { return fail(Errno::NOENT) };
            return match rest {
                "sriov_admin/vf1/profile" if fun.quotas.is_some() => {
                    Ok(vec!["exec_quantum_ms".into(), "preempt_timeout_us".into(), "sched_priority".into()])
                }
                "" => Ok((0..fun.vfs.len()).map(|index| format!("virtfn{index}")).collect()),
                "drm"
                    if matches!(fun.driver.as_deref(), Some("nvidia" | "amdgpu" | "xe"))
                        && fun.vgpu.is_none() =>
                {
                    Ok(vec![format!("card{}", fun.minor)])
                }
                "mdev_supported_types" if !fun.mdev_types.is_empty() && fun.driver.is_some() => {
                    Ok(fun.mdev_types.iter().map(|kind| kind.0.into()).collect())
                }
                _ => fail(Errno::NOENT),
            };
        }
        if let Some(group) =
            path.strip_prefix("sys/kernel/iommu_groups/").and_then(|rest| rest.strip_suffix("/devices"))
        {
            let in_it = |fun: &Fun| fun.group.map(|group| group.to_string()).as_deref() == Some(group);
            return Ok(state
                .world
                .functions
                .iter()
                .filter(|(_, fun)| in_it(fun))
                .map(|(address, _)| address.to_string())
                .collect());
        }
        match path {
            "sys/bus/mdev/devices" => Ok(state.world.mdevs.keys().cloned().collect()),
            "sys/bus/pci/drivers/vfio-pci" if state.world.has_vfio => Ok(vec![]),
            "sys/bus/pci/drivers/pci-pf-stub" if state.world.has_stub => Ok(vec![]),
            _ => fail(Errno::NOENT),
        }
    }

    fn open_devices(&self) -> io::Result<BTreeMap<String, u32>> {
        Ok(self.state.lock().unwrap().opened.clone())
    }

    fn drive(&self, address: PciAddress) -> io::Result<DriveNow> {
        let state = self.state.lock().unwrap();
        let Some(fun) = state.world.functions.get(&address) else { return fail(Errno::NOENT) };
        // What no driver of the host has shows no namespace.
        let Some(drive) = fun.drive.as_ref().filter(|_| fun.driver.as_deref() == Some("nvme")) else {
            return Ok(DriveNow::default());
        };
        Ok(DriveNow {
            in_use: drive.used.clone(),
            holds: (!drive.data.is_empty()).then(|| format!("/dev/nvme0n1 holds {}", drive.data)),
            size_mib: Some(drive.mib),
            serial: Some(drive.serial.into()),
            controllers: vec!["nvme0".into()],
            namespaces: vec!["nvme0n1".into()],
            numbers: vec!["259:0".into()],
        })
    }

    fn erase(&self, address: PciAddress, method: DriveErase) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.fuse.as_ref().is_some_and(|fuse| fuse.point().is_err()) {
            return fail(Errno::INTR);
        }
        state.writes.push((format!("sys/bus/pci/devices/{address}/erase"), method.to_string()));
        let Some(fun) = state.world.functions.get_mut(&address) else { return fail(Errno::NOENT) };
        let Some(drive) = fun.drive.as_mut().filter(|_| fun.driver.as_deref() == Some("nvme")) else {
            return fail(Errno::NODEV);
        };
        // A namespace that somebody has is not opened for another alone (block/bdev.c, bd_may_claim).
        if drive.used.is_some() {
            return fail(Errno::BUSY);
        }
        if let Some(errno) = drive.fails {
            return fail(errno);
        }
        drive.data.clear();
        Ok(())
    }

    fn network(&self, function: PciAddress) -> io::Result<Option<Result<NetworkNow, String>>> {
        let state = self.state.lock().unwrap();
        let Some(fun) = state.world.functions.get(&function) else { return fail(Errno::NOENT) };
        let (Some(parent), Some(settings)) = (state.parent(function), fun.network.clone()) else {
            return Ok(None);
        };
        let is_switchdev = state.world.functions[&parent].is_switchdev;
        let in_use = fun.network_user.map(Into::into);
        Ok(Some(Ok(NetworkNow { parent, is_switchdev, in_use, settings })))
    }

    fn set_network(&self, function: PciAddress, settings: &VfSettings) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.fuse.as_ref().is_some_and(|fuse| fuse.point().is_err()) {
            return fail(Errno::INTR);
        }
        state.writes.push((format!("sys/bus/pci/devices/{function}/vf"), settings.to_string()));
        let Some(parent) = state.parent(function) else { return fail(Errno::NODEV) };
        // mlx5 and ice refuse both in mode switchdev (facts 9.9).
        if state.world.functions[&parent].is_switchdev {
            return fail(Errno::OPNOTSUPP);
        }
        let fun = state.world.functions.get_mut(&function).unwrap();
        let Some(now) = fun.network.as_mut() else { return fail(Errno::OPNOTSUPP) };
        // Group addresses are no addresses of an interface (igb_main.c, igb_ndo_set_vf_mac).
        let first = settings.mac.get(..2).and_then(|octet| u8::from_str_radix(octet, 16).ok());
        if first.is_none_or(|octet| octet & 1 != 0) || settings.vlan > 4094 {
            return fail(Errno::INVAL);
        }
        // There is no interface of which it could be the MTU.
        if settings.mtu.is_some() && now.mtu.is_none() {
            return fail(Errno::NODEV);
        }
        *now = VfSettings { mtu: settings.mtu.or(now.mtu), ..settings.clone() };
        Ok(())
    }

    fn no_network_functions(&self) -> Option<String> {
        self.state.lock().unwrap().no_networks.clone()
    }

    fn unable(&self) -> Option<String> {
        self.state.lock().unwrap().unable.clone()
    }
}
