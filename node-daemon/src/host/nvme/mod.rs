//! Erasing NVMe drives, by admin commands to their controllers.
//!
//! Each namespace is opened for this alone first, as mount does: so nothing of the host can have it, or come to have it
//! meanwhile. Sources: the kernel's `include/uapi/linux/nvme_ioctl.h`, `include/uapi/linux/fs.h`.
#![expect(clippy::disallowed_methods, reason = "adapter: opens drives and waits for them")]
#![expect(unsafe_code, reason = "calls the kernel by its ioctl interface")]

mod command;

use std::{
    ffi::c_void,
    fs::File,
    io,
    os::{
        fd::AsFd as _,
        unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    },
    path::Path,
    thread,
    time::Duration,
};

use gpudesk_crds::gpu_node_drives::DriveErase;
use gpudesk_inventory::scan::DriveNow;
use rustix::{
    fs::OFlags,
    ioctl::{Getter, Ioctl, IoctlOutput, NoArg, Opcode, Setter, ioctl, opcode},
};

use command::{Command, IDENTIFY, IDENTIFY_CONTROLLER, SANITIZE_LOG, SANITIZE_STATUS, Sanitizing};

/// How often a drive is asked how far it is.
const PAUSE: Duration = Duration::from_secs(5);
/// Most times: two days.
const MOST: u32 = 2 * 24 * 3600 / 5;

/// `struct nvme_passthru_cmd64`.
#[repr(C)]
#[derive(Default)]
struct Passthrough {
    opcode: u8,
    flags: u8,
    reserved: u16,
    namespace: u32,
    dwords2: [u32; 2],
    metadata: u64,
    address: u64,
    metadata_length: u32,
    length: u32,
    dwords10: [u32; 6],
    timeout_ms: u32,
    reserved2: u32,
    result: u64,
}

/// `NVME_IOCTL_ADMIN64_CMD`, which answers with the status of the drive where that is not an error of the kernel.
struct Admin<'a>(&'a mut Passthrough);

// SAFETY: the opcode is that of the structure that the pointer leads to, which lives as long as the call.
unsafe impl Ioctl for Admin<'_> {
    type Output = IoctlOutput;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<Passthrough>(b'N', 0x47)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut *self.0).cast()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> rustix::io::Result<Self::Output> {
        Ok(output)
    }
}

/// `BLKDISCARD`, `BLKRRPART`, `BLKGETSIZE64`.
const DISCARD: Opcode = opcode::none(0x12, 119);
const READ_PARTITIONS: Opcode = opcode::none(0x12, 95);
/// `BLKFLSBUF` of `linux/fs.h`.
const FLUSH_CACHE: Opcode = opcode::none(0x12, 97);
const SIZE: Opcode = opcode::read::<usize>(0x12, 114);

/// Erases a drive below `root`, which was looked at just now. Blocks for as long as the drive takes, which may be hours.
pub(super) fn erase(root: &Path, now: &DriveNow, method: DriveErase) -> io::Result<()> {
    let DriveNow { controllers, namespaces, serial, .. } = now;
    let [controller] = &controllers[..] else {
        return Err(io::Error::other("the kernel shows no single controller of it"));
    };
    if namespaces.is_empty() {
        return Err(io::Error::other(
            "it shows no namespace: what its last user took away is to be made anew by hand (nvme create-ns)",
        ));
    }
    let taken: Vec<(&String, File)> = namespaces
        .iter()
        .map(|name| Ok((name, alone(&root.join("dev").join(name))?)))
        .collect::<io::Result<_>>()?;
    let drive = File::options().read(true).open(root.join("dev").join(controller))?;
    if !drive.metadata()?.file_type().is_char_device() {
        return Err(io::Error::other(format!("/dev/{controller} is no device")));
    }
    let identified = ask(&drive, IDENTIFY_CONTROLLER, IDENTIFY)?;
    // Names are given anew when a drive drops off.
    if command::serial(&identified).as_deref() != serial.as_deref().map(str::trim) {
        return Err(io::Error::other(format!("/dev/{controller} is another drive by now")));
    }
    let numbers: Vec<u32> = namespaces.iter().map(|name| number(root, name)).collect::<io::Result<_>>()?;
    if command::manages_namespaces(&identified) != Some(false) {
        let listed = ask(&drive, command::ALLOCATED, IDENTIFY)?;
        if command::listed(&listed).any(|number| !numbers.contains(&number)) {
            return Err(io::Error::other(
                "it has namespaces that are not attached, so they cannot be erased: delete them by hand (nvme delete-ns)",
            ));
        }
    }
    match method {
        DriveErase::Format => {
            if command::can_format(&identified) != Some(true) {
                return Err(io::Error::other(
                    "the drive does not know Format NVM: choose Sanitize or Discard",
                ));
            }
            for ((name, _), number) in taken.iter().zip(numbers) {
                let identified = ask(&drive, command::identify(number), IDENTIFY)?;
                let command = command::format(number, &identified).ok_or_else(|| {
                    io::Error::other(format!("the drive tells nothing of the namespace {name}"))
                })?;
                ask(&drive, command, 0)?;
            }
        }
        DriveErase::Sanitize => sanitize(&drive)?,
        DriveErase::Discard => {
            for (_, namespace) in &taken {
                discard(namespace)?;
            }
        }
        DriveErase::None => {}
    }
    for (name, namespace) in &taken {
        // What was read of it before stands in the kernel's cache, whatever the drive has now.
        // SAFETY: it takes no argument.
        unsafe { ioctl(namespace.as_fd(), NoArg::<FLUSH_CACHE>::new()) }?;
        // SAFETY: it takes no argument.
        let read = unsafe { ioctl(namespace.as_fd(), NoArg::<READ_PARTITIONS>::new()) };
        if let Err(error) = read {
            tracing::warn!(name, %error, "the kernel does not look for partitions again");
        }
    }
    Ok(())
}

/// Opens a block device for this alone.
fn alone(path: &Path) -> io::Result<File> {
    let flags = OFlags::EXCL | OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let opened = File::options().read(true).write(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| io::Error::other(format!("{}: {error}", path.display())))?;
    if file.metadata()?.file_type().is_block_device() {
        Ok(file)
    } else {
        Err(io::Error::other(format!("{} is no block device", path.display())))
    }
}

/// The drive's own number of a namespace.
fn number(root: &Path, name: &str) -> io::Result<u32> {
    let text = std::fs::read_to_string(root.join("sys/block").join(name).join("nsid"))?;
    text.trim().parse().map_err(io::Error::other)
}

/// Gives a command to the drive, and takes this many bytes of an answer. The drive's own refusal is an error.
fn ask(drive: &File, command: Command, length: usize) -> io::Result<Vec<u8>> {
    let mut answer = vec![0_u8; length];
    let mut asked = Passthrough {
        opcode: command.opcode,
        namespace: command.namespace,
        address: if length == 0 { 0 } else { answer.as_mut_ptr().expose_provenance() as u64 },
        length: u32::try_from(length).map_err(io::Error::other)?,
        timeout_ms: command.timeout_ms,
        ..Passthrough::default()
    };
    asked.dwords10[0] = command.dword10;
    // SAFETY: the structure and the answer that it leads to live until the call ends, and have the lengths in it.
    let status = unsafe { ioctl(drive.as_fd(), Admin(&mut asked)) }?;
    if status == 0 {
        return Ok(answer);
    }
    Err(io::Error::other(format!(
        "the drive answers the command {:#04x} with the status {status:#06x}",
        command.opcode
    )))
}

fn sanitize(drive: &File) -> io::Result<()> {
    let look = || {
        let log = ask(drive, SANITIZE_STATUS, SANITIZE_LOG)?;
        command::sanitizing(&log).ok_or_else(|| io::Error::other("its log of Sanitize is short"))
    };
    // One that a daemon before this began goes on by itself.
    if !matches!(look()?, Sanitizing::Underway(_)) {
        let identified = ask(drive, IDENTIFY_CONTROLLER, IDENTIFY)?;
        let command = command::sanitize(&identified).ok_or_else(|| {
            io::Error::other("the drive knows neither a block erase nor a cryptographic one: choose Format")
        })?;
        ask(drive, command, 0)?;
    }
    for _ in 0..MOST {
        match look()? {
            Sanitizing::Done => return Ok(()),
            Sanitizing::Underway(progress) => tracing::debug!(progress, "a drive is sanitized"),
            Sanitizing::Failed => return Err(io::Error::other("the drive says that Sanitize failed")),
            Sanitizing::Unclear(status) => {
                return Err(io::Error::other(format!("the drive tells the status {status} of Sanitize")));
            }
        }
        thread::sleep(PAUSE);
    }
    Err(io::Error::other("Sanitize does not end"))
}

fn discard(namespace: &File) -> io::Result<()> {
    // SAFETY: the kernel writes 8 bytes, whatever the size of the type in its number.
    let size: u64 = unsafe { ioctl(namespace.as_fd(), Getter::<SIZE, u64>::new()) }?;
    // SAFETY: it reads a start and a length.
    unsafe { ioctl(namespace.as_fd(), Setter::<DISCARD, [u64; 2]>::new([0, size])) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_laid_out_as_the_kernel_has_it() {
        assert_eq!(size_of::<Passthrough>(), 80);
        assert_eq!(std::mem::offset_of!(Passthrough, dwords10), 40);
        assert_eq!(std::mem::offset_of!(Passthrough, result), 72);
        // _IOWR('N', 0x47, struct nvme_passthru_cmd64), _IO(0x12, 119), _IOR(0x12, 114, size_t).
        let mut asked = Passthrough::default();
        assert_eq!(Admin(&mut asked).opcode(), 0xc050_4e47);
        assert_eq!((DISCARD, SIZE), (0x1277, 0x8008_1272));
    }

    #[test]
    fn a_file_is_no_drive() {
        let folder = tempfile::tempdir().unwrap();
        let dev = folder.path().join("dev");
        std::fs::create_dir(&dev).unwrap();
        std::fs::write(dev.join("nvme0n1"), "mine").unwrap();
        std::fs::write(dev.join("nvme0"), "mine").unwrap();
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let refused = |controllers: &[&str], namespaces: &[&str]| {
            let now = DriveNow {
                controllers: names(controllers),
                namespaces: names(namespaces),
                ..DriveNow::default()
            };
            erase(folder.path(), &now, DriveErase::Discard).unwrap_err().to_string()
        };
        assert!(refused(&["nvme0"], &["nvme0n1"]).contains("is no block device"));
        assert!(refused(&["nvme0"], &[]).contains("no namespace"));
        assert!(refused(&["nvme0", "nvme1"], &["nvme0n1"]).contains("no single controller"));
        assert_eq!(std::fs::read(dev.join("nvme0n1")).unwrap(), b"mine");
    }
}
