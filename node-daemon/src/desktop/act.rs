//! Doing what was decided. Each action may be done again after it was interrupted anywhere.
#![expect(clippy::disallowed_methods, reason = "adapter: notes down when it started and stopped machines")]

use std::time::Duration;

use gpudesk_crds::{
    AllocatedDeviceKind, Allocation, DesktopTemplate, HostDeviceAllocation,
    allocation::GpuAllocation,
    desktop_template_devices::CloudInit,
    domain_name,
    handover::Standing,
    types::{PciAddress, ShareMode},
};
use gpudesk_inventory::layout;
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::{
    Desktops, Round,
    conflict::{self, Held, Holder},
    decide::{Action, DomainView},
    desired::Wanted,
    lock, lost_disks,
    machine::{self, Parts},
    materials::{self, Materials, Origin},
    observe::Sight,
    problem::{Problem, Whose},
    record::RunRecord,
};

use crate::{
    crash_point::{self, Step},
    devices::network::NetworkWish,
    domain::{Kind, MacAddress, QemuProcess, metadata},
    host::{
        gpu_driver::{GpuError, GpuInstance, InstanceKey, Setup, WantedInstance, WantedPartition, What},
        guest_network::GuestNetworkError,
        hypervisor::{GuestState, HypervisorError},
        seed::Seed,
    },
};

/// How long it is waited for what the owner of the host wants of its cards.
const PATIENCE: Duration = Duration::from_secs(10);

impl Desktops {
    pub(super) async fn act(
        &self,
        action: Action,
        round: &mut Round<'_>,
        sight: &mut Sight,
    ) -> Result<(), Problem> {
        match action {
            Action::Prepare => self.prepare(round, sight).await,
            Action::Define => self.define(round, sight).await,
            Action::Start => self.start(round, sight).await,
            Action::Shutdown => self.shutdown(round, sight).await,
            Action::Destroy => self.destroy(round, sight).await,
            Action::Release => self.release(round, sight).await,
            Action::Nothing(_) => Ok(()),
        }
    }

    async fn prepare(&self, round: &Round<'_>, sight: &Sight) -> Result<(), Problem> {
        let materials = found(sight)?;
        round.folder.create(&round.owner).await?;
        self.note_decision(round, None).await?;
        self.make_shares(round, &sight.instances).await?;
        if !self.node.images.is_pretended() {
            for disk in materials.disks.iter().filter(|disk| !disk.made) {
                let (golden, size) = match &disk.origin {
                    Origin::Overlay { golden, size_gib } => (Some(golden.clone()), *size_gib),
                    Origin::Blank { size_gib } => (None, Some(*size_gib)),
                    Origin::Scratch { .. } | Origin::HostFile { .. } => continue,
                };
                round.folder.make_disk(&disk.name, golden, size).await?;
                crash_point::done(Step::OverlayWritten);
            }
            crash_point::done(Step::DisksWritten);
        }
        self.make_seed(round, materials).await
    }

    /// Makes the shares; of `there` are those that exist, which stay whatever its owner wants of the card by now.
    async fn make_shares(&self, round: &Round<'_>, there: &[GpuInstance]) -> Result<(), Problem> {
        for gpu in round.allocation.map_or(&[][..], |allocation| &allocation.gpus) {
            let hardware = self.node.hardware.now();
            let card = hardware.cards.iter().find(|card| card.pci_address == gpu.device);
            // An address can be another card's after hardware was added; the UUID tells.
            let same = card.is_some_and(|card| gpu.device_uuid.is_none() || gpu.device_uuid == card.uuid);
            if !same {
                return Err(GpuError::NoSuchCard(gpu.device).into());
            }
            let exists = |it: &GpuInstance| it.key.request == gpu.name && it.card == gpu.device;
            if !there.iter().any(exists) {
                self.check_layout(gpu).await?;
            }
            let wanted = WantedInstance {
                key: InstanceKey { desktop_uid: round.owner.uid.to_string(), request: gpu.name.clone() },
                owner: format!("{}/{}", round.owner.namespace, round.owner.name),
                allocation: round.id(),
                card: gpu.device,
                share: conflict::share(gpu),
                setup: Setup { scheduler: gpu.vgpu_scheduler, params: gpu.vgpu_params.clone() },
                partition: round.allocation.and_then(|allocation| partition(allocation, gpu)),
                what: What::Card,
            };
            let answer = self.drive(move |gpus| gpus.create(&wanted)).await;
            if let Err(Problem::Gpu(GpuError::Refused { card, source })) = answer {
                let (share, why) = (gpu.type_name.clone(), source.to_string());
                return Err(self.refused(round, card, Held::Share { card, share, why }).await);
            }
            answer?;
        }
        for device in round.allocation.map_or(&[][..], |allocation| &allocation.host_devices) {
            let wanted = WantedInstance {
                key: InstanceKey {
                    desktop_uid: round.owner.uid.to_string(),
                    request: conflict::request(device),
                },
                owner: format!("{}/{}", round.owner.namespace, round.owner.name),
                allocation: round.id(),
                card: device.device,
                share: conflict::host_device(device),
                setup: Setup::default(),
                partition: None,
                what: given(round, device)?,
            };
            self.drive(move |gpus| gpus.create(&wanted)).await?;
        }
        crash_point::done(Step::GpusCreated);
        Ok(())
    }

    /// Whether a new share is a place of the layout that its owner fixes for the card, if he does.
    async fn check_layout(&self, gpu: &GpuAllocation) -> Result<(), Problem> {
        let (card, same) = (gpu.device, |it: &&GpuInstance| it.type_name == gpu.type_name);
        let hardware = self.node.hardware.with_layouts(PATIENCE).await;
        let Some(layouts) = hardware.as_ref().and_then(|hardware| hardware.layouts.as_ref()) else {
            let what = "what the owner of the host wants of its cards is not known yet".into();
            return Err(GpuError::Waiting { card, what, since: Timestamp::now() }.into());
        };
        let Some(places) = layouts.get(&card) else { return Ok(()) };
        let others = self.all_instances().await?;
        let others = others.iter().filter(|it| it.card == card).filter(same).count();
        let admitted = layout::admits(places, &gpu.type_name, gpu.start, others);
        admitted.map_err(|why| GpuError::Unable { card, why }.into())
    }

    /// A share that a card refuses although the operator counted with it: somebody else has the room.
    async fn refused(&self, round: &Round<'_>, card: PciAddress, what: Held) -> Problem {
        let own = round.owner.uid.to_string();
        let mut holders: Vec<String> = match self.all_instances().await {
            Ok(instances) => instances
                .into_iter()
                .filter(|instance| instance.card == card && instance.key.desktop_uid != own)
                .map(|instance| instance.owner)
                .collect(),
            Err(problem) => return problem,
        };
        holders.sort();
        holders.dedup();
        if holders.is_empty() {
            holders.push("nobody that gpudesk knows of".into());
        }
        Problem::Conflict { what, holder: holders.join(", ") }
    }

    /// The first-boot configuration that is still to be made: none when there is one, or none is asked for.
    pub(super) async fn seed(
        &self,
        round: &Round<'_>,
        materials: &Materials,
    ) -> Result<Option<Seed>, Problem> {
        let Some(cloud_init) = &materials.cloud_init else { return Ok(None) };
        if materials.has_seed {
            return Ok(None);
        }
        let CloudInit { inline, secret_ref } = cloud_init;
        match (inline, secret_ref) {
            (Some(inline), None) => Ok(Some(Seed {
                user_data: inline.user_data.clone().into_bytes(),
                network_data: inline.network_data.clone().map(String::into_bytes),
            })),
            (None, Some(secret)) => {
                let (namespace, name) = (&round.owner.namespace, &secret.name);
                let seed = self.before_the_end(self.node.secrets.seed(namespace, name)).await;
                Ok(Some(seed.ok_or_else(|| Problem::Internal("the daemon ends".into()))??))
            }
            _ => Err(Problem::Invalid("cloudInit must have exactly one of inline and secretRef".into())),
        }
    }

    async fn make_seed(&self, round: &Round<'_>, materials: &Materials) -> Result<(), Problem> {
        let Some(seed) = self.seed(round, materials).await? else { return Ok(()) };
        // No guest of a simulated host reads it: that it was made is all that is kept.
        let pretended = self.node.images.is_pretended();
        let image = if pretended { vec![] } else { seed.image(round.owner.uid, &round.owner.name)? };
        round.folder.write(round.folder.seed(), image).await?;
        crash_point::done(Step::SeedWritten);
        Ok(())
    }

    async fn define(&self, round: &mut Round<'_>, sight: &Sight) -> Result<(), Problem> {
        let (Some(allocation), materials) = (round.allocation, found(sight)?) else {
            return Err(Problem::Internal("no allocation".into()));
        };
        let hardware = self.node.hardware.now();
        let others = self.holders(round).await?;
        if let Some((what, holder)) = conflict::conflict(allocation, &others, &hardware.cards) {
            return Err(Problem::Conflict { what, holder });
        }
        self.give(round, allocation, materials, &sight.instances).await?;
        crash_point::done(Step::Defined);
        round.defined = true;
        Ok(())
    }

    /// Gives libvirt the domain. One that runs goes on as it is.
    pub(super) async fn give(
        &self,
        round: &Round<'_>,
        allocation: &Allocation,
        materials: &Materials,
        instances: &[GpuInstance],
    ) -> Result<(), Problem> {
        let Some(compute) = &allocation.compute else {
            return Err(Problem::Internal("no CPUs and memory are allocated".into()));
        };
        let template = round.template()?;
        let process = self.process(template).await?;
        let cpu = materials::cpu(round.desktop, &template.spec);
        let hardware = self.node.hardware.now();
        let domain = machine::domain(&Parts {
            owner: &round.owner,
            allocation,
            compute,
            template,
            cpu,
            materials,
            folder: &round.folder,
            instances,
            cards: &hardware.cards,
            host_devices: &hardware.host_devices,
            kind: self.node.kind,
            process,
        })?;
        self.check_host(cpu, template).await?;
        self.node.hypervisor.define(domain.render()?).await?;
        Ok(())
    }

    /// As whom QEMU runs: libvirt's user, in the group that the host's filter looks at.
    async fn process(&self, template: &DesktopTemplate) -> Result<Option<QemuProcess>, Problem> {
        if self.node.kind == Kind::Test {
            return Ok(None);
        }
        let group = self.node.guest_network.group();
        match self.node.hypervisor.qemu_user().await? {
            Some(user) => Ok(Some(QemuProcess { user, group })),
            None if machine::has_user_network(template) && self.node.guest_network.is_enforced() => {
                Err(GuestNetworkError::NoUser.into())
            }
            None => Ok(None),
        }
    }

    /// What other domains of this host hold, running or not: one that is off may start at any time.
    async fn holders(&self, round: &Round<'_>) -> Result<Vec<Holder>, Problem> {
        let mut holders = vec![];
        let name = domain_name(&round.owner.namespace, &round.owner.name);
        for summary in self.node.hypervisor.list().await? {
            if summary.uuid == round.owner.uid {
                continue;
            }
            if summary.name == name {
                let ours = matches!(
                    summary.metadata.as_deref().map(metadata::parse),
                    Some(Ok(Some(ours))) if ours.desktop_uid == summary.uuid
                );
                let (domain, uuid, runs) = (name, summary.uuid.to_string(), summary.state.is_active());
                return Err(if ours {
                    Problem::EarlierMachine { domain, uuid, runs }
                } else {
                    Problem::ForeignName { name: domain, uuid, whose: Whose::of(&summary) }
                });
            }
            let Some(text) = summary.metadata.as_deref() else { continue };
            let unreadable = || unreadable(&summary.name);
            // One of ours that cannot be understood may hold anything.
            let Some(other) = metadata::parse(text).map_err(|_| unreadable())? else { continue };
            let allocation = serde_json::from_str(&other.allocation).map_err(|_| unreadable())?;
            holders.push(Holder { owner: format!("{}/{}", other.namespace, other.name), allocation });
        }
        Ok(holders)
    }

    async fn start(&self, round: &Round<'_>, sight: &mut Sight) -> Result<(), Problem> {
        let materials = found(sight)?;
        let _claim = self.make_ready(round, materials).await?;
        pause(self.node.latency.start).await;
        if machine::has_user_network(round.template()?) {
            self.node.guest_network.ensure().await?;
        }
        if !self.node.images.is_pretended() {
            round.folder.note_used(lost_disks::lasting(materials)).await?;
        }
        // What cannot be noted down is not started.
        self.note_decision(round, None).await?;
        self.confirm(round).await?;
        let floats = round.allocation.is_some_and(conflict::floats);
        // Others make room before CPUs that are this desktop's own are used.
        if !floats {
            self.share_cpus(round.owner.uid, false).await?;
        }
        lock(&self.ends).remove(&round.owner.uid);
        self.node.hypervisor.start(round.owner.uid).await.map_err(|error| explained(error, materials))?;
        // Whatever fails from here on, it runs: nothing of it is undone.
        let started = DomainView { active: true, current: round.defined, standing: Standing::Current };
        sight.observed.domain = Some(started);
        if floats {
            self.share_cpus(round.owner.uid, false).await?;
        }
        crash_point::done(Step::Started);
        let before = sight.observed.record.as_ref();
        let record = RunRecord::started(Timestamp::now(), &self.node.boot, before);
        let record = record.of(round.allocation);
        self.keep_record(round, sight, record).await;
        self.metrics.started();
        Ok(())
    }

    /// Keeps every running desktop without CPUs of its own off those that others have for themselves.
    /// For `about`, which has just come, that must succeed. When nobody has any, nothing is done, but
    /// after some were `freed` they are open to all again.
    pub(super) async fn share_cpus(&self, about: Uuid, freed: bool) -> Result<(), Problem> {
        if self.node.kind == Kind::Test {
            return Ok(());
        }
        let _moving = self.moving.lock().await;
        let mut running = vec![];
        let mut held = vec![];
        for summary in self.node.hypervisor.list().await? {
            let Some(ours) = summary.ours() else { continue };
            let Some((_, allocation)) = ours else {
                // Its CPUs may be any, and are not given to others.
                if about.is_nil() || freed {
                    tracing::warn!(
                        domain = summary.name,
                        "what it holds cannot be read: others stay on their CPUs"
                    );
                    return Ok(());
                }
                return Err(unreadable(&summary.name));
            };
            if summary.state.is_active() && conflict::floats(&allocation) {
                running.push(summary.uuid);
            }
            held.push(allocation);
        }
        let host = &self.node.hardware.now().cpus;
        let cpus = conflict::shared_cpus(host, &held);
        let Some(cpus) = cpus.filter(|cpus| freed || cpus != host) else { return Ok(()) };
        let cpus: Vec<u32> = cpus.iter().collect();
        // All at once, so that one that does not let itself be moved holds up no other.
        let moves = running.into_iter().map(|uuid| {
            let moved = self.node.hypervisor.confine(uuid, cpus.clone());
            async move { (uuid, moved.await) }
        });
        for (uuid, moved) in futures::future::join_all(moves).await {
            match moved {
                Ok(()) => {}
                Err(error) if uuid == about => return Err(error.into()),
                // It may have ended meanwhile.
                Err(error) => tracing::warn!(%error, "it may run on CPUs that are another desktop's own"),
            }
        }
        Ok(())
    }

    async fn shutdown(&self, round: &Round<'_>, sight: &mut Sight) -> Result<(), Problem> {
        match self.node.hypervisor.shutdown(round.owner.uid).await {
            Ok(()) => {}
            // A guest that cannot be asked is powered off after the same time.
            Err(error @ HypervisorError::Refused { .. }) => tracing::warn!(%error, "it will be powered off"),
            Err(error) => return Err(error.into()),
        }
        self.note_shutdown(round, sight, true).await;
        crash_point::done(Step::ShutdownSent);
        Ok(())
    }

    async fn destroy(&self, round: &Round<'_>, sight: &mut Sight) -> Result<(), Problem> {
        self.note_shutdown(round, sight, false).await;
        pause(self.node.latency.stop).await;
        match self.node.hypervisor.destroy(round.owner.uid).await {
            Ok(()) | Err(HypervisorError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        crash_point::done(Step::Destroyed);
        Ok(())
    }

    /// Notes down that the end that follows was asked for; and when, if the guest was `asked` just now.
    async fn note_shutdown(&self, round: &Round<'_>, sight: &mut Sight, asked: bool) {
        let now = Timestamp::now();
        let record = sight.observed.record.clone();
        let mut record = record.unwrap_or_else(|| RunRecord::started(now, &self.node.boot, None));
        record.shutdown_sent_at = record.shutdown_sent_at.filter(|_| !asked).or(Some(now));
        record.deleting |= round.wanted == Wanted::Remove;
        self.keep_record(round, sight, record).await;
    }

    async fn release(&self, round: &Round<'_>, sight: &Sight) -> Result<(), Problem> {
        let remove = round.wanted == Wanted::Remove;
        if sight.observed.domain.is_some() {
            let state = if remove { GuestState::Delete } else { GuestState::Keep };
            match self.node.hypervisor.undefine(round.owner.uid, state).await {
                Ok(()) | Err(HypervisorError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            crash_point::done(Step::Undefined);
        }
        let withdrawn = round.wanted == Wanted::Withdraw;
        if withdrawn || round.allocation.is_some_and(|allocation| !conflict::floats(allocation)) {
            self.share_cpus(round.owner.uid, true).await?;
        }
        for instance in &sight.instances {
            let key = instance.key.clone();
            self.drive(move |gpus| gpus.destroy(&key)).await?;
        }
        crash_point::done(Step::GpusDestroyed);
        let gone = match round.wanted {
            Wanted::Remove => {
                round.folder.remove().await?;
                true
            }
            Wanted::Stop if !round.stays(sight, &self.node) => round.folder.remove_run().await?,
            // How it ended stays noted down, and what is not this node's is put aside whole.
            Wanted::Stop | Wanted::Run | Wanted::Leave | Wanted::Withdraw => false,
        };
        if gone {
            crash_point::done(Step::FolderRemoved);
        }
        if gone || round.wanted == Wanted::Stop && !round.stays(sight, &self.node) {
            self.is_written(round.owner.uid);
        }
        Ok(())
    }
}

/// What of the host a desktop is given, with what a network card is told of its function.
fn given(round: &Round<'_>, device: &HostDeviceAllocation) -> Result<What, Problem> {
    let (AllocatedDeviceKind::NetworkFunction, Some(parent)) = (device.kind, device.parent) else {
        return Ok(What::Drive);
    };
    let networks = &round.template()?.spec.networks;
    let named = (0..=u8::MAX).zip(networks).find(|(_, network)| network.name == device.name);
    let (index, sriov) =
        named.and_then(|(index, network)| Some((index, network.sriov.as_ref()?))).ok_or_else(|| {
            Problem::Invalid(format!("the template has no networks[{}].sriov any more", device.name))
        })?;
    let mac = MacAddress::of_desktop(round.owner.uid, index).to_string();
    let vlan = sriov.vlan.and_then(|vlan| u32::try_from(vlan).ok());
    Ok(What::Network(NetworkWish { parent, mac, vlan }))
}

fn unreadable(domain: &str) -> Problem {
    let holder = format!("{domain} (its domain's metadata is broken, or of a newer version)");
    Problem::Conflict { what: Held::Unreadable, holder }
}

fn found(sight: &Sight) -> Result<&Materials, Problem> {
    sight
        .materials
        .as_ref()
        .ok_or_else(|| Problem::Internal("the parts of the machine were not looked for".into()))
}

/// What libvirt refused, with the file that is most likely why.
fn explained(error: HypervisorError, materials: &Materials) -> Problem {
    match (Problem::from(error), materials.closed()) {
        (Problem::Hypervisor(refused @ HypervisorError::Refused { .. }), Some(closed)) => {
            Problem::ClosedFile {
                path: closed.path.display().to_string(),
                mode: closed.mode,
                remedy: closed.remedy,
                refused,
            }
        }
        (problem, _) => problem,
    }
}

async fn pause(latency: Option<SignedDuration>) {
    if let Some(latency) = latency.and_then(|latency| latency.try_into().ok()) {
        tokio::time::sleep(latency).await;
    }
}

/// The partition of the fabric that a whole card is to be in, with the others of it.
fn partition(allocation: &Allocation, gpu: &GpuAllocation) -> Option<WantedPartition> {
    let id = allocation.fabric_partition.and_then(|id| u32::try_from(id).ok());
    let id = id.filter(|_| gpu.mode == ShareMode::Passthrough)?;
    let whole = allocation.gpus.iter().filter(|gpu| gpu.mode == ShareMode::Passthrough);
    Some(WantedPartition { id, cards: whole.map(|gpu| gpu.device).collect() })
}
