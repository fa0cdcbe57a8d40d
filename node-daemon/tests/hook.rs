//! Discovery hooks that behave, and those that do not.
#![expect(clippy::disallowed_methods, reason = "writes the hooks")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test ends where it fails")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use gpudesk_crds::{GpuNode, GpuNodeSpec};
use gpudesk_inventory::hook::{HookAnswer, HookView};
use gpudesk_node_daemon::host::hook::DiscoveryHook;
use tempfile::TempDir;

/// A folder with a hook in it.
struct Installed {
    folder: TempDir,
    file: PathBuf,
}

fn install(script: &str) -> Installed {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hook");
    fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
    mode(&file, 0o755);
    Installed { folder, file }
}

fn mode(file: &Path, bits: u32) {
    fs::set_permissions(file, fs::Permissions::from_mode(bits)).unwrap();
}

impl Installed {
    /// The file below the hook's folder in which scripts leave notes.
    fn note(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn ask(&self, patience: Duration) -> (HookView, Option<HookAnswer>) {
        let found = GpuNode::new("node-a", GpuNodeSpec::default());
        let mut hook =
            DiscoveryHook::new(self.file.clone(), "node-a", Path::new("/host")).with_patience(patience);
        (hook.ask(&found).await, hook.answer().cloned())
    }

    /// Why it gave no answer.
    async fn failure(&self, patience: Duration) -> String {
        match self.ask(patience).await {
            (HookView::Failed { why, answered: false }, None) => why,
            other => panic!("{other:?}"),
        }
    }
}

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_hook_that_prints_cards_is_heard() {
    let hook =
        install(r#"echo '{"gpus": [{"pci_address": "41:00.0", "vendor_id": "10de", "device_id": "26b9"}]}'"#);
    let (view, answer) = hook.ask(SOON).await;
    assert_eq!(view, HookView::Good);
    assert_eq!(answer.unwrap().addresses(), ["0000:41:00.0".parse().unwrap()]);
}

#[tokio::test]
async fn a_hook_reads_what_was_found_and_little_else() {
    let hook = install(
        "cd \"${0%/*}\"; cat > found; env | cut -d= -f1 | sort > names; echo \"$GPUDESK_NODE_NAME $GPUDESK_HOST_ROOT\" > values; echo '{\"gpus\": []}'",
    );
    let (view, _) = hook.ask(SOON).await;
    assert_eq!(view, HookView::Good);
    let read = |name: &str| fs::read_to_string(hook.note(name)).unwrap();
    let found: GpuNode = serde_json::from_str(&read("found")).unwrap();
    assert_eq!(found.metadata.name.as_deref(), Some("node-a"));
    assert_eq!(read("values"), "node-a /host\n");
    // The shell adds names of its own.
    let names: Vec<String> = read("names").lines().map(Into::into).collect();
    let own = ["OLDPWD", "PWD", "SHLVL", "_"];
    let given: Vec<&str> = names.iter().map(String::as_str).filter(|name| !own.contains(name)).collect();
    assert_eq!(given, ["GPUDESK_HOST_ROOT", "GPUDESK_NODE_NAME", "PATH"]);
}

#[tokio::test]
async fn a_hook_that_fails_later_leaves_its_last_good_answer() {
    let hook = install(
        "cd \"${0%/*}\"; test -e broken && exit 1; echo '{\"gpus\": [{\"pci_address\": \"41:00.0\"}]}'",
    );
    let found = GpuNode::new("node-a", GpuNodeSpec::default());
    let mut asked = DiscoveryHook::new(hook.file.clone(), "node-a", Path::new("/")).with_patience(SOON);
    assert_eq!(asked.ask(&found).await, HookView::Good);
    let good = asked.answer().unwrap().clone();
    fs::write(hook.note("broken"), "").unwrap();
    assert!(matches!(asked.ask(&found).await, HookView::Failed { answered: true, .. }));
    assert_eq!(asked.answer(), Some(&good));
}

#[tokio::test]
async fn a_hook_that_ends_badly_is_quoted() {
    let why = install("echo '{\"gpus\": []}'; echo one >&2; echo 'virsh: not found' >&2; exit 3")
        .failure(SOON)
        .await;
    assert!(why.ends_with("/hook ended with exit status: 3; it last said: virsh: not found"), "{why}");
    let why = install("kill -9 $$").failure(SOON).await;
    assert!(why.contains("signal: 9"), "{why}");
    // Much on standard error does not stop it, and its end is kept.
    let why = install("i=0; while [ $i -lt 20000 ]; do echo line $i >&2; i=$((i+1)); done; exit 1")
        .failure(SOON)
        .await;
    assert!(why.ends_with("it last said: line 19999"), "{why}");
}

#[tokio::test]
async fn a_hook_that_does_not_end_is_killed_with_all_that_it_started() {
    let hook =
        install("cd \"${0%/*}\"; sleep 1000 & echo $! > child; echo $$ > parent; echo waiting >&2; wait");
    let begin = Instant::now();
    let why = hook.failure(Duration::from_millis(700)).await;
    assert!(why.contains("did not end within 0.7 s and was killed; it last said: waiting"), "{why}");
    assert!(begin.elapsed() < Duration::from_secs(10));
    for name in ["parent", "child"] {
        assert_gone(fs::read_to_string(hook.note(name)).unwrap().trim()).await;
    }
}

#[tokio::test]
async fn what_a_hook_leaves_behind_does_not_keep_its_answer() {
    let hook = install("cd \"${0%/*}\"; sleep 1000 & echo $! > child; echo '{\"gpus\": []}'");
    let begin = Instant::now();
    let (view, answer) = hook.ask(SOON).await;
    assert_eq!((view, answer.is_some()), (HookView::Good, true));
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_gone(fs::read_to_string(hook.note("child")).unwrap().trim()).await;
}

#[tokio::test]
async fn a_hook_whose_asker_goes_away_is_killed() {
    let hook = install("cd \"${0%/*}\"; sleep 1000 & echo $! > child; wait");
    let _ = tokio::time::timeout(Duration::from_secs(2), hook.ask(SOON)).await.unwrap_err();
    assert_gone(fs::read_to_string(hook.note("child")).unwrap().trim()).await;
}

#[tokio::test]
async fn a_hook_that_prints_without_end_is_killed() {
    let begin = Instant::now();
    let why = install("exec yes").failure(SOON).await;
    assert!(why.ends_with("/hook printed more than 4194304 bytes and was killed"), "{why}");
    assert!(begin.elapsed() < SOON);
}

#[tokio::test]
async fn output_that_cannot_be_used_is_named() {
    for (output, expected) in [
        ("no cards", "printed what cannot be used: the output is not JSON"),
        ("", "the output is not JSON"),
        ("{}", "the output is neither CloudStack's"),
        (
            r#"{"apiVersion": "gpudesk.dev/v1alpha1", "kind": "Discovery", "devices": [{"pciAddress": "x"}]}"#,
            "devices[0].pciAddress: \"x\" is no PCI address",
        ),
    ] {
        let why = install(&format!("cat > /dev/null; printf %s '{output}'")).failure(SOON).await;
        assert!(why.contains(expected), "{why}");
    }
}

#[tokio::test]
async fn a_file_that_others_could_have_written_is_not_run() {
    let refused = |bits: u32| async move {
        let hook = install("cd \"${0%/*}\"; touch ran; echo '{\"gpus\": []}'");
        mode(&hook.file, bits);
        let why = hook.failure(SOON).await;
        assert!(!hook.note("ran").exists());
        why
    };
    assert!(refused(0o644).await.ends_with("hook is not executable: run chmod +x on it"));
    assert!(refused(0o777).await.contains("can be written by its group or by others: run chmod go-w"));
    assert!(refused(0o775).await.contains("run chmod go-w"));

    let hook = install("echo '{\"gpus\": []}'");
    mode(hook.folder.path(), 0o777);
    assert!(hook.failure(SOON).await.contains("is in a folder that others can write to"));

    let mut hook = install("exit 0");
    let link = hook.note("link");
    std::os::unix::fs::symlink(&hook.file, &link).unwrap();
    mode(&hook.file, 0o757);
    hook.file = link;
    assert!(hook.failure(SOON).await.contains("chmod go-w"), "a link is what it points to");
    hook.file = hook.folder.path().into();
    assert!(hook.failure(SOON).await.ends_with("is no regular file"));
    hook.file = hook.note("absent");
    assert!(hook.failure(SOON).await.contains("/absent: No such file"));
}

#[tokio::test]
async fn a_file_that_cannot_start_is_named() {
    let hook = install("");
    fs::write(&hook.file, "#!/no/such/interpreter\n").unwrap();
    assert!(hook.failure(SOON).await.contains("/hook could not be started: No such file"));
}

/// A killed process may be seen for a moment longer.
async fn assert_gone(pid: &str) {
    let there = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status"));
        status.is_ok_and(|status| !status.contains("State:\tZ"))
    };
    for _ in 0..100 {
        if !there() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("process {pid} still runs");
}
