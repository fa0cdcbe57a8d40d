//! What profiles want of vGPUs and owners of virtual functions beside type and place: refused with words where it cannot be,
//! and never left behind.

use std::{collections::BTreeMap, sync::Arc};

use gpudesk_crds::{gpu_node::VgpuScheduler, gpu_node_status::Placement, types::ShareMode};

use super::{
    fake_kernel::{FakeKernel, Fun, at},
    scenarios::{CARD, Scenario, kernel, scenarios, share},
    settings_tests::{killed_anywhere, spec, start_with},
    tests::{owner, settle, start},
};
use crate::host::gpu_driver::{GpuDriver, InstanceKey, Setup, WantedInstance};

const VF: &str = "0000:41:00.1";

fn named(name: &str) -> Scenario {
    scenarios().into_iter().find(|scenario| scenario.name.contains(name)).unwrap()
}

/// The same for another desktop, that wants this scheduler.
fn another(wanted: &WantedInstance, request: &str, scheduler: Option<VgpuScheduler>) -> WantedInstance {
    WantedInstance {
        key: InstanceKey { request: request.into(), ..wanted.key.clone() },
        setup: Setup { scheduler, params: BTreeMap::new() },
        ..wanted.clone()
    }
}

#[test]
fn the_scheduler_of_the_first_profile_stays_until_the_last_vgpu_is_gone() {
    let Scenario { kernel, wanted, .. } = named("with the scheduler and the parameters");
    let (before, folder) = (kernel.world(), tempfile::tempdir().unwrap());
    let devices = start(&kernel, folder.path());
    super::engine::lock(&devices.engine.seen).cards[0].placements =
        vec![Placement::new("L40S-8Q", ShareMode::Vgpu, 8192, 6)];
    let is = || kernel.world().functions[&at(CARD)].scheduler;
    devices.create(&wanted).unwrap();
    assert_eq!(is(), Some(VgpuScheduler::FixedShare));
    let other = another(&wanted, "b", Some(VgpuScheduler::EqualShare));
    let why = devices.create(&other).unwrap_err().to_string();
    assert!(
        why.contains("the GpuProfile has vgpuScheduler EqualShare, and 0000:41:00.0 has FixedShare"),
        "{why}"
    );
    let none = another(&wanted, "c", None);
    devices.create(&none).unwrap();
    devices.create(&another(&wanted, "d", Some(VgpuScheduler::FixedShare))).unwrap();
    devices.destroy(&wanted.key).unwrap();
    assert!(devices.create(&other).is_err());
    devices.destroy(&another(&wanted, "d", None).key).unwrap();
    assert_eq!(is(), Some(VgpuScheduler::FixedShare), "one is left that came into it");
    devices.destroy(&none.key).unwrap();
    assert_eq!(kernel.world(), before);
    devices.create(&other).unwrap();
    assert_eq!(is(), Some(VgpuScheduler::EqualShare));
}

#[test]
fn a_scheduler_that_cannot_be_is_refused_with_its_reason_and_nothing_is_left() {
    let refused =
        |scenario: &str, rule: &str, change: &dyn Fn(&mut WantedInstance, &FakeKernel), reason: &str| {
            let Scenario { kernel, mut wanted, .. } = named(scenario);
            change(&mut wanted, &kernel);
            let (before, folder) = (kernel.world(), tempfile::tempdir().unwrap());
            let said =
                start_with(&kernel, folder.path(), &spec(rule)).create(&wanted).unwrap_err().to_string();
            assert!(said.contains(reason), "{said}");
            assert_eq!(kernel.world(), before);
        };
    let wants = |wanted: &mut WantedInstance, scheduler| {
        wanted.setup = Setup { scheduler: Some(scheduler), params: BTreeMap::new() };
    };
    let on_instance = "on a GPU instance with a scheduler";
    let lacks = |_: &mut WantedInstance, kernel: &FakeKernel| {
        kernel.change(|world| world.functions.get_mut(&at(CARD)).unwrap().schedules_instances = false);
    };
    refused(
        on_instance,
        "management: Managed",
        &lacks,
        "GPU instances of 0000:41:00.0 have no vGPU scheduler that could",
    );
    let sliced = "with the scheduler and the parameters";
    let equal = |wanted: &mut WantedInstance, _: &FakeKernel| wants(wanted, VgpuScheduler::EqualShare);
    refused(
        sliced,
        "vgpuScheduler: BestEffort",
        &equal,
        "the GpuProfile has vgpuScheduler EqualShare, and 0000:41:00.0 has BestEffort",
    );
    let silent = |wanted: &mut WantedInstance, kernel: &FakeKernel| {
        wants(wanted, VgpuScheduler::EqualShare);
        kernel.change(|world| world.functions.get_mut(&at(CARD)).unwrap().scheduler = None);
    };
    refused(
        sliced,
        "management: Managed",
        &silent,
        "vgpuScheduler of 0000:41:00.0 takes NVIDIA's library NVML",
    );
    let fixed = |wanted: &mut WantedInstance, _: &FakeKernel| wants(wanted, VgpuScheduler::FixedShare);
    refused(
        "parameters at its start",
        "management: Managed",
        &fixed,
        "FixedShare, which is for vGPUs of one size",
    );
}

#[test]
fn parameters_that_are_not_allowed_or_no_plain_words_are_never_written() {
    let refused = |rule: &str, params: &[(&str, &str)], reason: &str| {
        let Scenario { kernel, mut wanted, .. } = named("with the scheduler and the parameters");
        let params = params.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        wanted.setup = Setup { scheduler: None, params: params.collect() };
        let folder = tempfile::tempdir().unwrap();
        let said = start_with(&kernel, folder.path(), &spec(rule)).create(&wanted).unwrap_err().to_string();
        assert!(said.contains(reason), "{said}");
        assert_eq!(kernel.written(), Vec::<String>::new());
    };
    let limiter = [("frame_rate_limiter", "0")];
    refused(
        "vgpuParams: [disable_vnc, frame_rate_limiter=1]",
        &limiter,
        "vgpu.params of the GpuProfile has frame_rate_limiter=0, and the owner of 0000:41:00.0 allows disable_vnc, \
         frame_rate_limiter=1 (spec.devices[].vgpuParams of the GpuNode)",
    );
    refused("management: Managed", &limiter, "allows none (spec.devices[].vgpuParams");
    for odd in ["b,c=d", "b c", "", "b\nc", "b=c", "ü"] {
        refused("vgpuParams: [a]", &[("a", odd)], "vgpu.params of the GpuProfile has a=");
    }
    refused("vgpuParams: [vgpu-placement-id]", &[("vgpu-placement-id", "3")], "has vgpu-placement-id=3");
    // A driver that knows no such file.
    let Scenario { kernel, wanted, .. } = named("with the scheduler and the parameters");
    kernel.change(|world| world.functions.values_mut().for_each(|function| function.params = None));
    let (before, folder) = (kernel.world(), tempfile::tempdir().unwrap());
    let said = start(&kernel, folder.path()).create(&wanted).unwrap_err().to_string();
    assert!(said.contains("takes no vgpu.params"), "{said}");
    assert_eq!(kernel.world(), before);
}

fn intel(quotas: Option<[Option<u32>; 2]>) -> Arc<FakeKernel> {
    let card = Fun { total: 7, d3cold: false, ..Fun::new(("8086", "56c0"), Some("xe"), 41) };
    kernel(vec![(CARD, Fun { quotas: quotas.map(|quotas| vec![quotas; 7]), ..card })])
}

#[test]
fn quotas_of_a_function_are_set_and_put_back_wherever_the_daemon_is_killed() {
    let spec = spec("virtualFunctions: {execQuantumMs: 20, preemptTimeoutUs: 80000}");
    let wanted = share(ShareMode::VirtualFunctions, "2VF", None, None);
    // Functions that were on before gpudesk keep what they had.
    let host = || {
        let kernel = intel(Some([Some(5), Some(640)]));
        kernel.change(|world| {
            let vfs = [at(VF), at("0000:41:00.2")];
            world.functions.get_mut(&at(CARD)).unwrap().vfs = vfs.to_vec();
            for (vf, group) in vfs.into_iter().zip(60..) {
                let fun = Fun::new(("8086", "56c0"), None, group);
                world.functions.insert(vf, Fun { resets: "flr", natural: Some("xe"), ..fun });
            }
        });
        kernel
    };
    let (kernel, folder) = (host(), tempfile::tempdir().unwrap());
    let before = kernel.world();
    let devices = start_with(&kernel, folder.path(), &spec);
    devices.create(&wanted).unwrap();
    let written = kernel.written();
    let set = [
        "41:00.0/sriov_admin/vf1/profile/exec_quantum_ms = 20",
        "41:00.0/sriov_admin/vf1/profile/preempt_timeout_us = 80000",
    ];
    assert_eq!(written[written.len() - 2..], set);
    devices.create(&wanted).unwrap();
    assert_eq!(kernel.written(), Vec::<String>::new(), "once");
    devices.destroy(&wanted.key).unwrap();
    assert_eq!(kernel.world(), before);
    killed_anywhere(&spec, &|| (host(), wanted.clone()), &|card| {
        assert_eq!(card.quotas.as_ref().map(|all| all[0]), Some([Some(20), Some(80_000)]));
    });
}

#[test]
fn what_somebody_else_set_of_a_quota_since_then_stays() {
    let spec = spec("virtualFunctions: {execQuantumMs: 20}");
    let wanted = share(ShareMode::VirtualFunctions, "2VF", None, None);
    let (kernel, folder) = (intel(Some([Some(0), Some(0)])), tempfile::tempdir().unwrap());
    kernel.change(|world| {
        world.functions.get_mut(&at(CARD)).unwrap().vfs = vec![at(VF), at("0000:41:00.2")];
        for (vf, group) in [at(VF), at("0000:41:00.2")].into_iter().zip(60..) {
            world.functions.insert(vf, Fun { resets: "flr", ..Fun::new(("8086", "56c0"), None, group) });
        }
    });
    let devices = start_with(&kernel, folder.path(), &spec);
    devices.create(&wanted).unwrap();
    kernel
        .change(|world| world.functions.get_mut(&at(CARD)).unwrap().quotas.as_mut().unwrap()[0][0] = Some(7));
    devices.destroy(&wanted.key).unwrap();
    assert_eq!(kernel.world().functions[&at(CARD)].quotas.as_ref().unwrap()[0][0], Some(7));
}

#[test]
fn functions_that_cannot_be_as_wanted_are_refused_with_the_reason() {
    let wanted = share(ShareMode::VirtualFunctions, "2VF", None, None);
    let refused = |kernel: &Arc<FakeKernel>, rule: &str, reason: &str| {
        let (before, folder) = (kernel.world(), tempfile::tempdir().unwrap());
        let said = start_with(kernel, folder.path(), &spec(rule)).create(&wanted).unwrap_err().to_string();
        assert!(said.contains(reason), "{said}");
        assert_eq!(kernel.world(), before);
    };
    let quantum = "virtualFunctions: {execQuantumMs: 20}";
    let old = intel(None);
    refused(&old, quantum, "has virtualFunctions.execQuantumMs, and the driver of this kernel has no quotas");
    assert_eq!(old.written(), Vec::<String>::new());
    // Tiles of which one has another value: nobody could put that back.
    let differing = intel(Some([Some(0), Some(0)]));
    differing.change(|world| {
        let card = world.functions.get_mut(&at(CARD)).unwrap();
        card.quotas.as_mut().unwrap()[0][0] = None;
        card.vfs = vec![at(VF), at("0000:41:00.2")];
        for (vf, group) in [at(VF), at("0000:41:00.2")].into_iter().zip(60..) {
            world.functions.insert(vf, Fun { resets: "flr", ..Fun::new(("8086", "56c0"), None, group) });
        }
    });
    refused(&differing, quantum, "exec_quantum_ms of 0000:41:00.1 cannot be told");
    // AMD's gim makes none where the firmware allows fewer.
    let amd = Fun { total: 8, vf_limit: 1, ..Fun::new(("1002", "74a1"), Some("gim"), 41) };
    refused(&kernel(vec![(CARD, amd)]), "management: Managed", "\"exceeds the vf limit\"");
}

#[test]
fn a_daemon_that_starts_again_finds_what_was_set_up_and_leaves_it() {
    for name in
        ["with the scheduler and the parameters", "parameters at its start", "GPU instance with a scheduler"]
    {
        let Scenario { kernel, wanted, .. } = named(name);
        let folder = tempfile::tempdir().unwrap();
        start(&kernel, folder.path()).create(&wanted).unwrap();
        // Its guest has it open, and the owner allows nothing any more.
        for node in 200..204 {
            kernel.open(&format!("511:{node}"), Some(1234));
        }
        kernel.written();
        let again = start_with(&kernel, folder.path(), &spec("management: Managed"));
        settle(&again, &owner());
        again.create(&wanted).unwrap();
        assert_eq!(kernel.written(), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn another_number_of_functions_comes_through_none_and_without_drivers() {
    let two = share(ShareMode::VirtualFunctions, "2VF", None, None);
    let four = WantedInstance {
        key: InstanceKey { desktop_uid: "another".into(), request: "screen".into() },
        ..share(ShareMode::VirtualFunctions, "4VF", None, None)
    };
    let (kernel, folder) = (intel(None), tempfile::tempdir().unwrap());
    let devices = start(&kernel, folder.path());
    devices.create(&two).unwrap();
    devices.destroy(&two.key).unwrap();
    devices.create(&four).unwrap();
    let written = kernel.written();
    let counts: Vec<&String> = written.iter().filter(|write| write.contains("numvfs")).collect();
    let expected = ["41:00.0/sriov_numvfs = 2", "41:00.0/sriov_numvfs = 0", "41:00.0/sriov_numvfs = 4"];
    assert_eq!(counts, expected);
    assert!(!kernel.world().functions[&at(CARD)].autoprobe);
}
