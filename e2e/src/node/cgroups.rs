//! The cgroups of a node: one in each hierarchy, below the one that this process is in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::processes::Identity;

/// The file in the node's folder that names them, one a line.
pub(crate) const RECORD: &str = "cgroups";
/// Shell: moves itself into the cgroups that the file $1 names, then becomes the other arguments.
pub(crate) const MOVE: &str =
    r#"while read -r at; do echo $$ >"$at/cgroup.procs"; done <"$1"; shift; exec "$@""#;

/// The folders of a node in `/sys/fs/cgroup`.
#[derive(Debug)]
pub(crate) struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    /// Makes them, and records them in the node's folder first.
    pub(crate) fn create(folder: &Path, name: &str) -> Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
        let parents = hierarchies(&own)?;
        let groups = Self(parents.iter().map(|parent| parent.join(name)).collect());
        let lines: Vec<_> = groups.0.iter().map(|path| path.display().to_string()).collect();
        fs::write(folder.join(RECORD), lines.join("\n") + "\n")?;
        for (parent, group) in parents.iter().zip(&groups.0) {
            fs::create_dir_all(group).with_context(|| format!("make the cgroup {}", group.display()))?;
            // No process may enter one without processors and memory.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if group.join(file).exists() {
                    fs::write(group.join(file), fs::read(parent.join(file))?)?;
                    fs::write(group.join("cgroup.clone_children"), "1")?;
                }
            }
        }
        Ok(groups)
    }

    /// The processes in them and below.
    pub(crate) fn processes(&self) -> Vec<Identity> {
        let Some(own) = self.0.first().and_then(|group| group.file_name()?.to_str()) else {
            return Vec::new();
        };
        Identity::matching(|pid| {
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            groups.lines().any(|line| line.split('/').any(|part| part == own))
        })
    }

    /// Removes them with all below; their processes have ended.
    pub(crate) fn remove(&self) -> Result<()> {
        self.0.iter().try_for_each(|group| remove(group))
    }
}

/// Removes what the nodes of an earlier run left, whose state folder this is. Best effort.
pub(crate) fn remove_recorded(state: &Path) {
    for node in fs::read_dir(state).into_iter().flatten().flatten() {
        let record = fs::read_to_string(node.path().join(RECORD)).unwrap_or_default();
        for line in record.lines() {
            let _ = remove(Path::new(line));
        }
    }
}

/// Depth first: a cgroup with others below stays.
fn remove(group: &Path) -> Result<()> {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    // The kernel counts a process for some moments after its end.
    let begun = Instant::now();
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if begun.elapsed() > Duration::from_secs(20) => {
                return Err(error).with_context(|| format!("remove the cgroup {}", group.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The folder of this process in each hierarchy, of the lines of `/proc/self/cgroup`.
fn hierarchies(own: &str) -> Result<Vec<PathBuf>> {
    let lines: Vec<_> = own.lines().filter_map(|line| line.split_once(':')?.1.split_once(':')).collect();
    ensure!(
        lines.iter().any(|(controllers, _)| controllers.split(',').any(|one| one == "memory")),
        "/proc/self/cgroup names no hierarchy of the controller memory: this machine has cgroup v2 alone, and a \
         Kubernetes node of the harness takes cgroup v1, with a hierarchy for each controller"
    );
    let at = |(controllers, path): (&str, &str)| {
        let hierarchy = match controllers {
            "" => "unified",
            other => other.strip_prefix("name=").unwrap_or(other),
        };
        Path::new("/sys/fs/cgroup").join(hierarchy).join(path.trim_start_matches('/'))
    };
    // The second version beside the first is not everywhere.
    Ok(lines.into_iter().map(at).filter(|folder| folder.is_dir()).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_with_the_second_version_alone_is_told_what_is_not_supported() {
        let words = hierarchies("0::/user.slice/session-1.scope\n").unwrap_err().to_string();
        assert!(words.contains("cgroup v2 alone") && words.contains("takes cgroup v1"), "{words}");
        hierarchies("3:memory:/a\n0::/\n").unwrap();
    }
}
