//! Memory and hugepages.

use gpudesk_crds::types::PageSize;

use super::kernel_text;

/// A figure of `/proc/meminfo` or of a NUMA cell's `meminfo` in KiB.
pub fn meminfo_kib(text: &str, key: &str) -> Option<i64> {
    text.lines().find_map(|line| {
        let (head, value) = line.split_once(':')?;
        // A NUMA cell's lines begin with `Node 0 `.
        if head.split_whitespace().next_back() != Some(key) {
            return None;
        }
        let mut words = value.split_whitespace();
        let number: i64 = words.next()?.parse().ok()?;
        (number >= 0 && matches!(words.next(), Some("kB") | None)).then_some(number)
    })
}

/// The page size that a folder `hugepages-2048kB` stands for; `None` for sizes gpudesk does not use.
pub fn hugepage_size(folder: &str) -> Option<PageSize> {
    match folder.strip_prefix("hugepages-")?.strip_suffix("kB")? {
        "2048" => Some(PageSize::Mi2),
        "1048576" => Some(PageSize::Gi1),
        _ => None,
    }
}

/// The size in KiB of the pages that a folder `hugepages-2048kB` stands for.
pub fn page_kib(folder: &str) -> Option<i64> {
    let kib = folder.strip_prefix("hugepages-")?.strip_suffix("kB")?;
    kib.parse().ok().filter(|kib| (1..=1 << 40).contains(kib))
}

/// A count as the kernel writes it.
pub fn count(text: &str) -> Option<i64> {
    kernel_text::number(text).filter(|count| *count >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_of_meminfo_are_read() {
        assert_eq!(meminfo_kib("MemTotal:       24676244 kB\nMemFree: 1 kB", "MemTotal"), Some(24_676_244));
        assert_eq!(meminfo_kib("Node 1 MemTotal:       131919600 kB\n", "MemTotal"), Some(131_919_600));
        assert_eq!(meminfo_kib("MemTotal: banana kB", "MemTotal"), None);
        assert_eq!(meminfo_kib("MemTotal: -1 kB", "MemTotal"), None);
    }

    #[test]
    fn page_sizes_come_from_folder_names() {
        assert_eq!(hugepage_size("hugepages-2048kB"), Some(PageSize::Mi2));
        assert_eq!(hugepage_size("hugepages-1048576kB"), Some(PageSize::Gi1));
        assert_eq!(hugepage_size("hugepages-64kB"), None);
        assert_eq!(page_kib("hugepages-16777216kB"), Some(16_777_216));
        assert_eq!((page_kib("hugepages-0kB"), page_kib("hugepages-2MB")), (None, None));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}", key in "\\PC{0,20}") {
            let _ = meminfo_kib(&text, &key);
            let _ = (hugepage_size(&text), page_kib(&text));
            let _ = count(&text);
        }
    }
}
