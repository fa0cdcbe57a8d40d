//! The folder of libvirt's socket, which another one may take the place of.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LOOK: Duration = Duration::from_secs(5);

/// Waits until the folder of the socket is no longer in any file system: it was removed on the host, and a container
/// keeps what was mounted when it started, however many folders of this name follow.
pub async fn removed(uri: &str) -> PathBuf {
    let folder = folder(uri);
    while !is_removed(&folder) {
        tokio::time::sleep(LOOK).await;
    }
    folder
}

fn is_removed(folder: &Path) -> bool {
    folder.metadata().is_ok_and(|found| found.nlink() == 0)
}

fn folder(uri: &str) -> PathBuf {
    let query = uri.split_once('?').map_or("", |(_, query)| query);
    let socket = query.split('&').find_map(|setting| setting.strip_prefix("socket="));
    let socket = Path::new(socket.unwrap_or("/run/libvirt/libvirt-sock"));
    socket.parent().unwrap_or(socket).to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_folder_is_removed_when_only_its_user_still_has_it() {
        let made = tempfile::tempdir().unwrap();
        let kept =
            rustix::fs::open(made.path(), rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        let uri = format!("qemu:///system?socket=/proc/self/fd/{}/libvirt-sock", kept.as_raw_fd());
        assert!(!is_removed(&folder(&uri)));
        made.close().unwrap();
        assert!(is_removed(&folder(&uri)));
        // One that is not there at all may come yet.
        assert!(!is_removed(Path::new("/no/such/folder")));
    }

    #[test]
    fn the_folder_is_that_of_the_uri() {
        assert_eq!(folder("qemu:///system"), Path::new("/run/libvirt"));
        assert_eq!(folder("qemu:///system?mode=direct&socket=/a/b/sock"), Path::new("/a/b"));
    }
}
