//! The cgroups of a node.
//!
//! ```text
//! version 1, also beside 2: one in each hierarchy        version 2 alone: one at the root, where controllers are
//! /sys/fs/cgroup/CONTROLLER/OWN PATH/NODE                /sys/fs/cgroup/NODE     root of the node's cgroup namespace
//!                                                          ├─ init               its programs
//!                                                          └─ kubepods           its pods
//! ```
//! In version 2 a group that hands controllers down holds no processes itself, and the one that this process is in, of a
//! session or a service, holds some: so the node's is not below it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::processes::Identity;

/// The file in the node's folder that names them, one a line.
pub(crate) const RECORD: &str = "cgroups";
/// The file that names the `cgroup.procs` by which a program of the node gets into them.
pub(crate) const ENTRANCES: &str = "cgroup-entrances";
/// The file that names what the root hands down for this node alone.
const BORROWED: &str = "cgroup-controllers";
/// Shell: moves itself to where the file $1 says, then becomes the other arguments.
pub(crate) const MOVE: &str =
    r#"while read -r at; do echo $$ >"$at" || exit 1; done <"$1"; shift; exec "$@""#;
/// As [`MOVE`] for the first process; the file $1 names the groups, which become the roots of its namespace, and $2 is
/// where it goes in the end.
pub(crate) const BEGIN: &str = r#"while read -r at; do echo $$ >"$at/cgroup.procs" || exit 1; done <"$1"; shift
exec unshare -C sh -c 'while read -r at; do echo $$ >"$at" || exit 1; done <"$0"; exec "$@"' "$@""#;

const ROOT: &str = "/sys/fs/cgroup";
/// Without one of these no kubelet starts.
const NEEDED: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];
/// What pods get beside them where the machine has it.
const WANTED: [&str; 2] = ["io", "hugetlb"];
const GRACE: Duration = Duration::from_secs(20);

/// The folders of a node in `/sys/fs/cgroup`.
#[derive(Debug)]
pub(crate) struct Cgroups {
    folder: PathBuf,
    groups: Vec<PathBuf>,
    version2: bool,
}

/// What a machine has.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// Hierarchies, with the folder of this process in each.
    Version1(Vec<PathBuf>),
    /// One hierarchy, with these controllers.
    Version2(Vec<String>),
}

impl Cgroups {
    /// Makes them, and records them in the node's folder first.
    pub(crate) fn create(folder: &Path, name: &str) -> Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
        let controllers = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers")).ok();
        let kind = kind(&own, controllers.as_deref())?;
        let parents = match &kind {
            Kind::Version1(parents) => parents.clone(),
            Kind::Version2(_) => vec![PathBuf::from(ROOT)],
        };
        let groups: Vec<_> = parents.iter().map(|parent| parent.join(name)).collect();
        let version2 = matches!(kind, Kind::Version2(_));
        let of = Self { folder: folder.to_owned(), groups, version2 };
        of.write(RECORD, of.groups.iter().map(|group| group.display().to_string()))?;
        let inner = |group: &PathBuf| if version2 { group.join("init") } else { group.clone() };
        let entrances = of.groups.iter().map(|group| inner(group).join("cgroup.procs").display().to_string());
        of.write(ENTRANCES, entrances)?;
        let made = match kind {
            Kind::Version1(_) => of.make1(&parents),
            Kind::Version2(controllers) => of.make2(&controllers),
        };
        if let Err(error) = made {
            of.remove()?;
            return Err(error);
        }
        Ok(of)
    }

    /// Those of the node of this folder, whoever made them.
    pub(crate) fn recorded(folder: &Path) -> Option<Self> {
        let groups: Vec<_> =
            fs::read_to_string(folder.join(RECORD)).ok()?.lines().map(PathBuf::from).collect();
        let version2 = groups.iter().any(|group| group.parent() == Some(Path::new(ROOT)));
        Some(Self { folder: folder.to_owned(), groups, version2 })
    }

    fn write(&self, file: &str, lines: impl Iterator<Item = String>) -> Result<()> {
        let text: String = lines.flat_map(|line| [line, "\n".to_owned()]).collect();
        Ok(fs::write(self.folder.join(file), text)?)
    }

    fn make1(&self, parents: &[PathBuf]) -> Result<()> {
        for (parent, group) in parents.iter().zip(&self.groups) {
            make(group)?;
            // No process may enter one without processors and memory.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if group.join(file).exists() {
                    fs::write(group.join(file), fs::read(parent.join(file))?)?;
                    fs::write(group.join("cgroup.clone_children"), "1")?;
                }
            }
        }
        Ok(())
    }

    fn make2(&self, controllers: &[String]) -> Result<()> {
        let root = Path::new(ROOT);
        let given = fs::read_to_string(root.join("cgroup.subtree_control"))?;
        let borrowed: Vec<_> =
            controllers.iter().filter(|it| !given.split_whitespace().any(|one| one == *it)).collect();
        self.write(BORROWED, borrowed.iter().map(ToString::to_string))?;
        for controller in borrowed {
            hand_down(root, "+", controller).context(
                "the root of this machine's cgroups hands it not down, as in a container whose processes are in that root",
            )?;
        }
        self.groups.iter().try_for_each(|group| make(&group.join("init")))
    }

    /// Lets pods have the controllers; the first process is in its place by now, and none in the groups themselves.
    pub(crate) fn hand_down(&self) -> Result<()> {
        for group in self.groups.iter().filter(|_| self.version2) {
            for controller in fs::read_to_string(group.join("cgroup.controllers"))?.split_whitespace() {
                if NEEDED.iter().chain(&WANTED).any(|wanted| *wanted == controller) {
                    hand_down(group, "+", controller)?;
                }
            }
        }
        Ok(())
    }

    /// The processes in them and below.
    pub(crate) fn processes(&self) -> Vec<Identity> {
        let Some(own) = self.groups.first().and_then(|group| group.file_name()?.to_str()) else {
            return Vec::new();
        };
        Identity::matching(|pid| {
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            groups.lines().any(|line| line.split('/').any(|part| part == own))
        })
    }

    /// Ends every process in them.
    pub(crate) fn end(&self) -> Result<()> {
        // Once more after each round: something may have been forked meanwhile.
        loop {
            let left: Vec<_> = self.processes().into_iter().filter(|process| process.is_running()).collect();
            if left.is_empty() {
                return Ok(());
            }
            for process in left {
                process.end(Signal::KILL, GRACE)?;
            }
        }
    }

    /// Removes them with all below, also what runs in them where the kernel offers that.
    pub(crate) fn remove(&self) -> Result<()> {
        for group in &self.groups {
            if self.version2 && group.join("cgroup.kill").exists() {
                fs::write(group.join("cgroup.kill"), "1")?;
            }
            remove(group)?;
        }
        // One that others were given meanwhile is theirs, and the kernel keeps it.
        for controller in fs::read_to_string(self.folder.join(BORROWED)).unwrap_or_default().lines() {
            let _ = hand_down(Path::new(ROOT), "-", controller);
        }
        Ok(())
    }
}

/// Removes what the nodes of an earlier run left, whose state folder this is. Best effort.
pub(crate) fn remove_recorded(state: &Path) {
    for node in fs::read_dir(state).into_iter().flatten().flatten() {
        if let Some(groups) = Cgroups::recorded(&node.path()) {
            let _ = groups.remove();
        }
    }
}

fn make(group: &Path) -> Result<()> {
    fs::create_dir_all(group).with_context(|| format!("make the cgroup {}", group.display()))
}

fn hand_down(group: &Path, sign: &str, controller: &str) -> Result<()> {
    let file = group.join("cgroup.subtree_control");
    fs::write(&file, format!("{sign}{controller}"))
        .with_context(|| format!("write {sign}{controller} to {}", file.display()))
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
            Err(error) if begun.elapsed() > GRACE => {
                return Err(error).with_context(|| format!("remove the cgroup {}", group.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Of the lines of `/proc/self/cgroup`, and what the root of version 2 has where that one is alone.
fn kind(own: &str, controllers: Option<&str>) -> Result<Kind> {
    let lines: Vec<_> = own.lines().filter_map(|line| line.split_once(':')?.1.split_once(':')).collect();
    let hierarchies: Vec<_> = lines.iter().flat_map(|(names, _)| names.split(',')).collect();
    let complete = |what: &str, has: &[&str]| {
        let lacking: Vec<_> = NEEDED.into_iter().filter(|needed| !has.contains(needed)).collect();
        ensure!(lacking.is_empty(), "{what} lack the controllers {} of the kernel", lacking.join(", "));
        Ok(())
    };
    if hierarchies.contains(&"memory") {
        complete("this machine's cgroups (version 1)", &hierarchies)?;
        let at = |(controllers, path): (&str, &str)| {
            let hierarchy = match controllers {
                "" => "unified",
                other => other.strip_prefix("name=").unwrap_or(other),
            };
            Path::new(ROOT).join(hierarchy).join(path.trim_start_matches('/'))
        };
        // The second version beside the first is not everywhere.
        return Ok(Kind::Version1(lines.into_iter().map(at).filter(|folder| folder.is_dir()).collect()));
    }
    let Some(controllers) = controllers else {
        bail!("no cgroup controllers are mounted at {ROOT}, of neither version")
    };
    let has: Vec<_> = controllers.split_whitespace().collect();
    complete("this machine's cgroups (version 2)", &has)?;
    let wanted = NEEDED.iter().chain(&WANTED).filter(|wanted| has.contains(wanted));
    Ok(Kind::Version2(wanted.map(ToString::to_string).collect()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SESSION: &str = "0::/user.slice/session-1.scope\n";

    #[test]
    fn controllers_decide_which_version_a_node_takes() {
        let two = kind(SESSION, Some("cpuset cpu io memory hugetlb pids rdma misc\n")).unwrap();
        let controllers = ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"].map(str::to_owned);
        assert_eq!(two, Kind::Version2(controllers.to_vec()));
        let hybrid = "12:cpu,cpuacct:/\n11:cpuset:/\n10:memory:/a\n9:pids:/\n1:name=systemd:/\n0::/\n";
        assert!(matches!(kind(hybrid, None).unwrap(), Kind::Version1(_)));
    }

    #[test]
    fn what_a_machine_lacks_is_named() {
        let words = |own: &str, controllers| kind(own, controllers).unwrap_err().to_string();
        let said = words(SESSION, Some("cpuset cpu io pids"));
        assert!(said.contains("version 2") && said.contains("controllers memory of"), "{said}");
        let said = words("3:memory:/a\n2:cpu:/\n0::/\n", None);
        assert!(said.contains("version 1") && said.contains("controllers cpuset, pids of"), "{said}");
        assert!(words(SESSION, None).contains("no cgroup controllers are mounted"));
        assert!(words("", None).contains("no cgroup controllers are mounted"));
    }
}
