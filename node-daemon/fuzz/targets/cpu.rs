//! CPUs: lists, masks, /proc/cpuinfo, the configuration of the kubelet.
#![no_main]

use gpudesk_crds::types::CpuSet;
use gpudesk_inventory::topology::cpu;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = (cpu::model(text), cpu::virtualization(text), cpu::cache_kib(text), cpu::distances(text));
    let _ = cpu::kubelet_reserved(text);
    assert!(cpu::from_cpuinfo(text).iter().all(|(cpu, _)| *cpu < CpuSet::LIMIT));
    let list = text.trim().parse::<CpuSet>();
    for cpus in [cpu::mask(text), list.ok()].into_iter().flatten() {
        let cores = cpu::cores(&cpus, |cpu| Some([cpu ^ 1, cpu / 2].into_iter().collect()));
        assert_eq!(cores.iter().map(CpuSet::len).sum::<usize>(), cpus.len());
        assert_eq!(cpus.to_string().parse::<CpuSet>().as_ref(), Ok(&cpus));
    }
});
