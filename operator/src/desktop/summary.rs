//! Shares of GPUs in words: `1x RTX PRO 6000 16Q`.

use gpudesk_crds::{GpuAllocation, types::ShareMode};

/// All shares, equal ones counted, in the order in which they first come. `None` without shares.
pub fn gpus(gpus: &[GpuAllocation]) -> Option<String> {
    let mut counts: Vec<(String, usize)> = vec![];
    for words in gpus.iter().map(share) {
        match counts.iter_mut().find(|(known, _)| *known == words) {
            Some((_, count)) => *count += 1,
            None => counts.push((words, 1)),
        }
    }
    let text =
        counts.into_iter().map(|(words, count)| format!("{count}x {words}")).collect::<Vec<_>>().join(", ");
    (!text.is_empty()).then(|| text.chars().take(256).collect())
}

fn share(gpu: &GpuAllocation) -> String {
    let product = short_name(&gpu.product);
    let type_name = &gpu.type_name;
    match gpu.mode {
        ShareMode::Passthrough => format!("{product} (whole card)"),
        ShareMode::Vgpu => {
            let size = type_name.rsplit_once('-').map_or(type_name.as_str(), |(_, size)| size);
            format!("{product} {size}")
        }
        ShareMode::Mig => format!("{product} MIG {}", type_name.strip_suffix("+gfx").unwrap_or(type_name)),
        ShareMode::VirtualFunctions => format!("{product} VF"),
    }
}

/// A product name without vendor and without what only tells editions apart.
pub fn short_name(product: &str) -> String {
    // Names from the PCI database carry the marketing name in brackets.
    let inner = product.rsplit_once('[').and_then(|(_, name)| name.split_once(']')).map(|(name, _)| name);
    let is_vendor = |word: &&str| {
        ["nvidia", "amd", "intel", "corporation", "inc.", "tesla", "grid"]
            .contains(&word.to_lowercase().as_str())
    };
    let ends = |word: &&str| {
        let lower = word.to_lowercase();
        let memory =
            lower.strip_suffix("gb").is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        let form = ["sxm", "hbm", "pcie", "nvl"].iter().any(|form| lower.starts_with(form));
        memory
            || form
            || ["blackwell", "server", "workstation", "edition", "generation", "max-q"].contains(&&*lower)
    };
    let words: Vec<&str> = inner
        .unwrap_or(product)
        .split_whitespace()
        .skip_while(is_vendor)
        .take_while(|word| !ends(word))
        .collect();
    if words.is_empty() { product.to_owned() } else { words.join(" ") }
}
