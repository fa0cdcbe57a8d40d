//! `kubectl desktop plan` and `why` without a cluster: what they print, and how they end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use kubectl_desktop::{
    plan::document::{DesktopPlan, State},
    why::document::DesktopExplanation,
};

/// How a run ended and what it said.
struct Ended {
    status: i32,
    out: String,
    err: String,
}

fn checkout() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Runs the program at the top of the checkout, so that it names files as they are given.
fn run_with(arguments: &str, input: &str) -> Ended {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kubectl-desktop"))
        .args(arguments.split_whitespace())
        .current_dir(checkout())
        .env("KUBECONFIG", "/nonexistent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that refuses its command line reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    // How far it is, which a slow machine makes it say: `templates counted: 3`.
    let progress =
        |line: &&str| line.rsplit_once(": ").is_some_and(|(_, done)| done.trim_end().parse::<u32>().is_ok());
    let err = text(output.stderr).split_inclusive('\n').filter(|line| !progress(line)).collect();
    Ended { status: output.status.code().unwrap(), out: text(output.stdout), err }
}

fn run(arguments: &str) -> Ended {
    run_with(arguments, "")
}

const EXAMPLE: &str = "plan -f examples/plan/estate --nodes examples/plan/hosts";
const SCATTERED: &str = "plan -f operator/kubectl-desktop/tests/plan/scattered.yaml --nodes operator/kubectl-desktop/tests/plan/gpu.yaml";

fn plan(arguments: &str) -> DesktopPlan {
    let ended = run(&format!("{arguments} -o json"));
    serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}: {}{}", ended.out, ended.err))
}

#[test]
fn the_example_is_planned_as_its_output_says() {
    let ended = run(EXAMPLE);
    let golden = std::fs::read_to_string(checkout().join("examples/plan/output.txt")).unwrap();
    assert_eq!(ended.out, golden, "{}", ended.err);
    assert_eq!((ended.status, ended.err.as_str()), (1, ""), "one desktop of the example waits");
}

#[test]
fn an_estate_that_bears_all_desktops_ends_well() {
    let ended = run(&format!("{EXAMPLE} examples/plan/hosts/lab-1.yaml=1 --all"));
    assert_eq!((ended.status, ended.err.as_str()), (0, ""), "{}", ended.out);
    assert!(ended.out.ends_with("13 desktops: 13 placed, 0 pending\n"), "{}", ended.out);
}

#[test]
fn yaml_and_json_say_the_same_in_full() {
    let yaml: DesktopPlan = serde_yaml::from_str(&run(&format!("{EXAMPLE} -o yaml")).out).unwrap();
    let json = plan(EXAMPLE);
    assert_eq!(yaml, json);
    assert_eq!((json.api_version.as_str(), json.kind.as_str()), ("gpudesk.dev/v1alpha1", "DesktopPlan"));
    let summary = json.summary;
    assert_eq!((summary.desktops, summary.placed, summary.pending, summary.stopped), (13, 11, 1, 1));
    let lab = json.desktops.iter().find(|desktop| desktop.name == "lab-1").unwrap();
    assert_eq!((lab.state, lab.node.as_deref()), (State::Placed, Some("lab-1")));
    assert_eq!(lab.gpus[0].type_name, "1g.24gb+gfx");
    assert!(lab.compute.is_some() && lab.decision.is_some());
    let waits = json.desktops.iter().find(|desktop| desktop.state == State::Pending).unwrap();
    assert_eq!(waits.reason.as_deref(), Some("Unschedulable"));
}

#[test]
fn the_same_input_gives_the_same_output() {
    assert_eq!(run(&format!("{EXAMPLE} -o yaml")).out, run(&format!("{EXAMPLE} -o yaml")).out);
}

#[test]
fn the_important_goes_first_and_then_the_order_of_appearance() {
    let names: Vec<String> = plan(EXAMPLE).desktops.into_iter().map(|desktop| desktop.name).collect();
    assert_eq!(names.first().map(String::as_str), Some("anna"));
    assert_eq!(names.last().map(String::as_str), Some("training-2"), "it has the least priority");
}

#[test]
fn several_machines_of_one_file_are_counted() {
    let plan =
        plan("plan -f examples/plan/estate --nodes examples/hosts/l40s-4.yaml=3 examples/hosts/no-gpu.yaml");
    let names: Vec<&str> = plan.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["l40s-4-1", "l40s-4-2", "l40s-4-3", "no-gpu"], "the GpuNode lab-1 is no machine here");
}

#[test]
fn manifests_come_from_standard_input_too() {
    let manifests =
        |file: &str| std::fs::read_to_string(checkout().join("examples/plan/estate").join(file)).unwrap();
    let all = ["nodes.yaml", "profiles.yaml", "templates.yaml", "desktops.yaml"].map(manifests).join("---\n");
    let ended = run_with("plan -f - --nodes examples/plan/hosts", &all);
    assert_eq!(ended.out, run(EXAMPLE).out, "{}", ended.err);
}

#[test]
fn what_desktops_hold_counts_and_stays() {
    let ended = run(SCATTERED);
    assert_eq!(ended.status, 0, "{}", ended.err);
    assert!(ended.out.contains("2 desktops: 2 held, 0 placed, 0 pending"), "{}", ended.out);
    let room = plan(SCATTERED).room;
    let whole = room.iter().find(|room| room.name == "whole").unwrap();
    assert_eq!((whole.more, whole.more_when_repacked), (0, 1), "one card would be free");
}

#[test]
fn moves_are_told_when_asked_for_and_only_then() {
    let with_three = format!("{SCATTERED} -f operator/kubectl-desktop/tests/plan/three.yaml");
    assert!(plan(&with_three).defragmentation.is_empty());
    let ended = run(&format!("{with_three} --defragment"));
    assert_eq!(ended.status, 1, "it waits until somebody moves something");
    assert!(ended.out.contains("lab/three would fit on gpu after 1 move:\n"), "{}", ended.out);
    let plan = plan(&format!("{with_three} --defragment"));
    let [one] = plan.defragmentation.as_slice() else { panic!("{:?}", plan.defragmentation) };
    let [step] = one.moves.as_slice() else { panic!("{:?}", one.moves) };
    assert_eq!((step.from.as_str(), step.to.as_str()), ("gpu", "gpu"), "its disk is on this node");
    assert_ne!(step.from_gpus[0].device, step.to_gpus[0].device);
    assert_eq!(one.gpus[0].device, step.from_gpus[0].device);
    let held: Vec<_> = plan.desktops.iter().filter(|desktop| desktop.state == State::Held).collect();
    assert_ne!(held[0].gpus[0].device, held[1].gpus[0].device, "nothing else counts on the move");
}

#[test]
fn wrong_input_names_file_document_field_and_value() {
    let wrong = "apiVersion: gpudesk.dev/v1alpha1\nkind: Desktop\nmetadata: {name: a}\nspec: {templateRef: {name: t}, priority: high}\n";
    let ended = run_with("plan -f - --nodes examples/plan/hosts", wrong);
    assert_eq!((ended.status, ended.out.as_str()), (2, ""));
    assert_eq!(
        ended.err,
        "error: standard input, document 1 (Desktop default/a): spec.priority is \"high\"; write a whole number\n"
    );
    let unknown = wrong.replace(", priority: high", "");
    let ended = run_with("plan -f - -n lab --nodes examples/plan/hosts", &unknown);
    assert_eq!(ended.status, 2);
    assert_eq!(
        ended.err,
        "error: standard input, document 1 (Desktop lab/a): DesktopTemplate lab/t does not exist\n"
    );
}

#[test]
fn wrong_use_ends_with_status_two_and_an_empty_output() {
    for (arguments, said) in [
        ("plan", "nothing to plan"),
        ("plan --colour", "unexpected argument"),
        ("plan -f examples/plan/estate", "no machines"),
        ("plan -f nothing.yaml --nodes examples/plan/hosts", "nothing.yaml: "),
        ("plan -f examples/plan/estate --nodes examples/plan/hosts/cad-1.yaml=0", "a count of 1 to 10000"),
        ("plan -f examples/plan/estate --nodes examples/plan/hosts/cad-1.yaml=two", "a count of 1 to 10000"),
        ("plan -f examples/plan/estate --nodes examples/plan/hosts/cad-1.yaml=-3", "a count of 1 to 10000"),
        ("plan -f examples/plan/estate --nodes nothing=two.yaml", "nothing=two.yaml: No such file"),
        ("plan -f https://example.org/a.yaml --nodes examples/plan/hosts", "addresses are not fetched"),
        ("plan -f examples/plan/hosts --nodes examples/plan/hosts", "give it with --nodes"),
        (
            "plan -f examples/plan/estate --nodes examples/plan/estate/desktops.yaml=2",
            "=COUNT goes with host files",
        ),
        ("why", "NAME"),
        ("why nobody --from examples/plan/estate --nodes examples/plan/hosts", "does not exist"),
    ] {
        let ended = run(arguments);
        assert_eq!((ended.status, ended.out.as_str()), (2, ""), "{arguments}: {}", ended.err);
        assert!(ended.err.contains(said), "{arguments}: {}", ended.err);
    }
}

#[test]
fn no_input_at_all_is_wrong_input() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("empty.yaml");
    std::fs::write(&file, "---\n# nothing\n---\n").unwrap();
    let empty = format!("plan -f {} --nodes examples/plan/hosts", file.display());
    let other = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";
    let list = "apiVersion: v1\nkind: List\nitems: []\n";
    let nothing = "there is no object in it; did the command before it fail?";
    for (arguments, input, said) in [
        ("plan -f - --nodes examples/plan/hosts", "", nothing),
        ("plan -f - --nodes examples/plan/hosts", list, nothing),
        (&format!("{EXAMPLE} -f -"), "# nothing\n", nothing),
        ("why anna --from -", "", nothing),
        ("plan -f - --nodes examples/plan/hosts", other, "GpuProfile in it, but 1 of ConfigMap (v1)"),
        (&empty, "", "empty.yaml: there is no Desktop, DesktopTemplate, GpuNode, GpuProfile in it"),
    ] {
        let ended = run_with(arguments, input);
        assert_eq!((ended.status, ended.out.as_str()), (2, ""), "{arguments}: {}", ended.err);
        assert!(ended.err.contains(said), "{arguments}: {}", ended.err);
    }
}

#[test]
fn a_file_that_is_given_twice_is_read_once() {
    let nodes = "examples/plan/estate/nodes.yaml";
    let ended = run(&format!("{EXAMPLE} {nodes} -f {nodes} -n lab"));
    assert_eq!((ended.out, ended.err), (run(EXAMPLE).out, String::new()));
}

#[test]
fn the_quickstart_stands_on_cards_of_both_servers() {
    let plan = plan(
        "plan -f examples/quickstart --nodes examples/hosts/rtx-pro-6000-8.yaml examples/hosts/l40s-4.yaml",
    );
    for node in ["rtx-pro-6000-8", "l40s-4"] {
        let on = |desktop: &&kubectl_desktop::plan::document::PlannedDesktop| {
            desktop.node.as_deref() == Some(node) && !desktop.gpus.is_empty()
        };
        assert!(plan.desktops.iter().any(|desktop| on(&desktop)), "{node}: {:?}", plan.desktops);
    }
}

#[test]
fn a_layout_is_planned_for_and_who_finds_no_place_in_it_is_told() {
    let on = "--nodes examples/hosts/a100-40gb.yaml";
    let example = plan(&format!("plan -f examples/layouts {on}"));
    assert_eq!((example.summary.placed, example.notes.len()), (1, 0), "{:?}", example.notes);
    let read = |file: &str| std::fs::read_to_string(checkout().join("examples/layouts").join(file)).unwrap();
    // Only the card with the layout of MIG profiles is left, and two want its one place of three slices.
    let kept = ["88", "90"].map(|bus| {
        format!(
            "  - {{name: kept-{bus}, selector: {{pciAddress: \"0000:{bus}:00.0\"}}, management: Unmanaged}}\n"
        )
    });
    let node = read("gpu-node.yaml") + &kept.concat();
    let desktops = read("desktops.yaml");
    let desktop = desktops.rsplit("---").next().unwrap();
    let all = format!("{node}---\n{desktops}---\n{}", desktop.replace("anna", "ben"));
    let ended = run_with(&format!("plan -f - {on} -o json"), &all);
    let planned: DesktopPlan = serde_json::from_str(&ended.out).unwrap_or_else(|_| panic!("{}", ended.err));
    let [anna, ben] = planned.desktops.as_slice() else { panic!("{:?}", planned.desktops) };
    assert_eq!(anna.gpus[0].device.to_string(), "0000:08:00.0");
    assert_eq!(anna.gpus[0].start, Some(4), "the single slices have no room elsewhere");
    let why = ben.message.as_ref().unwrap();
    assert!(why.starts_with("0/1 nodes: 1 the 1 place for 3g.20gb in layouts taken"), "{why}");
    let ended = run_with(&format!("why ben -n layouts --from - {on}"), &all);
    assert!(ended.out.contains("the 1 place for 3g.20gb in layouts taken"), "{}{}", ended.out, ended.err);
    let other = all.replace("{profile: 3g.20gb}", "{profile: 4g.20gb}");
    let ended = run_with(&format!("plan -f - {on}"), &other);
    assert!(
        ended.out.contains("no place for 4g.20gb in the layouts of cards for three-slices"),
        "{}",
        ended.out
    );
}

#[test]
fn a_cluster_that_cannot_be_read_is_no_wrong_input() {
    let ended = run("plan --from-cluster");
    assert_eq!((ended.status, ended.out.as_str()), (3, ""));
    assert!(ended.err.starts_with("error: no cluster: "), "{}", ended.err);
}

#[test]
fn a_kubeconfig_that_is_not_there_is_named() {
    let ended = run("plan --from-cluster --kubeconfig /nofile");
    assert_eq!(
        (ended.status, ended.err.as_str()),
        (
            3,
            "error: no cluster: the kubeconfig /nofile cannot be read: No such file or directory (os error 2)\n"
        )
    );
}

#[test]
fn a_kubeconfig_of_a_list_that_is_not_there_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("there");
    std::fs::write(&there, "apiVersion: v1\nkind: Config\n").unwrap();
    let there = there.display().to_string();
    let said = |list: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-desktop"));
        let output = command.args(["plan", "--from-cluster"]).env("KUBECONFIG", list).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    for list in [format!("/nofile:{there}"), format!("{there}:/nofile")] {
        assert!(said(&list).contains(&format!("the kubeconfig {there} has no context")), "{}", said(&list));
    }
    assert!(
        said("/nofile:/none").contains("/nofile cannot be read: No such file"),
        "{}",
        said("/nofile:/none")
    );
}

#[test]
fn what_is_wrong_with_a_kubeconfig_is_said_with_file_value_and_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let two = "apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}]\n\
        contexts: [{name: one, context: {cluster: a}}, {name: two, context: {cluster: b}}]\n";
    let two = file("two", two);
    let gone = file("gone", "current-context: x\ncontexts: [{name: one, context: {cluster: a}}]\n");
    let text = file("text", "root:x:0:0\ntoken: secret\n");
    for (arguments, status, said) in [
        (
            format!("--kubeconfig {two} --context foo"),
            2,
            format!("error: --context foo: the kubeconfig {two} has no such context; it has one, two\n"),
        ),
        (
            format!("--kubeconfig {two}"),
            3,
            format!(
                "error: no cluster: the kubeconfig {two} has no current-context; it has one, two: name one with \
                 --context\n"
            ),
        ),
        (
            format!("--kubeconfig {two} --context two"),
            3,
            format!(
                "error: no cluster: the kubeconfig {two}, context two: it names the cluster b, which is not there\n"
            ),
        ),
        (
            format!("--kubeconfig {gone}"),
            3,
            format!(
                "error: no cluster: the kubeconfig {gone} has the current-context x, and no such context; it has \
                 one: name one with --context\n"
            ),
        ),
        (
            "--kubeconfig /dev/null".into(),
            3,
            "error: no cluster: the kubeconfig /dev/null has no context: give another file with --kubeconfig, or \
             set KUBECONFIG\n"
                .into(),
        ),
        (
            "--kubeconfig examples/quickstart/00-namespace.yaml".into(),
            3,
            "error: no cluster: the kubeconfig examples/quickstart/00-namespace.yaml is none: its kind is Namespace, \
             and would be Config\n"
                .into(),
        ),
    ] {
        for command in ["plan --from-cluster", "why anna", "view anna"] {
            let ended = run(&format!("{command} {arguments}"));
            assert_eq!((ended.status, ended.err.as_str()), (status, said.as_str()), "{command}");
        }
    }
    let ended = run(&format!("plan --from-cluster --kubeconfig {text}"));
    assert!(ended.status == 3 && ended.err.lines().count() == 1, "{}", ended.err);
    assert!(ended.err.contains(&format!("the kubeconfig {text} is none: ")), "{}", ended.err);
    assert!(!ended.err.contains("secret") && !ended.err.contains("root"), "{}", ended.err);
}

#[test]
fn a_picture_that_cannot_be_written_is_known_before_anything_is_asked_for() {
    let ended = run("view anna --screenshot /nodir/x.png");
    assert_eq!(ended.status, 2);
    assert!(
        ended.err.starts_with("error: --screenshot /nodir/x.png: the file cannot be written: No such file"),
        "{}",
        ended.err
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.png");
    assert_eq!(run(&format!("view anna --screenshot {}", file.display())).status, 3, "there is no cluster");
    assert!(!file.exists());
}

#[test]
fn a_suspended_desktop_is_told_of_as_the_cluster_does_it() {
    let late = "apiVersion: gpudesk.dev/v1alpha1\nkind: Desktop\nmetadata: {name: late, namespace: school}\n\
        spec: {templateRef: {name: office}, powerState: Suspended}\n";
    let ended = run_with(&format!("{EXAMPLE} -f -"), late);
    assert_eq!(
        ended.err,
        "note: Desktop school/late: spec.powerState: Suspended is not yet supported: a machine that runs goes on, one that \
         does not is not started\n"
    );
    assert!(
        ended.out.lines().any(|line| line.contains("school/late") && line.contains("stopped")),
        "{}",
        ended.out
    );
}

#[test]
fn why_says_of_a_desktop_that_is_being_deleted_what_it_waits_for() {
    let file = "operator/kubectl-desktop/tests/plan/scattered.yaml";
    let text = std::fs::read_to_string(checkout().join(file)).unwrap();
    for (finalizers, said) in [
        (
            "gpudesk.dev/release",
            "waits for the node daemon of gpu, which ends the machine and releases what it holds.",
        ),
        ("example.org/x", "waits for who takes these finalizers off: example.org/x."),
    ] {
        let deleted =
            format!("deletionTimestamp: '2026-11-29T12:00:00Z', finalizers: [{finalizers}], name: one,");
        let text = text.replacen("name: one,", &deleted, 1);
        let ended =
            run_with("why lab/one --from - --nodes operator/kubectl-desktop/tests/plan/gpu.yaml", &text);
        assert!(
            ended.out.contains("It is being deleted since 2026-11-29T12:00:00Z, and "),
            "{}{}",
            ended.out,
            ended.err
        );
        assert!(ended.out.contains(said), "{}", ended.out);
    }
}

#[test]
fn other_kinds_are_left_out_with_a_note() {
    let ended =
        run_with(&format!("{EXAMPLE} -f -"), "apiVersion: v1\nkind: Namespace\nmetadata: {name: school}\n");
    assert_eq!(ended.err, "note: 1 object of kind Namespace (v1) left out: no kind of gpudesk\n");
    assert_eq!(ended.out, run(EXAMPLE).out);
}

#[test]
fn fields_of_a_later_version_are_planned_for_and_named() {
    let templates = std::fs::read_to_string(checkout().join("examples/plan/estate/templates.yaml")).unwrap();
    let with_tpm = templates.replacen("  gpus:\n", "  machine: {tpm: true}\n  gpus:\n", 1);
    let rest = ["nodes", "profiles", "desktops"]
        .map(|file| format!("-f examples/plan/estate/{file}.yaml"))
        .join(" ");
    let ended = run_with(&format!("plan -f - {rest} --nodes examples/plan/hosts"), &with_tpm);
    assert_eq!(ended.out, run(EXAMPLE).out);
    assert_eq!(
        ended.err,
        "note: DesktopTemplate school/office: spec.machine.tpm is not yet supported: planned for, but a cluster \
         leaves 6 desktops pending for it\n"
    );
}

#[test]
fn why_tells_the_record_of_a_desktop_that_has_its_place() {
    let ended = run(
        "why lab/one --from operator/kubectl-desktop/tests/plan/scattered.yaml --nodes operator/kubectl-desktop/tests/plan/gpu.yaml",
    );
    assert_eq!(ended.status, 0, "{}", ended.err);
    for said in [
        "lab/one is on gpu.",
        "0000:08:00.0 1g.24gb+gfx@0",
        "NUMA cells:   0",
        "Of 3 nodes these were left out:\n  2 cordoned\n",
        "  gpu: the only one",
        "Operator says: on gpu (AsExpected)",
    ] {
        assert!(ended.out.contains(said), "{said}: {}", ended.out);
    }
}

#[test]
fn why_says_of_a_manifest_what_the_plan_says() {
    let files = "--from examples/plan/estate --nodes examples/plan/hosts";
    let ended = run(&format!("why anna -n school {files}"));
    assert_eq!(ended.status, 0, "the plan has a place for it: {}", ended.err);
    assert!(ended.out.starts_with("school/anna would get a place on "), "{}", ended.out);
    assert!(ended.out.contains("the first of which would be taken:"), "{}", ended.out);
    // One that a cluster has waits for its operator.
    let estate = std::fs::read_to_string(checkout().join("examples/plan/estate/desktops.yaml")).unwrap();
    let known =
        estate.replacen("name: anna\n", "name: anna\n  uid: 7f1c2a58-3c1e-4f0e-9a53-0d4f6f5b9a01\n", 1);
    assert_ne!(known, estate);
    let rest =
        ["nodes", "profiles", "templates"].map(|file| format!("--from examples/plan/estate/{file}.yaml"));
    let ended = run_with(
        &format!("why anna -n school --from - {} --nodes examples/plan/hosts", rest.join(" ")),
        &known,
    );
    assert_eq!(ended.status, 1, "{}", ended.err);
    assert!(ended.out.starts_with("school/anna has no place yet, and would get one on "), "{}", ended.out);
}

#[test]
fn why_tells_of_each_node_why_a_desktop_waits() {
    let ended = run("why training-2 -n school --from examples/plan/estate --nodes examples/plan/hosts");
    assert_eq!(ended.status, 1, "{}", ended.err);
    assert!(ended.out.starts_with("school/training-2 is pending.\n"), "{}", ended.out);
    for node in ["\ncad-1 ", "\nlab-1 ", "\noffice-1 "] {
        assert!(ended.out.contains(node), "{}", ended.out);
    }
    let files = "--from operator/kubectl-desktop/tests/plan/scattered.yaml --from operator/kubectl-desktop/tests/plan/three.yaml";
    let ended =
        run(&format!("why lab/three {files} --nodes operator/kubectl-desktop/tests/plan/gpu.yaml -o yaml"));
    let answer: DesktopExplanation = serde_yaml::from_str(&ended.out).unwrap();
    assert_eq!(answer.desktop.state, State::Pending);
    assert_eq!(answer.nodes[0].node, "gpu");
    let nearest = answer.nearest.unwrap();
    assert_eq!((nearest.node.as_str(), nearest.moves.len()), ("gpu", 1));
}

#[test]
fn help_version_and_completion_are_there() {
    for command in ["plan", "why", "completion"] {
        let ended = run(&format!("{command} --help"));
        assert_eq!(ended.status, 0);
        assert!(ended.out.contains("Examples:\n"), "{command}: {}", ended.out);
    }
    assert!(run("--version").out.starts_with("kubectl-desktop "));
    assert!(run("completion bash").out.contains("kubectl-desktop"));
    assert_eq!(run("__complete pl").out, "plan\n:4\n");
}
