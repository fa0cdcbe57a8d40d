//! CPUs: cores as sets of threads, model name.

use std::collections::BTreeSet;

use gpudesk_crds::types::CpuSet;

/// The cores among `cpus`, each as the set of its threads that are in `cpus`, lowest CPU first.
///
/// `siblings` gives the threads of a CPU's core; a CPU for which it knows nothing is a core alone.
pub fn cores(cpus: &CpuSet, siblings: impl Fn(u32) -> Option<CpuSet>) -> Vec<CpuSet> {
    let mut seen = BTreeSet::new();
    let mut cores = vec![];
    for cpu in cpus.iter() {
        if seen.contains(&cpu) {
            continue;
        }
        let mut core: CpuSet = siblings(cpu)
            .unwrap_or_default()
            .iter()
            .filter(|sibling| cpus.contains(*sibling) && !seen.contains(sibling))
            .collect();
        core.insert(cpu);
        seen.extend(core.iter());
        cores.push(core);
    }
    cores
}

/// The model name in `/proc/cpuinfo`.
pub fn model(cpuinfo: &str) -> Option<String> {
    let value = cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim())
    })?;
    (!value.is_empty()).then(|| value.chars().take(128).collect())
}

/// NUMA distances: `10 21`.
pub fn distances(text: &str) -> Option<Vec<i32>> {
    text.split_whitespace().map(|part| part.parse().ok().filter(|d| (0..=255).contains(d))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    #[test]
    fn threads_of_a_core_stand_together() {
        let siblings = |cpu: u32| Some([cpu % 2, cpu % 2 + 2].into_iter().collect());
        assert_eq!(cores(&set("0-3"), siblings), [set("0,2"), set("1,3")]);
    }

    #[test]
    fn an_offline_thread_is_left_out() {
        let siblings = |cpu: u32| Some([cpu % 2, cpu % 2 + 2].into_iter().collect());
        assert_eq!(cores(&set("0-2"), siblings), [set("0,2"), set("1")]);
    }

    proptest! {
        #[test]
        fn every_cpu_is_in_exactly_one_core(cpus in proptest::collection::btree_set(0_u32..64, 0..32), salt in 0_u32..64) {
            let cpus: CpuSet = cpus.into_iter().collect();
            // Siblings that contradict each other must not give a CPU twice.
            let cores = cores(&cpus, |cpu| Some([cpu ^ salt, cpu / 2, 63].into_iter().collect()));
            let all: Vec<u32> = cores.iter().flat_map(|core| core.iter().collect::<Vec<_>>()).collect();
            prop_assert_eq!(all.len(), cpus.len());
            prop_assert_eq!(all.into_iter().collect::<CpuSet>(), cpus);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let _ = model(&text);
            let _ = distances(&text);
        }
    }
}
