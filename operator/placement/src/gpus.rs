//! Shares for all requests of a desktop on one node: a bounded search with a way back.

use gpudesk_crds::GpuAllocation;

use crate::{
    card::{self, Choice, NoShare},
    facts::NodeFacts,
    occupancy::NodeUse,
    request::{Share, ShareRequest},
};

/// How many single choices are tried on one node before a combination counts as not fitting.
const TRIES: usize = 4096;

/// Shares that fit together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// In the order of the requests.
    pub gpus: Vec<GpuAllocation>,
    /// Per request, which of its alternatives was taken.
    pub ways: Vec<usize>,
    /// How well the cards suit `Pack` or `Spread`; lower is better.
    pub key: i64,
}

/// Why shares do not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoGpus {
    /// Position of the request that failed, and of its alternative that came nearest; `None` when
    /// each fits alone, but not all together.
    pub share: Option<(usize, usize)>,
    /// Why.
    pub why: NoShare,
}

/// Finds shares for all requests; only on the cards of `cell`, if one is named.
///
/// Takes the first alternative that fits, request by request.
///
/// # Errors
/// What came nearest and why it failed.
pub fn fit(
    facts: &NodeFacts,
    used: &NodeUse,
    shares: &[ShareRequest],
    cell: Option<i32>,
) -> Result<Found, NoGpus> {
    for (position, share) in shares.iter().enumerate() {
        if candidates(facts, used, share, cell).is_empty() {
            return Err(nearest(facts, used, share, position, cell));
        }
    }
    let mut found = Found::default();
    let mut tries = TRIES;
    if search(facts, used, shares, cell, &mut found, &mut tries) {
        Ok(found)
    } else {
        Err(NoGpus { share: None, why: NoShare::NoFreePlacement })
    }
}

struct Candidate {
    way: usize,
    card: usize,
    room: i64,
    choice: Choice,
}

fn search(
    facts: &NodeFacts,
    used: &NodeUse,
    shares: &[ShareRequest],
    cell: Option<i32>,
    found: &mut Found,
    tries: &mut usize,
) -> bool {
    let Some((share, rest)) = shares.split_first() else { return true };
    for Candidate { way, card, room, choice } in candidates(facts, used, share, cell) {
        if *tries == 0 {
            return false;
        }
        *tries -= 1;
        let Some(on) = facts.cards.get(card) else { continue };
        let key = if share.spread { -room } else { room };
        found.ways.push(way);
        found.key += key;
        found.gpus.push(GpuAllocation {
            name: share.name.clone(),
            device: on.device.pci_address,
            device_uuid: on.device.uuid.clone(),
            product: on.device.product.clone(),
            mode: choice.takes.mode,
            type_name: choice.takes.type_name.clone(),
            framebuffer_mib: choice.framebuffer_mib,
            start: choice.takes.start,
            vgpu_type: choice.vgpu_type.clone(),
            profile: share.profile.clone(),
        });
        if rest.is_empty() {
            return true;
        }
        let mut after = used.clone();
        after.add_share(facts, card, choice.takes);
        if search(facts, &after, rest, cell, found, tries) {
            return true;
        }
        found.ways.pop();
        found.gpus.pop();
        found.key -= key;
    }
    false
}

/// Every choice for a share: alternatives in the profile's order, then the smallest framebuffer,
/// then cards by `Pack` or `Spread`, then positions by what they leave possible.
fn candidates(facts: &NodeFacts, used: &NodeUse, share: &ShareRequest, cell: Option<i32>) -> Vec<Candidate> {
    let mut all = vec![];
    for way in &share.ways {
        let mut of_way: Vec<Candidate> = vec![];
        for card in cards(facts, share, cell) {
            let Ok(choices) = card::choices(facts, used, card, &way.share) else { continue };
            let room = card::room(facts, used, card, &way.share);
            of_way.extend(choices.into_iter().map(|choice| Candidate { way: way.index, card, room, choice }));
        }
        of_way.sort_by_key(|candidate| {
            let room = if share.spread { -candidate.room } else { candidate.room };
            // Whole cards differ in size, but none is smaller for the asker's sake.
            let size = if way.share == Share::Passthrough { 0 } else { candidate.choice.framebuffer_mib };
            (size, room, candidate.card)
        });
        all.extend(of_way);
    }
    all
}

/// The cards that qualify, by position.
fn cards(facts: &NodeFacts, share: &ShareRequest, cell: Option<i32>) -> impl Iterator<Item = usize> {
    facts.cards.iter().enumerate().filter_map(move |(index, card)| {
        let near = match (cell, card.device.numa_cell) {
            (None, _) => true,
            (Some(cell), Some(of_card)) => cell == of_card,
            // A card that does not say is near only where there is no far.
            (Some(_), None) => facts.cells.len() == 1,
        };
        (near && card::qualifies(card, &share.cards)).then_some(index)
    })
}

fn nearest(
    facts: &NodeFacts,
    used: &NodeUse,
    share: &ShareRequest,
    position: usize,
    cell: Option<i32>,
) -> NoGpus {
    let mut best = NoGpus { share: Some((position, 0)), why: NoShare::NoCard };
    for (way_position, way) in share.ways.iter().enumerate() {
        for card in cards(facts, share, cell) {
            if let Err(why) = card::choices(facts, used, card, &way.share)
                && why > best.why
            {
                best = NoGpus { share: Some((position, way_position)), why };
            }
        }
    }
    best
}

/// How many more of a share fit on a node beside what is used, in the order of preference; and how
/// many of each alternative alone.
pub fn count(facts: &NodeFacts, used: &NodeUse, share: &ShareRequest) -> (i32, Vec<i32>) {
    let alone = share
        .ways
        .iter()
        .map(|way| count_of(facts, used, &ShareRequest { ways: vec![way.clone()], ..share.clone() }))
        .collect();
    (count_of(facts, used, share), alone)
}

fn count_of(facts: &NodeFacts, used: &NodeUse, share: &ShareRequest) -> i32 {
    let mut used = used.clone();
    let mut count = 0;
    // Cards hold at most a few dozen shares each; the bound is for hostile figures.
    while count < 16_384 {
        let Some(next) = candidates(facts, &used, share, None).into_iter().next() else { break };
        used.add_share(facts, next.card, next.choice.takes);
        count += 1;
    }
    count
}
