use super::*;
use clap::Parser;

use crate::cli::{Cli, Command};

fn layout(file: &str, options: &[&str]) -> Result<Outcome, BadInput> {
    let host = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hosts/").to_owned() + file;
    let line = ["gpudesk-node-daemon", "layout", &host].into_iter().chain(options.iter().copied());
    match Cli::parse_from(line).command {
        Command::Layout(options) => run(&options),
        other => panic!("{other:?}"),
    }
}

fn legal(file: &str, options: &[&str]) -> serde_yaml::Value {
    let options: Vec<&str> = options.iter().copied().chain(["-o", "yaml"]).collect();
    match layout(file, &options).unwrap() {
        Outcome::Legal(text) => serde_yaml::from_str(&text).unwrap(),
        Outcome::Refused(why) => panic!("{file} {options:?}: {why}"),
    }
}

fn refused(file: &str, options: &[&str]) -> String {
    match layout(file, options).unwrap() {
        Outcome::Refused(why) => why,
        Outcome::Legal(text) => panic!("{file} {options:?}: {text}"),
    }
}

/// Type and start of each share.
fn shares(plan: &serde_yaml::Value) -> Vec<(String, Option<i64>)> {
    let shares = plan["shares"].as_sequence().unwrap().iter();
    shares.map(|share| (share["type"].as_str().unwrap().into(), share["start"].as_i64())).collect()
}

const RTX: &str = "rtx-pro-6000-8.yaml";

#[test]
fn four_slices_fit_and_the_fifth_is_refused_with_the_count() {
    let plan = legal(RTX, &["--card", "7", "--mig", "1g.24gb*4"]);
    assert_eq!(shares(&plan).iter().map(|share| share.1.unwrap()).collect::<Vec<_>>(), [0, 3, 6, 9]);
    assert!(plan["notes"][0].as_str().unwrap().contains("no vGPU lives on a GPU instance 1g.24gb"));
    let why = refused(RTX, &["--mig", "1g.24gb*5"]);
    assert_eq!(
        why,
        "the first 4 of the list fit; number 5, 1g.24gb, does not: 4 of 1g.24gb are on the card then, and no more fit"
    );
}

#[test]
fn vgpus_on_instances_bring_as_many_instances_as_they_need() {
    let plan = legal(RTX, &["--mig", "DC-1-2Q*48"]);
    let shares = plan["shares"].as_sequence().unwrap();
    assert_eq!(shares.len(), 4);
    assert!(shares.iter().all(|share| share["vgpus"][0]["count"] == 12), "{shares:?}");
    assert!(refused(RTX, &["--mig", "DC-1-2Q*49"]).contains("number 5"));
    // One framebuffer size on an instance: two sizes need two.
    let plan = legal(RTX, &["--mig", "DC-1-2Q,DC-1-4Q,DC-1-2B"]);
    assert_eq!(plan["shares"].as_sequence().unwrap().len(), 2, "{plan:?}");
}

#[test]
fn a_layout_with_a_half_and_single_slices_has_the_half_at_the_end() {
    let found = shares(&legal("a100-40gb.yaml", &["--mig", "1g.5gb,1g.5gb,2g.10gb,3g.20gb"]));
    assert!(found.contains(&("3g.20gb".into(), Some(4))), "{found:?}");
    assert!(refused("a100-40gb.yaml", &["--mig", "3g.20gb*2,1g.5gb"]).contains("number 3, 1g.5gb"));
}

#[test]
fn unlike_sizes_get_starts_from_the_cards_own_table() {
    let found = shares(&legal("l40s-4.yaml", &["--vgpu", "8Q,12Q*2,16Q"]));
    let start = |name: &str| found.iter().find(|share| share.0 == name).unwrap().1.unwrap();
    assert!([(0, 16), (32, 24)].contains(&(start("L40S-16Q"), start("L40S-8Q"))), "{found:?}");
    // Mixing costs a place on Ada, and none on Blackwell.
    assert!(matches!(layout("l40s-4.yaml", &["--vgpu", "16Q*3"]), Ok(Outcome::Legal(_))));
    assert!(refused("l40s-4.yaml", &["--vgpu", "16Q*3", "--mixed"]).contains("number 3, L40S-16Q"));
    assert!(matches!(layout(RTX, &["--vgpu", "16Q*6", "--mixed"]), Ok(Outcome::Legal(_))));
    let all = legal(RTX, &["--mixed"]);
    assert!(shares(&all).contains(&("DC-2B".into(), Some(93))), "{all:?}");
    assert!(refused("v100.yaml", &["--vgpu", "8Q,4Q"]).contains("unlike sizes"));
}

#[test]
fn every_size_alone_fits_as_often_as_its_maker_says() {
    for (file, list, most) in [
        ("v100.yaml", "V100-1Q", 16),
        ("l40s-4.yaml", "L40S-1Q", 32),
        ("l40s-4.yaml", "L40S-2Q", 24),
        ("h100-80gb.yaml", "H100-5C", 16),
        ("h100-94gb.yaml", "H100L-4C", 23),
        ("t4.yaml", "T4-16Q", 1),
    ] {
        let all = format!("{list}*{most}");
        assert!(matches!(layout(file, &["--vgpu", &all]), Ok(Outcome::Legal(_))), "{all}");
        let more = format!("{list}*{}", most + 1);
        assert!(refused(file, &["--vgpu", &more]).contains(&format!("{most} of {list} are on the card")));
    }
}

#[test]
fn the_hosts_of_cards_with_mig_are_there_by_name() {
    for (file, profile) in [
        ("a30.yaml", "1g.6gb*4"),
        ("a100-40gb.yaml", "1g.5gb*7"),
        ("a100-80gb.yaml", "1g.10gb*7"),
        ("h100-80gb.yaml", "1g.20gb*4"),
        ("h100-94gb.yaml", "1g.24gb*4"),
        ("h100-96gb.yaml", "3g.48gb*2"),
        ("h200-8.yaml", "2g.35gb*3,1g.18gb"),
        ("b200-8.yaml", "7g.180gb"),
        ("gh200.yaml", "1g.12gb*7"),
    ] {
        legal(file, &["--mig", profile]);
    }
}

#[test]
fn a_wrong_question_names_field_value_and_what_would_be_right() {
    let wrong = |options: &[&str]| layout("l40s-4.yaml", options).unwrap_err().to_string();
    assert!(
        wrong(&["--card", "9", "--vgpu", "8Q"]).contains("--card is \"9\"; write the number, PCI address")
    );
    assert!(wrong(&["--vgpu", "9Q"]).contains("--vgpu has \"9Q\"; the card offers L40S-"));
    assert!(wrong(&["--vgpu", "8Q,,4Q"]).contains("write names with commas"));
    assert!(wrong(&["--vgpu", "8Q*0"]).contains("NAME*COUNT"));
    assert!(wrong(&["--vgpu", "8Q*200,4Q*100"]).contains("at most 256"));
    assert!(refused("l40s-4.yaml", &["--mig", "1g.5gb"]).contains("offers no MIG profiles"));
    assert!(layout("nowhere.yaml", &["--vgpu", "8Q"]).unwrap_err().to_string().contains("nowhere.yaml"));
}
