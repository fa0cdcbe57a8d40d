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

/// The value of the first line `key : value` in `/proc/cpuinfo`.
fn cpuinfo_value<'a>(cpuinfo: &'a str, wanted: &str) -> Option<&'a str> {
    let value = cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == wanted).then(|| value.trim())
    })?;
    (!value.is_empty()).then_some(value)
}

/// The model name in `/proc/cpuinfo`.
pub fn model(cpuinfo: &str) -> Option<String> {
    cpuinfo_value(cpuinfo, "model name").map(|value| value.chars().take(128).collect())
}

/// Whether the CPU says that it can run guests; `None` when its flags are not told, as on Arm.
pub fn virtualization(cpuinfo: &str) -> Option<bool> {
    let flags = cpuinfo_value(cpuinfo, "flags")?;
    Some(flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

/// The CPUs of `/proc/cpuinfo`, each with its socket and core where they are told: for trees that hold
/// nothing else of CPUs.
pub fn from_cpuinfo(cpuinfo: &str) -> Vec<(u32, Option<(i32, i32)>)> {
    let block = |block: &str| {
        let number = |key| cpuinfo_value(block, key).and_then(|value| value.parse().ok());
        let cpu: u32 = cpuinfo_value(block, "processor")?.parse().ok().filter(|cpu| *cpu < CpuSet::LIMIT)?;
        Some((cpu, number("physical id").zip(number("core id"))))
    };
    cpuinfo.split("\n\n").filter_map(block).collect()
}

/// A set of CPUs as a list (`0-3,8`) or as the older mask of 32-bit words (`00000000,0000000f`).
///
/// A text that could be both, such as `10`, is a list: files that hold masks have names of their own.
pub fn mask(text: &str) -> Option<CpuSet> {
    let words: Vec<&str> = text.trim().split(',').collect();
    if words.len() > 256 {
        return None;
    }
    let mut cpus = CpuSet::default();
    for (position, word) in words.iter().rev().enumerate() {
        if word.is_empty() || word.len() > 8 {
            return None;
        }
        let bits = u32::from_str_radix(word, 16).ok()?;
        let first = u32::try_from(position).ok()? * 32;
        cpus.extend((0..32).filter(|bit| bits >> bit & 1 == 1).map(|bit| first + bit));
    }
    Some(cpus)
}

/// A cache size in KiB: `32768K`, `32M`.
pub fn cache_kib(text: &str) -> Option<i64> {
    let text = text.trim();
    let (digits, factor) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1),
        None => (text.strip_suffix('M')?, 1024),
    };
    digits.parse().ok().filter(|size| (0..=1 << 24).contains(size)).map(|size: i64| size * factor)
}

/// `reservedSystemCPUs` of a kubelet's configuration; `None` when it says nothing of it.
pub fn kubelet_reserved(config: &str) -> Option<CpuSet> {
    let value: serde_yaml::Value = serde_yaml::from_str(config).ok()?;
    let text = value.get("reservedSystemCPUs")?;
    let text =
        text.as_str().map_or_else(|| text.as_u64().map(|cpu| cpu.to_string()), |text| Some(text.into()))?;
    text.trim().parse().ok()
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

    #[test]
    fn masks_are_read_from_the_right() {
        assert_eq!(mask("00000000,0000000f\n"), Some(set("0-3")));
        assert_eq!(mask("1,00000000"), Some(set("32")));
        assert_eq!(mask("xyz"), None);
        assert_eq!(mask(""), None);
    }

    #[test]
    fn cpuinfo_stands_for_missing_folders() {
        let text = "processor\t: 0\nphysical id\t: 0\ncore id\t: 0\nflags\t\t: fpu vmx\n\nprocessor\t: 1\nphysical id\t: 1\ncore id\t: 0\n\n";
        assert_eq!(from_cpuinfo(text), [(0, Some((0, 0))), (1, Some((1, 0)))]);
        assert_eq!(virtualization(text), Some(true));
        assert_eq!(virtualization("flags : fpu\n"), Some(false));
        assert_eq!(virtualization("Features : fp\n"), None);
    }

    #[test]
    fn a_kubelet_says_which_cpus_it_keeps() {
        let config = "kind: KubeletConfiguration\nreservedSystemCPUs: 0-1,64-65\n";
        assert_eq!(kubelet_reserved(config), Some(set("0-1,64-65")));
        assert_eq!(kubelet_reserved("reservedSystemCPUs: 3\n"), Some(set("3")));
        assert_eq!(kubelet_reserved("reservedSystemCPUs: banana\n"), None);
        assert_eq!(kubelet_reserved("kind: KubeletConfiguration\n"), None);
        assert_eq!(
            (cache_kib("32768K\n"), cache_kib("32M"), cache_kib("x")),
            (Some(32768), Some(32768), None)
        );
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
            let _ = (distances(&text), virtualization(&text), from_cpuinfo(&text), mask(&text), cache_kib(&text));
            let _ = kubelet_reserved(&text);
        }
    }
}
