//! Sets of numbered CPUs or NUMA cells, never empty.

use std::collections::BTreeSet;
use std::fmt;

/// A non-empty set of host CPUs, of guest vCPUs or of host NUMA cells.
///
/// Displays as libvirt and the kernel write it: `0-3,8`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuSet(BTreeSet<u32>);

impl CpuSet {
    /// The set of `members`, or `None` when there are none: an empty set would mean "anywhere" to
    /// libvirt in some places and be refused in others.
    pub fn new(members: impl IntoIterator<Item = u32>) -> Option<Self> {
        let members: BTreeSet<u32> = members.into_iter().collect();
        (!members.is_empty()).then_some(Self(members))
    }

    /// The set of one.
    #[must_use]
    pub fn only(member: u32) -> Self {
        Self(BTreeSet::from([member]))
    }

    /// The members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut members = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = members.next() {
            let mut last = first;
            while let Some(next) = members.next_if(|next| Some(*next) == last.checked_add(1)) {
                last = next;
            }
            if first == last {
                write!(f, "{separator}{first}")?;
            } else {
                write!(f, "{separator}{first}-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_folded() {
        let shown = |members: &[u32]| CpuSet::new(members.iter().copied()).unwrap().to_string();
        assert_eq!(shown(&[3, 1, 2]), "1-3");
        assert_eq!(shown(&[0]), "0");
        assert_eq!(shown(&[0, 2, 3, 8, u32::MAX]), "0,2-3,8,4294967295");
    }

    #[test]
    fn an_empty_set_cannot_be_made() {
        assert_eq!(CpuSet::new([]), None);
    }
}
