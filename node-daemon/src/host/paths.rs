//! Files that a tenant names by path: only regular files with one name below the folders that the
//! node's owner allows, never by way of `..` or a symbolic link, and nothing that is the daemon's own.
//!
//! A file with several names (hard links) may be one of somebody else's: a guest or a user who can write
//! to an allowed folder can link to it, and libvirt gives what a machine writes to QEMU's user.

use std::{
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, open, openat2},
    io::Errno,
};
use thiserror::Error;

use super::image_file::Found;

/// Why a file may not be used.
#[derive(Debug, Error)]
pub enum PathError {
    /// It is not below an allowed folder.
    #[error(
        "{path:?} may not be used, for {why}: write the path of a regular file {roots}, without .. and links"
    )]
    NotAllowed {
        /// The path asked for.
        path: String,
        /// The folders, as people read them.
        roots: String,
        /// What is wrong.
        why: &'static str,
    },
    /// It is not there.
    #[error(
        "{path:?} does not exist on this node: put the file there, or write the path of one that is there"
    )]
    NotFound {
        /// The path asked for.
        path: String,
    },
    /// It could not be looked at.
    #[error("{path:?} could not be looked at: {source}")]
    Unreadable {
        /// The path asked for.
        path: String,
        /// The cause.
        source: Errno,
    },
}

/// The folders below which tenants may name files.
#[derive(Clone, Debug, Default)]
pub struct AllowedRoots {
    roots: Vec<PathBuf>,
    /// Folders of the daemon that nobody may name files in.
    closed: Vec<PathBuf>,
    /// Folders that files may be read from and not written to.
    read_only: Vec<PathBuf>,
}

impl AllowedRoots {
    /// These folders. One that is itself a symbolic link is followed: its owner is the node's.
    pub fn new(roots: Vec<PathBuf>) -> Self {
        Self { roots, ..Self::default() }
    }

    /// The same, where an allowed folder contains the daemon's own: nothing in the folder `state` may be
    /// named, and what is in `images` may be read and not written.
    #[must_use]
    pub fn besides(self, state: &Path, images: &[PathBuf]) -> Self {
        Self { closed: vec![state.to_owned()], read_only: images.to_vec(), ..self }
    }

    /// The file at `path`, when it may be used: for reading alone, or for writing too.
    ///
    /// # Errors
    /// [`PathError`], which names the path and the folders.
    pub fn file(&self, path: &str, writes: bool) -> Result<Found, PathError> {
        let (root, below) = self.split(path)?;
        let unreadable = |source| PathError::Unreadable { path: path.into(), source };
        let folder = open(&root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let folder = folder.map_err(|errno| self.explain(path, errno))?;
        let file = self.open_below(&folder, &below, path)?;
        let found = Found::opened(root.join(below), file).map_err(unreadable)?;
        let found = found.ok_or_else(|| self.not_allowed(path, "it is not a regular file"))?;
        if found.file.links > 1 {
            return Err(self.not_allowed(path, "it has more than one name: hard links"));
        }
        let real = found.real_path().map_err(unreadable)?;
        // By what the folders are: in a pod one folder of the host may be mounted under two names.
        let which = |path: &Path| rustix::fs::stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino));
        let above: Vec<_> = real.ancestors().skip(1).filter_map(which).collect();
        let within = |folders: &[PathBuf]| {
            let is_above = |folder: &PathBuf| which(folder).is_some_and(|folder| above.contains(&folder));
            folders.iter().any(|folder| real.starts_with(folder) || is_above(folder))
        };
        if within(&self.closed) {
            return Err(self.not_allowed(path, "it is in the state folder of gpudesk"));
        }
        if writes && within(&self.read_only) {
            return Err(self.not_allowed(path, "it is in a folder of golden images: set readOnly"));
        }
        Ok(found)
    }

    /// Like [`AllowedRoots::file`] by the text of the path alone, for a host that has no files.
    ///
    /// # Errors
    /// [`PathError::NotAllowed`].
    pub fn pretend_file(&self, path: &str) -> Result<PathBuf, PathError> {
        let (root, below) = self.split(path)?;
        Ok(root.join(below))
    }

    /// The allowed folder above `path`, and the way from there.
    fn split(&self, path: &str) -> Result<(PathBuf, PathBuf), PathError> {
        let wanted = Path::new(path);
        let plain = wanted.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !wanted.is_absolute() || !plain || path.contains('\0') {
            return Err(self.not_allowed(path, "it is not a plain absolute path"));
        }
        for root in &self.roots {
            if let Ok(below) = wanted.strip_prefix(root)
                && below.components().next().is_some()
            {
                return Ok((root.clone(), below.to_owned()));
            }
        }
        Err(self.not_allowed(path, "it is outside of the allowed folders"))
    }

    fn open_below(&self, folder: &OwnedFd, below: &Path, path: &str) -> Result<OwnedFd, PathError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        openat2(folder, below, flags, Mode::empty(), resolve).map_err(|errno| self.explain(path, errno))
    }

    fn explain(&self, path: &str, errno: Errno) -> PathError {
        match errno {
            Errno::NOENT | Errno::NOTDIR => PathError::NotFound { path: path.into() },
            Errno::LOOP => self.not_allowed(path, "a part of it is a symbolic link"),
            Errno::XDEV => self.not_allowed(path, "it leads out"),
            source => PathError::Unreadable { path: path.into(), source },
        }
    }

    fn not_allowed(&self, path: &str, why: &'static str) -> PathError {
        let roots: Vec<_> = self.roots.iter().map(|root| root.display().to_string()).collect();
        let roots = if roots.is_empty() {
            "below a folder that the owner of the node allows (nodeDaemon.allowedRoots of the chart, --allowed-root of the \
             daemon; this node allows none)"
                .into()
        } else {
            format!(
                "below {}, which the owner of the node allows (nodeDaemon.allowedRoots of the chart, --allowed-root of the \
                 daemon)",
                roots.join(" or ")
            )
        };
        PathError::NotAllowed { path: path.chars().take(256).collect(), roots, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    /// An allowed folder with a file, a link to a secret outside, and a folder that is a link.
    fn fixture() -> (tempfile::TempDir, AllowedRoots) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("allowed");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::fs::File::create(root.join("sub/disk.raw")).unwrap();
        std::fs::File::create(dir.path().join("outside/secret")).unwrap();
        symlink("../outside/secret", root.join("link")).unwrap();
        symlink("sub", root.join("inner")).unwrap();
        symlink("../outside", root.join("folder")).unwrap();
        let roots = AllowedRoots::new(vec![root]);
        (dir, roots)
    }

    #[test]
    fn a_regular_file_below_an_allowed_folder_may_be_used() {
        let (dir, roots) = fixture();
        let path = dir.path().join("allowed/sub/disk.raw");
        assert_eq!(roots.file(path.to_str().unwrap(), true).unwrap().file.path, path);
    }

    #[test]
    fn ways_out_and_links_are_refused_and_said_so() {
        let (dir, roots) = fixture();
        for way in [
            "allowed/../outside/secret",
            "allowed/sub/../../outside/secret",
            "outside/secret",
            "allowed/link",
            "allowed/inner/disk.raw",
            "allowed/folder/secret",
            "allowed/sub",
            "allowed",
            "allowedness/disk.raw",
        ] {
            let path = dir.path().join(way);
            let error = roots.file(path.to_str().unwrap(), true).unwrap_err();
            assert!(matches!(error, PathError::NotAllowed { .. }), "{way}: {error}");
            assert!(error.to_string().contains("allowed"), "{error}");
        }
        assert!(matches!(roots.file("disk.raw", true).unwrap_err(), PathError::NotAllowed { .. }));
    }

    #[test]
    fn a_file_that_is_not_there_is_another_matter() {
        let (dir, roots) = fixture();
        let path = dir.path().join("allowed/none.raw");
        assert!(matches!(roots.file(path.to_str().unwrap(), true).unwrap_err(), PathError::NotFound { .. }));
    }

    #[test]
    fn a_file_with_another_name_is_refused() {
        let (dir, roots) = fixture();
        let path = dir.path().join("allowed/second.raw");
        std::fs::hard_link(dir.path().join("outside/secret"), &path).unwrap();
        let error = roots.file(path.to_str().unwrap(), false).unwrap_err().to_string();
        assert!(error.contains("hard links"), "{error}");
    }

    #[test]
    fn devices_and_pipes_that_a_guest_could_make_are_refused_and_not_opened() {
        let (dir, roots) = fixture();
        let pipe = dir.path().join("allowed/pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        let socket = dir.path().join("allowed/socket");
        let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for path in [pipe, socket] {
            let error = roots.file(path.to_str().unwrap(), true).unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{error}");
        }
    }

    #[test]
    fn what_is_the_daemons_own_is_refused_below_an_allowed_folder_too() {
        let (dir, _) = fixture();
        let (allowed, inner) = (dir.path().join("allowed"), dir.path().join("allowed/sub/disk.raw"));
        let file = |roots: &AllowedRoots, writes| roots.file(inner.to_str().unwrap(), writes);
        let above = AllowedRoots::new(vec![allowed.clone()]);
        let state = above.clone().besides(&allowed.join("sub"), &[]);
        assert!(file(&state, false).unwrap_err().to_string().contains("state folder"));
        let images = above.besides(&dir.path().join("outside"), &[allowed.join("inner")]);
        assert!(file(&images, true).unwrap_err().to_string().contains("readOnly"));
        assert_eq!(file(&images, false).unwrap().file.path, inner);
    }

    #[test]
    fn the_daemons_folders_are_known_under_a_second_name() {
        let (dir, _) = fixture();
        let (allowed, inner) = (dir.path().join("allowed"), dir.path().join("allowed/sub/disk.raw"));
        let roots = || AllowedRoots::new(vec![allowed.clone()]);
        let refused = |roots: &AllowedRoots, path: &Path, writes| {
            roots.file(path.to_str().unwrap(), writes).unwrap_err().to_string()
        };
        // Its own flags name them by another way than the tenant.
        let (by_link, outside) = (allowed.join("inner"), dir.path().join("outside"));
        assert!(refused(&roots().besides(&by_link, &[]), &inner, false).contains("state folder"));
        assert!(refused(&roots().besides(&outside, &[by_link]), &inner, true).contains("readOnly"));
        if !rustix::process::geteuid().is_root() {
            return;
        }
        // As in a pod, where one folder of the host is mounted at two places.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                use rustix::mount::{MountPropagationFlags as Propagation, mount_bind, mount_change};
                // SAFETY: this thread alone has other mounts from here on, and it ends with them.
                #[allow(unsafe_code)]
                unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
                mount_change("/", Propagation::PRIVATE | Propagation::REC).unwrap();
                let second = allowed.join("second");
                std::fs::create_dir(&second).unwrap();
                mount_bind(&outside, &second).unwrap();
                let file = second.join("secret");
                assert_eq!(roots().file(file.to_str().unwrap(), true).unwrap().file.path, file);
                assert!(refused(&roots().besides(&outside, &[]), &file, false).contains("state folder"));
                let images = roots().besides(&dir.path().join("x"), std::slice::from_ref(&outside));
                assert!(refused(&images, &file, true).contains("readOnly"));
                assert_eq!(images.file(file.to_str().unwrap(), false).unwrap().file.path, file);
            });
        });
    }

    #[test]
    fn a_node_that_allows_no_folder_says_so() {
        let error = AllowedRoots::default().file("/etc/passwd", false).unwrap_err().to_string();
        for part in [
            "/etc/passwd",
            "outside of the allowed folders",
            "this node allows none",
            "nodeDaemon.allowedRoots",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let roots = AllowedRoots::new(vec!["/srv/disks".into()]);
        let error = roots.file("/etc/passwd", false).unwrap_err().to_string();
        assert!(error.contains("write the path of a regular file below /srv/disks"), "{error}");
    }

    proptest! {
        #[test]
        fn what_is_given_is_always_below_the_folder(path in "(/|\\.\\.|\\.|allowed|x|\\PC){0,12}") {
            let roots = AllowedRoots::new(vec!["/allowed".into()]);
            if let Ok(given) = roots.pretend_file(&path) {
                prop_assert!(given.starts_with("/allowed/"));
                prop_assert!(given.components().all(|part| part != Component::ParentDir));
            }
        }
    }
}
