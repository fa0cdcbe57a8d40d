//! The kubelet's folder of device plugins.

use super::*;
use crate::topology::device_plugins::{Counted, DevicePlugins};

const CHECKPOINT: &str = r#"{"Data":{"PodDeviceEntries":[{"PodUID":"9a15d2b5","ResourceName":"nvidia.com/gpu","AllocResp":"c2VjcmV0"}],"RegisteredDevices":{"nvidia.com/gpu":["GPU-1"]}},"Checksum":1}"#;

fn file(name: &str) -> String {
    format!("var/lib/kubelet/device-plugins/{name}")
}

fn seen(files: &[(&str, &str)]) -> Option<DevicePlugins> {
    let host = host();
    for (name, content) in files {
        write(host.path(), &file(name), content);
    }
    scanner(host.path()).read().device_plugins
}

#[test]
fn only_a_folder_that_a_kubelet_uses_tells_anything() {
    assert_eq!(seen(&[]), None);
    assert_eq!(seen(&[("nvidia-gpu.sock", "")]), None, "nobody listens to that plugin");
    let none = DevicePlugins { sockets: vec![], counted: Counted::Never };
    assert_eq!(seen(&[("kubelet.sock", "")]), Some(none));
    let found = seen(&[("kubelet.sock", ""), ("nvidia-gpu.sock", ""), ("amd.com_gpu", "")]).unwrap();
    assert_eq!(found.sockets, ["amd.com_gpu", "nvidia-gpu.sock"]);
    let counted = seen(&[("kubelet.sock", ""), ("kubelet_internal_checkpoint", CHECKPOINT)]).unwrap().counted;
    assert_eq!(counted, Counted::Devices([("nvidia.com/gpu".into(), vec!["GPU-1".into()])].into()));
    let unread = seen(&[("kubelet_internal_checkpoint", "{}")]).unwrap();
    assert!(unread.sockets.is_empty() && why(&unread).contains("none that this version knows"), "{unread:?}");
}

/// Why it is not known what the kubelet counts.
fn why(found: &DevicePlugins) -> &str {
    match &found.counted {
        Counted::Unread(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_a_plugin_puts_in_the_place_of_the_kubelets_file_is_not_opened() {
    let with = |make: fn(&Path)| {
        let host = host();
        write(host.path(), &file("kubelet.sock"), "");
        make(&host.path().join(file("kubelet_internal_checkpoint")));
        let mut scanner = scanner(host.path());
        let facts = scanner.read();
        let told = facts.incomplete.iter().any(|sentence| sentence.contains("kubelet_internal"));
        assert!(!told, "its condition tells it: {:?}", facts.incomplete);
        facts.device_plugins.unwrap()
    };
    let found = with(|path| {
        fs::write(path.with_file_name("other"), CHECKPOINT).unwrap();
        symlink("other", path).unwrap();
    });
    assert!(why(&found).contains("a symbolic link"), "{found:?}");
    let found = with(|path| symlink("/dev/watchdog", path).unwrap());
    assert!(why(&found).contains("a symbolic link"), "{found:?}");
    let found = with(|path| {
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, rustix::fs::Mode::RWXU, 0).unwrap();
    });
    assert!(why(&found).contains("a pipe"), "{found:?}");
    let found = with(|path| fs::write(path, vec![b' '; (512 << 10) + 1]).unwrap());
    assert!(why(&found).contains("larger than 512 KiB"), "{found:?}");
    let found = with(|path| {
        for number in 0..257 {
            fs::write(path.with_file_name(format!("{number}.sock")), "").unwrap();
        }
    });
    assert!(why(&found).contains("more than 256"), "{found:?}");
}

#[test]
fn a_capture_tells_the_same_and_carries_nothing_of_pods_away() {
    let host = host();
    for (name, content) in
        [("kubelet.sock", ""), ("nvidia-gpu.sock", ""), ("kubelet_internal_checkpoint", CHECKPOINT)]
    {
        write(host.path(), &file(name), content);
    }
    let mut scanner = Scanner::new(Tree::open(host.path()).unwrap().recording());
    let read = scanner.read().device_plugins;
    assert!(read.is_some());
    let capture = tempfile::NamedTempFile::new().unwrap();
    scanner.tree().recorded().unwrap().write(capture.as_file()).unwrap();
    let captured = Tree::open(capture.path()).unwrap();
    let text = captured.text(&file("kubelet_internal_checkpoint")).unwrap();
    assert!(text.contains("GPU-1") && !text.contains("9a15d2b5") && !text.contains("AllocResp"), "{text}");
    assert_eq!(Scanner::new(captured).read().device_plugins, read);
}
