//! The worth of a place, as a list of wishes in the order of their weight.

use std::fmt;

/// The worth of a place; lower is better, compared field by field from the first. The order of the
/// fields is the policy:
///
/// 1. the profile's own order of alternatives, and the smallest legal size of a range;
/// 2. the cards it had before, when all of them are free;
/// 3. affinity that is preferred;
/// 4. hugepages where they were asked for;
/// 5. CPUs, memory, functions and cards on one NUMA cell;
/// 6. cards that reach each other fast;
/// 7. what the estate loses for requests to come (`Pack`), or the emptiest card (`Spread`);
/// 8. the tightest fit of memory.
///
/// Among equals the first name of a node wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Score {
    /// Alternatives taken, four bits per share, the first share in the highest.
    pub ways: u64,
    /// Framebuffer in GiB beyond the least that the ranges allow.
    pub oversize: u16,
    /// Not the cards that it had before.
    pub moved: bool,
    /// Rules of preferred affinity that are not kept.
    pub affinity: u16,
    /// Ordinary pages where hugepages were asked for.
    pub fallback: bool,
    /// How far CPUs, memory, functions and cards are apart: 0 on one cell.
    pub distance: u8,
    /// How far several cards are from each other, summed over pairs: 0 by NVLink, 1 below one PCIe
    /// switch, 2 on one cell, 3 beyond.
    pub links: u16,
    /// What the estate loses for requests to come.
    pub cost: i64,
    /// Memory left where it was taken, in units of 256 MiB.
    pub left: u16,
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ways, oversize, moved, affinity, fallback, distance, links, cost, left } = self;
        let mut said = vec![];
        if *ways > 0 {
            let taken = (0..16).map(|share| (ways >> (60 - 4 * share)) & 15).max().unwrap_or(0);
            said.push(format!("alternative {}", taken + 1));
        }
        if *oversize > 0 {
            said.push(format!("{oversize} GiB more than the least"));
        }
        if !*moved {
            said.push("the cards it had before".to_owned());
        }
        if *affinity > 0 {
            said.push(format!("{affinity} preferred affinity not kept"));
        }
        if *fallback {
            said.push("ordinary pages instead of hugepages".to_owned());
        }
        said.push(match distance {
            0 => "one NUMA cell".to_owned(),
            1 => "cards off the NUMA cell".to_owned(),
            _ => "spread over NUMA cells".to_owned(),
        });
        if *links > 0 {
            said.push(format!("links {links}"));
        }
        said.push(format!("cost {cost}"));
        said.push(format!("{} MiB left", u32::from(*left) * 256));
        f.write_str(&said.join(", "))
    }
}
