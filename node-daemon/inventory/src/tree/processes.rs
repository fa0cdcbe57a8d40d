//! Processes of the host, and who has a device open.
//!
//! A host has thousands of them: what is passed over is not remembered, so a capture holds only what was
//! found.

use std::{collections::BTreeMap, io};

use super::{Source, Tree};

/// Characters of a program's name that the kernel keeps (`TASK_COMM_LEN` in its `sched.h`).
const NAME: usize = 15;
/// Most open files looked at.
const FILES: usize = 1 << 20;

impl Source {
    fn names_or_none(&self, path: &str) -> Vec<String> {
        let names = match self {
            Self::Folder(folder) => folder.names(path),
            Self::Archive(archive) => archive.names(path),
        };
        names.unwrap_or_default()
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
    fn processes(&self) -> Vec<u32> {
        let mut pids: Vec<u32> =
            self.source.names_or_none("proc").iter().filter_map(|name| name.parse().ok()).collect();
        pids.sort_unstable();
        pids
    }

    /// Whether the processes of the host are seen, rather than those of a container: the second one is
    /// the kernel's own there.
    pub fn sees_processes(&self) -> bool {
        self.line("proc/2/comm").as_deref() == Some("kthreadd")
    }

    /// A process of the program of this name; `None` when none is seen.
    pub fn process(&self, program: &str) -> Option<u32> {
        let name: String = program.chars().take(NAME).collect();
        let found = self
            .processes()
            .into_iter()
            .find(|pid| self.source.short(&format!("proc/{pid}/comm")).is_ok_and(|found| found == name))?;
        // Remembered, for a capture reads like the host.
        self.line(&format!("proc/{found}/comm")).map(|_| found)
    }

    /// The files whose names begin with `head` that processes have open, each with one of them.
    pub fn opened(&self, head: &str) -> BTreeMap<String, u32> {
        let mut found = BTreeMap::new();
        let mut left = FILES;
        for pid in self.processes() {
            let folder = format!("proc/{pid}/fd");
            for name in self.source.names_or_none(&folder) {
                if left == 0 {
                    return found;
                }
                left -= 1;
                let path = format!("{folder}/{name}");
                let target = self.source.link(&path).unwrap_or_default();
                if target.starts_with(head) && !found.contains_key(&target) {
                    // Remembered, for a capture reads like the host.
                    self.link(&path);
                    found.insert(target, pid);
                }
            }
        }
        found
    }

    /// Whether something has a block device of this machine for itself: a file system, a volume, a storage
    /// target. Of a capture or another root that cannot be told, and `false` is said.
    pub fn is_claimed(&self, path: &str) -> bool {
        matches!(&self.source, Source::Folder(folder) if folder.is_claimed(path))
    }
}
