//! Processes of the host, and who has a device open.
//!
//! A host has thousands of them: what is passed over is not remembered, so a capture holds only what was
//! found.

use std::{collections::BTreeMap, io};

use rustix::io::Errno;

use super::{NAMES, Source, Tree};

/// Characters of a program's name that the kernel keeps (`TASK_COMM_LEN` in its `sched.h`).
const NAME: usize = 15;
/// Most open files looked at.
const FILES: usize = 1 << 20;
/// So many names of a folder, and there may be more: its own two are not among them.
const CUT: usize = NAMES - 2;

/// Who has files open, as far as that is seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// The files, each with one process that has it open.
    pub files: BTreeMap<String, u32>,
    /// Why others may have them open too, where not all is seen.
    pub unseen: Option<String>,
}

impl Source {
    fn names(&self, path: &str) -> io::Result<Vec<String>> {
        match self {
            Self::Folder(folder) => folder.names(path),
            Self::Archive(archive) => archive.names(path),
        }
    }

    fn short(&self, path: &str) -> io::Result<String> {
        let bytes = match self {
            Self::Folder(folder) => folder.read(None, path, 64),
            Self::Archive(archive) => archive.read(path, 64),
        };
        Ok(String::from_utf8_lossy(&bytes?).trim().to_owned())
    }
}

impl Tree {
    /// The processes, and whether these are all.
    fn processes(&self) -> (Vec<u32>, bool) {
        let names = self.source.names("proc").unwrap_or_default();
        let mut pids: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
        pids.sort_unstable();
        (pids, names.len() < CUT)
    }

    /// Whether the processes of the host are seen, rather than those of a container: the second one is
    /// the kernel's own there.
    pub fn sees_processes(&self) -> bool {
        self.line("proc/2/comm").as_deref() == Some("kthreadd")
    }

    /// A process of the program of this name; `None` when none is seen.
    pub fn process(&self, program: &str) -> Option<u32> {
        let name: String = program.chars().take(NAME).collect();
        let found =
            self.processes().0.into_iter().find(|pid| {
                self.source.short(&format!("proc/{pid}/comm")).is_ok_and(|found| found == name)
            })?;
        // Remembered, for a capture reads like the host.
        self.line(&format!("proc/{found}/comm")).map(|_| found)
    }

    /// The files whose names begin with `head` that processes have open, each with one of them.
    pub fn opened(&self, head: &str) -> Opened {
        self.opened_among(head, FILES)
    }

    fn opened_among(&self, head: &str, most: usize) -> Opened {
        let mut found = Opened::default();
        let mut left = most;
        let (processes, are_all) = self.processes();
        if !are_all {
            found.unseen = Some(format!("only {} processes of the host are looked at", processes.len()));
        }
        for pid in processes {
            let folder = format!("proc/{pid}/fd");
            let names = match self.source.names(&folder) {
                Ok(names) => names,
                Err(error) if is_gone(&error) => continue,
                Err(error) => {
                    self.not_seen(&mut found, &folder, format!("the process {pid} does not tell: {error}"));
                    continue;
                }
            };
            if names.len() >= CUT || names.len() > left {
                let why = format!("the process {pid} has too many files open to look at all of them");
                self.not_seen(&mut found, &folder, why);
            }
            for name in names.into_iter().take(left) {
                left -= 1;
                let path = format!("{folder}/{name}");
                let target = match self.source.link(&path) {
                    Ok(target) => target,
                    Err(error) if is_gone(&error) => continue,
                    Err(error) => {
                        let why = format!("the process {pid} does not tell: {error}");
                        self.not_seen(&mut found, &folder, why);
                        break;
                    }
                };
                if target.starts_with(head) && !found.files.contains_key(&target) {
                    // Remembered, for a capture reads like the host.
                    self.link(&path);
                    found.files.insert(target, pid);
                }
            }
        }
        found
    }

    /// Notes that not all in a folder is seen; of a capture that is told like of the host.
    fn not_seen(&self, found: &mut Opened, folder: &str, why: String) {
        found.unseen.get_or_insert(why);
        self.record(|recording, source| recording.add_denial(source, folder));
    }

    /// Whether something has a block device of this machine for itself: a file system, a volume, a storage
    /// target. Of a capture or another root that cannot be told, and `false` is said.
    pub fn is_claimed(&self, path: &str) -> bool {
        matches!(&self.source, Source::Folder(folder) if folder.is_claimed(path))
    }
}

/// Whether a process ended while it was looked at, or there is no link.
fn is_gone(error: &io::Error) -> bool {
    let ended = Errno::from_io_error(error) == Some(Errno::SRCH);
    ended
        || matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput
        )
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::*;

    fn open(root: &Path, pid: u32, files: &[&str]) {
        let folder = root.join(format!("proc/{pid}/fd"));
        fs::create_dir_all(&folder).unwrap();
        for (number, file) in files.iter().enumerate() {
            symlink(file, folder.join(number.to_string())).unwrap();
        }
    }

    #[test]
    fn what_is_not_looked_at_is_not_said_to_be_free() {
        let root = tempfile::tempdir().unwrap();
        open(root.path(), 7, &["/dev/null", "/dev/nvme0n1", "socket:[1]"]);
        open(root.path(), 8, &["/dev/nvme1n1"]);
        let tree = Tree::open(root.path()).unwrap().recording();
        let all = tree.opened_among("/dev/nvme", 4);
        assert_eq!(all.files, [("/dev/nvme0n1".to_owned(), 7), ("/dev/nvme1n1".to_owned(), 8)].into());
        assert_eq!(all.unseen, None);
        for most in 0..3 {
            let some = tree.opened_among("/dev/nvme", most);
            assert!(some.unseen.as_deref().unwrap().contains("process 7 has too many"), "{most}: {some:?}");
        }
        let some = tree.opened_among("/dev/nvme", 3);
        assert!(some.unseen.as_deref().unwrap().contains("process 8"), "{some:?}");
        assert_eq!(some.files.len(), 1);
        // Of a capture the same is said: the folder was denied.
        let file = tempfile::NamedTempFile::new().unwrap();
        tree.recorded().unwrap().write(file.as_file()).unwrap();
        assert!(Tree::open(file.path()).unwrap().opened("/dev/nvme").unseen.is_some());
    }

    #[test]
    fn a_process_that_does_not_tell_may_have_anything_open() {
        let root = tempfile::tempdir().unwrap();
        open(root.path(), 7, &["/dev/null"]);
        let tree = Tree::open(root.path()).unwrap().recording();
        assert_eq!(tree.opened("/dev/nvme"), Opened::default());
        tree.known::<()>("proc/7/fd", Err(io::ErrorKind::PermissionDenied.into()));
        let file = tempfile::NamedTempFile::new().unwrap();
        tree.recorded().unwrap().write(file.as_file()).unwrap();
        let unseen = Tree::open(file.path()).unwrap().opened("/dev/nvme").unseen;
        assert!(unseen.as_deref().unwrap().contains("process 7 does not tell"), "{unseen:?}");
    }
}
