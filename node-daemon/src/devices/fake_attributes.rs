//! What the files of a function tell, and what comes of writing to them, in the kernel for tests.

use std::io;

use gpudesk_crds::types::PciAddress;
use rustix::io::Errno;

use super::fake_kernel::{FakeMdev, Fun, State, fail};

/// A line of a region that is not there.
const NO_REGION: &str = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";

/// Nothing of this host is ever given to a driver that could mean more than one word.
fn is_params(value: &str) -> bool {
    let word = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    };
    value == " "
        || value
            .split(',')
            .all(|one| one.split_once('=').is_some_and(|(key, value)| word(key) && word(value)))
}

/// The function, from 0, and the quota of a file of `sriov_admin`, whose folders are counted from 1.
fn quota_of(rest: &str) -> Option<(usize, usize)> {
    let (number, file) = rest.strip_prefix("sriov_admin/vf")?.split_once("/profile/")?;
    let which = ["exec_quantum_ms", "preempt_timeout_us"].iter().position(|name| *name == file)?;
    Some((number.parse::<usize>().ok()?.checked_sub(1)?, which))
}

impl State {
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
            "power_state" => Ok(if self.is_asleep(address) { "D3hot\n" } else { "D0\n" }.into()),
            "resource0_resize" if fun.resizable.is_some() => {
                Ok(format!("{:016x}\n", fun.resizable.unwrap().0))
            }
            "resource" => {
                let end = |mib: i64| (0x38_0000_0000_i64 << 8) + (mib << 20) - 1;
                let sized =
                    |(_, mib)| format!("{:#018x} {:#018x} 0x000000000014220c\n", end(0) + 1, end(mib));
                let first = fun.resizable.map_or(NO_REGION.into(), sized);
                Ok(format!("{first}{NO_REGION}0x00000000f6000000 0x00000000f6ffffff 0x0000000000040200\n"))
            }
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
            "nvidia/vgpu_params" if fun.vgpu.is_some() && fun.params.is_some() => match fun.vgpu {
                Some((0, ..)) | None => fail(Errno::NXIO),
                Some(_) => Ok(format!("{}\n", fun.params.as_deref().unwrap_or_default())),
            },
            _ if rest.starts_with("sriov_admin/") => {
                let (number, which) = quota_of(rest).ok_or(Errno::NOENT)?;
                let value = fun.quotas.as_ref().and_then(|all| all.get(number)).map(|all| all[which]);
                match value {
                    None => none(),
                    // xe_sriov_pf_provision.c: tiles that differ are EUCLEAN.
                    Some(None) => fail(Errno::UCLEAN),
                    Some(Some(value)) => Ok(format!("{value}\n")),
                }
            }
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

    #[expect(clippy::too_many_lines, reason = "a table of files")]
    pub(super) fn set(&mut self, address: PciAddress, rest: &str, value: &str) -> io::Result<()> {
        if !self.world.functions.contains_key(&address) {
            return fail(Errno::NOENT);
        }
        let creatable = self.creatable(address);
        let in_use = self.is_open(address);
        let card = self.parent(address).unwrap_or(address);
        let of = &self.world.functions[&card];
        let wanted = value.parse::<u32>().ok();
        let kind = of.types.iter().find(|kind| Some(kind.0) == wanted && kind.1.matches('-').count() == 2);
        let lowest = kind.and_then(|kind| self.instance_for(of, kind));
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
                    // vfio_pci_core_unregister_device: pm_runtime_forbid.
                    if driver == "vfio-pci" {
                        fun.power = "on".into();
                    }
                    fun.vgpu = None;
                    if let Some(network) = &mut fun.network {
                        network.mtu = None;
                    }
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
                fun.registers = fun.registers_after_reset.unwrap_or(fun.registers);
                Ok(())
            }
            "resource0_resize" if fun.resizable.is_some() => {
                // drivers/pci/pci-sysfs.c, __resource_resize_store; setup-res.c, pci_resize_resource; ENOSPC by the bridge.
                let (sizes, _) = fun.resizable.unwrap();
                let Ok(bit) = value.parse::<u32>() else { return fail(Errno::INVAL) };
                match 1_i64 << bit {
                    _ if fun.driver.is_some() || !fun.vfs.is_empty() => fail(Errno::BUSY),
                    _ if sizes >> bit & 1 == 0 => fail(Errno::INVAL),
                    mib if mib > fun.room => fail(Errno::NOSPC),
                    mib => {
                        fun.resizable = Some((sizes, mib));
                        Ok(())
                    }
                }
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
                // gim: "exceeds the vf limit", told in its log alone (MxGPU-Virtualization #13).
                if count > fun.vf_limit {
                    return Ok(());
                }
                // All is released with the last function (facts 9.8).
                if count == 0 {
                    fun.quotas.iter_mut().flatten().for_each(|quotas| *quotas = [Some(0); 2]);
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
            // Whether they go with the vGPU nobody says: they stay.
            "nvidia/vgpu_params" if fun.vgpu.is_some() && fun.params.is_some() => match fun.vgpu {
                Some((0, ..)) | None => fail(Errno::NXIO),
                Some(_) if in_use => fail(Errno::BUSY),
                Some(_) => {
                    assert!(is_params(value), "{value:?}");
                    fun.params = Some(value.trim().into());
                    Ok(())
                }
            },
            _ if rest.starts_with("sriov_admin/") => {
                let Some((number, which)) = quota_of(rest) else { return fail(Errno::NOENT) };
                let Some(all) = fun.quotas.as_mut().and_then(|all| all.get_mut(number)) else {
                    return fail(Errno::NOENT);
                };
                // xe_sriov_pf_sysfs.c: kstrtou32.
                let Ok(value) = value.parse::<u32>() else { return fail(Errno::INVAL) };
                all[which] = Some(value);
                Ok(())
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
