//! A kernel for tests: functions, groups and drivers that answer as the real ones do, and no kinder. Sources stand beside
//! each refusal. What is not known of the real thing is refused in the strictest way.

use std::{
    collections::BTreeMap,
    io,
    sync::{Condvar, Mutex},
};

use gpudesk_crds::{gpu_node::VgpuScheduler, types::PciAddress};
use rustix::io::Errno;

use super::control::GpuInstanceSeen;

pub(super) fn at(text: &str) -> PciAddress {
    text.parse().unwrap()
}

/// A function, with what is of its card alone.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "a function has many things that are so or not")]
pub(super) struct Fun {
    pub(super) ids: (&'static str, &'static str),
    pub(super) class: &'static str,
    pub(super) driver: Option<String>,
    /// The driver that takes it where none is reserved.
    pub(super) natural: Option<&'static str>,
    pub(super) reserved: Option<String>,
    pub(super) group: Option<i32>,
    pub(super) boot_vga: bool,
    pub(super) d3cold: bool,
    pub(super) power: String,
    pub(super) resets: &'static str,
    pub(super) lost: bool,
    pub(super) lost_by_reset: bool,
    pub(super) minor: u32,
    pub(super) locked: bool,
    pub(super) total: u32,
    pub(super) vfs: Vec<PciAddress>,
    pub(super) autoprobe: bool,
    /// Vendor-specific VFIO: number, name, GB, most; on the virtual functions of the card.
    pub(super) types: Vec<(u32, &'static str, i32, usize)>,
    pub(super) vgpu: Option<(u32, Option<i32>, Option<i32>)>,
    pub(super) mdev_types: Vec<(&'static str, &'static str, usize)>,
    pub(super) mig: Option<bool>,
    pub(super) instances: Vec<GpuInstanceSeen>,
    pub(super) mixed: Option<bool>,
    pub(super) persistence: Option<bool>,
    pub(super) scheduler: Option<VgpuScheduler>,
    pub(super) milliwatts: Option<u32>,
    pub(super) clocks: Option<(u32, u32)>,
}

impl Fun {
    pub(super) fn new(ids: (&'static str, &'static str), driver: Option<&'static str>, group: i32) -> Self {
        Self {
            ids,
            class: "030200",
            driver: driver.map(Into::into),
            natural: driver,
            reserved: None,
            group: Some(group),
            boot_vga: false,
            d3cold: true,
            power: "auto".into(),
            resets: "flr bus",
            lost: false,
            lost_by_reset: false,
            minor: u32::try_from(group).unwrap(),
            locked: false,
            total: 0,
            vfs: vec![],
            autoprobe: true,
            types: vec![],
            vgpu: None,
            mdev_types: vec![],
            mig: None,
            instances: vec![],
            mixed: None,
            persistence: None,
            scheduler: None,
            milliwatts: None,
            clocks: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct FakeMdev {
    pub(super) parent: PciAddress,
    pub(super) type_id: String,
    pub(super) params: String,
}

/// What a test looks at and changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct World {
    pub(super) functions: BTreeMap<PciAddress, Fun>,
    pub(super) mdevs: BTreeMap<String, FakeMdev>,
    pub(super) boot: String,
    pub(super) has_vfio: bool,
    pub(super) has_stub: bool,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) world: World,
    pub(super) opened: BTreeMap<String, u32>,
    pub(super) writes: Vec<(String, String)>,
    pub(super) unable: Option<String>,
    /// Ends the daemon that writes.
    pub(super) fuse: Option<std::sync::Arc<super::kill_tests::Fuse>>,
    /// Writes that wait for somebody to close a device.
    pub(super) blocked: Vec<PciAddress>,
}

#[derive(Default)]
pub(super) struct FakeKernel {
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
}

pub(super) fn fail<T>(errno: Errno) -> io::Result<T> {
    Err(errno.into())
}

impl State {
    pub(super) fn vfio_node(&self, address: PciAddress) -> String {
        format!("511:{}", self.world.functions[&address].group.unwrap_or(0))
    }

    pub(super) fn is_open(&self, address: PciAddress) -> bool {
        let fun = &self.world.functions[&address];
        let nvidia = format!("195:{}", fun.minor);
        let drm = format!("226:{}", fun.minor);
        match fun.driver.as_deref() {
            Some("nvidia") if fun.vgpu.is_some() => self.opened.contains_key(&self.vfio_node(address)),
            Some("nvidia") => self.opened.contains_key(&nvidia) || self.opened.contains_key(&drm),
            Some("vfio-pci") => self.opened.contains_key(&self.vfio_node(address)),
            _ => self.opened.contains_key(&drm),
        }
    }

    pub(super) fn parent(&self, vf: PciAddress) -> Option<PciAddress> {
        self.world.functions.iter().find(|(_, fun)| fun.vfs.contains(&vf)).map(|(address, _)| *address)
    }

    /// The types that can be made on a function now.
    pub(super) fn creatable(&self, vf: PciAddress) -> Vec<(u32, &'static str)> {
        let Some(card) = self.parent(vf).map(|parent| &self.world.functions[&parent]) else { return vec![] };
        if self.world.functions[&vf].vgpu.is_some_and(|(id, ..)| id != 0) {
            return vec![];
        }
        let typed: Vec<u32> = card
            .vfs
            .iter()
            .filter_map(|vf| self.world.functions.get(vf)?.vgpu.map(|(id, ..)| id))
            .filter(|id| *id != 0)
            .collect();
        let size = |id: u32| card.types.iter().find(|kind| kind.0 == id).map_or(0, |kind| kind.2);
        let whole = 48;
        let used: i32 = typed.iter().map(|id| size(*id)).sum();
        let can = |kind: &&(u32, &'static str, i32, usize)| {
            let sliced = kind.1.matches('-').count() == 2;
            // MIG on hides time-sliced types and off hides those of MIG; none without a GPU instance (facts 9.2).
            if sliced != (card.mig == Some(true)) {
                return false;
            }
            if sliced {
                // One per GPU instance but on newer cards.
                return typed.len() < card.instances.iter().filter(|gi| gi.compute_instances > 0).count();
            }
            if card.mixed == Some(true) {
                return used + kind.2 <= whole;
            }
            // The first size is that of all (facts 9.1).
            typed.iter().all(|id| size(*id) == kind.2) && typed.len() < kind.3
        };
        card.types.iter().filter(can).map(|kind| (kind.0, kind.1)).collect()
    }

    pub(super) fn probe(&mut self, address: PciAddress) {
        let parent = self.parent(address);
        let is_virtual = parent.is_some();
        let (vfio, stub) = (self.world.has_vfio, self.world.has_stub);
        let card = parent.and_then(|parent| self.world.functions.get(&parent));
        let has_card =
            card.is_none_or(|card| card.ids.0 != "10de" || card.driver.as_deref() == Some("nvidia"));
        let carries = has_card && card.is_some_and(|card| !card.types.is_empty());
        let Some(fun) = self.world.functions.get_mut(&address) else { return };
        if fun.driver.is_some() {
            return;
        }
        // With a reservation no other driver matches; without one vfio-pci knows no ids (sysfs-bus-pci).
        fun.driver = match fun.reserved.as_deref() {
            // NVIDIA's functions are refused by vfio-pci with EINVAL, which a probe does not tell (kubevirt #17642).
            Some("vfio-pci") if vfio && !(is_virtual && fun.ids.0 == "10de") => Some("vfio-pci".into()),
            Some("pci-pf-stub") if stub => Some("pci-pf-stub".into()),
            Some(reserved) if fun.natural == Some(reserved) => Some(reserved.into()),
            Some(_) => None,
            // A card that is lost is taken by no driver.
            None if fun.lost => None,
            // A virtual function is NVIDIA's only while its card is (sriov-manage binds them last).
            None if !has_card => None,
            None => fun.natural.map(Into::into),
        };
        if carries && fun.driver.as_deref() == Some("nvidia") && fun.vgpu.is_none() {
            fun.vgpu = Some((0, None, None));
        }
    }

    pub(super) fn attribute(&self, address: PciAddress, rest: &str) -> io::Result<String> {
        let Some(fun) = self.world.functions.get(&address) else { return fail(Errno::NOENT) };
        let parent = self.parent(address);
        let none = || fail(Errno::NOENT);
        let flag = |on: bool| Ok(format!("{}\n", u8::from(on)));
        match rest {
            "vendor" => Ok(format!("0x{}\n", fun.ids.0)),
            "device" => Ok(format!("0x{}\n", fun.ids.1)),
            "class" => Ok(format!("0x{}\n", fun.class)),
            "driver_override" => Ok(format!("{}\n", fun.reserved.as_deref().unwrap_or("(null)"))),
            "boot_vga" => flag(fun.boot_vga),
            "d3cold_allowed" => flag(fun.d3cold),
            "power/control" => Ok(format!("{}\n", fun.power)),
            "reset_method" if !fun.resets.is_empty() => Ok(format!("{}\n", fun.resets)),
            "sriov_totalvfs" if fun.total > 0 => Ok(format!("{}\n", fun.total)),
            "sriov_numvfs" if fun.total > 0 => Ok(format!("{}\n", fun.vfs.len())),
            "sriov_drivers_autoprobe" if fun.total > 0 => flag(fun.autoprobe),
            "nvidia/current_vgpu_type" if fun.vgpu.is_some() => Ok(format!("{}\n", fun.vgpu.unwrap().0)),
            // Without a type there is no number (facts 1.7).
            "nvidia/placement_id" | "nvidia/gpu_instance_id" => match fun.vgpu {
                Some((0, ..)) => fail(Errno::NXIO),
                Some((_, start, gi)) => {
                    let number = if rest.ends_with("placement_id") { start } else { gi };
                    Ok(number.map_or("4294967295\n".into(), |number| format!("{number}\n")))
                }
                None => none(),
            },
            "nvidia/creatable_vgpu_types" if fun.vgpu.is_some() => {
                let lines =
                    self.creatable(address).into_iter().map(|(id, name)| format!("{id}  : NVIDIA {name}\n"));
                Ok(format!("ID    : vGPU Name\n{}", lines.collect::<String>()))
            }
            _ => {
                let parts: Vec<&str> = rest.split('/').collect();
                let ["mdev_supported_types", id, file] = parts.as_slice() else { return none() };
                let of = parent.map_or(fun, |_| fun);
                let Some(kind) = of.mdev_types.iter().find(|kind| kind.0 == *id) else { return none() };
                match *file {
                    "name" => Ok(format!("NVIDIA {}\n", kind.1)),
                    "available_instances" => Ok(format!("{}\n", self.left(address, kind))),
                    _ => none(),
                }
            }
        }
    }

    /// Of one card's mediated devices all have one size; a virtual function carries one (facts 2.6, 2.7).
    pub(super) fn left(&self, address: PciAddress, kind: &(&'static str, &'static str, usize)) -> usize {
        let parent = self.parent(address);
        let card = parent.unwrap_or(address);
        let of_card = |mdev: &&FakeMdev| mdev.parent == card || self.parent(mdev.parent) == Some(card);
        let there: Vec<&FakeMdev> = self.world.mdevs.values().filter(of_card).collect();
        let here = there.iter().any(|mdev| mdev.parent == address);
        if there.iter().any(|mdev| mdev.type_id != kind.0) || parent.is_some() && here {
            return 0;
        }
        let left = kind.2.saturating_sub(there.len());
        if parent.is_some() { left.min(1) } else { left }
    }

    #[expect(clippy::too_many_lines, reason = "a table of files")]
    pub(super) fn set(&mut self, address: PciAddress, rest: &str, value: &str) -> io::Result<()> {
        if !self.world.functions.contains_key(&address) {
            return fail(Errno::NOENT);
        }
        let creatable = self.creatable(address);
        let in_use = self.is_open(address);
        let card = self.parent(address).unwrap_or(address);
        let used: Vec<i32> = self.world.functions[&card]
            .vfs
            .iter()
            .filter_map(|vf| self.world.functions.get(vf)?.vgpu?.2)
            .collect();
        // The driver takes the lowest GPU instance with room (facts 9.2).
        let instances = self.world.functions[&card].instances.iter();
        let lowest =
            instances.filter_map(|one| i32::try_from(one.id).ok()).filter(|id| !used.contains(id)).min();
        let starts: Vec<i32> = self.world.functions[&card]
            .vfs
            .iter()
            .filter(|vf| **vf != address)
            .filter_map(|vf| self.world.functions.get(vf)?.vgpu?.1)
            .collect();
        let fun = self.world.functions.get_mut(&address).unwrap();
        match rest {
            "driver_override" => {
                fun.reserved = Some(value.trim().to_owned()).filter(|driver| !driver.is_empty());
                Ok(())
            }
            "d3cold_allowed" if ["0", "1"].contains(&value) => {
                fun.d3cold = value == "1";
                Ok(())
            }
            // drivers/base/power/sysfs.c: anything else is EINVAL.
            "power/control" if ["on", "auto"].contains(&value) => {
                fun.power = value.into();
                Ok(())
            }
            "driver/unbind" => match fun.driver.take() {
                None => fail(Errno::NOENT),
                Some(driver) if value == address.to_string() => {
                    // NVIDIA's driver drops every vGPU, instance and setting of the card (facts 9.1, 1.4).
                    if driver == "nvidia" && fun.vgpu.is_none() {
                        (fun.locked, fun.mixed) = (false, fun.mixed.map(|_| false));
                        fun.instances.clear();
                        fun.persistence = fun.persistence.map(|_| false);
                        (fun.milliwatts, fun.clocks) = (fun.milliwatts.map(|_| 350_000), None);
                    }
                    fun.vgpu = None;
                    Ok(())
                }
                Some(driver) => {
                    fun.driver = Some(driver);
                    // drivers/base/bus.c, unbind_store: ENODEV for a device that is not this driver's.
                    fail(Errno::NODEV)
                }
            },
            "reset" if value == "1" && !fun.resets.is_empty() => {
                fun.lost |= fun.lost_by_reset;
                Ok(())
            }
            "sriov_drivers_autoprobe" if fun.total > 0 && ["0", "1"].contains(&value) => {
                fun.autoprobe = value == "1";
                Ok(())
            }
            "sriov_numvfs" if fun.total > 0 => {
                let Ok(count) = value.parse::<u32>() else { return fail(Errno::INVAL) };
                let now = u32::try_from(fun.vfs.len()).unwrap();
                // drivers/pci/iov.c, sriov_numvfs_store: ERANGE, nothing to do, ENOENT without a driver that can, EBUSY.
                if count > fun.total {
                    return fail(Errno::RANGE);
                }
                if count == now {
                    return Ok(());
                }
                match fun.driver.as_deref() {
                    // NVIDIA's driver refuses it by hand (facts 1.7).
                    Some("nvidia") => return fail(Errno::INVAL),
                    None | Some("vfio-pci") => return fail(Errno::NOENT),
                    Some(_) => {}
                }
                if count != 0 && now != 0 {
                    return fail(Errno::BUSY);
                }
                let probed = fun.driver.clone().filter(|driver| fun.autoprobe && driver != "pci-pf-stub");
                let (ids, driver) = (fun.ids, probed);
                let natural = fun.natural;
                let old = std::mem::take(&mut fun.vfs);
                fun.vfs = (1..=count).map(|n| address.further(n).unwrap()).collect();
                let fresh = fun.vfs.clone();
                for vf in old {
                    self.world.functions.remove(&vf);
                }
                for (vf, n) in fresh.into_iter().zip(0..) {
                    let group = self.world.functions[&address].group.unwrap() + 100 + n;
                    let fun =
                        Fun { natural, driver: driver.clone(), resets: "flr", ..Fun::new(ids, None, group) };
                    self.world.functions.insert(vf, fun);
                }
                Ok(())
            }
            "nvidia/current_vgpu_type" if fun.vgpu.is_some() => {
                let Ok(id) = value.parse::<u32>() else { return fail(Errno::INVAL) };
                match fun.vgpu.unwrap().0 {
                    // EPERM where one is set, or none to take away (isard, cubecos; the test host's module).
                    0 if id == 0 => fail(Errno::PERM),
                    0 if creatable.iter().all(|kind| kind.0 != id) => fail(Errno::IO),
                    0 => {
                        let free = (0..48).find(|start| !starts.contains(start));
                        fun.vgpu = Some((id, free, lowest));
                        Ok(())
                    }
                    _ if id != 0 => fail(Errno::PERM),
                    _ if in_use => fail(Errno::BUSY),
                    _ => {
                        fun.vgpu = Some((0, None, None));
                        Ok(())
                    }
                }
            }
            "nvidia/placement_id" | "nvidia/gpu_instance_id" if fun.vgpu.is_some() => {
                let Ok(number) = value.parse::<i32>() else { return fail(Errno::INVAL) };
                match fun.vgpu {
                    Some((0, ..)) | None => fail(Errno::NXIO),
                    // A refused move changes nothing (facts 9.1); of which errno is not known.
                    Some(_) if in_use || starts.contains(&number) && rest.ends_with("placement_id") => {
                        fail(Errno::IO)
                    }
                    Some((id, start, gi)) => {
                        let moved = rest.ends_with("placement_id");
                        fun.vgpu =
                            Some(if moved { (id, Some(number), gi) } else { (id, start, Some(number)) });
                        Ok(())
                    }
                }
            }
            _ => {
                let parts: Vec<&str> = rest.split('/').collect();
                let ["mdev_supported_types", id, "create"] = parts.as_slice() else {
                    return fail(Errno::NOENT);
                };
                let Some(kind) = fun.mdev_types.iter().find(|kind| kind.0 == *id).copied() else {
                    return fail(Errno::NOENT);
                };
                // drivers/vfio/mdev: EINVAL for no UUID, EEXIST, EUSERS where none is left.
                if value.parse::<uuid::Uuid>().is_err() {
                    return fail(Errno::INVAL);
                }
                if self.world.mdevs.contains_key(value) {
                    return fail(Errno::EXIST);
                }
                if self.left(address, &kind) == 0 {
                    return fail(Errno::USERS);
                }
                let made = FakeMdev { parent: address, type_id: (*id).into(), params: String::new() };
                self.world.mdevs.insert(value.into(), made);
                Ok(())
            }
        }
    }
}

impl FakeKernel {
    /// Opens a device node, or closes it.
    pub(super) fn open(&self, node: &str, pid: Option<u32>) {
        let mut state = self.state.lock().unwrap();
        match pid {
            Some(pid) => _ = state.opened.insert(node.into(), pid),
            None => _ = state.opened.remove(node),
        }
        self.changed.notify_all();
    }

    pub(super) fn world(&self) -> World {
        self.state.lock().unwrap().world.clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.state.lock().unwrap().world);
    }

    /// What was written since the last time.
    pub(super) fn written(&self) -> Vec<String> {
        let writes = std::mem::take(&mut self.state.lock().unwrap().writes);
        writes
            .into_iter()
            .map(|(path, value)| format!("{} = {}", short(&path), value.trim()).trim_end().to_owned())
            .collect()
    }
}

fn short(path: &str) -> String {
    path.replace("sys/bus/pci/devices/0000:", "")
        .replace("sys/bus/pci/", "")
        .replace("sys/bus/mdev/devices/", "")
        .replace("proc/driver/nvidia/gpus/0000:", "")
}
