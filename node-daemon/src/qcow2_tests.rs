#![allow(clippy::disallowed_methods, reason = "real images are files that qemu-img makes")]

use std::process::Command;

use proptest::prelude::*;

use super::*;

/// A header of version 3 with these fields and extensions.
fn header(features: u64, backing: Option<&str>, extensions: &[(u32, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; LENGTH_3];
    bytes[..4].copy_from_slice(MAGIC);
    bytes[7] = 3;
    bytes[23] = 16;
    bytes[24..32].copy_from_slice(&(1_u64 << 30).to_be_bytes());
    bytes[72..80].copy_from_slice(&features.to_be_bytes());
    bytes[103] = 104;
    for (kind, data) in extensions {
        bytes.extend(kind.to_be_bytes());
        bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(*data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes.extend([0; 8]);
    if let Some(name) = backing {
        let (offset, length) = (bytes.len() as u64, u32::try_from(name.len()).unwrap());
        bytes[8..16].copy_from_slice(&offset.to_be_bytes());
        bytes[16..20].copy_from_slice(&length.to_be_bytes());
        bytes.extend(name.as_bytes());
    }
    bytes.resize(bytes.len().max(512), 0);
    bytes
}

#[test]
fn a_plain_image_stands_alone() {
    let plain = Header::parse(&header(0, None, &[(0x6803_f857, &[7; 96])])).unwrap();
    assert_eq!((plain.virtual_size, plain.backing.clone(), plain.data_file.clone()), (1 << 30, None, None));
    assert_eq!(plain.check_alone(), Ok(()));
    assert!(matches!(
        plain.check_overlay_of(Path::new("/images/a.qcow2")),
        Err(Unusable::OtherBacking { .. })
    ));
}

#[test]
fn an_overlay_is_one_of_exactly_its_image() {
    let golden = Path::new("/images/debian-12.qcow2");
    let of =
        |name, format: &[u8]| Header::parse(&header(0, Some(name), &[(BACKING_FORMAT, format)])).unwrap();
    assert_eq!(of("/images/debian-12.qcow2", b"qcow2").check_overlay_of(golden), Ok(()));
    for other in [of("/etc/shadow", b"qcow2"), of("/images/debian-12.qcow2", b"raw"), of("", b"qcow2")] {
        let error = other.check_overlay_of(golden).unwrap_err();
        assert!(error.to_string().contains("/images/debian-12.qcow2"), "{error}");
        assert!(matches!(other.check_alone(), Err(Unusable::Backing(_))));
    }
    let unsaid = Header::parse(&header(0, Some("/images/debian-12.qcow2"), &[])).unwrap();
    assert!(unsaid.check_overlay_of(golden).is_err(), "without a format QEMU would guess it");
}

#[test]
fn whatever_names_another_file_is_seen() {
    for name in ["/etc/shadow", "json:{\"driver\":\"nbd\"}", "nbd://10.0.0.1/x", "../x", "/dev/sda", "ä"] {
        let error = Header::parse(&header(0, Some(name), &[])).unwrap().check_alone().unwrap_err();
        assert_eq!(error, Unusable::Backing(name.into()));
        let data = header(DATA_FILE, None, &[(0x6803_f857, &[1]), (DATA_FILE_NAME, name.as_bytes())]);
        let error = Header::parse(&data).unwrap().check_alone().unwrap_err();
        assert_eq!(error, Unusable::DataFile(name.into()));
    }
    // The feature without a name, and the name without the feature.
    let unnamed = Header::parse(&header(DATA_FILE, None, &[])).unwrap();
    assert_eq!(unnamed.check_alone(), Err(Unusable::DataFile(String::new())));
    let unset = Header::parse(&header(0, None, &[(DATA_FILE_NAME, b"/etc/shadow")])).unwrap();
    assert_eq!(unset.check_alone(), Err(Unusable::DataFile("/etc/shadow".into())));
    // Behind the mark of the end nothing counts, for QEMU neither.
    let hidden = header(0, None, &[(END, b""), (DATA_FILE_NAME, b"/etc/shadow")]);
    assert_eq!(Header::parse(&hidden).unwrap().check_alone(), Ok(()));
}

#[test]
fn what_cannot_be_understood_is_refused() {
    let patched = |at: usize, bytes: &[u8]| {
        let mut header = header(0, Some("/a"), &[]);
        header[at..at + bytes.len()].copy_from_slice(bytes);
        Header::parse(&header)
    };
    assert_eq!(Header::parse(b""), Err(HeaderError::NotQcow2));
    assert_eq!(Header::parse(&[0; 512]), Err(HeaderError::NotQcow2));
    assert_eq!(patched(4, &[0, 0, 0, 1]), Err(HeaderError::Version(1)));
    assert_eq!(patched(72, &[0x80]), Err(HeaderError::UnknownFeatures(1 << 63)));
    for (at, bytes) in [
        (8, &[0xff; 8][..]),   // the name is nowhere
        (8, &[0; 8]),          // the name is at the beginning of the file
        (16, &[0, 0, 4, 0]),   // a name of 1024 bytes
        (20, &[0, 0, 0, 8]),   // clusters of 256 bytes
        (20, &[0, 0, 0, 64]),  // clusters of more bytes than there are
        (24, &[0; 8]),         // no disk
        (24, &[0xff; 8]),      // a disk of more bytes than a file can have
        (100, &[0, 0, 0, 72]), // a header of version 3 of the length of version 2
        (100, &[0xff; 4]),
        (104, &[9, 9, 9, 9, 0xff, 0xff, 0xff, 0xff]),
        (112, &[0]), // "/a" begins with NUL
    ] {
        assert!(matches!(patched(at, bytes), Err(HeaderError::Damaged(_))), "{at}: {:?}", patched(at, bytes));
    }
    let encrypted = patched(32, &[0, 0, 0, 2]).unwrap();
    assert!(encrypted.encrypted);
}

/// Runs `qemu-img create` in `folder`, and reads the header of what it makes.
fn created(folder: &Path, arguments: &[&str]) -> Header {
    let arguments = arguments.iter().map(|argument| argument.replace("DIR", folder.to_str().unwrap()));
    let output =
        Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bytes = std::fs::read(folder.join("made")).unwrap();
    Header::parse(&bytes[..bytes.len().min(ENOUGH)]).unwrap()
}

#[test]
fn images_of_qemu_img_are_read_as_it_meant_them() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("/{}", "x".repeat(1000));
    for version in ["compat=0.10", "compat=1.1"] {
        let alone = created(dir.path(), &["-o", version, "DIR/made", "3G"]);
        assert_eq!((alone.virtual_size, alone.check_alone()), (3 << 30, Ok(())));
        for name in [
            "/etc/shadow",
            "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"host_device\",\"filename\":\"/dev/sda\"}}",
            "nbd://127.0.0.1:1/x",
            &long,
        ] {
            let overlay =
                created(dir.path(), &["-o", version, "-u", "-F", "raw", "-b", name, "DIR/made", "1G"]);
            assert_eq!(overlay.backing, Some(Backing { name: name.into(), format: Some("raw".into()) }));
            assert_eq!(overlay.check_alone(), Err(Unusable::Backing(name.into())));
        }
        let ours = created(
            dir.path(),
            &["-o", version, "-u", "-F", "qcow2", "-b", "/images/a.qcow2", "DIR/made", "1G"],
        );
        assert_eq!(ours.check_overlay_of(Path::new("/images/a.qcow2")), Ok(()));
    }
    for raw in ["off", "on"] {
        let option = format!("data_file=DIR/data,data_file_raw={raw}");
        let external = created(dir.path(), &["-o", &option, "DIR/made", "1M"]);
        assert_eq!(
            external.check_alone(),
            Err(Unusable::DataFile(dir.path().join("data").to_str().unwrap().into()))
        );
    }
    let luks = [
        "--object",
        "secret,id=s,data=x",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
    ];
    assert_eq!(
        created(dir.path(), &[&luks[..], &["DIR/made", "1M"]].concat()).check_alone(),
        Err(Unusable::Encrypted)
    );
    for option in [
        "cluster_size=512",
        "cluster_size=2M",
        "extended_l2=on",
        "compression_type=zstd",
        "lazy_refcounts=on",
    ] {
        assert_eq!(created(dir.path(), &["-o", option, "DIR/made", "1M"]).check_alone(), Ok(()), "{option}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_fail_otherwise(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = Header::parse(&bytes);
    }

    #[test]
    fn a_name_that_is_there_is_never_missed(
        name in "\\PC{1,120}",
        kinds in proptest::collection::vec((1_u32.., proptest::collection::vec(any::<u8>(), 0..40)), 0..6),
        as_data in any::<bool>(),
    ) {
        let mut extensions: Vec<_> = kinds.iter().map(|(kind, data)| (*kind, data.as_slice())).collect();
        extensions.retain(|(kind, _)| ![BACKING_FORMAT, DATA_FILE_NAME].contains(kind));
        let bytes = if as_data {
            extensions.push((DATA_FILE_NAME, name.as_bytes()));
            header(DATA_FILE, None, &extensions)
        } else {
            header(0, Some(&name), &extensions)
        };
        let expected = if as_data { Unusable::DataFile(name) } else { Unusable::Backing(name) };
        prop_assert_eq!(Header::parse(&bytes).unwrap().check_alone(), Err(expected));
    }

    #[test]
    fn a_changed_byte_never_turns_an_overlay_into_one_of_another_file(at in 0_usize..512, byte in any::<u8>()) {
        let golden = Path::new("/images/debian-12.qcow2");
        let mut bytes = header(0, golden.to_str(), &[(BACKING_FORMAT, b"qcow2")]);
        bytes[at] = byte;
        if let Ok(header) = Header::parse(&bytes)
            && header.check_overlay_of(golden).is_ok()
        {
            prop_assert_eq!(header.backing.unwrap().name, golden.to_str().unwrap());
        }
    }
}
