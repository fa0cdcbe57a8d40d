//! Names of cards from the `pci.ids` file of the host.

use std::collections::{BTreeMap, BTreeSet};

/// Vendor id and device id, four lower-case hexadecimal digits each.
pub type Ids = (String, String);

/// Product names of those `wanted` that the file knows.
///
/// The name in brackets is taken where there is one: `GB202GL [RTX PRO 6000]` is an `RTX PRO 6000`.
pub fn products(pci_ids: &str, wanted: &BTreeSet<Ids>) -> BTreeMap<Ids, String> {
    let mut found = BTreeMap::new();
    let vendors: BTreeSet<&str> = wanted.iter().map(|(vendor, _)| vendor.as_str()).collect();
    for vendor in vendors {
        for line in devices(pci_ids, vendor) {
            let Some((id, name)) = line.strip_prefix('\t').and_then(entry) else { continue };
            let ids = (vendor.to_owned(), id);
            if wanted.contains(&ids) {
                found.entry(ids).or_insert_with(|| product(name));
            }
        }
    }
    found
}

/// The lines below a vendor's own, up to the next vendor's.
fn devices<'a>(pci_ids: &'a str, vendor: &str) -> impl Iterator<Item = &'a str> {
    // The file has tens of thousands of lines, of which a few are wanted.
    let head = format!("\n{vendor}  ");
    let start = if pci_ids.starts_with(&head[1..]) { Some(0) } else { pci_ids.find(&head).map(|at| at + 1) };
    let lines = start.map_or("", |start| &pci_ids[start..]).lines().skip(1);
    lines.take_while(|line| line.is_empty() || line.starts_with(['\t', '#']))
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
