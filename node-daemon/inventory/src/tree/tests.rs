//! Folders, captures, and what wants to leave them.
#![expect(clippy::disallowed_methods, reason = "composes hosts")]

use std::{fs, os::unix::fs::symlink, path::Path};

use proptest::prelude::*;

use super::{archive::Archive, *};

fn host() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let device = root.path().join("sys/devices/pci0000:00/0000:00:01.0");
    fs::create_dir_all(&device).unwrap();
    fs::create_dir_all(root.path().join("sys/bus/pci/devices")).unwrap();
    fs::write(device.join("class"), "0x030000\n").unwrap();
    fs::write(device.join("unread"), "secret\n").unwrap();
    symlink("../../../devices/pci0000:00/0000:00:01.0", root.path().join("sys/bus/pci/devices/0000:00:01.0"))
        .unwrap();
    symlink("../../../bus/pci/drivers/nvidia", device.join("driver")).unwrap();
    root
}

/// What is seen of the host of [`host`].
fn look(tree: &Tree) -> (Vec<String>, Option<String>, Option<String>, Option<String>) {
    let dir = tree.dir("sys/bus/pci/devices/0000:00:01.0").unwrap();
    (
        tree.names("sys/bus/pci/devices", |_| true),
        tree.link("sys/bus/pci/devices/0000:00:01.0"),
        dir.line("class"),
        dir.link_name("driver"),
    )
}

#[test]
fn a_capture_reads_like_the_host_and_holds_only_what_was_read() {
    let root = host();
    let tree = Tree::open(root.path()).unwrap().recording();
    let seen = look(&tree);
    assert_eq!(seen.2.as_deref(), Some("0x030000"));
    let file = root.path().join("capture.tar.zst");
    tree.recorded().unwrap().write(fs::File::create(&file).unwrap()).unwrap();
    let capture = Tree::open(&file).unwrap();
    assert_eq!(look(&capture), seen);
    assert_eq!(capture.text("sys/bus/pci/devices/0000:00:01.0/unread"), None);
    let again = Tree::open(&file).unwrap().recording();
    look(&again);
    assert_eq!(again.recorded(), tree.recorded(), "a capture of a capture is the same");
}

#[test]
fn a_link_out_of_the_root_stays_in_it() {
    let root = host();
    symlink("/etc/hostname", root.path().join("sys/escape")).unwrap();
    symlink("../../../../../../../../etc/hostname", root.path().join("sys/climb")).unwrap();
    symlink("/etc", root.path().join("sys/folder")).unwrap();
    let tree = Tree::open(root.path()).unwrap();
    assert_eq!(tree.text("sys/escape"), None);
    assert_eq!(tree.text("sys/climb"), None);
    assert_eq!(tree.text("sys/folder/hostname"), None);
    assert!(tree.names("sys/folder", |_| true).is_empty());
    fs::create_dir(root.path().join("etc")).unwrap();
    fs::write(root.path().join("etc/hostname"), "inside\n").unwrap();
    assert_eq!(tree.line("sys/escape").as_deref(), Some("inside"));
    assert_eq!(tree.line("sys/climb").as_deref(), Some("inside"));
}

#[test]
fn a_root_one_folder_down_is_found() {
    let outer = tempfile::tempdir().unwrap();
    fs::create_dir_all(outer.path().join("my-host/proc/sys/kernel")).unwrap();
    fs::write(outer.path().join("my-host/proc/sys/kernel/osrelease"), "6.1\n").unwrap();
    let tree = Tree::open(outer.path()).unwrap();
    assert_eq!(tree.line("proc/sys/kernel/osrelease").as_deref(), Some("6.1"));
}

#[test]
fn what_is_no_capture_is_refused_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.tar.zst");
    let lines = b"root:x:0:0:root:/root:/bin/bash\n".repeat(64);
    for content in
        [&b""[..], b"hello", &lines, b"\x28\xb5\x2f\xfdnonsense", b"BZh9", b"\xfd7zXZ", b"\x1f\x8bnonsense"]
    {
        fs::write(&file, content).unwrap();
        let error = Tree::open(&file).unwrap_err().to_string();
        assert!(error.contains("x.tar.zst"), "{error}");
        assert!(!error.contains("root:x") && error.lines().count() == 1, "it is not poured out: {error}");
    }
    assert!(Tree::open(Path::new("/no/such/place")).unwrap_err().to_string().contains("/no/such/place"));
}

#[test]
fn what_an_archive_does_not_hold_is_not_empty() {
    let root = host();
    let look = |tree: &Tree| {
        assert!(tree.names("sys/kernel/iommu_groups", |_| true).is_empty());
        assert!(!tree.is_absent("sys/kernel/iommu_groups"), "a part of a host may lack what the host has");
        assert_eq!(
            tree.names("sys/devices/pci0000:00/0000:00:01.0", |_| true),
            ["class", "driver", "unread"]
        );
    };
    let file = root.path().join("capture.tar.zst");
    let tree = Tree::open(root.path()).unwrap().recording();
    look(&tree);
    // A capture of a capture, where what is missing is asked for once more.
    tree.recorded().unwrap().write(fs::File::create(&file).unwrap()).unwrap();
    let first = Tree::open(&file).unwrap().recording();
    look(&first);
    assert_eq!(first.recorded(), tree.recorded());
    let second = root.path().join("second.tar.zst");
    first.recorded().unwrap().write(fs::File::create(&second).unwrap()).unwrap();
    let capture = Tree::open(&second).unwrap();
    look(&capture);
    assert!(!capture.exists("sys/kernel/iommu_groups"));
    assert!(capture.exists("sys/devices/pci0000:00/0000:00:01.0/unread"));
    assert_eq!(capture.text("sys/devices/pci0000:00/0000:00:01.0/unread"), None, "it was never read");
}

#[test]
fn what_this_machine_does_not_have_is_told_in_its_capture() {
    let tree = Tree::open(Path::new("/")).unwrap().recording();
    assert!(tree.is_absent("sys/no/such/file") && !tree.is_absent("proc"));
    tree.text("proc/version");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("capture.tar.zst");
    tree.recorded().unwrap().write(fs::File::create(&file).unwrap()).unwrap();
    let capture = Tree::open(&file).unwrap();
    assert!(capture.is_absent("sys/no/such/file"));
    assert!(!capture.is_absent("sys/another"), "nobody looked");
}

#[test]
fn what_could_not_be_read_stays_so_in_a_capture() {
    let mut recording = Recording::default();
    let root = host();
    let tree = Tree::open(root.path()).unwrap();
    recording.add_denial(&tree.source, "sys/devices/pci0000:00/0000:00:01.0/class");
    let file = root.path().join("capture.tar.zst");
    recording.write(fs::File::create(&file).unwrap()).unwrap();
    let capture = Tree::open(&file).unwrap();
    assert!(capture.exists("sys/devices/pci0000:00/0000:00:01.0/class"));
    assert_eq!(capture.text("sys/devices/pci0000:00/0000:00:01.0/class"), None);
    assert_eq!(capture.denied(), ["sys/devices/pci0000:00/0000:00:01.0/class"]);
}

#[test]
fn text_ends_at_its_first_nul() {
    let root = host();
    fs::write(root.path().join("sys/odd"), b"0-1\n\0before").unwrap();
    let tree = Tree::open(root.path()).unwrap();
    assert_eq!(tree.text("sys/odd").as_deref(), Some("0-1\n"));
    assert_eq!(tree.dir("sys").unwrap().text("odd").as_deref(), Some("0-1\n"));
    assert_eq!(tree.bytes("sys/odd", 64).unwrap().len(), 11);
}

#[test]
fn what_may_not_be_read_is_told_apart_from_what_is_not_there() {
    let tree = Tree::open(Path::new("/")).unwrap();
    assert_eq!(tree.text("sys/no/such/file"), None);
    assert!(tree.denied().is_empty());
}

#[test]
fn what_is_no_regular_file_is_not_opened_and_that_is_told() {
    let root = host();
    for folder in ["etc", "run/udev/data", "var/lib/kubelet"] {
        fs::create_dir_all(root.path().join(folder)).unwrap();
    }
    fs::write(root.path().join("etc/file"), "inside\n").unwrap();
    for link in ["etc/link", "run/udev/data/link", "var/lib/kubelet/link"] {
        symlink("/etc/file", root.path().join(link)).unwrap();
    }
    let pipe = root.path().join("etc/pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .unwrap();
    let tree = Tree::open(root.path()).unwrap();
    assert_eq!(tree.line("etc/file").as_deref(), Some("inside"));
    assert_eq!(tree.line("etc/link").as_deref(), Some("inside"), "the host's own may be links");
    assert_eq!(tree.take_refused(), Vec::<String>::new());
    for path in ["etc/pipe", "etc", "run/udev/data/link", "var/lib/kubelet/link"] {
        assert_eq!(tree.bytes(path, 64), None, "{path}");
        let told = tree.take_refused();
        assert!(
            matches!(told.as_slice(), [why] if why.starts_with(path) && why.contains("no regular file")),
            "{told:?}"
        );
    }
    assert!(tree.denied().is_empty());
    // Of this machine too.
    let (machine, pipe) = (Tree::open(Path::new("/")).unwrap(), pipe.canonicalize().unwrap());
    let pipe = pipe.to_str().unwrap().trim_start_matches('/');
    assert_eq!(machine.bytes(pipe, 64), None);
    assert!(machine.take_refused().concat().contains("a pipe"));
}

proptest! {
    #[test]
    fn no_archive_panics(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let _ = Archive::read_from(bytes.as_slice());
    }

    #[test]
    fn no_path_and_no_link_leaves_the_root(
        path in "[a-c./]{0,20}",
        links in proptest::collection::vec(("[a-c/]{1,5}", "[a-c./]{1,12}"), 0..8),
    ) {
        let mut builder = tar::Builder::new(vec![]);
        for (name, target) in &links {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            let _ = builder.append_link(&mut header, name.trim_matches('/'), target);
        }
        if let Ok(archive) = Archive::read_from(builder.into_inner().unwrap().as_slice()) {
            let _ = (archive.read(&path, 10), archive.names(&path), archive.exists(&path), archive.dir(&path));
        }
    }
}

#[test]
fn renames_elsewhere_keep_nothing_from_being_read() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("sys/devices/a")).unwrap();
    fs::write(root.join("sys/devices/a/vendor"), "0x10de\n").unwrap();
    fs::create_dir_all(root.join("sys/bus/pci/devices")).unwrap();
    std::os::unix::fs::symlink("../../../devices/a", root.join("sys/bus/pci/devices/a")).unwrap();
    let tree = Tree::open(&root).unwrap();
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    fs::write(&one, "").unwrap();
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                fs::rename(&one, &other).unwrap();
                fs::rename(&other, &one).unwrap();
            }
        });
        let read = (0..2000).filter(|_| tree.line("sys/bus/pci/devices/a/vendor").is_some()).count();
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(read, 2000);
    });
}
