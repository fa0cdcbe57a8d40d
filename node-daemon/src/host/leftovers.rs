//! Disks of desktops that are this node's no more: put aside, kept for a while, erased or given back.
//!
//! ```text
//!   <state>/leftovers/<uid>.<second>/   what was <state>/desktops/<uid>/, and leftover.json
//!   <state>/erasing/<uid>.<second>/     on its way out: the next look goes on where one ended
//!   <state>/removals.json               which desktops the API does not know, and since when
//! ```
//!
//! A folder changes its place by a rename, so it is whole in one of them whenever the daemon ends.
#![expect(clippy::disallowed_methods, reason = "adapter: renames and removes folders")]

use std::{
    collections::BTreeSet,
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use gpudesk_crds::gpu_node_status;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::{
    file_threads::FileThreads,
    folder::{DesktopFolder, FolderError, Owner, disk_names, sync_folder},
};
use crate::brake::Removals;

/// Deeper than the daemon ever makes folders.
const DEPTH: usize = 8;
/// The call that erases: it may take long, and no other waits for it.
const ERASING: Uuid = Uuid::from_u128(1);
/// And whether the folder can be written, beside a long list.
const TRYING: Uuid = Uuid::from_u128(2);

/// How long leftovers are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How long each is kept; zero for ever.
    pub keep: SignedDuration,
    /// Bytes that they may take in all; zero for no limit.
    pub limit: u64,
    /// How long each is kept at least, whatever room they take.
    pub least: SignedDuration,
}

/// A leftover as it lies there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Name of its folder.
    pub name: String,
    /// Whose it was.
    pub owner: Owner,
    /// Since when.
    pub since: Timestamp,
    /// What it takes of the disk.
    pub bytes: u64,
}

impl Kept {
    /// As the status of the node has it.
    pub fn shown(&self, retention: &Retention) -> gpu_node_status::Leftover {
        let whole = |at: Timestamp| Time(Timestamp::from_second(at.as_second()).unwrap_or(at));
        let erased_after = (!retention.keep.is_zero()).then(|| self.since.checked_add(retention.keep).ok());
        gpu_node_status::Leftover {
            name: self.name.clone(),
            namespace: self.owner.namespace.clone(),
            desktop: self.owner.name.clone(),
            uid: self.owner.uid.to_string(),
            size_mib: i64::try_from(self.bytes >> 20).unwrap_or(i64::MAX),
            since: whole(self.since),
            erased_after: erased_after.flatten().map(whole),
        }
    }
}

/// Those that are erased `now`, of all that there are, oldest first.
pub fn due<'a>(all: &'a [Kept], retention: &Retention, now: Timestamp) -> Vec<&'a Kept> {
    let mut left: u64 = all.iter().map(|kept| kept.bytes).sum();
    let mut due = vec![];
    for kept in all {
        let age = now.duration_since(kept.since);
        let old = !retention.keep.is_zero() && age >= retention.keep;
        let large = retention.limit > 0 && left > retention.limit && age >= retention.least;
        if old || large {
            left = left.saturating_sub(kept.bytes);
            due.push(kept);
        }
    }
    due
}

/// What says whose a leftover was and why it is one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leftover {
    /// Whose it was.
    pub owner: Owner,
    /// Why it is left over, in words.
    pub why: String,
    /// Since when.
    pub since: Timestamp,
}

/// The leftovers of this node.
#[derive(Clone, Debug)]
pub struct Leftovers {
    root: PathBuf,
    erasing: PathBuf,
    removals: PathBuf,
    threads: FileThreads,
}

impl Leftovers {
    /// The leftovers below the state folder of the daemon.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            root: state_dir.join("leftovers"),
            erasing: state_dir.join("erasing"),
            removals: state_dir.join("removals.json"),
            threads: FileThreads::default(),
        }
    }

    /// Puts the folder of a desktop aside; `None` when there was none.
    ///
    /// # Errors
    /// Then it is where it was.
    pub async fn keep(
        &self,
        folder: &DesktopFolder,
        leftover: Leftover,
    ) -> Result<Option<PathBuf>, FolderError> {
        if !folder.exists().await? {
            return Ok(None);
        }
        folder.write_json("leftover.json", leftover.clone()).await?;
        let root = self.root.clone();
        folder.on_thread(move |files| put_aside(&files.file(""), &root, &leftover).map(Some)).await
    }

    /// All of them, oldest first.
    ///
    /// # Errors
    /// When they cannot be listed; that is not "none".
    pub async fn list(&self) -> Result<Vec<Kept>, FolderError> {
        let root = self.root.clone();
        self.threads.run(Uuid::nil(), move || list(&root)).await?
    }

    /// The names of the disks in one.
    ///
    /// # Errors
    /// When they cannot be listed; that is not "none".
    pub async fn disks(&self, name: &str) -> Result<BTreeSet<String>, FolderError> {
        let path = self.root.join(name);
        let list = {
            let path = path.clone();
            move || disk_names(&path)
        };
        self.threads.run(Uuid::nil(), list).await?.map_err(failed("listing", &path))
    }

    /// Erases one: it is out of the way at once, and gone once [`Self::finish`] was through.
    ///
    /// # Errors
    /// Then it may be there still.
    pub async fn erase(&self, name: &str) -> Result<(), FolderError> {
        let (from, to) = (self.root.join(name), self.erasing.clone());
        let name = name.to_owned();
        let moved = self.threads.run(Uuid::nil(), move || -> io::Result<()> {
            folder(&to)?;
            rename(&from, &to.join(name))
        });
        moved.await?.map_err(failed("erasing", &self.root))
    }

    /// Goes on with what is being erased. Links are removed and never followed.
    ///
    /// # Errors
    /// What is left is erased the next time.
    pub async fn finish(&self) -> Result<(), FolderError> {
        let erasing = self.erasing.clone();
        let erase = move || {
            let mut first = Ok(());
            for entry in entries(&erasing).map_err(failed("listing", &erasing))? {
                // It removes a link as such, and looks at nothing beyond one.
                let erased = match fs::remove_dir_all(&entry) {
                    Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(&entry),
                    other => other,
                };
                // One that cannot be removed holds up no other.
                first = first.and(erased.map_err(failed("erasing", &entry)));
            }
            first
        };
        self.threads.run(ERASING, erase).await?
    }

    /// Makes the leftover `name` the folder of `owner`, who has none. Returns whether there was such a
    /// leftover.
    ///
    /// # Errors
    /// Then it is where it was.
    pub async fn give(&self, name: &str, to: &DesktopFolder, owner: &Owner) -> Result<bool, FolderError> {
        let (from, owner, name) = (self.root.join(name), owner.clone(), name.to_owned());
        to.on_thread(move |files| {
            let to = files.file("");
            // A name with a slash at its end names no place for a rename to.
            let to: PathBuf = to.components().collect();
            give(&from, &to, &owner).map_err(failed(&format!("giving {name} to"), &to))
        })
        .await
    }

    /// Whether the state folder can be written.
    ///
    /// # Errors
    /// Why not.
    pub async fn try_writing(&self) -> Result<(), FolderError> {
        let file = self.removals.with_file_name("writable.json");
        let write = {
            let file = file.clone();
            move || write_json(&file, &()).and_then(|()| remove(&file))
        };
        self.threads.run(TRYING, write).await?.map_err(failed("writing", &file))
    }

    /// What was noted of desktops that are missed.
    ///
    /// # Errors
    /// When it cannot be read; that is not "nothing".
    pub async fn removals(&self) -> Result<Removals, FolderError> {
        let file = self.removals.clone();
        let read = move || read_json::<Removals>(&file).map(Option::unwrap_or_default);
        self.threads.run(Uuid::nil(), read).await?.map_err(failed("reading", &self.removals))
    }

    /// Notes it down.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn note_removals(&self, removals: Removals) -> Result<(), FolderError> {
        let file = self.removals.clone();
        let write = move || write_json(&file, &removals);
        self.threads.run(Uuid::nil(), write).await?.map_err(failed("writing", &self.removals))
    }
}

fn failed(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> FolderError + use<> {
    let what = format!("{doing} {}", path.display());
    move |source| FolderError::Io { what, source }
}

fn folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn entries(path: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(path) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
        Err(error) => Err(error),
    }
}

fn read_json<T: DeserializeOwned>(file: &Path) -> io::Result<Option<T>> {
    match fs::read(file) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write_json(file: &Path, value: &impl Serialize) -> io::Result<()> {
    let new = file.with_extension("json.new");
    let mut out = fs::File::create(&new)?;
    out.write_all(&serde_json::to_vec(value)?)?;
    out.sync_data()?;
    fs::rename(new, file)?;
    sync_folder(file)
}

/// Moves a folder to its next place.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to).map_err(|error| match error.kind() {
        kind @ io::ErrorKind::CrossesDevices => {
            let words = format!(
                "{error}: the folders desktops, leftovers and erasing in the state folder of the daemon must be on one file \
                 system"
            );
            io::Error::new(kind, words)
        }
        _ => error,
    })
}

fn list(root: &Path) -> Result<Vec<Kept>, FolderError> {
    let mut all = vec![];
    for path in entries(root).map_err(failed("listing", root))? {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        // What is no folder, or says nobody's name, was not put there by this program.
        if !fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
            continue;
        }
        let told: Option<Leftover> = read_json(&path.join("leftover.json")).ok().flatten();
        let second = name.split_once('.').and_then(|(_, second)| second.parse().ok());
        let since = second.and_then(|second| Timestamp::from_second(second).ok());
        let known = told.map(|told| (told.owner, told.since)).or_else(|| {
            let owner: Option<Owner> = read_json(&path.join("owner.json")).ok().flatten();
            Some((owner?, since?))
        });
        let Some((owner, since)) = known else { continue };
        all.push(Kept { name: name.into(), owner, since, bytes: bytes(&path, DEPTH) });
    }
    all.sort_by(|a, b| (a.since, &a.name).cmp(&(b.since, &b.name)));
    Ok(all)
}

/// What a folder takes of the disk, as far as it can be seen. Links are not followed.
fn bytes(path: &Path, depth: usize) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let own = metadata.blocks().saturating_mul(512);
    let below = if metadata.is_dir() && depth > 0 { entries(path).unwrap_or_default() } else { vec![] };
    below.iter().fold(own, |sum, path| sum.saturating_add(bytes(path, depth - 1)))
}

/// Until the rename it is a leftover, and says so; from then on it is the desktop's.
fn give(from: &Path, to: &Path, owner: &Owner) -> io::Result<bool> {
    if !fs::symlink_metadata(from).is_ok_and(|metadata| metadata.is_dir()) {
        return Ok(false);
    }
    // What it tells of runs and decisions is another's.
    for file in ["run.json", "decision.json"] {
        remove(&from.join(file))?;
    }
    write_json(&from.join("owner.json"), owner)?;
    if let Some(parent) = to.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
    }
    rename(from, to)?;
    remove(&to.join("leftover.json"))?;
    Ok(true)
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn put_aside(from: &Path, root: &Path, leftover: &Leftover) -> Result<PathBuf, FolderError> {
    folder(root).map_err(failed("making", root))?;
    // Two of one desktop within a second would meet: the next second is free.
    let second = leftover.since.as_second();
    for second in second..second.saturating_add(1000) {
        let to = root.join(format!("{}.{second}", leftover.owner.uid));
        match rename(from, &to) {
            Ok(()) => return Ok(to),
            Err(error)
                if [io::ErrorKind::DirectoryNotEmpty, io::ErrorKind::AlreadyExists]
                    .contains(&error.kind()) => {}
            Err(error) => {
                return Err(failed(&format!("moving {} to", from.display()), &to)(error));
            }
        }
    }
    Err(failed("moving", from)(io::ErrorKind::AlreadyExists.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::folder::DesktopFolders;
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    use std::os::unix::fs::PermissionsExt as _;
    use uuid::Uuid;

    #[tokio::test]
    async fn what_is_put_aside_is_whole_and_never_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let (folders, leftovers) = (DesktopFolders::new(dir.path()), Leftovers::new(dir.path()));
        let owner = Owner { namespace: "school".into(), name: "anna".into(), uid: Uuid::from_u128(7) };
        let since = Timestamp::from_second(1000).unwrap();
        let leftover = Leftover { owner: owner.clone(), why: "moved on".into(), since };
        let folder = folders.of(owner.uid);
        assert_eq!(leftovers.keep(&folder, leftover.clone()).await.unwrap(), None);
        assert_eq!(leftovers.list().await.unwrap(), []);
        for (text, second) in [("first", 1000), ("second", 1001)] {
            folder.create(&owner).await.unwrap();
            folder.write(folder.disk("system"), text.into()).await.unwrap();
            let kept = leftovers.keep(&folder, leftover.clone()).await.unwrap().unwrap();
            assert!(kept.ends_with(format!("{}.{second}", owner.uid)), "{}", kept.display());
            assert_eq!(fs::read_to_string(kept.join("disk-system.qcow2")).unwrap(), text);
            let told: Leftover =
                serde_json::from_slice(&fs::read(kept.join("leftover.json")).unwrap()).unwrap();
            assert_eq!(told, leftover);
            assert!(!folder.exists().await.unwrap());
        }
        let all = leftovers.list().await.unwrap();
        let names: Vec<_> = all.iter().map(|kept| kept.name.clone()).collect();
        assert_eq!(names, [format!("{}.1000", owner.uid), format!("{}.1001", owner.uid)]);
        assert!(all.iter().all(|kept| kept.owner == owner && kept.since == since && kept.bytes > 0));
        assert!(folders.list().await.unwrap().is_empty());
    }

    fn kept(name: &str, second: i64, bytes: u64) -> Kept {
        let owner = Owner { namespace: "school".into(), name: "anna".into(), uid: Uuid::from_u128(7) };
        Kept { name: name.into(), owner, since: Timestamp::from_second(second).unwrap(), bytes }
    }

    #[test]
    fn the_oldest_go_by_age_or_where_they_take_too_much_and_none_before_its_time() {
        let all = [kept("a", 1000, 5), kept("b", 2000, 1), kept("c", 5000, 5)];
        let of = |keep: i64, limit: u64, now: i64| {
            let retention = Retention {
                keep: SignedDuration::from_secs(keep),
                limit,
                least: SignedDuration::from_secs(3600),
            };
            let due = due(&all, &retention, Timestamp::from_second(now).unwrap());
            due.iter().map(|kept| kept.name.as_str()).collect::<String>()
        };
        assert_eq!(of(10_000, 0, 10_999), "");
        assert_eq!(of(10_000, 0, 11_000), "a");
        assert_eq!(of(0, 0, i64::from(i32::MAX)), "", "kept for ever");
        assert_eq!(of(0, 11, 10_000), "");
        assert_eq!(of(0, 10, 10_000), "a");
        assert_eq!(of(0, 1, 10_000), "abc");
        assert_eq!(of(0, 1, 5600), "ab", "the youngest has not been there for an hour");
        assert_eq!(of(0, 1, 500), "", "nor where the clock was set back");
        let week = Retention { keep: SignedDuration::from_hours(168), limit: 0, least: SignedDuration::ZERO };
        let shown = all[0].shown(&week);
        assert_eq!(shown.erased_after.unwrap().0.as_second(), 1000 + 7 * 86_400);
        assert_eq!(all[0].shown(&Retention { keep: SignedDuration::ZERO, ..week }).erased_after, None);
    }

    #[tokio::test]
    async fn what_is_erased_is_out_of_the_way_first_and_links_are_not_followed() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let leftovers = Leftovers::new(dir.path());
        fs::write(other.path().join("theirs"), "x").unwrap();
        let one = dir.path().join("leftovers/one");
        fs::create_dir_all(&one).unwrap();
        write_json(
            &one.join("leftover.json"),
            &Leftover { owner: kept("", 0, 0).owner, why: "moved on".into(), since: Timestamp::UNIX_EPOCH },
        )
        .unwrap();
        std::os::unix::fs::symlink(other.path(), one.join("link")).unwrap();
        // A link in place of a folder is not one of ours, and is not looked into.
        std::os::unix::fs::symlink(other.path(), dir.path().join("leftovers/two")).unwrap();
        assert_eq!(leftovers.list().await.unwrap().len(), 1);
        // A daemon that ended in the midst of it.
        fs::create_dir_all(dir.path().join("erasing/before/deep")).unwrap();
        std::os::unix::fs::symlink(other.path(), dir.path().join("erasing/link")).unwrap();
        leftovers.erase("one").await.unwrap();
        assert_eq!(leftovers.list().await.unwrap(), []);
        assert!(dir.path().join("erasing/one").exists(), "however large it is, nobody waits for it");
        leftovers.finish().await.unwrap();
        assert!(entries(&dir.path().join("erasing")).unwrap().is_empty());
        assert_eq!(leftovers.list().await.unwrap(), []);
        assert!(other.path().join("theirs").exists());
        assert!(leftovers.erase("one").await.is_err());
        // What cannot be removed holds up nothing that comes after it: here a folder that is in use.
        for name in 0..20 {
            fs::create_dir_all(dir.path().join(format!("erasing/{name}/deep"))).unwrap();
        }
        let busy = dir.path().join("erasing/7/deep");
        let seventh = dir.path().join("erasing/7");
        let allow = |mode| fs::set_permissions(&seventh, fs::Permissions::from_mode(mode)).unwrap();
        let mounted =
            mount("none", busy.as_path(), "tmpfs", MountFlags::empty(), None::<&std::ffi::CStr>).is_ok();
        if !mounted {
            allow(0o500);
        }
        let error = leftovers.finish().await.unwrap_err().to_string();
        if mounted {
            unmount(busy.as_path(), UnmountFlags::empty()).unwrap();
        }
        allow(0o700);
        assert!(error.contains("erasing/7"), "{error}");
        assert_eq!(entries(&dir.path().join("erasing")).unwrap(), [seventh]);
    }

    #[tokio::test]
    async fn a_leftover_becomes_a_desktops_folder_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let (folders, leftovers) = (DesktopFolders::new(dir.path()), Leftovers::new(dir.path()));
        let owner = kept("", 0, 0).owner;
        let folder = folders.of(owner.uid);
        folder.create(&owner).await.unwrap();
        folder.write(folder.disk("system"), "first".into()).await.unwrap();
        folder.write_json("decision.json", 7).await.unwrap();
        let since = Timestamp::from_second(1000).unwrap();
        let put = Leftover { owner: owner.clone(), why: "moved on".into(), since };
        let kept = leftovers.keep(&folder, put).await.unwrap().unwrap();
        let name = kept.file_name().unwrap().to_str().unwrap();
        let other = Owner { name: "bert".into(), uid: Uuid::from_u128(8), ..owner };
        let to = folders.of(other.uid);
        // In its way lies a folder with something in it: nothing happens, and it is a leftover still.
        to.create(&other).await.unwrap();
        assert!(leftovers.give(name, &to, &other).await.is_err());
        assert_eq!(leftovers.list().await.unwrap().len(), 1);
        assert_eq!(leftovers.list().await.unwrap()[0].owner.name, "anna", "whose it was is not forgotten");
        to.remove().await.unwrap();
        assert!(leftovers.give(name, &to, &other).await.unwrap());
        assert_eq!(fs::read_to_string(to.disk("system")).unwrap(), "first");
        assert!(!to.file("decision.json").exists() && !to.file("leftover.json").exists());
        let owners: Vec<Owner> =
            folders.list().await.unwrap().into_iter().map(|(_, it)| it.unwrap()).collect();
        assert_eq!(owners, std::slice::from_ref(&other));
        assert!(!leftovers.give(name, &to, &other).await.unwrap(), "there is no such leftover");
    }
}
