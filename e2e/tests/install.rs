//! What `install.sh` would do, for systems that this one is not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::process::{Command, Output};

use gpudesk_e2e::state::checkout;

const EVERYTHING_BUT_VIRTUALIZATION: &str = "gcc 4:12.2.0-3\ngcc-multilib 4:12.2.0-3\nlibc6-dev 2.36\nmake 4.3\n\
    git 1:2.39\nca-certificates 2023\npkgconf 1.8.1\novmf 2022.11\nmmdebstrap 1.3\ne2fsprogs 1.47\nfdisk 2.38\n\
    mtools 4.0\ndosfstools 4.2\nsyslinux 3:6.04\nsyslinux-common 3:6.04\nzstd 1.5\nxz-utils 5.4\ncpio 2.13\n\
    kmod 30\nnftables 1.0\niproute2 6.1\ncontainerd 1.6\nrunc 1.1\ncontainernetworking-plugins 1.1\n\
    iptables 1.8\nsocat 1.7\npython3 3.11\npython3-venv 3.11\nutil-linux 2.38\n";
const VIRTUALIZATION: [&str; 5] =
    ["libvirt-dev", "libvirt-daemon-system", "libvirt-clients", "qemu-system-x86", "qemu-utils"];

fn install(os_release: &str, installed: &str, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let (release, packages) = (folder.path().join("os-release"), folder.path().join("installed"));
    std::fs::write(&release, os_release).unwrap();
    std::fs::write(&packages, installed).unwrap();
    let mut command = Command::new(checkout().join("e2e/install.sh"));
    command.arg("--print").arg("--os-release").arg(release).arg("--installed").arg(packages);
    command.args(arguments).output().unwrap()
}

/// The lines `method`, `packages` and `backports` of what it prints for root.
fn plan(os_release: &str, installed: &str) -> [Vec<String>; 3] {
    let output = install(os_release, installed, &["--user", "0"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    ["method:", "packages:", "backports:"].map(|key| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap_or_else(|| panic!("no {key} in {text}"));
        line.split_whitespace().map(str::to_owned).collect()
    })
}

fn with_virtualization(libvirt: &str, qemu: &str) -> String {
    let lines = VIRTUALIZATION.map(|name| {
        let version = if name.starts_with("qemu") { qemu } else { libvirt };
        format!("{name} {version}\n")
    });
    format!("{EVERYTHING_BUT_VIRTUALIZATION}{}", lines.concat())
}

const DEBIAN_12: &str = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\n";
const DEBIAN_13: &str = "ID=debian\nVERSION_ID=\"13\"\n";
const UBUNTU_24: &str = "NAME=\"Ubuntu\"\nID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"24.04\"\n";
const UBUNTU_26: &str = "ID=ubuntu\nVERSION_ID=\"26.04\"\n";
const UBUNTU_22: &str = "ID=ubuntu\nVERSION_ID=\"22.04\"\n";
const FEDORA: &str = "ID=fedora\nVERSION_ID=43\n";

#[test]
fn debian_12_takes_libvirt_and_qemu_from_backports() {
    let [method, packages, backports] = plan(DEBIAN_12, "");
    assert_eq!(method, ["apt+backports"]);
    assert_eq!(backports, VIRTUALIZATION);
    assert!(packages.iter().any(|name| name == "mmdebstrap"), "{packages:?}");
    assert!(packages.iter().all(|name| !VIRTUALIZATION.contains(&name.as_str())), "{packages:?}");
}

#[test]
fn debian_12_replaces_its_own_libvirt_and_qemu_and_keeps_newer_ones() {
    let own = with_virtualization("9.0.0-4+deb12u2", "1:7.2+dfsg-7+deb12u15");
    assert_eq!(plan(DEBIAN_12, &own)[1..], [vec![], VIRTUALIZATION.map(str::to_owned).to_vec()]);
    let newer = with_virtualization("11.3.0-2~bpo12+1", "1:10.0.2+ds-2+deb13u1~bpo12+1");
    assert_eq!(plan(DEBIAN_12, &newer)[1..], [Vec::<String>::new(), vec![]]);
}

#[test]
fn later_systems_take_everything_from_their_own_packages() {
    for system in [DEBIAN_13, UBUNTU_24, UBUNTU_26] {
        let [method, packages, backports] = plan(system, EVERYTHING_BUT_VIRTUALIZATION);
        assert_eq!((method.as_slice(), backports.len()), (&["apt".to_owned()][..], 0), "{system}");
        assert_eq!(packages, VIRTUALIZATION, "{system}");
        let complete = with_virtualization("10.0.0-2ubuntu8", "1:8.2.2");
        assert_eq!(plan(system, &complete)[1], Vec::<String>::new(), "{system}");
    }
}

#[test]
fn dockers_containerd_is_kept() {
    let others: String = with_virtualization("11.3.0", "1:10.0.2")
        .lines()
        .filter(|line| !line.starts_with("containerd ") && !line.starts_with("runc "))
        .flat_map(|line| [line, "\n"])
        .collect();
    assert_eq!(plan(DEBIAN_13, &others)[1], ["containerd", "runc"]);
    assert_eq!(plan(DEBIAN_13, &(others + "containerd.io 2.1.4-1\n"))[1], Vec::<String>::new());
}

#[test]
fn without_root_it_names_what_is_missing_and_fails() {
    let output = install(DEBIAN_13, EVERYTHING_BUT_VIRTUALIZATION, &["--user", "1000"]);
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("not root") && VIRTUALIZATION.iter().all(|name| words.contains(name)), "{words}");
}

#[test]
fn elsewhere_it_says_so_and_fails() {
    for system in [FEDORA, UBUNTU_22, ""] {
        let output = install(system, "", &["--user", "0"]);
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(words.contains("only Debian 12 and 13 and Ubuntu 24.04 and later"), "{words}");
    }
}

#[test]
fn elsewhere_it_names_the_programs_that_are_not_there() {
    // A PATH with nothing in it but what the script itself runs.
    let folder = tempfile::tempdir().unwrap();
    for program in ["bash", "sed", "tr", "head"] {
        let found = Command::new("sh").args(["-c", "command -v \"$0\"", program]).output().unwrap();
        let path = String::from_utf8(found.stdout).unwrap();
        std::os::unix::fs::symlink(path.trim(), folder.path().join(program)).unwrap();
    }
    let release = folder.path().join("os-release");
    std::fs::write(&release, FEDORA).unwrap();
    let output = Command::new(folder.path().join("bash"))
        .arg(checkout().join("e2e/install.sh"))
        .arg("--os-release")
        .arg(&release)
        .env("PATH", folder.path())
        .output()
        .unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words}");
    for program in ["gcc", "qemu-system-x86_64", "mmdebstrap", "Python's venv module", "-m32"] {
        assert!(words.contains(program), "{program} is not named: {words}");
    }
}

#[test]
fn the_node_daemons_image_has_the_packages_of_its_containerfile() {
    let output =
        Command::new(checkout().join("e2e/node/build-images.sh")).arg("--packages").output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let mut printed: Vec<_> = printed.lines().collect();
    let text = std::fs::read_to_string(checkout().join("node-daemon/Containerfile")).unwrap();
    let last_stage = text.rsplit_once("\nFROM ").unwrap().1;
    let install = last_stage.split("apt-get install").nth(1).unwrap().split("&&").next().unwrap();
    let mut named: Vec<_> = install.split_whitespace().filter(|word| !word.starts_with('-')).collect();
    printed.sort_unstable();
    named.sort_unstable();
    assert_eq!(printed, named);
    // qemu-img, the test guest of KVM, nft and nsenter: without one of them no desktop starts.
    for package in ["libvirt0", "qemu-utils", "qemu-system-x86", "nftables", "util-linux"] {
        assert!(named.contains(&package), "{package}: {named:?}");
    }
}

/// Runs `control-plane/build.sh` on a folder with these programs.
fn given_programs(programs: &[&str]) -> (tempfile::TempDir, Output) {
    let folder = tempfile::tempdir().unwrap();
    for program in programs {
        std::os::unix::fs::symlink("/bin/true", folder.path().join(program)).unwrap();
    }
    let mut command = Command::new(checkout().join("e2e/control-plane/build.sh"));
    let output = command.env("GPUDESK_CONTROL_PLANE", folder.path()).output().unwrap();
    (folder, output)
}

#[test]
fn a_given_folder_of_control_plane_programs_is_used_when_it_is_complete() {
    let all = [
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kube-proxy",
        "kubelet",
        "kubectl",
        "helm",
    ];
    let (folder, output) = given_programs(&all);
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end(), folder.path().to_str().unwrap());

    let (_folder, output) = given_programs(&all[..7]);
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && output.stdout.is_empty() && words.contains("no program helm"),
        "{words}"
    );
}

#[test]
fn the_oldest_kubernetes_of_the_chart_is_among_those_that_are_built() {
    let chart = std::fs::read_to_string(checkout().join("charts/gpudesk/Chart.yaml")).unwrap();
    let oldest = chart.split_once("kubeVersion: \">=").unwrap().1.split_once(".0-0\"").unwrap().0;
    let module = checkout().join(format!("e2e/control-plane/kubernetes-{oldest}/go.mod"));
    let module = std::fs::read_to_string(module).unwrap();
    assert!(module.contains(&format!("require k8s.io/kubernetes v{oldest}.")), "{module}");

    let mut command = Command::new(checkout().join("e2e/control-plane/build.sh"));
    let output =
        command.env_remove("GPUDESK_CONTROL_PLANE").env("GPUDESK_KUBERNETES", "0.9").output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && words.contains("GPUDESK_KUBERNETES is 0.9; there is"), "{words}");
    assert!(words.contains(oldest), "{words}");
}
