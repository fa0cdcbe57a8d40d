//! Room on cards that a node's CPUs and memory cannot carry.
//!
//! A node whose memory is gone keeps its free cards from everybody. So a request also costs what it
//! starves: for each wanted share, how many the cards of the node have room for beyond what its CPUs
//! and memory carry, in MiB of GPU memory, weighed by how often the share is wanted. One share is
//! looked at at a time and a node serves several, so it counts one third. (The measure follows
//! fragmentation gradient descent, Weng et al., "Beware of Fragmentation", USENIX ATC 2023.)

use crate::{
    compute::Limits,
    facts::NodeFacts,
    mix::Needs,
    occupancy::Taken,
    tables::{ShapeId, StateId, Tables},
};

/// Shares are looked at one at a time; a node serves about so many kinds.
const KINDS: i64 = 3;

/// How many of each wanted share the cards of a node have room for; what comes with it does not count.
pub type Rooms = Vec<i32>;

/// Counts the room on some cards.
pub fn rooms(tables: &mut Tables, slots: &[(ShapeId, StateId)]) -> Rooms {
    (0..tables.shares_wanted())
        .map(|position| {
            slots.iter().map(|(shape, state)| tables.count_wanted(*shape, *state, position)).sum()
        })
        .collect()
}

/// What is starved on a node with this room when so much is taken of its CPUs and memory: MiB of GPU
/// memory, to compare with what choices of cards cost.
pub fn starved(
    facts: &NodeFacts,
    taken: &Taken,
    dedicated: i64,
    rooms: &Rooms,
    tables: &Tables,
    limits: Limits,
) -> i64 {
    let mix = tables.mix();
    let total: i64 = mix.wanted.iter().map(|(_, weight)| i64::from(*weight)).sum();
    let memory = [0, 1, 2].map(|kind| {
        let has: i64 = facts
            .cells
            .iter()
            .map(|cell| cell.memory.get(kind).copied().unwrap_or(0))
            .fold(0, i64::saturating_add);
        has.saturating_sub(taken.memory.get(kind).copied().unwrap_or(0)).max(0)
    });
    let cpus = (facts.cpus() + facts.isolated() - dedicated).max(0);
    let lost: i64 = mix
        .wanted
        .iter()
        .zip(tables.share_of())
        .map(|((wanted, weight), share)| {
            let Needs { vcpus, dedicated, page, memory: each, gpu_mib } = wanted.needs;
            let left = if dedicated {
                cpus - taken.vcpus / limits.cpu_overcommit.max(1)
            } else {
                cpus.min(facts.cpus()) * limits.cpu_overcommit - taken.vcpus
            };
            let (left, vcpus) = (left.max(0), vcpus.max(1));
            let (memory, each) = (memory.get(page).copied().unwrap_or(0), each.max(1));
            let room = i64::from(rooms.get(*share).copied().unwrap_or(0));
            // Mostly there is enough, which is seen without a division.
            if room.saturating_mul(vcpus) <= left && room.saturating_mul(each) <= memory {
                return 0;
            }
            let starved = (room - (left / vcpus).min(memory / each)).max(0);
            starved.saturating_mul(gpu_mib).saturating_mul(i64::from(*weight))
        })
        .fold(0, i64::saturating_add);
    lost / total.max(1) / KINDS
}
