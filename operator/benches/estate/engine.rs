//! The placement engine on an estate of the fixtures.

use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use gpudesk_crds::{
    Desktop, GpuNode, GpuNodeSpec,
    desktop_template::{NumaPolicy, Pinning},
    gpu_node::{DevicePolicy, DeviceSelector, VgpuPlacement},
    gpu_node_status::Device,
    types::{PageSize, ShareMode, VgpuSeries},
};
use gpudesk_inventory::simulated::hosts;
use gpudesk_placement::{
    Limits, Snapshot,
    prices::Prices,
    request::{
        CardRequirements, CpuRequest, Demand, DesktopKey, MemoryRequest, Request, Share, ShareRequest,
        VgpuWish, Way,
    },
};

use crate::{
    fixtures::{Card, Fixtures, Instance, Kind, Node, Type, What, Wish},
    rules::{Ledger, Rules},
};

/// What came of all arrivals.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome {
    /// GiB of GPU memory.
    pub(crate) worth: i64,
    /// Desktops.
    pub(crate) placed: u32,
    /// How many of them are on the cell of their card.
    pub(crate) local: u32,
}

/// Which prices cards are judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judged {
    /// All, as in the operator.
    All,
    /// Those of what is defined.
    Defined,
    /// Those of who waits.
    Waiting,
    /// None: by the starts that cards still have.
    None,
}

/// An estate, read once.
pub(crate) struct Estate {
    snapshot: Snapshot,
    demands: Vec<Arc<Demand>>,
    /// By node, the address of each card.
    addresses: Vec<Vec<gpudesk_crds::types::PciAddress>>,
}

fn series(letter: &str) -> Result<VgpuSeries> {
    Ok(match letter {
        "Q" => VgpuSeries::Q,
        "C" => VgpuSeries::C,
        other => bail!("series {other}"),
    })
}

fn host(node: &Node, cards: &BTreeMap<String, Card>) -> Result<String> {
    // Beside the pages, which are per cell, a gibibyte for the host and eight of ordinary memory.
    let mut text = format!(
        "sockets: 2\ncoresPerSocket: {}\nthreadsPerCore: 2\nmemoryMiB: {}\nhugepages: {{1Gi: {}}}\ncards:\n",
        node.cores + 1,
        2 * 1024 * (node.pages + 9),
        node.pages,
    );
    for (name, cell) in &node.cards {
        let card = cards.get(name).with_context(|| format!("no card {name}"))?;
        writeln!(text, "- {{model: {}, count: 1, numaCells: [{cell}]}}", card.model)?;
    }
    Ok(text)
}

/// What a device gives for a wish, in the terms of the fixtures.
fn given(device: &Device, card: &Card, wish: &Wish) -> Result<Option<Kind>> {
    let (mode, found) = match &wish.what {
        What::Whole(model) => {
            let kind = Kind { mode: "whole".into(), size: 1, slices: 0, most: 1, starts: vec![] };
            return Ok((device.product == *model).then_some(kind));
        }
        What::Mig(profile, letter) => {
            let series = series(letter)?;
            let found = device.placements.iter().find(|placement| {
                let fills =
                    placement.vgpu_types.iter().any(|of| of.series == series && of.max_per_instance == 1);
                placement.mode == ShareMode::Mig && placement.type_name == *profile && fills
            });
            ("mig".to_owned(), found)
        }
        What::Vgpu(gib, letter) => {
            let series = Some(series(letter)?);
            let found = device.placements.iter().find(|placement| {
                placement.mode == ShareMode::Vgpu
                    && placement.series == series
                    && placement.framebuffer_mib == gib * 1024
            });
            (if card.mixed { "mixed".to_owned() } else { format!("vgpu-{gib}") }, found)
        }
    };
    let by_number = mode.starts_with("vgpu");
    Ok(found.map(|placement| Kind {
        mode,
        size: if by_number { 1 } else { placement.size },
        slices: placement.compute_slices,
        most: placement.max_count,
        starts: if by_number { vec![] } else { placement.starts.clone() },
    }))
}

fn demand(of: &Type, wish: &Wish) -> Result<Arc<Demand>> {
    let mut cards = CardRequirements::default();
    let share = match &wish.what {
        What::Mig(profile, letter) => {
            Share::Mig { profile: profile.clone(), series: series(letter)?, framebuffer_mib: None }
        }
        What::Vgpu(gib, letter) => Share::Vgpu(
            VgpuWish::Size { series: series(letter)?, min: gib * 1024, max: gib * 1024 },
            BTreeMap::new(),
        ),
        What::Whole(model) => {
            cards.products = vec![model.clone()];
            Share::Passthrough
        }
    };
    Ok(Arc::new(Demand {
        cpu: CpuRequest { cores: i32::try_from(of.cores)?, threads_per_core: 2, pinning: Pinning::Dedicated },
        memory: MemoryRequest { mib: of.gib * 1024, pages: PageSize::Gi1, allow_fallback: false },
        numa: if of.strict { NumaPolicy::Strict } else { NumaPolicy::Preferred },
        shares: vec![ShareRequest {
            name: "gpu".into(),
            profile: of.wish.clone(),
            ways: vec![Way { index: 0, share }],
            cards,
            spread: false,
        }],
        ..Demand::default()
    }))
}

fn key(number: usize) -> DesktopKey {
    DesktopKey::new("school", &format!("desktop-{number}"))
}

fn node_name(number: usize) -> String {
    format!("node-{number}")
}

impl Estate {
    /// Nodes as their daemons would show them, and all desktops declared but none running.
    ///
    /// # Errors
    /// When a card offers something else than the fixtures say.
    pub(crate) fn new(fixtures: &Fixtures, instance: &Instance) -> Result<Self> {
        let mut snapshot = Snapshot::new(Limits::default());
        let mut addresses = vec![];
        for (number, node) in instance.nodes.iter().enumerate() {
            let mut found = hosts::hosts(&node_name(number), &host(node, &fixtures.cards)?, None)?;
            let host = found.pop().context("no host")?;
            let mut devices = hosts::node(&host, None).status.context("no status")?.devices;
            devices.sort_by_key(|device| device.pci_address);
            ensure!(devices.len() == node.cards.len(), "{} cards", devices.len());
            let mut policies = vec![];
            for (device, (name, cell)) in devices.iter().zip(&node.cards) {
                let card = fixtures.cards.get(name).with_context(|| format!("no card {name}"))?;
                ensure!(device.product == card.model, "{} instead of {}", device.product, card.model);
                ensure!(device.numa_cell == i32::try_from(*cell).ok(), "{name} is on another cell");
                for (wish, of) in &fixtures.wishes {
                    let given = given(device, card, of)?;
                    ensure!(given.as_ref() == card.kinds.get(wish), "{name} gives {given:?} for {wish}");
                }
                if card.mixed {
                    policies.push(DevicePolicy {
                        name: format!("mixed-{}", policies.len()),
                        selector: DeviceSelector {
                            pci_address: Some(device.pci_address),
                            ..DeviceSelector::default()
                        },
                        management: None,
                        mode: None,
                        layout: None,
                        vgpu_placement: Some(VgpuPlacement::MixedSize),
                        vgpu_scheduler: None,
                        vgpu_params: vec![],
                        max_temperature_celsius: None,
                        persistence_mode: None,
                        power_limit_watts: None,
                        resizable_bar_mib: None,
                        lock_clocks_mhz: None,
                        virtual_functions: None,
                    });
                }
            }
            let owner = GpuNode::new(&host.name, GpuNodeSpec { devices: policies, ..GpuNodeSpec::default() });
            snapshot.node_seen(&hosts::node(&host, Some(&owner)));
            addresses.push(devices.iter().map(|device| device.pci_address).collect());
        }
        let demand_of = |of: &Type| {
            let wish = fixtures.wishes.get(&of.wish).with_context(|| format!("no wish {}", of.wish))?;
            demand(of, wish)
        };
        let demands: Vec<Arc<Demand>> = instance.types.iter().map(demand_of).collect::<Result<_>>()?;
        let mut estate = Self { snapshot, demands, addresses };
        for (number, of) in instance.arrivals.iter().enumerate() {
            let request = estate.request(number, *of)?;
            let mut desktop = Desktop::new(&request.desktop.name, gpudesk_crds::DesktopSpec::default());
            desktop.metadata.namespace = Some(request.desktop.namespace.clone());
            desktop.metadata.resource_version = Some("1".into());
            estate.snapshot.desktop_seen(&desktop);
            estate.snapshot.wants(&request.desktop, Some(&request));
        }
        Ok(estate)
    }

    fn request(&self, number: usize, of: usize) -> Result<Request> {
        Ok(Request {
            desktop: key(number),
            labels: BTreeMap::new(),
            affinity: vec![],
            home: None,
            previous: None,
            demand: self.demands.get(of).context("no such type")?.clone(),
        })
    }

    /// Places all arrivals in this order, one by one; each share is checked against the rules.
    ///
    /// # Errors
    /// A share that may not stand where the engine put it.
    pub(crate) fn run(
        &self,
        fixtures: &Fixtures,
        rules: &BTreeMap<String, Rules>,
        instance: &Instance,
        order: &[usize],
        judged: Judged,
    ) -> Result<Outcome> {
        let mut snapshot = self.snapshot.clone();
        let mut ledger = Ledger::new(rules, &instance.nodes)?;
        let mut outcome = Outcome::default();
        for number in order {
            let of = *instance.arrivals.get(*number).context("no such desktop")?;
            let request = self.request(*number, of)?;
            if let Some(work) = snapshot.pricing_work() {
                let mut list = work.solve();
                if matches!(judged, Judged::Waiting | Judged::None) {
                    list.defined = Prices::default();
                }
                if matches!(judged, Judged::Defined | Judged::None) {
                    list.waiting = None;
                }
                snapshot.use_prices(&Arc::new(list));
            }
            let Ok(placed) = snapshot.place(&request) else { continue };
            let node = (0..self.addresses.len()).find(|node| node_name(*node) == placed.node);
            let (node, share) = (node.context("no such node")?, placed.gpus.first().context("no share")?);
            let card = self.addresses[node].iter().position(|address| *address == share.device);
            let wish = &share.profile;
            ledger
                .put(node, card.context("no such card")?, wish, share.start)
                .context(instance.mix.clone())?;
            outcome.worth += fixtures.wishes.get(wish).map_or(0, |wish| wish.worth);
            outcome.placed += 1;
            outcome.local += u32::from(placed.score.distance == 0);
            snapshot.take(&request.desktop, &Arc::new(placed.allocation(None)));
        }
        Ok(outcome)
    }
}
