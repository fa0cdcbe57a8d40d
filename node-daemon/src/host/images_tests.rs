#![allow(clippy::disallowed_methods, reason = "a test makes files")]

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::host::folder::FolderFiles;

fn made(path: &Path) {
    FolderFiles::make_image(path, None, 1 << 20, true).unwrap();
}

#[test]
fn the_first_folder_that_has_an_image_gives_it() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    made(&b.path().join("debian-12.qcow2"));
    std::fs::File::create(b.path().join("vmlinuz")).unwrap();
    std::fs::create_dir(a.path().join("vmlinuz")).unwrap();
    let store = ImageStore::folders("node-a", vec![a.path().into(), b.path().into()]);
    let golden = store.image("debian-12").unwrap();
    assert_eq!((golden.path, golden.virtual_size), (b.path().join("debian-12.qcow2"), 1 << 20));
    assert_eq!(store.kernel("vmlinuz").unwrap(), b.path().join("vmlinuz"));
    let error = store.image("windows-11").unwrap_err().to_string();
    for part in ["windows-11.qcow2", "node-a", a.path().to_str().unwrap(), b.path().to_str().unwrap()] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_path_is_not_a_name() {
    let store = ImageStore::folders("n", vec!["/".into()]);
    for name in ["../etc/passwd", "etc/passwd", "", ".hidden", "a\0b", "ä"] {
        assert!(matches!(store.kernel(name), Err(ImageError::NotAName { .. })), "{name:?}");
    }
}

#[test]
fn a_simulated_host_has_every_image_but_the_missing() {
    let store = ImageStore::pretended("n", vec!["gone".into()]);
    assert!(store.image("anything").is_ok());
    assert!(matches!(store.image("gone"), Err(ImageError::NotFound { .. })));
}

#[test]
fn a_folder_that_cannot_be_looked_at_is_not_one_without_the_image() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    symlink("loop.qcow2", a.path().join("loop.qcow2")).unwrap();
    made(&b.path().join("loop.qcow2"));
    let store = ImageStore::folders("n", vec![a.path().into(), b.path().into()]);
    assert!(matches!(store.image("loop"), Err(ImageError::Unreadable { source: Errno::LOOP, .. })));
}

#[test]
fn a_golden_image_holds_all_of_its_data_itself() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::folders("n", vec![dir.path().into()]);
    let base = dir.path().join("base.qcow2");
    made(&base);
    FolderFiles::make_image(&dir.path().join("over.qcow2"), Some(&base), 1 << 20, true).unwrap();
    let error = store.image("over").unwrap_err().to_string();
    for part in ["base.qcow2", "qemu-img convert", "over.qcow2"] {
        assert!(error.contains(part), "{error}");
    }
    std::fs::write(dir.path().join("text.qcow2"), "not an image").unwrap();
    let error = store.image("text").unwrap_err();
    assert!(matches!(error, ImageError::Header { source: HeaderError::NotQcow2, .. }), "{error}");
}

#[test]
fn below_a_disk_is_a_golden_image_or_nothing() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = ImageStore::folders("n", vec![dir.path().into()]);
    let below = |backing: Option<&Path>| {
        let disk = dir.path().join("disk");
        FolderFiles::make_image(&disk, backing, 1 << 20, true).unwrap();
        store.below(&disk, &Found::at(&disk).unwrap().unwrap().header().unwrap().unwrap())
    };
    let golden = dir.path().join("golden.qcow2");
    made(&golden);
    made(&other.path().join("golden.qcow2"));
    assert_eq!(below(None), Ok(None));
    assert_eq!(below(Some(&golden)).unwrap().unwrap().path, golden);
    let sub = dir.path().join("../").join(dir.path().file_name().unwrap()).join("golden.qcow2");
    for foreign in
        [&other.path().join("golden.qcow2"), &sub, Path::new("/etc/shadow"), Path::new("nbd://x/a.qcow2")]
    {
        let error = below(Some(foreign)).unwrap_err();
        assert!(matches!(error, ImageError::ForeignBacking { .. }), "{foreign:?}: {error}");
    }
    std::fs::remove_file(&golden).unwrap();
    assert!(matches!(below(Some(&golden)), Err(ImageError::NotFound { .. })));
}

#[test]
fn who_may_not_read_an_image_is_known_before_qemu_fails() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::folders("n", vec![dir.path().into()]);
    let path = dir.path().join("a.qcow2");
    made(&path);
    let closed = || store.image("a").unwrap().file.unwrap().closed;
    let mode =
        |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(dir.path(), 0o700);
    assert_eq!(closed().unwrap().path, path, "mode 0600, as this program makes its own");
    mode(&path, 0o644);
    assert_eq!(
        closed(),
        Some(crate::host::image_file::Closed { path: dir.path().into(), mode: 0o700, remedy: "chmod o+x" })
    );
    mode(dir.path(), 0o711);
    assert_eq!(closed(), None);
}
