//! Functions of network cards and drives: as near to the cards as there are any.

use gpudesk_crds::allocation::{AllocatedDeviceKind, HostDeviceAllocation};

use crate::{
    facts::{Function, NodeFacts, Provided},
    occupancy::NodeUse,
    request::{FunctionKind, FunctionRequest},
};

/// Functions for all requests, by position in [`NodeFacts::functions`], and how many of them are on
/// none of the cells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundFunctions {
    /// In the order of the requests.
    pub picks: Vec<usize>,
    /// On other cells.
    pub far: u16,
}

/// Finds functions; on `cells` first, and only there when `strict`.
///
/// # Errors
/// Position of the request for which there is none.
pub fn fit(
    facts: &NodeFacts,
    used: &NodeUse,
    requests: &[FunctionRequest],
    cells: &[usize],
    strict: bool,
) -> Result<FoundFunctions, usize> {
    let mut found = FoundFunctions::default();
    for (position, request) in requests.iter().enumerate() {
        let is_near = |function: &Function| {
            facts.cells.len() == 1 || function.cell.is_some_and(|cell| cells.contains(&cell))
        };
        let free = facts.functions.iter().enumerate().filter(|(index, function)| {
            !used.functions.contains(&function.address)
                && !found.picks.contains(index)
                && provides(function, &request.kind)
                && (!strict || is_near(function))
        });
        // Near before far, then the smallest drive that will do, then the network card of which
        // most is taken already, then the lowest address.
        let best = free.min_by_key(|(index, function)| {
            (!is_near(function), waste(function), siblings(facts, used, function), *index)
        });
        let (index, function) = best.ok_or(position)?;
        found.far = found.far.saturating_add(u16::from(!is_near(function)));
        found.picks.push(index);
    }
    Ok(found)
}

fn provides(function: &Function, wanted: &FunctionKind) -> bool {
    match (&function.kind, wanted) {
        (Provided::Networks(reached), FunctionKind::NetworkFunction { physical_network }) => {
            reached.contains(physical_network)
        }
        (Provided::Drive(gib), FunctionKind::Drive { minimum_gib }) => gib >= minimum_gib,
        (Provided::Networks(_), FunctionKind::Drive { minimum_gib: _ })
        | (Provided::Drive(_), FunctionKind::NetworkFunction { physical_network: _ }) => false,
    }
}

fn waste(function: &Function) -> i64 {
    match function.kind {
        Provided::Drive(gib) => gib,
        Provided::Networks(_) => 0,
    }
}

fn siblings(facts: &NodeFacts, used: &NodeUse, function: &Function) -> usize {
    let same =
        facts.functions.iter().filter(|other| other.parent.is_some() && other.parent == function.parent);
    same.filter(|other| !used.functions.contains(&other.address)).count()
}

/// As the allocation names them.
pub fn allocations(
    facts: &NodeFacts,
    requests: &[FunctionRequest],
    found: &FoundFunctions,
) -> Vec<HostDeviceAllocation> {
    let named = requests.iter().zip(&found.picks).filter_map(|(request, index)| {
        let function = facts.functions.get(*index)?;
        Some(HostDeviceAllocation {
            name: request.name.clone(),
            kind: match request.kind {
                FunctionKind::NetworkFunction { physical_network: _ } => AllocatedDeviceKind::NetworkFunction,
                FunctionKind::Drive { minimum_gib: _ } => AllocatedDeviceKind::NvmeDrive,
            },
            device: function.address,
            parent: function.parent,
        })
    });
    named.collect()
}
