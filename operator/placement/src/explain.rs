//! Why a desktop waits, in one line.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use gpudesk_crds::{conditions::Reason, desktop_template::Pinning, types::PageSize};

use crate::{
    NoRoom,
    cards::NoGpus,
    compute::{Limits, NoCompute},
    facts::NodeFacts,
    filters::Rejection,
    fit::Misfit,
    ranking::NodeId,
    request::{FunctionKind, Request, Share},
    shape::{NoShare, Refused},
    snapshot::Snapshot,
};

/// Moves that are thought of to find the nearest fit.
pub const MOST_MOVES: usize = 3;

/// Names of shares that are listed where none is like the one asked for.
const MOST_NAMES: usize = 8;

/// Why a desktop waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// `Unschedulable`, or `Unsatisfiable` when not even an empty estate would do.
    pub reason: Reason,
    /// `0/5 nodes: 2 no free placement for 1g.24gb (fits after moving 1 desktop), 2 cordoned, 1 not ready`.
    pub message: String,
}

/// What takes long to find out of a request for which there is no room; nothing before it was thought of.
/// It stays true for a while, the counts of [`NoRoom`] change with every event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Insight {
    /// Not even an empty estate would do.
    hopeless: Option<Explanation>,
    /// How many desktops would have to move, and why that node rejects the request today.
    nearest: Option<(usize, Rejection)>,
    /// What is offered beside a share that is not.
    offered: String,
}

impl Insight {
    /// Why a desktop waits: the counted reasons, and what was thought of.
    pub fn explain(&self, request: &Request, no_room: &NoRoom) -> Explanation {
        if let Some(hopeless) = &self.hopeless {
            return hopeless.clone();
        }
        let offered = not_offered(request, &no_room.rejections).map_or("", |_| &self.offered);
        let message = summary(request, &no_room.rejections, self.nearest.as_ref()) + offered;
        Explanation { reason: Reason::Unschedulable, message }
    }
}

impl Snapshot {
    /// Why a desktop waits: whether for room that others have, or for a host that is not there.
    /// Names the nearest fit, where moving a few desktops would make one.
    pub fn explain(&mut self, request: &Request) -> Explanation {
        match self.place(request) {
            Ok(placed) => {
                let message = format!("fits on {} now", placed.node);
                Explanation { reason: Reason::AsExpected, message }
            }
            Err(no_room) => self.think(request, &no_room, MOST_MOVES).explain(request, &no_room),
        }
    }

    /// What takes long to find out of a request for which there is no room: looks at every node, and
    /// tries up to some dozens of sets of desktops to move, each of several decisions. Never under a lock.
    pub fn think(&mut self, request: &Request, no_room: &NoRoom, most_moves: usize) -> Insight {
        let account = &no_room.rejections;
        if self.fits_when_empty(request) {
            let nearest = self.nearest(request, most_moves);
            return Insight { hopeless: None, nearest, offered: self.offered(request, account) };
        }
        let on_empty = self.account_when_empty(request);
        let counts = summary(request, &on_empty, None) + &self.offered(request, &on_empty);
        // Failed or kept cards, labels and absent nodes come and go: only a size is beyond all hope.
        let too_small = |rejection: &Rejection| match rejection {
            Rejection::Misfit(Misfit::Gpus(gpus)) => !is_refused(gpus.why),
            Rejection::Misfit(
                Misfit::Compute(_)
                | Misfit::OnCell(_)
                | Misfit::Apart
                | Misfit::Function(_)
                | Misfit::FunctionOnCell(_),
            ) => true,
            Rejection::Misfit(Misfit::CellUnknown)
            | Rejection::NotHome
            | Rejection::Selector
            | Rejection::Taint
            | Rejection::OutOfService
            | Rejection::Cordoned
            | Rejection::NotReady
            | Rejection::Silent
            | Rejection::Unclear
            | Rejection::Stray
            | Rejection::Affinity => false,
        };
        let may_come_back = |rejection: &Rejection| match rejection {
            Rejection::Misfit(Misfit::Gpus(gpus)) => is_refused(gpus.why),
            Rejection::Misfit(Misfit::CellUnknown) => true,
            _ => false,
        };
        let unclear = |facts: &NodeFacts| self.estate.unclear().contains(&*facts.name);
        let unknown = self.estate.existing().any(|(_, facts)| facts.cells.is_empty() || unclear(facts));
        if !unknown && on_empty.keys().any(too_small) && !on_empty.keys().any(may_come_back) {
            let nodes: Vec<&NodeFacts> = self.estate.existing().map(|(_, facts)| &**facts).collect();
            let hopeless = unsatisfiable(request, &nodes, self.estate.limits, &counts);
            Insight { hopeless: Some(hopeless), ..Insight::default() }
        } else {
            Insight { offered: self.offered(request, account), ..Insight::default() }
        }
    }

    /// What cards offer in the mode of a share that none of them offers: it is often a name that lacks its
    /// ending, as of the variants of a MIG profile.
    fn offered(&self, request: &Request, account: &BTreeMap<Rejection, usize>) -> String {
        let Some(missed) = not_offered(request, account) else { return String::new() };
        let names: BTreeSet<&str> = self
            .estate
            .shapes()
            .flat_map(|shape| shape.kinds.iter().zip(0u16..).map(move |(kind, number)| (shape, kind, number)))
            .filter(|(shape, kind, number)| {
                kind.mode == missed.mode() && (!shape.fixed || shape.places(*number) > 0)
            })
            .map(|(_, kind, _)| kind.name.as_str())
            .collect();
        let asked = missed.to_string();
        let begins = |name: &&&str| {
            name.strip_prefix(&asked).is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', '-']))
        };
        let near: Vec<&str> = names.iter().filter(begins).copied().collect();
        let all: Vec<&str> = names.iter().copied().take(MOST_NAMES).collect();
        let (listed, more) = match (near.is_empty(), names.len().saturating_sub(MOST_NAMES)) {
            (false, _) => (near, String::new()),
            (true, 0) => (all, String::new()),
            (true, more) => (all, format!(" and {more} more")),
        };
        if listed.is_empty() { String::new() } else { format!("; offered: {}{more}", listed.join(", ")) }
    }

    /// Whether some node would do if nothing ran anywhere; remembered until a node changes.
    fn fits_when_empty(&mut self, request: &Request) -> bool {
        let position = self.ranking_for(&request.demand);
        let version = self.estate.version;
        let prepared = self.prepared(position);
        if let Some(home) = &request.home {
            return self.estate.id(home).is_some_and(|id| self.estate.fit_empty(&prepared, id).is_ok());
        }
        let known = self.rankings.get(position).and_then(|ranking| ranking.fits_empty);
        if let Some((_, fits)) = known.filter(|(known, _)| *known == version) {
            return fits;
        }
        let ids: Vec<NodeId> = self.estate.existing().map(|(id, _)| id).collect();
        let fits = ids.into_iter().any(|id| self.estate.fit_empty(&prepared, id).is_ok());
        if let Some(ranking) = self.rankings.get_mut(position) {
            ranking.fits_empty = Some((version, fits));
        }
        fits
    }

    fn account_when_empty(&mut self, request: &Request) -> BTreeMap<Rejection, usize> {
        let position = self.ranking_for(&request.demand);
        let prepared = self.prepared(position);
        let nodes: Vec<(NodeId, bool)> = self
            .estate
            .existing()
            .map(|(id, facts)| (id, request.home.as_deref().is_none_or(|home| home == &*facts.name)))
            .collect();
        let mut account = BTreeMap::new();
        for (id, is_home) in nodes {
            let verdict =
                if is_home { self.estate.fit_empty(&prepared, id) } else { Err(Rejection::NotHome) };
            if let Err(rejection) = verdict {
                *account.entry(rejection).or_default() += 1;
            }
        }
        account
    }

    /// How many desktops would have to move, and why the node rejects the request today; remembered
    /// until anything changes.
    fn nearest(&mut self, request: &Request, most_moves: usize) -> Option<(usize, Rejection)> {
        let position = self.ranking_for(&request.demand);
        let revision = self.revision;
        let known = self.rankings.get(position).and_then(|ranking| ranking.nearest);
        let nearest = match known {
            Some((version, nearest)) if version == revision && request.home.is_none() => nearest,
            _ if most_moves == 0 => None,
            _ => {
                let moves = self.fits_after_moving(request, most_moves);
                let nearest = moves.map(|(node, moves)| (moves.len(), node));
                if let Some(ranking) = self.rankings.get_mut(position) {
                    ranking.nearest = request.home.is_none().then_some((revision, nearest));
                }
                nearest
            }
        };
        let (moves, node) = nearest?;
        let prepared = self.prepared(position);
        let rejection = self.estate.fit(&prepared, node, None, None).err()?;
        Some((moves, rejection))
    }
}

/// A share that a card would have to offer and does not.
fn not_offered<'a>(request: &'a Request, account: &BTreeMap<Rejection, usize>) -> Option<&'a Share> {
    account.keys().find_map(|rejection| match rejection {
        Rejection::Misfit(Misfit::Gpus(NoGpus {
            share: Some((share, way)),
            why: NoShare::NotOffered | NoShare::NotInLayout,
        })) => Some(&request.demand.shares.get(*share)?.ways.get(*way)?.share),
        _ => None,
    })
}

fn is_refused(why: NoShare) -> bool {
    matches!(why, NoShare::Refused(_))
}

/// Counts the reasons of all nodes: the most frequent first, equals by their text.
pub fn summary(
    request: &Request,
    account: &BTreeMap<Rejection, usize>,
    nearest: Option<&(usize, Rejection)>,
) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut nodes = 0;
    for (rejection, count) in account {
        nodes += count;
        *counts.entry(text(request, rejection)).or_default() += count;
    }
    if nodes == 0 {
        return "0/0 nodes: no GpuNode exists".into();
    }
    let near = nearest.map(|(moves, rejection)| (text(request, rejection), moves));
    let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| Reverse(*count));
    let reasons = counts.into_iter().map(|(text, count)| match &near {
        Some((of, 1)) if *of == text => format!("{count} {text} (fits after moving 1 desktop)"),
        Some((of, moves)) if *of == text => format!("{count} {text} (fits after moving {moves} desktops)"),
        _ => format!("{count} {text}"),
    });
    format!("0/{nodes} nodes: {}", reasons.collect::<Vec<_>>().join(", "))
}

/// A reason for people.
pub fn text(request: &Request, rejection: &Rejection) -> String {
    match rejection {
        Rejection::NotHome => "without the desktop's disks".into(),
        Rejection::Selector => {
            let labels = request.demand.node_selector.iter().map(|(key, value)| format!("{key}={value}"));
            let labels: Vec<String> = labels.collect();
            let what = if labels.len() == 1 { "label" } else { "labels" };
            format!("without the {what} {} of nodeSelector", labels.join(", "))
        }
        Rejection::Taint => "with a taint that is not tolerated".into(),
        Rejection::OutOfService => "out of service".into(),
        Rejection::Cordoned => "cordoned".into(),
        Rejection::NotReady => "not ready".into(),
        Rejection::Silent => "node daemon silent".into(),
        Rejection::Unclear => {
            "with something that this version of the operator does not understand (see its log)".into()
        }
        Rejection::Stray => {
            "with a machine of which it is not known what it holds (status.strays of the GpuNode)".into()
        }
        Rejection::Affinity => "ruled out by required affinity".into(),
        Rejection::Misfit(misfit) => misfit_text(request, *misfit),
    }
}

fn misfit_text(request: &Request, misfit: Misfit) -> String {
    let on = if request.demand.shares.is_empty() { "on one NUMA cell" } else { "on the GPU's NUMA cell" };
    match misfit {
        Misfit::Gpus(gpus) => gpus_text(request, gpus),
        Misfit::Function(position) => function_text(request, position),
        Misfit::FunctionOnCell(position) => format!("{} {on}", function_text(request, position)),
        Misfit::Compute(reason) => compute_text(request, reason),
        Misfit::OnCell(reason) => format!("{} {on}", compute_text(request, reason)),
        Misfit::Apart => "free cards on different NUMA cells only".into(),
        Misfit::CellUnknown => {
            "where the cell of the card is not known (see status.missing of the GpuNode)".into()
        }
    }
}

fn function_text(request: &Request, position: usize) -> String {
    match request.demand.functions.get(position).map(|function| &function.kind) {
        Some(FunctionKind::NetworkFunction { physical_network }) => {
            format!("no free virtual function for network {physical_network}")
        }
        Some(FunctionKind::Drive { minimum_gib }) => format!("no free NVMe drive of {minimum_gib} GiB"),
        None => "no free function".into(),
    }
}

fn gpus_text(request: &Request, NoGpus { share, why }: NoGpus) -> String {
    let asked = share.and_then(|(share, way)| {
        let share = request.demand.shares.get(share)?;
        Some((&share.profile, &share.ways.get(way)?.share, &share.cards))
    });
    let Some((profile, share, cards)) = asked else {
        let count = request.demand.shares.len();
        return match why {
            NoShare::NotTogether => {
                format!("no {count} vGPUs of one board and one series, Q or C, as one machine needs them")
            }
            NoShare::NoPartition => format!("no free NVLink partition of {count} cards"),
            _ => format!("no room for all {count} GPU shares together"),
        };
    };
    match why {
        NoShare::NoCard => format!("no card that qualifies for {profile}"),
        NoShare::Refused(Refused::Unmanaged) => format!("cards for {profile} unmanaged"),
        NoShare::Refused(Refused::Failed) => format!("cards for {profile} failed"),
        NoShare::Refused(Refused::Unavailable) => {
            format!("cards for {profile} unavailable (see status.devices[].unavailable of the GpuNode)")
        }
        NoShare::Refused(Refused::Layout) => {
            format!(
                "cards for {profile} with a layout that is not planned (see LayoutApplied of the GpuNode)"
            )
        }
        NoShare::ModeNotAllowed => format!("mode {} not allowed on cards for {profile}", share.mode()),
        NoShare::NotOffered => format!("no card that offers {share}"),
        NoShare::FewHeads => {
            format!("no type for {profile} of which the driver tells {} heads", cards.heads.unwrap_or(1))
        }
        NoShare::ParamsNotAllowed => {
            let Share::Vgpu(_, params) = share else {
                return format!("no card that qualifies for {profile}");
            };
            let params: Vec<String> = params.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("cards for {profile} whose owner does not allow vgpu.params {}", params.join(","))
        }
        NoShare::OtherScheduler => match cards.scheduler {
            Some(wanted) => format!("cards for {profile} with another vGPU scheduler than {wanted:?}"),
            None => format!("cards for {profile} with another vGPU scheduler"),
        },
        NoShare::NotTogether => format!("no other card of one board for {profile}"),
        NoShare::NoPartition => format!("no free NVLink partition for {profile}"),
        NoShare::NotInLayout => format!("no place for {share} in the layouts of cards for {profile}"),
        NoShare::NoFreePlacement => format!("no free placement for {share}"),
        NoShare::LayoutTaken(1) => format!("the 1 place for {share} in layouts taken"),
        NoShare::LayoutTaken(all) => format!("all {all} places for {share} in layouts taken"),
    }
}

fn compute_text(request: &Request, reason: NoCompute) -> String {
    match (reason, request.demand.cpu.pinning) {
        (NoCompute::Threads, _) => "only one thread per core".into(),
        (NoCompute::Cpus, Pinning::Dedicated) => "not enough free cores".into(),
        (NoCompute::Cpus, Pinning::DedicatedThreads) => "not enough free CPU threads".into(),
        (NoCompute::Cpus, Pinning::Shared) => {
            format!("not enough CPUs for {} vCPUs", request.demand.cpu.vcpus())
        }
        (NoCompute::Memory(PageSize::None), _) => "not enough memory".into(),
        (NoCompute::Memory(pages), _) => format!("not enough {pages} hugepages"),
    }
}

/// What to say when not even an empty node would do: the figure that no host reaches, or the counts.
fn unsatisfiable(request: &Request, nodes: &[&NodeFacts], limits: Limits, counts: &str) -> Explanation {
    let demand = &request.demand;
    let pages = demand.memory.pages;
    let unit = pages.mib().unwrap_or(1);
    let memory = |node: &&&NodeFacts| {
        let wanted = node.memory(pages).saturating_mul(unit);
        let fallback = if demand.memory.allow_fallback { node.memory(PageSize::None) } else { 0 };
        (wanted.max(fallback), Reverse(node.name.clone()))
    };
    let largest_memory = nodes.iter().map(|node| memory(&node)).max();
    let dedicable = |node: &&&NodeFacts| {
        let cores = node.cells.iter().flat_map(|cell| &cell.cores);
        let threads = usize::try_from(demand.cpu.threads_per_core).unwrap_or(1).max(1);
        let dedicable: usize = cores.map(|core| core.len() / threads * threads).sum();
        (i64::try_from(dedicable).unwrap_or(i64::MAX), Reverse(node.name.clone()))
    };
    let largest_cpu = nodes.iter().map(|node| dedicable(&node)).max();
    let largest_shared = nodes.iter().map(|node| (node.cpus(), Reverse(node.name.clone()))).max();
    let kind = match pages {
        PageSize::None => String::new(),
        pages => format!(" in {pages} hugepages"),
    };
    let shares_cpus = demand.cpu.pinning == Pinning::Shared;
    let message = match (largest_memory, largest_cpu) {
        (Some((mib, Reverse(name))), _) if mib < demand.memory.mib => format!(
            "needs {} MiB{kind}; the largest host, {name}, has {mib} MiB for desktops",
            demand.memory.mib
        ),
        (_, Some((cpus, Reverse(name)))) if !shares_cpus && cpus < demand.cpu.vcpus() => format!(
            "needs {} dedicated CPUs; the largest host, {name}, has {cpus} for desktops",
            demand.cpu.vcpus()
        ),
        _ => match largest_shared {
            Some((cpus, Reverse(name)))
                if shares_cpus && cpus.saturating_mul(limits.cpu_overcommit) < demand.cpu.vcpus() =>
            {
                format!(
                    "needs {} vCPUs; the largest host, {name}, has {cpus} CPUs, and {} vCPUs may share one",
                    demand.cpu.vcpus(),
                    limits.cpu_overcommit
                )
            }
            _ => format!("fits on no host even when nothing else runs; {counts}"),
        },
    };
    Explanation { reason: Reason::Unsatisfiable, message }
}
