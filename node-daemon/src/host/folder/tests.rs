use std::os::unix::fs::PermissionsExt;

use super::{files::temporary, *};
use crate::host::images::ImageStore;

fn fixture() -> (tempfile::TempDir, DesktopFolder, Owner) {
    let dir = tempfile::tempdir().unwrap();
    let owner = Owner { namespace: "school".into(), name: "anna".into(), uid: Uuid::from_u128(7) };
    let folder = DesktopFolders::new(dir.path()).of(owner.uid);
    (dir, folder, owner)
}

#[tokio::test]
async fn a_folder_says_whose_it_is() {
    let (dir, folder, owner) = fixture();
    let folders = DesktopFolders::new(dir.path());
    assert!(folders.list().await.unwrap().is_empty());
    folder.create(&owner).await.unwrap();
    folder.create(&owner).await.unwrap();
    fs::create_dir(dir.path().join("desktops/no-desktop")).unwrap();
    let all = folders.list().await.unwrap();
    assert!(matches!(&all[..], [(uid, Ok(found))] if *uid == owner.uid && *found == owner));
    // One that is broken holds up no other, and is named with what to do.
    let broken = Uuid::from_u128(8);
    let file = dir.path().join(format!("desktops/{broken}/owner.json"));
    folders.of(broken).create(&owner).await.unwrap();
    for (content, why) in [(None, "the UID of another"), (Some("{"), "EOF"), (Some(""), "EOF")] {
        if let Some(content) = content {
            fs::write(&file, content).unwrap();
        }
        let mut all = folders.list().await.unwrap();
        all.sort_by_key(|(uid, _)| *uid);
        let [(_, Ok(found)), (uid, Err(odd))] = &all[..] else { panic!("{all:?}") };
        assert_eq!((found, *uid), (&owner, broken));
        let said = odd.to_string();
        for part in [file.to_str().unwrap(), why, "move the folder away"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    fs::remove_file(&file).unwrap();
    assert!(
        folders
            .list()
            .await
            .unwrap()
            .iter()
            .any(|(_, it)| it.as_ref().is_err_and(|it| it.to_string().contains("missing")))
    );
}

#[tokio::test]
async fn an_overlay_names_its_image_has_a_record_of_it_and_is_its_owners_alone() {
    let (dir, folder, owner) = fixture();
    folder.create(&owner).await.unwrap();
    FolderFiles::make_image(&dir.path().join("golden.qcow2"), None, 3 << 20, false).unwrap();
    let golden = ImageStore::folders("n", vec![dir.path().into()]).image("golden").unwrap();
    folder.make_disk("system", Some(golden.clone()), None).await.unwrap();
    let disk = folder.disk("system");
    assert_eq!(fs::metadata(&disk).unwrap().permissions().mode() & 0o777, 0o600);
    let header = crate::qcow2::Header::parse(&fs::read(&disk).unwrap()).unwrap();
    assert_eq!(header.check_overlay_of(&golden.path), Ok(()));
    assert_eq!(header.virtual_size, 3 << 20, "as large as its image");
    assert_eq!(folder.files().read_json("golden-system.json").unwrap(), golden.identity());
    assert!(!temporary(&disk).exists());
    // One that is there, for its file system was mounted meanwhile, is what nothing can make again.
    let before = fs::read(&disk).unwrap();
    assert!(folder.make_disk("system", Some(golden.clone()), Some(2)).await.is_err());
    let late = FolderFiles::make_image(&disk, None, 1 << 30, false).unwrap_err();
    assert!(late.to_string().contains("exists"), "{late}");
    assert_eq!(fs::read(&disk).unwrap(), before);
    folder.remove_file("disk-system.qcow2").await.unwrap();
    folder.make_disk("system", Some(golden), Some(2)).await.unwrap();
    let header = crate::qcow2::Header::parse(&fs::read(&disk).unwrap()).unwrap();
    assert_eq!(header.virtual_size, 2 << 30, "or larger");
}

#[tokio::test]
async fn after_a_run_disks_stay_and_without_disks_nothing_does() {
    let (_dir, folder, owner) = fixture();
    folder.create(&owner).await.unwrap();
    let kept = ["disk-system.qcow2", "golden-system.json", "seed.img"];
    let of_the_run = ["scratch-swap.qcow2", "run.json", "files.json", "kernel", "initrd"];
    for name in kept.iter().chain(&of_the_run) {
        folder.write(folder.file(name), b"x".to_vec()).await.unwrap();
    }
    assert!(!folder.remove_run().await.unwrap());
    assert!(kept.iter().all(|name| folder.file(name).exists()));
    assert!(!of_the_run.iter().any(|name| folder.file(name).exists()));
    folder.remove_file("disk-system.qcow2").await.unwrap();
    assert!(folder.remove_run().await.unwrap());
    assert!(!folder.exists().await.unwrap());
    assert!(folder.remove_run().await.unwrap());
    folder.remove().await.unwrap();
}

#[tokio::test]
async fn a_serial_log_that_fills_the_disk_begins_anew() {
    let (_dir, folder, owner) = fixture();
    folder.create(&owner).await.unwrap();
    folder.bound_serial_log().await.unwrap();
    let log = folder.file("serial.log");
    fs::write(&log, "login:").unwrap();
    folder.bound_serial_log().await.unwrap();
    assert_eq!(fs::read(&log).unwrap(), b"login:");
    fs::write(&log, vec![b'x'; 17 << 20]).unwrap();
    folder.bound_serial_log().await.unwrap();
    assert_eq!(fs::read(&log).unwrap(), b"");
}

#[tokio::test]
async fn a_kernel_is_copied_for_the_machine_that_starts_from_it() {
    let (dir, folder, owner) = fixture();
    folder.create(&owner).await.unwrap();
    let source = dir.path().join("vmlinuz");
    fs::write(&source, "kernel").unwrap();
    folder.copy(source.clone(), "kernel").await.unwrap();
    folder.copy(source, "kernel").await.unwrap();
    assert_eq!(fs::read(folder.file("kernel")).unwrap(), b"kernel");
    assert_eq!(fs::metadata(folder.file("kernel")).unwrap().permissions().mode() & 0o777, 0o600);
    let error = folder.copy("/no/such/initrd".into(), "initrd").await.unwrap_err();
    assert!(error.to_string().contains("/no/such/initrd"), "{error}");
}

#[tokio::test]
async fn the_name_of_a_record_outlives_a_loss_of_power() {
    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
    let (dir, folder, owner) = fixture();
    folder.create(&owner).await.unwrap();
    let events = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&events, dir.path(), WatchFlags::MOVED_TO | WatchFlags::OPEN).unwrap();
    FolderFiles::write_record(&dir.path().join("gpu-node.json"), &7).unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(&events, &mut buffer);
    let mut seen = vec![];
    while let Ok(event) = reader.next() {
        seen.push((event.events(), event.file_name().map(ToOwned::to_owned)));
    }
    let renamed = seen.iter().position(|(what, _)| what.contains(ReadFlags::MOVED_TO)).unwrap();
    let opened = |(what, name): &(ReadFlags, Option<_>)| what.contains(ReadFlags::OPEN) && name.is_none();
    assert!(seen[renamed..].iter().any(opened), "the folder is opened to be kept: {seen:?}");
}
