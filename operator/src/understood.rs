//! What objects mean for placement that this version does not understand whole.

use std::collections::BTreeSet;

pub use gpudesk_watch::understood::{as_far_as_understood, holds_nothing, holds_unclear, odd};

/// In one line: `Desktop demo/a is not understood by this version of the operator: spec.x: unknown variant ...`.
pub fn sentence(what: &str, fields: &str) -> String {
    format!("{what} is not understood by this version of the operator: {}", fields.replace('\n', "; "))
}

/// What is closed to new desktops because of `desktops`, of which each holds something on its node that cannot be
/// read, and of `nodes`, which are odd themselves. One whose node cannot be read may be on any of `all`.
pub fn closed<'a>(
    desktops: impl Iterator<Item = &'a Option<String>> + Clone,
    nodes: &'a BTreeSet<String>,
    all: impl Iterator<Item = &'a str>,
) -> BTreeSet<String> {
    if desktops.clone().any(Option::is_none) {
        return all.map(ToOwned::to_owned).collect();
    }
    desktops.flatten().chain(nodes).cloned().collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_desktop_that_may_be_on_any_node_closes_all() {
        let closed = |desktops: &[Option<&str>], nodes: &[&str]| {
            let desktops: Vec<Option<String>> =
                desktops.iter().map(|node| node.map(ToOwned::to_owned)).collect();
            let nodes = nodes.iter().map(ToString::to_string).collect();
            super::closed(desktops.iter(), &nodes, ["a", "b", "c"].into_iter())
                .into_iter()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(closed(&[], &[]), "");
        assert_eq!(closed(&[Some("b")], &["c"]), "b c");
        assert_eq!(closed(&[Some("b"), None], &[]), "a b c");
    }
}
