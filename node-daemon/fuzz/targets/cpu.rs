//! CPUs: lists, masks, /proc/cpuinfo, the configuration of the kubelet.
#![no_main]

use gpudesk_crds::types::CpuSet;
use gpudesk_inventory::topology::{cpu, kernel_text, kubelet};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = (cpu::model(text), cpu::virtualization(text), cpu::cache_kib(text), cpu::distances(text));
    let _ = (kubelet::reserved(text), kubelet::flags(text.as_bytes()), cpu::socket(text));
    assert!(!kernel_text::line(text).contains(['\n', '\0']));
    assert!(cpu::from_cpuinfo(text).iter().all(|(cpu, _)| *cpu < CpuSet::LIMIT));
    for cpus in [cpu::mask(text), cpu::list(text)].into_iter().flatten() {
        let cores = cpu::cores(&cpus, |cpu| Some([cpu ^ 1, cpu / 2].into_iter().collect()));
        assert_eq!(cores.iter().map(CpuSet::len).sum::<usize>(), cpus.len());
        assert_eq!(cpus.to_string().parse::<CpuSet>().as_ref(), Ok(&cpus));
    }
});
