//! CPUs: cores as sets of threads, model name.

use std::collections::BTreeSet;

use gpudesk_crds::types::CpuSet;

use super::kernel_text;

/// The cores among `cpus`, each as the set of its threads that are in `cpus`, lowest CPU first.
///
/// `siblings` gives the threads of a CPU's core. A CPU for which it knows nothing is in the core of those
/// that name it, and a core alone where none does.
pub fn cores(cpus: &CpuSet, siblings: impl Fn(u32) -> Option<CpuSet>) -> Vec<CpuSet> {
    let mut seen = BTreeSet::new();
    let mut cores = vec![];
    let mut silent = vec![];
    let mut add = |cpu: u32, siblings: &CpuSet| {
        if seen.contains(&cpu) {
            return;
        }
        let is_new = |sibling: &u32| cpus.contains(*sibling) && !seen.contains(sibling);
        let mut core: CpuSet = siblings.iter().filter(is_new).collect();
        core.insert(cpu);
        seen.extend(core.iter());
        cores.push(core);
    };
    for cpu in cpus.iter() {
        match siblings(cpu) {
            Some(siblings) => add(cpu, &siblings),
            None => silent.push(cpu),
        }
    }
    for cpu in silent {
        add(cpu, &CpuSet::default());
    }
    cores.sort_by_key(|core| core.iter().next());
    cores
}

/// A list of CPUs as the kernel writes it: `0-3,8`. Numbers that are higher than any CPU can have here
/// are left out. `None` for what is no list.
pub fn list(text: &str) -> Option<CpuSet> {
    let line = kernel_text::line(text);
    if line.is_empty() {
        return Some(CpuSet::default());
    }
    let number = |digits: &str| -> Option<u32> {
        let is_number = !digits.is_empty() && digits.len() <= 9 && digits.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| digits.parse().ok()).flatten()
    };
    let mut cpus = CpuSet::default();
    for part in line.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        cpus.extend(first..=last.min(CpuSet::LIMIT - 1));
    }
    Some(cpus)
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

/// A set of CPUs as the older mask of 32-bit words: `00000000,0000000f`.
pub fn mask(text: &str) -> Option<CpuSet> {
    let words: Vec<&str> = kernel_text::line(text).split(',').collect();
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
    let text = kernel_text::line(text);
    let (digits, factor) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1),
        None => (text.strip_suffix('M')?, 1024),
    };
    digits.parse().ok().filter(|size| (0..=1 << 24).contains(size)).map(|size: i64| size * factor)
}

/// The number of a socket. The firmware's own numbers can be high: 3180 on a Kunpeng 920. -1 is none.
pub fn socket(text: &str) -> Option<i32> {
    kernel_text::number(text).filter(|socket: &i32| *socket >= 0)
}

/// NUMA distances: `10 21`.
pub fn distances(text: &str) -> Option<Vec<i32>> {
    kernel_text::line(text)
        .split_whitespace()
        .map(|part| part.parse().ok().filter(|d| (0..=255).contains(d)))
        .collect()
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
    fn cache_sizes_have_units() {
        assert_eq!(
            (cache_kib("32768K\n"), cache_kib("32M"), cache_kib("x")),
            (Some(32768), Some(32768), None)
        );
    }

    #[test]
    fn lists_end_with_their_line() {
        assert_eq!(list("0-1\n\0"), Some(set("0,1")));
        assert_eq!(list("\n"), Some(CpuSet::default()));
        assert_eq!(list("2,16384-20000,8190-9000\n"), Some(set("2,8190-8191")));
        for wrong in ["3-1", "a", "1,,2", "-1", "(null)", "0-"] {
            assert_eq!(list(wrong), None, "{wrong}");
        }
        assert_eq!((socket("3180\n"), socket("-1\n"), socket("\n")), (Some(3180), None, None));
    }

    #[test]
    fn a_cpu_that_says_nothing_is_where_others_say_that_it_is() {
        let siblings = |cpu: u32| (cpu != 0).then(|| [cpu % 2, cpu % 2 + 2].into_iter().collect());
        assert_eq!(cores(&set("0-3"), siblings), [set("0,2"), set("1,3")]);
        assert_eq!(cores(&set("0-1"), |_| None), [set("0"), set("1")]);
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
        fn no_text_panics(text in "\\PC{0,200}|[0-9,\\-\\x00\n ]{0,40}") {
            let _ = (model(&text), list(&text), socket(&text));
            let _ = (distances(&text), virtualization(&text), from_cpuinfo(&text), mask(&text), cache_kib(&text));
        }

        #[test]
        fn what_is_printed_is_read(cpus in proptest::collection::btree_set(0_u32..8192, 0..64)) {
            let cpus: CpuSet = cpus.into_iter().collect();
            prop_assert_eq!(list(&format!("{cpus}\n\0x")), Some(cpus));
        }
    }
}
