//! A kernel for tests: functions, groups and drivers that answer as the real ones do, and no kinder. Sources stand beside
//! each refusal. What is not known of the real thing is refused in the strictest way.

use std::{
    collections::BTreeMap,
    io,
    sync::{Condvar, Mutex},
};

use gpudesk_crds::{gpu_node::VgpuScheduler, types::PciAddress};
use rustix::io::Errno;

use super::{control::GpuInstanceSeen, network::VfSettings};

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
    /// The first word of its registers.
    pub(super) registers: u32,
    /// What a reset makes of it.
    pub(super) registers_after_reset: Option<u32>,
    /// The sizes that region 0 can have, a bit for each power of two, and how large it is, in MiB.
    pub(super) resizable: Option<(u64, i64)>,
    /// The most that the bridge above has room for, in MiB.
    pub(super) room: i64,
    /// Whether its memory is switched on.
    pub(super) decodes: bool,
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
    /// Whether its GPU instances have a scheduler each.
    pub(super) schedules_instances: bool,
    /// What its vGPU was asked for; `None` where the driver knows no such file.
    pub(super) params: Option<String>,
    /// Quotas of each of its virtual functions, `None` where tiles differ; none before Linux 6.19.
    pub(super) quotas: Option<Vec<[Option<u32>; 2]>>,
    /// How many virtual functions its firmware allows.
    pub(super) vf_limit: u32,
    pub(super) drive: Option<FakeDrive>,
    /// Of a virtual function of a network card, as that has it.
    pub(super) network: Option<VfSettings>,
    /// Who has it now, of a virtual function of a network card.
    pub(super) network_user: Option<&'static str>,
    /// Of a network card: it switches by representors.
    pub(super) is_switchdev: bool,
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
            registers: 0x1940_00a1,
            registers_after_reset: None,
            resizable: None,
            room: i64::MAX,
            decodes: true,
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
            schedules_instances: false,
            params: Some(String::new()),
            quotas: None,
            vf_limit: u32::MAX,
            drive: None,
            network: None,
            network_user: None,
            is_switchdev: false,
        }
    }
}

/// A drive with one namespace.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FakeDrive {
    pub(super) serial: &'static str,
    pub(super) mib: i64,
    /// What is on it.
    pub(super) data: String,
    /// What the host does with it.
    pub(super) used: Option<String>,
    /// What it answers when it is erased.
    pub(super) fails: Option<Errno>,
}

impl FakeDrive {
    pub(super) fn blank() -> Self {
        Self { serial: "S1", mib: 976_762, data: String::new(), used: None, fails: None }
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
    pub(super) no_networks: Option<String>,
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

    /// A function that nobody has open may sleep as soon as it is allowed to.
    pub(super) fn is_asleep(&self, address: PciAddress) -> bool {
        let fun = &self.world.functions[&address];
        fun.driver.as_deref() == Some("vfio-pci") && fun.power == "auto" && !self.is_open(address)
    }

    /// A read of memory past the kernel, which ends in all ones where nobody answers.
    pub(super) fn peek(&self, address: PciAddress, region: &str) -> u32 {
        let fun = &self.world.functions[&address];
        let free = matches!(fun.driver.as_deref(), None | Some("vfio-pci"));
        assert!(free && !self.is_open(address), "registers of {address} are read while somebody uses it");
        assert!(region == "2" && fun.decodes && !self.is_asleep(address), "an error on the bus");
        if fun.lost { u32::MAX } else { fun.registers }
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
                return self.instance_for(card, kind).is_some();
            }
            if card.mixed == Some(true) {
                return used + kind.2 <= whole;
            }
            // The first size is that of all (facts 9.1).
            typed.iter().all(|id| size(*id) == kind.2) && typed.len() < kind.3
        };
        card.types.iter().filter(can).map(|kind| (kind.0, kind.1)).collect()
    }

    /// The GPU instance that the driver takes for a type: the lowest with room (facts 9.2). A type lives on one profile, and
    /// one size stands on an instance (facts 1.7).
    pub(super) fn instance_for(&self, card: &Fun, kind: &(u32, &'static str, i32, usize)) -> Option<i32> {
        let (id, name, size, most) = *kind;
        let profile = match name.split('-').nth(1) {
            Some("1") => 47,
            Some("2") => 35,
            _ => 32,
        };
        let size_of = |id: u32| card.types.iter().find(|kind| kind.0 == id).map(|kind| kind.2);
        let has_room = |instance: &i32| {
            let there = card.vfs.iter().filter_map(|vf| self.world.functions.get(vf)?.vgpu);
            let there: Vec<u32> =
                there.filter(|vgpu| vgpu.0 != 0 && vgpu.2 == Some(*instance)).map(|vgpu| vgpu.0).collect();
            there.len() < most && there.iter().all(|other| *other == id || size_of(*other) == Some(size))
        };
        let fitting = card.instances.iter().filter(|one| one.compute_instances > 0 && one.profile == profile);
        fitting.filter_map(|one| i32::try_from(one.id).ok()).filter(has_room).min()
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
        if let Some(network) = &mut fun.network {
            // A driver of the host makes its interface anew (net/ethernet/eth.c, ether_setup).
            network.mtu = fun.driver.as_ref().filter(|driver| *driver != "vfio-pci").map(|_| 1500);
        }
        if carries && fun.driver.as_deref() == Some("nvidia") && fun.vgpu.is_none() {
            fun.vgpu = Some((0, None, None));
        }
        // vfio_pci_core_register_device: pm_runtime_allow.
        if fun.driver.as_deref() == Some("vfio-pci") {
            fun.power = "auto".into();
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
