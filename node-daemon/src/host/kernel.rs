//! The kernel of this machine, or of the one below a root folder: the only place from which devices are changed.
#![expect(unsafe_code, reason = "maps memory of devices")]
#![expect(clippy::disallowed_methods, reason = "adapter: reads and writes sysfs and procfs")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, StatVfsMountFlags, StatxFlags, statfs, statvfs, statx},
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

use gpudesk_crds::{gpu_node_drives::DriveErase, types::PciAddress};
use gpudesk_inventory::{
    scan::{DriveNow, Scanner},
    tree::Tree,
};

use super::{nvme, virtual_functions};
use crate::devices::{
    Kernel,
    kernel::{ANY, block_of, function, line, link_name, memory_of, names, number},
    network::{NetworkNow, VfSettings},
};

/// Most bytes taken of a file; sysfs gives no more than a page of text, and 4 KiB of configuration.
const MOST: u64 = 64 << 10;
/// Most open files of one process that are looked at: no process has more unless the host's `fs.nr_open` was raised.
const OF_PROCESS: usize = 1 << 20;
/// Most of all processes together: a look at them takes seconds.
const OF_ALL: usize = 1 << 23;

/// The files below one root.
#[derive(Clone, Debug)]
pub struct HostKernel {
    root: PathBuf,
    /// Whether functions of network cards are given.
    gives_networks: bool,
}

impl HostKernel {
    /// Below this root; `/` is this machine.
    pub fn new(root: &Path) -> Self {
        Self { root: root.into(), gives_networks: false }
    }

    /// The same, that gives functions of network cards or does not.
    #[must_use]
    pub fn with_network_functions(self, gives_networks: bool) -> Self {
        Self { gives_networks, ..self }
    }

    /// Where the network card of a virtual function is, its interface, and the function's number; or why that cannot be
    /// told. `None` of anything else.
    fn network_card(&self, address: PciAddress) -> io::Result<Option<Result<Card, String>>> {
        let folder = function(address);
        let Some(parent) = link_name(self, &format!("{folder}/physfn"))? else { return Ok(None) };
        let Ok(parent) = parent.parse::<PciAddress>() else { return Ok(None) };
        let mut index = 0;
        while let Some(name) = link_name(self, &format!("{}/virtfn{index}", function(parent)))? {
            if name.parse() == Ok(address) {
                break;
            }
            index += 1;
        }
        let interfaces = names(self, &format!("{}/net", function(parent)))?;
        let [interface] = interfaces.as_slice() else {
            let found = if interfaces.is_empty() { "none".into() } else { interfaces.join(", ") };
            return Ok(Some(Err(format!(
                "its network card {parent} shows {found} where one interface is needed, so it cannot be told what holds for \
                 the function"
            ))));
        };
        let files = format!("{}/net/{interface}", function(parent));
        let Some(number) = number(self, &format!("{files}/ifindex"))? else { return Ok(None) };
        // Only a card that switches by representors tells the number of its switch.
        let is_switchdev = line(self, &format!("{files}/phys_switch_id")).is_ok_and(|id| id.is_some());
        Ok(Some(Ok(Card { parent, interface: number, index, is_switchdev })))
    }

    /// The MTU of the host's interface on a function, with its file.
    fn mtu(&self, address: PciAddress) -> io::Result<Option<(String, u32)>> {
        let folder = format!("{}/net", function(address));
        let interfaces = names(self, &folder)?;
        let [interface] = interfaces.as_slice() else { return Ok(None) };
        let file = format!("{folder}/{interface}/mtu");
        Ok(number(self, &file)?.map(|mtu| (file, mtu)))
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// What is open, as [`Kernel::open_devices`] tells it, when no more than so many files are looked at. Where that is not
    /// all, the process with the most of them may have any device open.
    fn look(&self, of_process: usize, of_all: usize) -> io::Result<BTreeMap<String, u32>> {
        let mut opened = BTreeMap::new();
        let (mut left, mut is_cut, mut busiest) = (of_all, false, (0_usize, 0_u32));
        for name in self.list("proc")? {
            let Ok(pid) = name.parse::<u32>() else { continue };
            // What this process has open, it lets go of itself.
            if pid == std::process::id() {
                continue;
            }
            if left == 0 {
                is_cut = true;
                break;
            }
            let (seen, is_all) = self.look_at(pid, of_process.min(left), &mut opened)?;
            left -= seen;
            is_cut |= !is_all;
            busiest = busiest.max((seen, pid));
        }
        if is_cut {
            let (files, process) = busiest;
            tracing::warn!(
                process,
                files,
                "not all files that it has open are looked at: it may have any device open"
            );
            opened.insert(ANY.into(), process);
        }
        Ok(opened)
    }

    /// Adds what one process has open; how many files were looked at, and whether these were all.
    fn look_at(
        &self,
        pid: u32,
        most: usize,
        opened: &mut BTreeMap<String, u32>,
    ) -> io::Result<(usize, bool)> {
        let folder = self.at(&format!("proc/{pid}/fd"));
        let unlisted = |error: &io::Error| {
            self.untold(pid, &format!("the files it has open are not seen: {error}"), error)
        };
        let files = match fs::read_dir(&folder) {
            Ok(files) => files,
            Err(error) if is_gone(&error) => return Ok((0, true)),
            Err(error) => return Err(unlisted(&error)),
        };
        let mut seen = 0;
        for file in files {
            let file = match file {
                Ok(file) => file.path(),
                Err(error) if is_gone(&error) => break,
                Err(error) => return Err(unlisted(&error)),
            };
            if seen == most {
                return Ok((seen, false));
            }
            seen += 1;
            let target = match fs::read_link(&file) {
                Ok(target) => target,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(unlisted(&error)),
            };
            match self.device(&file, &target) {
                Ok(Some(device)) => _ = opened.entry(device).or_insert(pid),
                Ok(None) => {}
                Err(error) => {
                    let path = target.to_string_lossy();
                    let what = format!("what it has open as {} is not told: {error}", path.escape_debug());
                    return Err(self.untold(pid, &what, &error));
                }
            }
        }
        Ok((seen, true))
    }

    /// The number of an open character device, or the function of which it is the memory. What is said of it is what the
    /// kernel has already: a file system that is gone, or that answers its user alone, is not asked, and has no devices. One
    /// below `/dev` that tells nothing may be any.
    fn device(&self, open: &Path, target: &Path) -> io::Result<Option<String>> {
        // Sockets, pipes and the like have no path.
        if !target.is_absolute() {
            return Ok(None);
        }
        // Through the link, for a container has other names for the same device.
        let wanted = StatxFlags::TYPE | StatxFlags::INO;
        let seen = match statx(CWD, open, AtFlags::STATX_DONT_SYNC, wanted) {
            Ok(seen) => seen,
            Err(error) if target.starts_with("/dev") && !is_gone(&error.into()) => {
                // One that answers its user alone tells at least which kind it is (fs/fuse/inode.c, fuse_statfs).
                let kind = statfs(open).ok().and_then(|seen| u64::try_from(seen.f_type).ok());
                return if kind.is_some_and(has_no_devices) { Ok(None) } else { Err(error.into()) };
            }
            Err(_) => return Ok(None),
        };
        Ok(match FileType::from_raw_mode(seen.stx_mode.into()) {
            FileType::CharacterDevice => Some(format!("{}:{}", seen.stx_rdev_major, seen.stx_rdev_minor)),
            FileType::BlockDevice => {
                Some(block_of(&format!("{}:{}", seen.stx_rdev_major, seen.stx_rdev_minor)))
            }
            FileType::RegularFile => self.memory(target, seen.stx_ino),
            _ => None,
        })
    }

    /// The function whose memory a file is. In a container it is below another root, and has the same number.
    fn memory(&self, target: &Path, inode: u64) -> Option<String> {
        let name = target.file_name()?.to_str()?;
        name.strip_prefix("resource").filter(|number| !number.is_empty())?;
        let address: PciAddress = target.parent()?.file_name()?.to_str()?.parse().ok()?;
        let own = self.at(&format!("{}/{name}", function(address)));
        let own = statx(CWD, &own, AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok()?;
        (own.stx_ino == inode).then(|| memory_of(address))
    }

    /// An error with the process that it is about: nobody else could find it.
    fn untold(&self, pid: u32, what: &str, error: &io::Error) -> io::Error {
        let name = self.read(&format!("proc/{pid}/comm")).unwrap_or_default();
        let name = String::from_utf8_lossy(&name);
        let name: String = name.trim().chars().filter(|c| !c.is_control()).take(64).collect();
        io::Error::new(
            error.kind(),
            format!("process {pid} ({name}) of the host may have any device open: {what}"),
        )
    }
}

/// The network card of a virtual function.
struct Card {
    parent: PciAddress,
    /// Number of its interface.
    interface: u32,
    /// Number of the function.
    index: u32,
    is_switchdev: bool,
}

impl Kernel for HostKernel {
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let mut bytes = vec![];
        File::open(self.at(path))?.take(MOST).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn write(&self, path: &str, value: &str) -> io::Result<()> {
        let written = || {
            // Nothing is ever made or cut here: one write to what the kernel shows.
            let mut file = File::options().write(true).open(self.at(path))?;
            let count = file.write(value.as_bytes())?;
            if count == value.len() { Ok(()) } else { Err(io::Error::other("it took only a part")) }
        };
        let result = written();
        match &result {
            Ok(()) => tracing::info!(path, value = value.trim(), "written"),
            Err(error) => tracing::warn!(path, value = value.trim(), %error, "not written"),
        }
        result
    }

    fn peek(&self, path: &str) -> io::Result<u32> {
        const LENGTH: usize = 4096;
        let file = File::open(self.at(path))?;
        // Beyond the end of a file there is nothing to be read.
        if file.metadata()?.len() < 4 {
            return Err(io::Error::other("it has no memory"));
        }
        // SAFETY: a new mapping, read within its first word and given back; nobody else knows of it. Another process may
        // change what is there, as devices do: it is read once, and any bits are a number. A card that is pulled between
        // the two calls ends this process, which then goes on from its journal.
        unsafe {
            let (read, shared) = (ProtFlags::READ, MapFlags::SHARED);
            let memory = mmap(std::ptr::null_mut(), LENGTH, read, shared, &file, 0)?;
            let told = memory.cast::<u32>().read_volatile();
            munmap(memory, LENGTH)?;
            Ok(told)
        }
    }

    fn link(&self, path: &str) -> io::Result<String> {
        Ok(fs::read_link(self.at(path))?.to_string_lossy().into_owned())
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let names =
            fs::read_dir(self.at(path))?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    fn open_devices(&self) -> io::Result<BTreeMap<String, u32>> {
        self.look(OF_PROCESS, OF_ALL)
    }

    fn drive(&self, address: PciAddress) -> io::Result<DriveNow> {
        let tree = Tree::open(&self.root).map_err(io::Error::other)?;
        Ok(Scanner::new(tree).drive_now(address))
    }

    fn erase(&self, address: PciAddress, method: DriveErase) -> io::Result<()> {
        let drive = self.drive(address)?;
        // It may have come into use since it was looked at.
        if let Some(why) = &drive.in_use {
            return Err(io::Error::other(why.clone()));
        }
        tracing::warn!(%address, %method, namespaces = ?drive.namespaces, "a drive is erased");
        nvme::erase(&self.root, &drive, method)
    }

    fn network(&self, address: PciAddress) -> io::Result<Option<Result<NetworkNow, String>>> {
        let card = match self.network_card(address)? {
            None => return Ok(None),
            Some(Err(why)) => return Ok(Some(Err(why))),
            Some(Ok(card)) => card,
        };
        let Card { parent, interface, index, is_switchdev } = card;
        Ok(Some(match virtual_functions::read(&self.root, interface, index) {
            Ok(mut settings) => {
                settings.mtu = self.mtu(address)?.map(|(_, mtu)| mtu);
                let tree = Tree::open(&self.root).map_err(io::Error::other)?;
                let in_use = Scanner::new(tree).function_now(address);
                Ok(NetworkNow { parent, is_switchdev, in_use, settings })
            }
            Err(error) => Err(format!("its network card {parent} does not say what holds for it: {error}")),
        }))
    }

    fn set_network(&self, address: PciAddress, settings: &VfSettings) -> io::Result<()> {
        let Some(Ok(Card { interface, index, .. })) = self.network_card(address)? else {
            return Err(io::Error::other("its network card is not there"));
        };
        tracing::info!(%address, %settings, "set by its network card");
        virtual_functions::write(&self.root, interface, index, settings)?;
        match (settings.mtu, self.mtu(address)?) {
            (Some(wanted), Some((file, now))) if wanted != now => self.write(&file, &wanted.to_string()),
            _ => Ok(()),
        }
    }

    fn no_network_functions(&self) -> Option<String> {
        (!self.gives_networks).then(|| {
            "functions of network cards are not given on this host: set nodeDaemon.networkFunctions \
             (--network-functions)"
                .into()
        })
    }

    fn unable(&self) -> Option<String> {
        let sys = self.at("sys");
        if statvfs(&sys).is_ok_and(|seen| seen.f_flag.contains(StatVfsMountFlags::RDONLY)) {
            return Some(
                "the node daemon may not write to /sys, so it can make and unmake nothing: set nodeDaemon.privileged".into(),
            );
        }
        if !rustix::process::geteuid().is_root() {
            return Some(
                "the node daemon does not run as root, so it can make and unmake nothing on cards".into(),
            );
        }
        let second = self.read("proc/2/comm").unwrap_or_default();
        (second.trim_ascii() != b"kthreadd").then(|| {
            "the node daemon does not see the processes of the host, so it cannot tell who uses a card: set \
             nodeDaemon.privileged"
                .into()
        })
    }
}

/// Whether a file system is of a kind that a user or another machine serves: FUSE, NFS, SMB, 9p, Ceph (statfs(2)). No driver of
/// this machine is behind a file of it that does not tell what it is.
fn has_no_devices(kind: u64) -> bool {
    matches!(kind, 0x6573_5546 | 0x6969 | 0xfe53_4d42 | 0xff53_4d42 | 0x0102_1997 | 0x00c3_6400)
}

/// Whether a process ended while it was looked at.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use rustix::fs::{major, minor};

    use super::*;

    #[test]
    fn what_is_not_there_is_not_made_and_nothing_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sys")).unwrap();
        fs::write(folder.path().join("sys/file"), "before").unwrap();
        let kernel = HostKernel::new(folder.path());
        assert_eq!(kernel.write("sys/none", "1").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!folder.path().join("sys/none").exists());
        kernel.write("sys/file", "B").unwrap();
        assert_eq!(kernel.read("sys/file").unwrap(), b"Before");
        assert_eq!(kernel.list("sys").unwrap(), ["file"]);
        assert_eq!(kernel.peek("sys/file").unwrap(), u32::from_le_bytes(*b"Befo"));
        fs::write(folder.path().join("sys/empty"), "").unwrap();
        assert!(kernel.peek("sys/empty").is_err());
        assert!(kernel.unable().is_some(), "no processes of a host are seen below it");
    }

    /// A process with a file open as its input, and a root below which it is seen alone.
    fn process(input: File) -> (std::process::Child, tempfile::TempDir) {
        let other = std::process::Command::new("sleep").arg("60").stdin(input).spawn().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let processes = folder.path().join("proc");
        fs::create_dir(&processes).unwrap();
        for pid in [other.id(), std::process::id()] {
            symlink(format!("/proc/{pid}"), processes.join(pid.to_string())).unwrap();
        }
        (other, folder)
    }

    fn end(mut process: std::process::Child) {
        process.kill().unwrap();
        process.wait().unwrap();
    }

    #[test]
    fn devices_that_are_open_are_found_by_their_numbers() {
        let open = File::open("/dev/null").unwrap();
        let number = open.metadata().unwrap().rdev();
        let (other, folder) = process(open);
        let pid = other.id();
        let opened = HostKernel::new(folder.path()).open_devices().unwrap();
        end(other);
        let number = format!("{}:{}", major(number), minor(number));
        assert_eq!(opened.get(&number), Some(&pid), "and not this process");
        assert_eq!(opened.get(ANY), None);
    }

    #[test]
    fn the_memory_of_a_function_that_is_open_is_found() {
        let address: PciAddress = "0000:41:00.0".parse().unwrap();
        let sysfs = tempfile::tempdir().unwrap();
        let own = sysfs.path().join(function(address));
        let another = sysfs.path().join("another/0000:41:00.0");
        for folder in [&own, &another] {
            fs::create_dir_all(folder).unwrap();
            for name in ["resource", "resource0", "resource1_wc"] {
                fs::write(folder.join(name), "").unwrap();
            }
        }
        let cases = [
            (own.join("resource0"), true),
            (own.join("resource1_wc"), true),
            (own.join("resource"), false),
            (another.join("resource0"), false),
        ];
        for (path, is_memory) in cases {
            let (other, folder) = process(File::open(&path).unwrap());
            symlink(sysfs.path().join("sys"), folder.path().join("sys")).unwrap();
            let opened = HostKernel::new(folder.path()).open_devices().unwrap();
            end(other);
            assert_eq!(opened.contains_key(&memory_of(address)), is_memory, "{}", path.display());
        }
    }

    #[test]
    fn a_process_with_more_files_than_are_looked_at_may_have_any_device_open() {
        let (other, folder) = process(File::open("/dev/null").unwrap());
        let pid = other.id();
        let kernel = HostKernel::new(folder.path());
        // It has at least its input, its output and where it complains.
        let looks = [kernel.look(1, 1000), kernel.look(1000, 1), kernel.look(1000, 1000)];
        end(other);
        let found = looks.map(|opened| opened.unwrap().get(ANY).copied());
        assert_eq!(found, [Some(pid), Some(pid), None]);
    }

    #[test]
    fn a_process_that_hides_what_it_has_open_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let process = folder.path().join("proc/4711");
        fs::create_dir_all(process.join("fd")).unwrap();
        fs::write(process.join("comm"), "ev\u{1b}[31mil\n").unwrap();
        // Neither gone nor there: below a file is nothing.
        symlink("/dev/null/x", process.join("fd/3")).unwrap();
        let error = HostKernel::new(folder.path()).open_devices().unwrap_err().to_string();
        assert!(error.contains("process 4711 (ev[31mil)") && error.contains("/dev/null/x"), "{error}");
    }

    #[test]
    fn a_file_system_of_a_user_has_no_devices_of_the_host() {
        let kind = |path: &str| u64::try_from(statfs(path).unwrap().f_type).unwrap();
        assert!(["/proc", "/dev", "/sys"].iter().all(|path| !has_no_devices(kind(path))));
        assert!(has_no_devices(0x6573_5546) && has_no_devices(0x6969), "FUSE and NFS");
    }
}
