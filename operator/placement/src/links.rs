//! How far cards are from each other, and which cards a desktop had.

use crate::{
    facts::NodeFacts,
    request::{Previous, ShareRequest},
};

/// 0 on one card or by NVLink, 1 below one PCIe switch, 2 on one cell, 3 beyond.
pub fn distance(facts: &NodeFacts, one: usize, other: usize) -> u16 {
    let (Some(a), Some(b)) = (facts.cards.get(one), facts.cards.get(other)) else { return 3 };
    if one == other || a.peers.contains(&other) || b.peers.contains(&one) {
        return 0;
    }
    // The first bridge is the root port: below one of those alone there is one card, or a switch.
    let common = a.path.iter().zip(&b.path).take_while(|(a, b)| a == b).count();
    match (a.cell, b.cell) {
        _ if common >= 2 => 1,
        (Some(a), Some(b)) if a == b => 2,
        _ => 3,
    }
}

/// The cards that a desktop had, in the order of its shares; none when one of them is not there.
pub fn previous_cards(facts: &NodeFacts, previous: &Previous, shares: &[ShareRequest]) -> Option<Vec<usize>> {
    let card = |share: &ShareRequest| {
        let card = previous.cards.get(&share.name)?;
        facts.card_of(card.uuid.as_deref(), card.address)
    };
    shares.iter().map(card).collect()
}
