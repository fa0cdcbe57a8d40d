//! What there is of a desktop on this node.
#![expect(clippy::disallowed_methods, reason = "adapter: notes down when an end was noticed")]

use std::sync::Arc;

use gpudesk_crds::{Allocation, NodeReport, desktop::PreparedGpu, handover::Standing, types::ShareMode};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    Desktops, Round, conflict,
    decide::{DomainView, Observed},
    decision,
    desired::Wanted,
    guest, lock, lost_disks,
    materials::{self, Materials},
    problem::{Problem, Whose},
    record::{End, RunRecord},
    status::{Guest, Machine},
    tuning,
};
use crate::{
    domain::{DomainMetadata, Kind, metadata},
    host::{
        folder::FolderFiles,
        gpu_driver::{GpuDriver, GpuError, GpuInstance, Handle},
        hypervisor::{DomainState, DomainSummary, HypervisorError, StopReason},
    },
};

/// What was seen of a desktop.
#[derive(Default)]
pub(super) struct Sight {
    pub(super) observed: Observed,
    pub(super) machine: Option<Machine>,
    pub(super) instances: Vec<GpuInstance>,
    /// The last word on the decision that holds, once it was noted down or said.
    pub(super) last_word: Option<NodeReport>,
    /// The user's word by which lost disks were made anew here.
    pub(super) abandoned_disks: Option<String>,
    /// Found when something is to be made of them.
    pub(super) materials: Option<Materials>,
    /// What of the desktop's folder could not be read or noted: what runs goes on.
    pub(super) unkept: Option<Problem>,
}

impl Sight {
    /// The devices made for the shares of GPUs.
    pub(super) fn prepared_gpus(&self, round: &Round<'_>) -> Vec<PreparedGpu> {
        let gpus = round.allocation.map_or(&[][..], |allocation| &allocation.gpus);
        let prepared = gpus.iter().filter_map(|gpu| {
            let instance = self.instances.iter().find(|instance| instance.key.request == gpu.name);
            let Some(instance) = instance else {
                // A version before did not note whole cards down.
                let whole = self.observed.domain.filter(|_| gpu.mode == ShareMode::Passthrough);
                return whole.map(|_| PreparedGpu {
                    name: gpu.name.clone(),
                    mdev_uuid: None,
                    pci_address: Some(gpu.device),
                    mig_uuid: None,
                });
            };
            let (mdev_uuid, pci_address) = match &instance.handle {
                Handle::Mdev(uuid) => (Some(uuid.clone()), None),
                Handle::Function(address) => (None, Some(*address)),
                Handle::NotYet => return None,
            };
            Some(PreparedGpu {
                name: gpu.name.clone(),
                mdev_uuid,
                pci_address,
                mig_uuid: instance.mig_uuid.clone(),
            })
        });
        prepared.collect()
    }
}

impl Desktops {
    /// Looks at everything there is of the desktop. What cannot be read or noted in its folder hides no machine: it
    /// is in the way of a start alone.
    pub(super) async fn observe(&self, round: &Round<'_>, sight: &mut Sight) -> Result<(), Problem> {
        let uid = round.owner.uid;
        sight.unkept = None;
        // First what is kept, which no fault of the host takes back.
        sight.last_word = Self::said(round);
        let noted = self.noted_decision(round).await;
        if let Ok(noted) = &noted {
            sight.last_word = Self::last_word(round, noted.as_ref());
        }
        sight.observed.given_back = sight.last_word.is_some();
        // What cannot be seen is there.
        sight.observed.folder = round.folder.exists().await.unwrap_or_else(|error| {
            sight.fault(error);
            true
        });
        let used = self.used_disks(round, sight).await;
        let (summary, metadata) = self.domain(uid).await?;
        sight.observed.looked = true;
        let active = summary.as_ref().is_some_and(|summary| summary.state.is_active());
        let standing = match (&metadata, round.allocation) {
            (Some(metadata), Some(allocation)) => decision::standing(metadata, allocation),
            _ => Standing::Current,
        };
        sight.observed.domain =
            summary.as_ref().map(|_| DomainView { active, current: round.defined, standing });
        let ours = standing == Standing::Current && sight.last_word.is_none();
        let runs = active && standing == Standing::Current;
        let of_another = match noted {
            Ok(noted) => noted.zip(round.id()).is_some_and(|(noted, id)| noted.id != id),
            Err(odd) => {
                self.note_anew(round, sight, odd, runs).await;
                false
            }
        };
        if let Err(odd) = used {
            Self::note_disks_anew(round, sight, odd, runs).await;
        }
        sight.observed.record = self.record(round, sight, summary.as_ref(), ours).await;
        let shares = self.instances(uid).await;
        let told = shares.is_ok();
        sight.instances = match shares {
            Ok(shares) => shares,
            // It was given none.
            Err(_) if round.allocation.is_some_and(has_no_devices) => vec![],
            // Its machine is stopped all the same; what it may have is taken back once that can be told.
            Err(fault) if active && round.wanted != Wanted::Run => {
                sight.fault(fault);
                vec![]
            }
            Err(fault) => return Err(fault),
        };
        sight.observed.instances =
            !sight.instances.is_empty() || !told && active && round.wanted != Wanted::Run;
        sight.observed.of_another = summary.is_some() && !active && standing == Standing::Older
            || sight.observed.instances && !active && of_another;
        sight.machine = None;
        if let Some(saved) = summary.as_ref().filter(|summary| summary.state == DomainState::Saved)
            && round.wanted != Wanted::Remove
        {
            return Err(Problem::Saved { domain: saved.name.clone() });
        }
        if active
            && standing == Standing::Unknown
            && !matches!(round.wanted, Wanted::Remove | Wanted::Withdraw)
        {
            return Err(Problem::OtherDecision {
                domain: summary.map(|summary| summary.name).unwrap_or_default(),
            });
        }
        if active && standing == Standing::Older {
            // What runs is of a decision from which the desktop has moved on: it is not this one's machine.
            sight.observed.prepared = false;
        } else if let (true, Some(summary), Some(metadata)) = (active, summary, metadata) {
            sight.observed.prepared = true;
            sight.machine = Some(self.machine(round, sight, &summary, &metadata).await?);
            if let Err(error) = round.folder.bound_serial_log().await {
                tracing::warn!(%error, "the serial log may grow without end");
            }
        } else if round.wanted == Wanted::Run && sight.last_word.is_none() {
            // Of a decision that is over nothing is started, and nothing is wrong.
            sight.observed.prepared = false;
            // Nothing is started of which not all is known, or of which nothing can be noted.
            if let Some(fault) = sight.unkept.take() {
                return Err(fault);
            }
            let materials = self.materials(round).await?;
            sight.observed.prepared = sight.observed.folder && self.is_prepared(round, sight, &materials);
            sight.materials = Some(materials);
        } else {
            sight.observed.prepared = false;
        }
        Ok(())
    }

    /// Whether disks are here that last, and the user's word by which lost ones were made anew.
    async fn used_disks(&self, round: &Round<'_>, sight: &mut Sight) -> Result<(), Problem> {
        if !self.node.images.is_pretended() {
            // What was here before the last action was left by it.
            let disks = round.folder.on_thread(FolderFiles::has_disks).await?;
            sight.observed.disks = disks.or(sight.observed.disks);
        }
        if round.desktop.abandon_word().is_some() {
            let desktop = round.desktop.clone();
            let used = round.folder.on_thread(move |files| lost_disks::used_word(&desktop, files));
            sight.abandoned_disks = used.await?;
        }
        Ok(())
    }

    /// Notes the decision anew where what was noted cannot be understood, and its machine `runs`: what runs was not
    /// given back. Where nothing runs a stop writes it anew.
    async fn note_anew(&self, round: &Round<'_>, sight: &mut Sight, odd: Problem, runs: bool) {
        if runs && odd.is_odd_record() {
            tracing::warn!(%odd, "the machine of the decision that holds runs: it is noted down anew");
            if let Err(error) = self.note_decision(round, sight.last_word.clone().as_ref()).await {
                sight.fault(error);
            }
        } else if matches!(round.wanted, Wanted::Run | Wanted::Leave) {
            sight.fault(odd);
        }
    }

    /// The same of the disks that were used: a machine that runs has all of them.
    async fn note_disks_anew(round: &Round<'_>, sight: &mut Sight, odd: Problem, runs: bool) {
        if !(runs && odd.is_odd_record()) {
            return sight.fault(odd);
        }
        tracing::warn!(%odd, "the machine runs with all of its disks: they are noted down anew");
        let said = round.desktop.status.as_ref().and_then(|status| status.node.as_ref());
        let abandoned = said.and_then(|said| said.abandoned_disks.clone());
        let more =
            round.template().map(|template| lost_disks::lasting_of(&template.spec)).unwrap_or_default();
        let owner = round.owner.clone();
        match round.folder.on_thread(move |files| files.note_used_anew(&owner, more, abandoned)).await {
            Ok(disks) => sight.observed.disks = disks,
            Err(error) => sight.fault(error),
        }
    }

    /// What the machine is put together from, as it is now.
    pub(super) async fn materials(&self, round: &Round<'_>) -> Result<Materials, Problem> {
        let (desktop, template) = (round.desktop.clone(), Arc::clone(round.template()?));
        let (images, roots) = (self.node.images.clone(), self.node.roots.clone());
        round
            .folder
            .on_thread(move |files| {
                let materials = Materials::find(&desktop, &template, &images, &roots, files)?;
                if !images.is_pretended() {
                    lost_disks::check(&desktop, &materials, files)?;
                }
                Ok(materials)
            })
            .await
    }

    /// The domain with what it says of its desktop. One that is not of this desktop is a problem.
    pub(super) async fn domain(
        &self,
        uid: Uuid,
    ) -> Result<(Option<DomainSummary>, Option<DomainMetadata>), Problem> {
        let summary = match self.node.hypervisor.get(uid).await {
            Ok(summary) => summary,
            Err(HypervisorError::NotFound { .. }) => return Ok((None, None)),
            Err(error) => return Err(error.into()),
        };
        match summary.metadata.as_deref().map(metadata::parse) {
            Some(Ok(Some(metadata))) if metadata.desktop_uid == uid => Ok((Some(summary), Some(metadata))),
            _ => {
                let whose = Whose::of(&summary);
                Err(Problem::ForeignDomain { name: summary.name, uuid: uid.to_string(), whose })
            }
        }
    }

    /// The record of the last run, with what is noticed now: an end, or a start that a daemon did not
    /// live to note down.
    async fn record(
        &self,
        round: &Round<'_>,
        sight: &mut Sight,
        summary: Option<&DomainSummary>,
        ours: bool,
    ) -> Option<RunRecord> {
        let (now, boot, uid) = (Timestamp::now(), &self.node.boot, round.owner.uid);
        let end = match summary.map(|summary| summary.state) {
            Some(state) if state.is_active() => None,
            Some(DomainState::Crashed) => Some(End::Crashed),
            Some(DomainState::PoweredOff) => Some(End::PoweredOff),
            Some(DomainState::ShutDown) => Some(End::ShutDown),
            Some(_) | None => Some(lock(&self.ends).get(&uid).map_or(End::Unseen, |reason| how(*reason))),
        };
        let begun = |at, before| RunRecord::started(at, boot, before).of(round.allocation);
        let may_run = matches!(round.wanted, Wanted::Run | Wanted::Leave);
        let record = match self.kept_record(round, sight).await {
            Ok(record) => record,
            // What runs was started; when, the API may know.
            Err(odd) if end.is_none() => {
                let domain = round.desktop.status.as_ref().and_then(|status| status.domain.as_ref());
                let at = domain.and_then(|domain| domain.started_at.as_ref()).map_or(now, |at| at.0);
                let record = begun(at, None);
                if odd.is_odd_record() {
                    tracing::warn!(%odd, "the machine runs: its run is noted down anew");
                    self.keep_record(round, sight, record.clone()).await;
                } else {
                    sight.fault(odd);
                }
                return Some(record);
            }
            Err(odd) if may_run => {
                sight.fault(odd);
                return None;
            }
            Err(_) => {
                self.drop_record(round, sight).await;
                None
            }
        };
        if round.wanted == Wanted::Run
            && let Some(allocation) = round.allocation
            && record.as_ref().is_some_and(|record| {
                (record.ended.is_some() || summary.is_none()) && record.is_of_another(allocation)
            })
        {
            // What ended was another decision's run; this one has not begun.
            self.drop_record(round, sight).await;
            return if end.is_some() { None } else { self.noticed(round, sight, begun(now, None)).await };
        }
        let noticed = match (record, end) {
            (None, None) => begun(now, None),
            (Some(record), None) if record.ended.is_some() => begun(now, Some(&record)),
            // The stop was called off. Not that of a decision that does not hold any more.
            (Some(record), None) if ours && record.shutdown_sent_at.is_some() && may_run => record.going_on(),
            // One that is gone from libvirt has ended, whatever is asked for by now.
            (Some(record), Some(end))
                if record.boot == *boot && record.ended.is_none() && (summary.is_some() || may_run) =>
            {
                match record.asked(now, end == End::Crashed) {
                    // The end that was asked for; what is wanted now begins anew.
                    Some(_) if round.wanted == Wanted::Run => {
                        self.drop_record(round, sight).await;
                        return None;
                    }
                    Some(_) if record.shutdown_sent_at.is_some() => return Some(record),
                    Some(asked) => RunRecord { shutdown_sent_at: Some(asked), ..record },
                    None => record.with_end(now, end),
                }
            }
            (record, _) => return record,
        };
        self.noticed(round, sight, noticed).await
    }

    async fn noticed(&self, round: &Round<'_>, sight: &mut Sight, record: RunRecord) -> Option<RunRecord> {
        self.keep_record(round, sight, record.clone()).await;
        Some(record)
    }

    /// Every share of a GPU on this host.
    ///
    /// # Errors
    /// When it cannot be told; that is not "none".
    pub async fn all_instances(&self) -> Result<Vec<GpuInstance>, Problem> {
        self.drive(|gpus| gpus.instances()).await
    }

    pub(super) async fn instances(&self, uid: Uuid) -> Result<Vec<GpuInstance>, Problem> {
        let uid = uid.to_string();
        let mut instances = self.all_instances().await?;
        instances.retain(|instance| instance.key.desktop_uid == uid);
        Ok(instances)
    }

    /// Calls the GPU driver where it may block.
    pub(super) async fn drive<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn GpuDriver) -> Result<T, GpuError> + Send + 'static,
    ) -> Result<T, Problem> {
        let gpus = Arc::clone(&self.node.gpus);
        let answer = tokio::task::spawn_blocking(move || call(gpus.as_ref())).await;
        Ok(answer.map_err(|panic| Problem::Internal(panic.to_string()))??)
    }

    fn is_prepared(&self, round: &Round<'_>, sight: &Sight, materials: &Materials) -> bool {
        let gpus = round.allocation.map_or(&[][..], |allocation| &allocation.gpus);
        let shares = gpus.iter().all(|gpu| {
            let is_its = |instance: &&GpuInstance| {
                instance.key.request == gpu.name && instance.card == gpu.device && !instance.pending
            };
            sight.instances.iter().any(|instance| is_its(&instance))
        });
        let devices = round.allocation.map_or(&[][..], |allocation| &allocation.host_devices);
        let devices = devices.iter().all(|device| {
            let is_its = |instance: &GpuInstance| {
                instance.key.request == conflict::request(device)
                    && instance.card == device.device
                    && !instance.pending
            };
            sight.instances.iter().any(is_its)
        });
        let shares = shares && devices;
        let seed = materials.cloud_init.is_none() || materials.has_seed;
        if self.node.images.is_pretended() {
            return shares && seed;
        }
        let disks = materials.disks.iter().all(|disk| disk.made);
        shares && disks && seed
    }

    async fn machine(
        &self,
        round: &Round<'_>,
        sight: &Sight,
        summary: &DomainSummary,
        metadata: &DomainMetadata,
    ) -> Result<Machine, Problem> {
        let uid = round.owner.uid;
        let details = self.node.hypervisor.details(uid).await?;
        let guest = match (self.node.kind, details.live.has_agent) {
            (_, false) => Guest::NoAgent,
            (Kind::Test, true) => Guest::Simulated,
            (Kind::Kvm | Kind::Qemu, true) => {
                let answers = details.live.agent_connected && self.node.hypervisor.agent_ping(uid).await?;
                if answers { Guest::Answers } else { Guest::Silent }
            }
        };
        let addresses = if guest == Guest::Answers {
            // An agent that fails at this answers all the same.
            let answer = self.node.hypervisor.agent_command(uid, guest::INTERFACES.into()).await;
            answer.map(|answer| guest::addresses(&answer)).unwrap_or_default()
        } else {
            vec![]
        };
        let record = sight.observed.record.as_ref();
        let started_at = record.map_or_else(Timestamp::now, |record| record.started_at);
        Ok(Machine {
            name: summary.name.clone(),
            paused: summary.state == DomainState::Paused,
            started_at,
            template_generation: metadata.template_generation,
            endpoints: details.live.graphics,
            guest,
            addresses,
            tuning: self.tuning(round, started_at),
        })
    }

    /// What was said of this run already, or what is known at its start.
    fn tuning(&self, round: &Round<'_>, started_at: Timestamp) -> Vec<gpudesk_crds::desktop::TuningResult> {
        let stored = round.desktop.status.as_ref();
        let said = stored.and_then(|status| status.domain.as_ref()?.started_at.as_ref());
        if let Some(status) = stored
            && said.is_some_and(|said| said.0.as_second() == started_at.as_second())
        {
            return status.tuning.clone();
        }
        let compute = round.allocation.and_then(|allocation| allocation.compute.as_ref());
        match (compute, &round.template) {
            (Some(compute), Some(template)) => {
                let cpu = materials::cpu(round.desktop, &template.spec);
                tuning::results(compute, template, cpu, self.node.kind)
            }
            _ => vec![],
        }
    }
}

/// Whether nothing of the host's devices is given by it.
fn has_no_devices(allocation: &Allocation) -> bool {
    allocation.gpus.is_empty() && allocation.host_devices.is_empty()
}

/// How a machine ended whose domain is gone.
fn how(reason: StopReason) -> End {
    match reason {
        StopReason::Shutdown => End::ShutDown,
        StopReason::Destroyed => End::PoweredOff,
        StopReason::Crashed | StopReason::Failed => End::Crashed,
        StopReason::Migrated | StopReason::Saved | StopReason::Other => End::Unseen,
    }
}
