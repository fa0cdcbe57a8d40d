use super::*;
use clap::Parser;
use gpudesk_crds::gpu_node_status::Sriov;
use gpudesk_geometry::Misfit;

use crate::cli::{Cli, Command};

fn layout(file: &str, options: &[&str]) -> Result<Outcome, BadInput> {
    let host = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hosts/").to_owned() + file;
    let line = ["gpudesk-node-daemon", "layout", &host].into_iter().chain(options.iter().copied());
    match Cli::parse_from(line).command {
        Command::Layout(options) => run(&options),
        other => panic!("{other:?}"),
    }
}

pub(super) fn legal(file: &str, options: &[&str]) -> serde_yaml::Value {
    let options: Vec<&str> = options.iter().copied().chain(["-o", "yaml"]).collect();
    match layout(file, &options).unwrap() {
        Outcome::Legal(text) => serde_yaml::from_str(&text).unwrap(),
        Outcome::Refused(why) => panic!("{file} {options:?}: {why}"),
    }
}

pub(super) fn refused(file: &str, options: &[&str]) -> String {
    match layout(file, options).unwrap() {
        Outcome::Refused(why) => why,
        Outcome::Legal(text) => panic!("{file} {options:?}: {text}"),
    }
}

/// Type and start of each share.
pub(super) fn shares(plan: &serde_yaml::Value) -> Vec<(String, Option<i64>)> {
    let shares = plan["shares"].as_sequence().unwrap().iter();
    shares.map(|share| (share["type"].as_str().unwrap().into(), share["start"].as_i64())).collect()
}

const RTX: &str = "rtx-pro-6000-8.yaml";

#[test]
fn four_slices_fit_and_the_fifth_is_refused_with_the_count() {
    let plan = legal(RTX, &["--card", "7", "--mig", "1g.24gb*4"]);
    assert_eq!(shares(&plan).iter().map(|share| share.1.unwrap()).collect::<Vec<_>>(), [0, 3, 6, 9]);
    assert!(plan["notes"][0].as_str().unwrap().contains("no vGPU lives on a GPU instance 1g.24gb"));
    // Thirty-two on the eight cards of the host, and as many on each.
    for card in 0..8 {
        let card = card.to_string();
        assert_eq!(shares(&legal(RTX, &["--card", &card, "--mig", "1g.24gb*4"])).len(), 4);
    }
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

/// The steps of a layout, in words.
fn steps(plan: &serde_yaml::Value) -> Vec<&str> {
    let steps = plan["steps"].as_sequence().map_or(&[][..], Vec::as_slice);
    steps.iter().map(|step| step.as_str().unwrap()).collect()
}

fn last_note(plan: &serde_yaml::Value) -> &str {
    plan["notes"].as_sequence().unwrap().last().unwrap().as_str().unwrap()
}

#[test]
fn the_steps_are_those_of_the_daemon_and_what_they_assume_is_said() {
    let plan = legal(RTX, &["--mig", "DC-1-2Q*13"]);
    let found = steps(&plan);
    let card = plan["card"].as_str().unwrap();
    let first = [
        format!("making a GPU instance of profile 47 at 0 on {card}"),
        format!("making the compute instance of GPU instance 3 on {card}"),
        "making a vGPU of type DC-1-2Q on 0000:08:00.4".into(),
    ];
    assert_eq!(found[..3], first);
    // Two instances with their compute instances, and the vGPUs; the driver puts none of them on a wrong one.
    assert_eq!(found.len(), 2 + 2 + 13, "{found:?}");
    assert_eq!(found[14], format!("making a GPU instance of profile 47 at 3 on {card}"));
    assert_eq!(
        last_note(&plan),
        "the steps assume that nobody has the card open, MIG is on, its virtual functions are on; numbers and UUIDs are \
         examples where the driver or a desktop gives them"
    );
    // A GPU instance that no vGPU lives on, or for which none is named.
    let plan = legal("a100-40gb.yaml", &["--mig", "3g.20gb,1g.5gb"]);
    assert_eq!(steps(&plan).len(), 4);
    assert_eq!(steps(&plan)[1], "making the compute instance of GPU instance 1 on 0000:08:00.0");
}

#[test]
fn sizes_side_by_side_are_switched_on_first_and_stand_where_they_were_planned() {
    let plan = legal("l40s-4.yaml", &["--vgpu", "8Q,12Q*2,16Q"]);
    let found = steps(&plan);
    assert_eq!(found[0], "switching vGPUs of several sizes on 0000:08:00.0 on");
    let moved = found.iter().filter(|step| step.starts_with("moving the vGPU")).count();
    assert_eq!(found.len(), 1 + 4 + moved, "{found:?}");
    // The driver takes the lowest free start by itself: only what stands elsewhere is moved.
    let made = |step: &&str| step.starts_with("making a vGPU of type ");
    assert_eq!(found.iter().copied().filter(|step| made(step)).count(), 4);
    // Of one size there is nothing to switch, nor to move.
    let plan = legal("l40s-4.yaml", &["--vgpu", "16Q*3"]);
    assert_eq!(steps(&plan).len(), 3);
    let plan = legal("l40s-4.yaml", &["--vgpu", "16Q*2", "--mixed"]);
    assert_eq!(steps(&plan).len(), 1 + 2 + usize::from(steps(&plan).iter().any(|s| s.starts_with("moving"))));
    // Mediated devices on the card itself.
    let plan = legal("v100.yaml", &["--vgpu", "V100-8Q*2"]);
    assert_eq!(steps(&plan).len(), 2);
    assert!(steps(&plan)[0].starts_with("making the mediated device "), "{plan:?}");
    assert!(steps(&plan)[0].ends_with(" on 0000:08:00.0"), "{plan:?}");
    assert_eq!(steps(&legal(RTX, &["--mixed"])).len(), 0, "starts are no layout");
}

/// A call for each GPU instance, each compute instance and each vGPU, one for sizes side by side, and none to move what the
/// driver puts where it was planned by itself.
#[test]
fn no_step_is_taken_beyond_the_fewest() {
    for (file, options, fewest) in [
        (RTX, ["--mig", "DC-1-24Q*4"], 4 * 3),
        (RTX, ["--mig", "DC-1-2Q*48"], 4 * 2 + 48),
        (RTX, ["--mig", "DC-2-48Q,DC-1-12Q*4"], 3 * 2 + 5),
        (RTX, ["--mig", "4g.96gb+gfx"], 2),
        (RTX, ["--vgpu", "16Q*6"], 6),
        (RTX, ["--vgpu", "48Q,24Q*2"], 1 + 3),
        ("l40s-4.yaml", ["--vgpu", "8Q*6"], 6),
        ("l40s-4.yaml", ["--vgpu", "24Q,12Q*2"], 1 + 3),
        ("l40s-4.yaml", ["--vgpu", "8Q,12Q*2,16Q"], 1 + 4),
        ("v100.yaml", ["--vgpu", "1Q*16"], 16),
        ("a100-40gb.yaml", ["--vgpu", "10C*4"], 4),
        ("a100-40gb.yaml", ["--mig", "A100-1-5C*7"], 7 * 3),
        ("h100-80gb.yaml", ["--mig", "3g.40gb,2g.20gb,1g.10gb*2"], 4 * 2),
    ] {
        let plan = legal(file, &options);
        assert_eq!(steps(&plan).len(), fewest, "{file} {options:?} {:#?}", steps(&plan));
    }
}

#[test]
fn a_table_has_the_steps_in_numbered_lines() {
    let Ok(Outcome::Legal(text)) = layout(RTX, &["--mig", "DC-4-96Q"]) else { panic!() };
    let steps: Vec<&str> = text.lines().skip_while(|line| *line != "Steps:").collect();
    assert_eq!(steps[1], "  1. making a GPU instance of profile 32 at 0 on 0000:08:00.0");
    assert_eq!(steps[3], "  3. making a vGPU of type DC-4-96Q on 0000:08:00.4");
    assert!(steps[4].is_empty() && steps[5].starts_with("Note: the steps assume"), "{text}");
}

/// A card as its driver might stand, asked for a list.
fn on(card: &Device, options: &[&str]) -> Result<Plan, String> {
    let line = ["gpudesk-node-daemon", "layout", "host"].into_iter().chain(options.iter().copied());
    let Command::Layout(options) = Cli::parse_from(line).command else { panic!() };
    plan(card, &options, false).unwrap()
}

fn first_card(file: &str) -> Device {
    let host = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hosts/").to_owned() + file;
    cards(Path::new(&host)).unwrap().0.swap_remove(0)
}

#[test]
fn what_the_daemon_could_not_make_now_is_refused_with_its_reason() {
    // MIG off, and virtual functions on: NVIDIA's own scripts come first.
    let mut card = first_card(RTX);
    let why = on(&card, &["--mig", "DC-1-2Q"]).unwrap_err();
    assert!(why.starts_with("there is room for all, and they cannot be made now: MIG of"), "{why}");
    assert!(why.contains("sriov-manage -d"), "{why}");
    card.mig = Some(gpudesk_crds::gpu_node_status::MigMode { current: true, pending: true });
    assert_eq!(on(&card, &["--mig", "DC-1-2Q"]).unwrap().steps.len(), 3);
    assert!(on(&card, &["--vgpu", "DC-8Q"]).unwrap_err().contains("MIG of"));
    // Without virtual functions they are switched on first.
    card.virtual_functions.clear();
    (card.framework, card.sriov) = (None, card.sriov.map(|sriov| Sriov { num_vfs: 0, ..sriov }));
    let steps = on(&card, &["--mig", "DC-1-2Q"]).unwrap().steps;
    let at = |words: &str| steps.iter().position(|step| step.starts_with(words)).unwrap();
    assert!(at("switching virtual functions") < at("making a GPU instance"), "{steps:?}");
    assert!(at("making a GPU instance") < at("making a vGPU"), "{steps:?}");
}

#[test]
fn what_is_there_is_not_made_again_nor_moved() {
    let mut card = first_card("l40s-4.yaml");
    card.vgpu.as_mut().unwrap().mixed_size = Some(true);
    let there = |n: usize, name: &str, start: i32| Instance {
        id: format!("there-{n}"),
        type_name: name.into(),
        mode: ShareMode::Vgpu,
        vgpu_type: None,
        start: Some(start),
        virtual_function: Some(card.virtual_functions[n].pci_address),
        gpu_instance: None,
        owner: None,
    };
    let instances = vec![there(0, "L40S-12Q", 0), there(1, "L40S-8Q", 16)];
    card.instances = instances;
    let plan = on(&card, &["--vgpu", "12Q,6Q", "--mixed"]).unwrap();
    let third = card.virtual_functions[2].pci_address.to_string();
    assert!(
        plan.steps[0].starts_with("making a vGPU of type") && plan.steps[0].ends_with(&third),
        "{plan:?}"
    );
    let others: Vec<String> =
        card.virtual_functions[..2].iter().map(|vf| vf.pci_address.to_string()).collect();
    assert!(!plan.steps.iter().any(|step| others.iter().any(|other| step.contains(other))), "{plan:?}");
}

// Tables of the makers, through the command itself.

/// Media engines: MIG User Guide and `nvml.h` on the suffixes; the counts are those of `nvidia-smi mig -lgip`.
#[test]
fn an_instance_with_all_media_engines_leaves_none_to_others() {
    legal(RTX, &["--mig", "1g.24gb+me.all,1g.24gb-me*3"]);
    legal(RTX, &["--mig", "2g.48gb+me.all,1g.24gb-me,1g.24gb-me"]);
    legal(RTX, &["--mig", "1g.24gb+me,1g.24gb*3"]);
    for (list, name) in [
        ("1g.24gb+me.all,1g.24gb", "1g.24gb"),
        ("1g.24gb,1g.24gb+me.all", "1g.24gb+me.all"),
        ("2g.48gb+me.all,1g.24gb+gfx", "1g.24gb+gfx"),
    ] {
        let why = refused(RTX, &["--mig", list]);
        assert!(why.contains(&format!("number 2, {name}, does not: {name} takes media engines")), "{why}");
    }
    let why = refused(RTX, &["--mig", "1g.24gb+me,1g.24gb+me.all"]);
    assert!(why.contains("takes media engines that others have"), "{why}");
    for file in ["h100-80gb.yaml", "a100-80gb.yaml", "h100-94gb.yaml"] {
        let profile = match file {
            "h100-94gb.yaml" => "1g.12gb",
            _ => "1g.10gb",
        };
        legal(file, &["--mig", &format!("{profile}+me,{profile}*6")]);
        let why = refused(file, &["--mig", &format!("{profile}+me*2")]);
        assert!(why.contains(&format!("number 2, {profile}+me, does not: 1 of")), "{why}");
    }
    legal("a30.yaml", &["--mig", "2g.12gb+me,1g.6gb*2"]);
    assert!(refused("a30.yaml", &["--mig", "2g.12gb+me,1g.6gb+me"]).contains("media engines"));
}

/// Every order of a list, each once.
fn orders(list: &[&'static str]) -> Vec<Vec<&'static str>> {
    if list.is_empty() {
        return vec![vec![]];
    }
    let mut all = vec![];
    for name in BTreeSet::from_iter(list) {
        let at = list.iter().position(|other| other == name).unwrap();
        let rest = [&list[..at], &list[at + 1..]].concat();
        all.extend(orders(&rest).into_iter().map(|order| [vec![*name], order].concat()));
    }
    all
}

/// vGPU User Guide, "vGPU Placements for GPUs in Mixed-Size Mode": the two cards of its figure three times.
#[test]
fn the_six_layouts_of_the_guide_are_made_in_every_order_and_take_no_more() {
    for (list, room) in [
        (vec!["6Q", "6Q", "6Q", "6Q", "12Q", "12Q"], 0),
        (vec!["4Q", "4Q", "4Q", "4Q", "6Q", "6Q", "6Q", "6Q"], 8),
        (vec!["3Q", "3Q", "3Q", "3Q", "1B", "1B"], 34),
        (vec!["24Q", "12Q", "12Q"], 0),
        (vec!["24Q", "2B", "2B"], 20),
        (vec!["8Q", "12Q", "12Q", "16Q"], 0),
    ] {
        for order in orders(&list) {
            let found = shares(&legal("l40s-4.yaml", &["--mixed", "--vgpu", &order.join(",")]));
            assert_eq!(found.len(), list.len(), "{order:?}");
        }
        if room == 0 {
            let more = format!("{},1Q", list.join(","));
            let why = refused("l40s-4.yaml", &["--mixed", "--vgpu", &more]);
            assert!(why.contains(&format!("number {}, L40S-1Q", list.len() + 1)), "{why}");
        }
    }
}

/// vGPU User Guide: on Ada fewer of a size stand on a card whose sizes mix. open-gpu-kernel-modules, `kernel_vgpu_mgr.c`: on
/// Blackwell both ways have the same starts.
#[test]
fn what_mixing_costs_on_ada_and_not_on_blackwell() {
    for (size, equal, mixed) in [("16Q", 3, 2), ("8Q", 6, 4), ("4Q", 12, 8), ("12Q", 4, 4), ("24Q", 2, 2)] {
        legal("l40s-4.yaml", &["--vgpu", &format!("{size}*{equal}")]);
        legal("l40s-4.yaml", &["--mixed", "--vgpu", &format!("{size}*{mixed}")]);
        let more = format!("{size}*{}", mixed + 1);
        assert!(
            refused("l40s-4.yaml", &["--mixed", "--vgpu", &more]).contains(&format!("number {}", mixed + 1))
        );
    }
    for (size, most) in [
        ("96Q", 1),
        ("48Q", 2),
        ("32Q", 3),
        ("24Q", 4),
        ("16Q", 6),
        ("12Q", 8),
        ("8Q", 12),
        ("6Q", 16),
        ("4Q", 24),
        ("3Q", 32),
    ] {
        for mixed in [&[][..], &["--mixed"][..]] {
            let list = format!("{size}*{most}");
            legal(RTX, &[&["--vgpu", &*list][..], mixed].concat());
            let more = format!("{size}*{}", most + 1);
            let why = refused(RTX, &[&["--vgpu", &*more][..], mixed].concat());
            assert!(why.contains(&format!("number {}", most + 1)), "{why}");
        }
    }
}

/// MIG User Guide, known issues: 3g, 2g, 1g, 1g fit only with the 3g in the upper half.
#[test]
fn a_half_stands_in_the_upper_part_whatever_the_order() {
    for (file, [one, two, three]) in [
        ("a100-40gb.yaml", ["1g.5gb", "2g.10gb", "3g.20gb"]),
        ("h100-80gb.yaml", ["1g.10gb", "2g.20gb", "3g.40gb"]),
        ("h200-8.yaml", ["1g.18gb", "2g.35gb", "3g.71gb"]),
        ("b200-8.yaml", ["1g.23gb", "2g.45gb", "3g.90gb"]),
    ] {
        for order in
            [[three, two, one, one], [one, one, two, three], [one, three, one, two], [two, one, three, one]]
        {
            let found = shares(&legal(file, &["--mig", &order.join(",")]));
            assert!(found.contains(&(three.into(), Some(4))), "{file} {order:?} {found:?}");
        }
    }
}

/// One framebuffer size on a GPU instance: vGPU User Guide, MIG-backed vGPUs, and `kernel_vgpu_mgr.c`.
#[test]
fn a_second_size_takes_a_gpu_instance_of_its_own() {
    let count = |list: &str| legal(RTX, &["--mig", list])["shares"].as_sequence().unwrap().len();
    assert_eq!((count("DC-1-2Q,DC-1-2B"), count("DC-1-2Q,DC-1-3Q"), count("DC-1-2Q*12,DC-1-24Q")), (1, 2, 2));
    legal(RTX, &["--mig", "DC-1-2Q,DC-1-3Q,DC-1-4Q,DC-1-6Q"]);
    let why = refused(RTX, &["--mig", "DC-1-2Q,DC-1-3Q,DC-1-4Q,DC-1-6Q,DC-1-8Q"]);
    assert!(why.contains("number 5, 1g.24gb+gfx"), "{why}");
    for (type_name, of_each) in
        [("2Q", 12), ("3Q", 8), ("4Q", 6), ("6Q", 4), ("8Q", 3), ("12Q", 2), ("24Q", 1)]
    {
        let list = format!("DC-1-{type_name}*{}", 4 * of_each);
        let plan = legal(RTX, &["--mig", &list]);
        assert_eq!(plan["shares"].as_sequence().unwrap().len(), 4, "{list}");
        assert_eq!(steps(&plan).len(), 4 * (2 + of_each), "{list}");
        assert!(
            refused(RTX, &["--mig", &format!("DC-1-{type_name}*{}", 4 * of_each + 1)]).contains("number 5")
        );
    }
}

/// NVIDIA/vgpu-device-manager, examples/config-example.yaml: the most of each size on one card.
#[test]
fn the_most_of_each_size_is_that_of_its_maker() {
    type Table = (&'static str, &'static str, &'static [(&'static str, i32)]);
    let tables: [Table; 9] = [
        ("v100.yaml", "V100", &[("1Q", 16), ("2Q", 8), ("4Q", 4), ("8Q", 2), ("16Q", 1)]),
        ("t4.yaml", "T4", &[("1Q", 16), ("2Q", 8), ("4Q", 4), ("8Q", 2), ("16Q", 1)]),
        (
            "l40s-4.yaml",
            "L40S",
            &[
                ("1Q", 32),
                ("2Q", 24),
                ("3Q", 16),
                ("4Q", 12),
                ("6Q", 8),
                ("8Q", 6),
                ("12Q", 4),
                ("16Q", 3),
                ("24Q", 2),
                ("48Q", 1),
            ],
        ),
        (
            "A40",
            "A40",
            &[
                ("1Q", 32),
                ("2Q", 24),
                ("3Q", 16),
                ("4Q", 12),
                ("6Q", 8),
                ("8Q", 6),
                ("12Q", 4),
                ("16Q", 3),
                ("24Q", 2),
                ("48Q", 1),
            ],
        ),
        (
            "h100-80gb.yaml",
            "H100",
            &[("4C", 20), ("5C", 16), ("8C", 10), ("10C", 8), ("16C", 5), ("20C", 4), ("40C", 2), ("80C", 1)],
        ),
        (
            "h100-94gb.yaml",
            "H100L",
            &[("4C", 23), ("6C", 15), ("11C", 8), ("15C", 6), ("23C", 4), ("47C", 2), ("94C", 1)],
        ),
        ("a100-40gb.yaml", "A100", &[("4C", 10), ("5C", 8), ("8C", 5), ("10C", 4), ("20C", 2), ("40C", 1)]),
        ("V100 32GB", "V100D", &[("1Q", 32), ("2Q", 16), ("4Q", 8), ("8Q", 4), ("16Q", 2), ("32Q", 1)]),
        (
            "h200-8.yaml",
            "H200X",
            &[
                ("4C", 32),
                ("7C", 20),
                ("8C", 16),
                ("14C", 10),
                ("17C", 8),
                ("28C", 5),
                ("35C", 4),
                ("70C", 2),
                ("141C", 1),
            ],
        ),
    ];
    for (host, prefix, table) in tables {
        let card = if host.contains(".yaml") { first_card(host) } else { model(host) };
        for (size, most) in table {
            let places = card.placements.iter().filter(|place| place.mode == ShareMode::Vgpu);
            let mut names = places.map(|place| &place.type_name);
            let wanted = |name: &&String| name.split_once('-') == Some((prefix, *size));
            let name = names.find(wanted).unwrap_or_else(|| panic!("{host} {size}"));
            let of = |count: i32| {
                let list = format!("{name}*{count}");
                let line = ["gpudesk-node-daemon", "layout", "host", "--vgpu", &list];
                let Command::Layout(options) = Cli::parse_from(line).command else { panic!() };
                plan(&card, &options, true).unwrap()
            };
            assert_eq!(
                of(*most).map(|plan| plan.shares.len()),
                Ok(usize::try_from(*most).unwrap()),
                "{name}"
            );
            assert!(
                of(most + 1).unwrap_err().contains(&format!("{most} of {name} are on the card")),
                "{name}"
            );
        }
    }
}

/// A card of the catalogue of simulated hosts.
fn model(name: &str) -> Device {
    let file = format!("{{coresPerSocket: 4, memoryMiB: 8192, cards: [{{model: {name}, count: 1}}]}}");
    let host = gpudesk_inventory::simulated::HostFile::parse(&file).unwrap().host("n").unwrap();
    host.facts.cards.into_iter().next().unwrap()
}

/// AMD's GIM release notes (one or eight of an MI300X, one of an MI325X) and Intel's tables of Flex cards (xpumanager): so many
/// of one kind, none beside another kind.
#[test]
fn virtual_functions_are_as_many_as_their_kind_says() {
    for (host, counts) in [
        ("mi300x-8.yaml", &[1, 8][..]),
        ("Instinct MI325X", &[1]),
        ("flex-170.yaml", &[1, 2, 4, 5, 8, 16]),
        ("Data Center GPU Flex 140", &[1, 3, 6, 12]),
    ] {
        let card = if host.contains(".yaml") { first_card(host) } else { model(host) };
        let geometry = card.geometry(false);
        let found = card.placements.iter().filter(|place| place.mode == ShareMode::VirtualFunctions);
        let found: Vec<&gpudesk_crds::gpu_node_status::Placement> = found.collect();
        let mut named: Vec<i32> = found.iter().map(|place| place.max_count).collect();
        named.sort_unstable();
        assert_eq!(named, counts, "{host}");
        for place in &found {
            let kind = card.kind_of(place.mode, &place.type_name);
            let most = usize::try_from(place.max_count).unwrap();
            assert!(place.type_name.ends_with(&format!("-{most}VF")), "{}", place.type_name);
            let all = geometry.arrange(&[], &vec![kind; most]).unwrap();
            assert_eq!(geometry.fits(&all, kind), Err(Misfit::Full), "{}", place.type_name);
            for other in found.iter().filter(|other| other.type_name != place.type_name) {
                let other = card.kind_of(other.mode, &other.type_name);
                assert_eq!(geometry.fits(&all[..1], other), Err(Misfit::Excluded(0)));
            }
        }
    }
}
