#![allow(clippy::disallowed_methods, reason = "a test makes files and images")]

use std::path::Path;
use std::process::Command;

use gpudesk_crds::conditions::Reason;

use super::*;
use crate::{
    desktop::fixtures::{SMALL, UID, desktop, template},
    host::folder::{DesktopFolder, DesktopFolders, Owner},
};

/// A node with image folder, allowed folder and the folder of one desktop.
struct Fixture {
    dir: tempfile::TempDir,
    images: ImageStore,
    roots: AllowedRoots,
    folder: DesktopFolder,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["images", "allowed", "state"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let images = vec![dir.path().join("images")];
        let state = dir.path().join("state");
        let folder = DesktopFolders::new(&state).of(UID.parse().unwrap());
        let owner = Owner { namespace: "school".into(), name: "anna".into(), uid: UID.parse().unwrap() };
        folder.create(&owner).await.unwrap();
        Self {
            roots: AllowedRoots::new(vec![dir.path().join("allowed")]).besides(&state, &images),
            images: ImageStore::folders("node-a", images),
            folder,
            dir,
        }
    }

    fn find(&self, disk: &str) -> Result<Origin, Problem> {
        let spec = template(&format!("{{memory: {{sizeMiB: 64}}, disks: [{disk}]}}"));
        let desktop = desktop("", SMALL, "[]");
        let found = Materials::find(&desktop, &spec, &self.images, &self.roots, self.folder.files());
        found.map(|materials| materials.disks.into_iter().next().unwrap().origin)
    }

    /// Makes what the template names, as the first start does.
    async fn make(&self, disk: &str) {
        match self.find(disk).unwrap() {
            Origin::Overlay { golden, size_gib } => {
                self.folder.make_disk("d", Some(golden), size_gib).await.unwrap();
            }
            Origin::Blank { size_gib } => self.folder.make_disk("d", None, Some(size_gib)).await.unwrap(),
            origin => panic!("{origin:?}"),
        }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn qemu_img(&self, arguments: &str) {
        let arguments = arguments.replace("DIR", self.dir.path().to_str().unwrap());
        let output = Command::new("qemu-img").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn refused(found: Result<Origin, Problem>, reason: Reason, words: &[&str]) {
    let error = found.unwrap_err();
    assert_eq!(error.reason(), reason, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is missing in {error}");
    }
}

#[tokio::test]
async fn a_header_that_a_guest_forged_in_its_raw_file_is_refused_as_qcow2() {
    let node = Fixture::new().await;
    let disk = |format: &str| {
        format!("{{name: d, hostFile: {{path: '{}', format: {format}}}}}", node.path("allowed/disk.img"))
    };
    std::fs::write(node.path("allowed/data"), vec![0; 1 << 20]).unwrap();
    let forgeries = [
        ("create -q -f qcow2 -u -F raw -b /etc/shadow DIR/allowed/disk.img 1G", "/etc/shadow"),
        ("create -q -f qcow2 -u -F raw -b /dev/sda DIR/allowed/disk.img 1G", "/dev/sda"),
        ("create -q -f qcow2 -u -F raw -b json:{\"driver\":\"raw\"} DIR/allowed/disk.img 1G", "json:{"),
        ("create -q -f qcow2 -u -F raw -b nbd://127.0.0.1/x DIR/allowed/disk.img 1G", "nbd://127.0.0.1/x"),
        ("create -q -f qcow2 -o compat=0.10 -u -F raw -b /etc/shadow DIR/allowed/disk.img 1G", "/etc/shadow"),
        ("create -q -f qcow2 -o data_file=DIR/allowed/data DIR/allowed/disk.img 1M", "external data file"),
        ("create -q -f qcow -b /etc/shadow -F raw -u DIR/allowed/disk.img 1M", "version 1"),
        ("create -q -f raw DIR/allowed/disk.img 1M", "not a qcow2 image"),
    ];
    for (arguments, word) in forgeries {
        let _ = std::fs::remove_file(node.path("allowed/disk.img"));
        node.qemu_img(arguments);
        refused(node.find(&disk("Qcow2")), Reason::ImageInvalid, &[word, "disk.img", "disks[d].hostFile"]);
        // As the bytes that it is, it is nobody else's.
        assert!(matches!(node.find(&disk("Raw")).unwrap(), Origin::HostFile { format: DiskFormat::Raw, .. }));
    }
    let _ = std::fs::remove_file(node.path("allowed/disk.img"));
    node.qemu_img("create -q -f qcow2 DIR/allowed/disk.img 1M");
    assert!(matches!(node.find(&disk("Qcow2")).unwrap(), Origin::HostFile { format: DiskFormat::Qcow2, .. }));
}

#[tokio::test]
async fn a_disk_smaller_than_its_image_is_refused_with_both_sizes() {
    let node = Fixture::new().await;
    node.qemu_img("create -q -f qcow2 DIR/images/debian.qcow2 4G");
    let sized = |size| format!("{{name: d, image: {{name: debian, sizeGiB: {size}}}}}");
    refused(
        node.find(&sized(3)),
        Reason::InvalidSpec,
        &["3 GiB", "4294967296 bytes", "write 4 or more", "disks[d]"],
    );
    assert!(node.find(&sized(4)).is_ok());
    assert!(node.find(&sized(5)).is_ok());
    assert!(node.find("{name: d, image: {name: debian}}").is_ok());
}

const DEBIAN: &str = "{name: d, image: {name: debian}}";

#[tokio::test]
async fn a_disk_keeps_to_the_image_that_it_was_made_on() {
    let node = Fixture::new().await;
    node.qemu_img("create -q -f qcow2 DIR/images/debian.qcow2 1M");
    node.qemu_img("create -q -f qcow2 DIR/images/other.qcow2 1M");
    node.make(DEBIAN).await;
    let of = |found: Result<Origin, Problem>| match found.unwrap() {
        Origin::Overlay { golden, .. } => golden.path.display().to_string(),
        origin => panic!("{origin:?}"),
    };
    assert_eq!(of(node.find(DEBIAN)), node.path("images/debian.qcow2"));
    // The template names another image, or none: new desktops get it, this one has its disk.
    assert_eq!(of(node.find("{name: d, image: {name: other}}")), node.path("images/debian.qcow2"));
    assert_eq!(of(node.find("{name: d, blank: {sizeGiB: 1}}")), node.path("images/debian.qcow2"));
    // Owner and permissions may change.
    std::os::unix::fs::chown(node.path("images/debian.qcow2"), Some(0), Some(0)).unwrap();
    assert_eq!(of(node.find(DEBIAN)), node.path("images/debian.qcow2"));
    node.qemu_img("resize -q DIR/images/debian.qcow2 2M");
    refused(
        node.find(DEBIAN),
        Reason::ImageInvalid,
        &["changed", "debian.qcow2", "disk-d.qcow2", "bytes of"],
    );
    std::fs::remove_file(node.path("images/debian.qcow2")).unwrap();
    refused(node.find(DEBIAN), Reason::ImageNotFound, &["debian.qcow2", "node-a"]);
}

#[tokio::test]
async fn a_disk_of_an_earlier_version_is_adopted_once_its_header_was_looked_at() {
    let node = Fixture::new().await;
    node.qemu_img("create -q -f qcow2 DIR/images/debian.qcow2 1M");
    node.make(DEBIAN).await;
    let record = node.folder.file("golden-d.json");
    let noted = std::fs::read(&record).unwrap();
    std::fs::remove_file(&record).unwrap();
    let Origin::Overlay { golden, .. } = node.find(DEBIAN).unwrap() else { panic!("an overlay") };
    node.folder.adopt_disk("d", golden.clone()).await.unwrap();
    assert_eq!(std::fs::read(&record).unwrap(), noted);
    // What is noted is not written over.
    std::fs::write(&record, "{}").unwrap();
    node.folder.adopt_disk("d", golden).await.unwrap();
    assert_eq!(std::fs::read(&record).unwrap(), b"{}");
}

#[tokio::test]
async fn a_disk_whose_header_was_changed_is_refused_at_the_next_start() {
    let node = Fixture::new().await;
    node.qemu_img("create -q -f qcow2 DIR/images/debian.qcow2 1M");
    node.qemu_img("create -q -f qcow2 DIR/images/other.qcow2 1M");
    let disk = node.folder.disk("d").display().to_string();
    let blank = "{name: d, blank: {sizeGiB: 1}}";
    for (made, arguments, word) in [
        (DEBIAN, "rebase -u -f qcow2 -F raw -b /etc/shadow DISK", "/etc/shadow"),
        (DEBIAN, "rebase -u -f qcow2 -F raw -b DIR/images/debian.qcow2 DISK", "format \"raw\""),
        (DEBIAN, "rebase -u -f qcow2 -F qcow2 -b DIR/images/other.qcow2 DISK", "other.qcow2"),
        (blank, "rebase -u -f qcow2 -F raw -b /dev/sda DISK", "/dev/sda"),
        (blank, "create -q -f qcow2 -o data_file=DIR/allowed/data DISK 1M", "external data file"),
    ] {
        let _ = std::fs::remove_file(&disk);
        node.make(made).await;
        assert!(node.find(made).is_ok());
        node.qemu_img(&arguments.replace("DISK", &disk));
        refused(node.find(made), Reason::ImageInvalid, &[word, "disk-d.qcow2"]);
    }
}

#[tokio::test]
async fn what_is_shared_and_who_writes_is_known() {
    let node = Fixture::new().await;
    node.qemu_img("create -q -f qcow2 DIR/images/debian.qcow2 1M");
    std::fs::write(Path::new(&node.path("allowed/a.raw")), "x").unwrap();
    let spec = template(&format!(
        "{{memory: {{sizeMiB: 64}}, disks: [{DEBIAN}, {{name: r, hostFile: {{path: '{0}', readOnly: true}}}}, \
         {{name: w, hostFile: {{path: '{0}'}}}}, {{name: s, scratch: {{sizeGiB: 1}}}}]}}",
        node.path("allowed/a.raw")
    ));
    let desktop = desktop("", SMALL, "[]");
    let found = Materials::find(&desktop, &spec, &node.images, &node.roots, node.folder.files()).unwrap();
    let shared: Vec<_> =
        found.shared_files().map(|(file, writes)| (file.path.display().to_string(), writes)).collect();
    let (image, file) = (node.path("images/debian.qcow2"), node.path("allowed/a.raw"));
    assert_eq!(shared, [(image, false), (file.clone(), false), (file, true)]);
}
