//! NVMe drives: their namespaces, and what the host does with them.
//!
//! A drive is free only where everything that could use it was looked at and does not. With native
//! multipath the controller holds a hidden path (`nvme0c1n1`), and the block device (`nvme0n1`) belongs
//! to the subsystem. Source: the kernel's `drivers/nvme/host/multipath.c`.

use crate::{
    topology::block::{self, Mount},
    tree::LARGE,
};
use gpudesk_crds::types::PciAddress;

use super::Scanner;

const SUBSYSTEMS: &str = "sys/class/nvme-subsystem";

/// A namespace of a drive.
struct Namespace {
    /// Name of its block device: `nvme0n1`.
    name: String,
    /// Where its files are.
    folder: String,
    /// Where its size is, when not there: with the path to it.
    path: Option<String>,
}

/// What the host shows of a drive.
pub(super) struct Drive {
    controllers: Vec<String>,
    namespaces: Vec<Namespace>,
    /// Controllers of other functions that lead to the same namespaces.
    others: Vec<String>,
}

impl Drive {
    /// Names of the namespaces.
    pub(super) fn names(&self) -> Vec<String> {
        self.namespaces.iter().take(64).map(|namespace| namespace.name.clone()).collect()
    }
}

/// What the host does with a drive at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriveNow {
    /// Why the host itself needs it, or why nobody can tell that it does not.
    pub in_use: Option<String>,
    /// What it holds that somebody may want back.
    pub holds: Option<String>,
    /// Size of its namespaces together in MiB.
    pub size_mib: Option<i64>,
    /// Serial number.
    pub serial: Option<String>,
    /// Names of its controllers: `nvme0`.
    pub controllers: Vec<String>,
    /// Names of its namespaces: `nvme0n1`.
    pub namespaces: Vec<String>,
    /// Numbers of their block devices and of those of their partitions: `259:0`.
    pub numbers: Vec<String>,
}

impl Scanner {
    /// Looks at a drive alone, whatever a pass found before.
    pub fn drive_now(&self, address: PciAddress) -> DriveNow {
        self.opened.replace(None);
        let drive = self.drive(address);
        DriveNow {
            in_use: self.drive_in_use(&drive, self.driver(&self.folder(address)).as_deref()),
            holds: self.drive_holds(&drive),
            size_mib: self.drive_mib(&drive),
            serial: self.drive_serial(address, &drive),
            numbers: drive.namespaces.iter().flat_map(|namespace| self.parts(namespace).2).collect(),
            namespaces: drive.namespaces.into_iter().map(|namespace| namespace.name).collect(),
            controllers: drive.controllers,
        }
    }

    /// The controllers of a drive and their namespaces.
    pub(super) fn drive(&self, address: PciAddress) -> Drive {
        let folder = format!("{}/nvme", self.folder(address));
        let controllers = self.tree.names(&folder, |name| name.starts_with("nvme"));
        let mut namespaces: Vec<Namespace> = vec![];
        for controller in &controllers {
            let folder = format!("{folder}/{controller}");
            for name in self.tree.names(&folder, |name| name.starts_with("nvme")) {
                let own = format!("{folder}/{name}");
                if block::is_namespace(&name) {
                    namespaces.push(Namespace { name, folder: own, path: None });
                } else if let Some(head) = block::head_of_path(&name) {
                    let folder = format!("sys/block/{head}");
                    namespaces.push(Namespace { name: head, folder, path: Some(own) });
                }
            }
        }
        let mut others = vec![];
        for subsystem in self.tree.names(SUBSYSTEMS, |_| true) {
            let folder = format!("{SUBSYSTEMS}/{subsystem}");
            let members = self.tree.names(&folder, |name| name.starts_with("nvme"));
            if !members.iter().any(|member| controllers.contains(member)) {
                continue;
            }
            for member in members {
                if block::is_namespace(&member) {
                    let own = format!("{folder}/{member}");
                    match namespaces.iter_mut().find(|known| known.name == member) {
                        Some(known) if known.path.is_some() => known.folder = own,
                        Some(_) => {}
                        None => namespaces.push(Namespace { name: member, folder: own, path: None }),
                    }
                } else if block::is_controller(&member) && !controllers.contains(&member) {
                    others.push(member);
                }
            }
        }
        namespaces.sort_by(|a, b| a.name.cmp(&b.name));
        namespaces.dedup_by(|a, b| a.name == b.name);
        Drive { controllers, namespaces, others }
    }

    /// The size of all namespaces together in MiB; none when one of them has none.
    pub(super) fn drive_mib(&self, drive: &Drive) -> Option<i64> {
        let sectors = |namespace: &Namespace| -> Option<u64> {
            let own = [Some(&namespace.folder), namespace.path.as_ref()];
            own.into_iter()
                .flatten()
                .find_map(|folder| self.tree.line(&format!("{folder}/size")))?
                .parse()
                .ok()
        };
        let sum = drive.namespaces.iter().try_fold(0_u64, |sum, one| Some(sum.saturating_add(sectors(one)?)));
        // The kernel counts in sectors of 512 bytes, whatever those of the drive are.
        sum.filter(|_| !drive.namespaces.is_empty()).and_then(|sectors| i64::try_from(sectors / 2048).ok())
    }

    /// Why the host itself needs a drive, or why nobody can tell that it does not.
    pub(super) fn drive_in_use(&self, drive: &Drive, driver: Option<&str>) -> Option<String> {
        if drive.namespaces.is_empty() {
            let held = (!drive.controllers.is_empty()).then_some("nvme");
            return match driver.or(held) {
                None => None,
                Some(driver) if driver.contains("vfio") || driver == "pci-stub" => None,
                Some(driver) => Some(format!(
                    "its driver {driver} shows no namespace of it, so nobody can tell who uses it"
                )),
            };
        }
        let Some(mounts) = self.mounts() else {
            return Some(
                "nobody can tell what is mounted, for /proc/1/mounts cannot be read: let the daemon see the \
                 processes of the host"
                    .into(),
            );
        };
        let swaps = self.tree.text("proc/swaps").map(|text| block::swaps(&text)).unwrap_or_default();
        drive
            .namespaces
            .iter()
            .find_map(|namespace| self.namespace_in_use(namespace, &mounts, &swaps))
            .or_else(|| {
                let other = drive.others.first()?;
                Some(format!(
                    "its namespaces are also reached by the controller {other}, which would stay with the host"
                ))
            })
    }

    /// What a drive holds that somebody may want back, though nothing uses it now.
    pub(super) fn drive_holds(&self, drive: &Drive) -> Option<String> {
        drive.namespaces.iter().find_map(|namespace| {
            let name = &namespace.name;
            let (partitions, _, numbers) = self.parts(namespace);
            if let Some(partition) = partitions.first() {
                return Some(format!(
                    "/dev/{name} holds a partition, {partition}: wipe the drive to give it away"
                ));
            }
            let signature = numbers
                .iter()
                .find_map(|number| block::signature(&self.tree.text(&format!("run/udev/data/b{number}"))?));
            signature.map(|what| format!("/dev/{name} holds {what}: wipe the drive to give it away"))
        })
    }

    /// The serial number of a drive, as its driver tells it.
    pub(super) fn drive_serial(&self, address: PciAddress, drive: &Drive) -> Option<String> {
        let [controller] = drive.controllers.as_slice() else { return None };
        let serial = self.tree.line(&format!("{}/nvme/{controller}/serial", self.folder(address)))?;
        let serial: String = serial.trim().chars().filter(|c| !c.is_control()).take(64).collect();
        Some(serial).filter(|serial| !serial.is_empty())
    }

    /// The partitions of a namespace, the folders of all of it, and the numbers of its devices.
    fn parts(&self, namespace: &Namespace) -> (Vec<String>, Vec<String>, Vec<String>) {
        let name = &namespace.name;
        let listed = format!("sys/block/{name}");
        let folder = if self.tree.exists(&listed) { listed } else { namespace.folder.clone() };
        let partitions = self.tree.names(&folder, |entry| block::is_part_of(name, entry) && entry != name);
        let folders: Vec<String> = std::iter::once(folder.clone())
            .chain(partitions.iter().map(|partition| format!("{folder}/{partition}")))
            .collect();
        let numbers: Vec<String> =
            folders.iter().filter_map(|folder| self.tree.line(&format!("{folder}/dev"))).collect();
        (partitions, folders, numbers)
    }

    fn namespace_in_use(&self, namespace: &Namespace, mounts: &[Mount], swaps: &[String]) -> Option<String> {
        let name = &namespace.name;
        let (_, folders, numbers) = self.parts(namespace);
        let is_it = |device: &str| {
            let Some(path) = device.strip_prefix('/') else { return false };
            let is_name =
                |path: &str| path.strip_prefix("dev/").is_some_and(|dev| block::is_part_of(name, dev));
            // Names such as /dev/disk/by-id/… are links to it.
            is_name(path)
                || path.starts_with("dev/")
                    && self.tree.link_name(path).is_some_and(|target| block::is_part_of(name, &target))
        };
        let mounted = mounts.iter().filter(|mount| {
            mount.number.as_ref().is_some_and(|number| numbers.contains(number)) || is_it(&mount.device)
        });
        let mut places: Vec<&str> = mounted.map(|mount| mount.place.as_str()).collect();
        places.sort_unstable();
        places.dedup();
        if !places.is_empty() {
            let more =
                if places.len() > 3 { format!(" and {} more", places.len() - 3) } else { String::new() };
            places.truncate(3);
            return Some(format!("the host has /dev/{name} mounted at {}{more}", places.join(", ")));
        }
        if let Some(device) = swaps.iter().find(|device| is_it(device)) {
            return Some(format!("the host swaps to {device}"));
        }
        for folder in &folders {
            if let Some(holder) = self.tree.names(&format!("{folder}/holders"), |_| true).first() {
                return Some(format!("the host's {holder} is on /dev/{name}"));
            }
            if self.tree.exists(&format!("{folder}/bcache")) {
                return Some(format!("the host's bcache is on /dev/{name}"));
            }
        }
        if let Some(user) = self.file_system_on(name).or_else(|| self.loop_on(&is_it)) {
            return Some(format!("the host's {user} is on /dev/{name}"));
        }
        if let Some(user) = self.opener(name, &is_it) {
            return Some(user);
        }
        (self.tree.is_claimed(&format!("dev/{name}")))
            .then(|| format!("something on the host has /dev/{name} for itself, as a storage target or ZFS"))
    }

    /// A process that has the device open, or why nobody can tell. All are looked at once for all drives.
    fn opener(&self, name: &str, is_it: &dyn Fn(&str) -> bool) -> Option<String> {
        let mut opened = self.opened.borrow_mut();
        let opened = opened.get_or_insert_with(|| self.tree.opened("/dev/nvme"));
        if let Some((_, pid)) = opened.files.iter().find(|(device, _)| is_it(device)) {
            let program = self.tree.line(&format!("proc/{pid}/comm")).unwrap_or_else(|| "unknown".into());
            // A process names itself.
            let program: String = program.chars().filter(|c| !c.is_control()).collect();
            return Some(format!("the process {pid} ({program}) of the host has /dev/{name} open"));
        }
        let why = opened.unseen.as_ref()?;
        Some(format!("nobody can tell who has /dev/{name} open, for {why}"))
    }

    /// What is mounted on the host; `None` when that cannot be told.
    ///
    /// Of the first process: in a container its own mounts are not those of the host.
    fn mounts(&self) -> Option<Vec<Mount>> {
        let read = |process: &str| {
            let info = self.tree.head(&format!("proc/{process}mountinfo"), LARGE);
            let plain = self.tree.head(&format!("proc/{process}mounts"), LARGE);
            let mut mounts = info.as_deref().map(block::mountinfo).unwrap_or_default();
            mounts.extend(plain.as_deref().map(block::mounts).unwrap_or_default());
            // Every host has something mounted.
            (!mounts.is_empty()).then_some(mounts)
        };
        if self.tree.exists("proc/1") { read("1/") } else { read("") }
    }

    /// File systems of several devices, of which only the first is named where they are mounted.
    fn file_system_on(&self, name: &str) -> Option<String> {
        let ours = |entry: &str| block::is_part_of(name, entry);
        for id in self.tree.names("sys/fs/btrfs", |name| name.contains('-')) {
            if !self.tree.names(&format!("sys/fs/btrfs/{id}/devices"), ours).is_empty() {
                return Some(format!("btrfs {id}"));
            }
        }
        for id in self.tree.names("sys/fs/bcachefs", |name| name.contains('-')) {
            let folder = format!("sys/fs/bcachefs/{id}");
            let devices = self.tree.names(&folder, |name| name.starts_with("dev-"));
            let block = |device: &String| self.tree.link_name(&format!("{folder}/{device}/block"));
            if devices.iter().filter_map(block).any(|device| ours(&device)) {
                return Some(format!("bcachefs {id}"));
            }
        }
        None
    }

    fn loop_on(&self, is_it: &dyn Fn(&str) -> bool) -> Option<String> {
        let loops = self.tree.names("sys/block", |name| name.starts_with("loop"));
        loops.into_iter().find(|name| {
            self.tree.line(&format!("sys/block/{name}/loop/backing_file")).is_some_and(|file| is_it(&file))
        })
    }
}
