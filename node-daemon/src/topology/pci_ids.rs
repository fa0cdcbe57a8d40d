//! Names of cards from the `pci.ids` file of the host.

use std::collections::{BTreeMap, BTreeSet};

/// Vendor id and device id, four lower-case hexadecimal digits each.
pub type Ids = (String, String);

/// Product names of those `wanted` that the file knows.
///
/// The name in brackets is taken where there is one: `GB202GL [RTX PRO 6000]` is an `RTX PRO 6000`.
pub fn products(pci_ids: &str, wanted: &BTreeSet<Ids>) -> BTreeMap<Ids, String> {
    let mut found = BTreeMap::new();
    let mut vendor = None;
    for line in pci_ids.lines() {
        if line.starts_with('#') || line.starts_with("\t\t") || line.trim().is_empty() {
            continue;
        }
        if let Some(device) = line.strip_prefix('\t') {
            if let (Some(vendor), Some((id, name))) = (&vendor, entry(device)) {
                let ids = (String::clone(vendor), id);
                if wanted.contains(&ids) {
                    found.insert(ids, product(name));
                }
            }
        } else {
            // Also `C 03  Display controller`, which begins the classes and is no vendor.
            vendor = entry(line).map(|(id, _)| id);
        }
    }
    found
}

fn entry(line: &str) -> Option<(String, &str)> {
    let (id, name) = line.split_once("  ")?;
    (id.len() == 4 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| (id.to_ascii_lowercase(), name))
}

fn product(name: &str) -> String {
    let inside = name.rsplit_once('[').and_then(|(_, rest)| rest.strip_suffix(']'));
    inside.filter(|name| !name.is_empty()).unwrap_or(name).trim().chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: &str = "# comment\n1234  Example\n\t2bb5  Not this\n10de  NVIDIA Corporation\n\
                        \t1eb8  TU104GL [Tesla T4]\n\t\t10de 12a2  subsystem\n\t2bb5  GB202GL [RTX PRO 6000 Blackwell Server Edition]\n\
                        \t1111  Plain name\nC 03  Display controller\n\t00  VGA compatible controller\n";

    fn ids(vendor: &str, device: &str) -> Ids {
        (vendor.into(), device.into())
    }

    #[test]
    fn names_are_found_below_their_vendor() {
        let wanted = [ids("10de", "2bb5"), ids("10de", "1111"), ids("10de", "9999")].into();
        let found = products(FILE, &wanted);
        assert_eq!(found[&ids("10de", "2bb5")], "RTX PRO 6000 Blackwell Server Edition");
        assert_eq!(found[&ids("10de", "1111")], "Plain name");
        assert_eq!(found.len(), 2);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "([\t#0-9a-f ]|\\PC){0,200}") {
            let _ = products(&text, &[ids("10de", "2bb5")].into());
        }
    }
}
