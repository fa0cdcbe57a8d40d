//! Taking down what is here of a desktop that is not this node's: another node's, or nobody's any more.
//!
//! The guest is asked and gets its grace, the domain is forgotten, shares of GPUs are given back, and
//! disks are put aside. Nothing is said in the desktop's status, which is another node's to write.
#![expect(clippy::disallowed_methods, reason = "adapter: notes down since when something is left over")]

use std::{sync::Arc, time::Duration};

use gpudesk_crds::{
    AllocationId, Desktop, DesktopTemplate, desktop_template::Lifecycle, gpu_node_words::StrayAction,
};
use jiff::{SignedDuration, Timestamp};

use super::{
    Desktops, Round,
    decide::Action,
    decision::{DECISION, Decision},
    desired::Wanted,
    observe::Sight,
    problem::Problem,
};
use crate::host::{
    folder::Owner,
    hypervisor::{DomainState, GuestState, HypervisorError},
    leftovers::Leftover,
};

/// How far a withdrawal came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// Nothing is left of it but what was put aside.
    Whole,
    /// Its guest was asked to shut down and has until then.
    Waiting(Timestamp),
}

/// What becomes of the disks of a machine that is taken down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disks {
    /// They become a leftover.
    PutAside,
    /// They are the desktop's here still.
    Stay,
}

impl Desktops {
    /// Takes down what is here of a desktop, for the reason `why`; `template` tells the time that its
    /// guest has. Safe to repeat after it was interrupted anywhere.
    ///
    /// # Errors
    /// What could not be done; it can be tried again. A domain that is not of this desktop is a problem
    /// and is left alone.
    pub async fn withdraw(
        &self,
        owner: &Owner,
        template: Option<Arc<DesktopTemplate>>,
        why: &str,
        disks: Disks,
    ) -> Result<Withdrawn, Problem> {
        let nobody = Desktop::default();
        let mut round = Round {
            desktop: &nobody,
            owner: owner.clone(),
            wanted: Wanted::Withdraw,
            allocation: None,
            template,
            folder: self.node.folders.of(owner.uid),
            defined: false,
            held_back: None,
            refusal: None,
        };
        let mut sight = Sight::default();
        for _ in 0..super::MOST_ACTIONS {
            match self.step(&mut round, &mut sight).await? {
                Action::Nothing(Some(until)) => return Ok(Withdrawn::Waiting(until)),
                Action::Nothing(None) => {
                    self.leave_disks(owner, why, disks).await?;
                    self.changed.notify_one();
                    return Ok(Withdrawn::Whole);
                }
                action => tracing::warn!(?action, why, "taking down what is not this node's"),
            }
        }
        Ok(Withdrawn::Waiting(Timestamp::now()))
    }

    /// Ends a machine that an admin names. Safe to repeat after it was interrupted anywhere.
    ///
    /// # Errors
    /// As those of [`Self::withdraw`].
    pub async fn end(
        &self,
        owner: &Owner,
        action: StrayAction,
        template: Option<Arc<DesktopTemplate>>,
        why: &str,
        disks: Disks,
    ) -> Result<Withdrawn, Problem> {
        if action == StrayAction::PowerOff {
            // One that is not of this desktop is a problem.
            let (summary, _) = self.domain(owner.uid).await?;
            tracing::warn!(why, "taking the power");
            let hypervisor = &self.node.hypervisor;
            gone_is_fine(match summary {
                Some(summary) if summary.state == DomainState::Saved => {
                    hypervisor.undefine(owner.uid, GuestState::KeepButMemory).await
                }
                _ => hypervisor.destroy(owner.uid).await,
            })?;
        }
        self.withdraw(owner, template, why, disks).await
    }

    /// The same of a machine of ours whose metadata cannot be read, which was `asked` to shut down then.
    ///
    /// # Errors
    /// What could not be done; it can be tried again.
    pub async fn end_unreadable(
        &self,
        owner: &Owner,
        action: StrayAction,
        asked: Option<Timestamp>,
        why: &str,
        disks: Disks,
    ) -> Result<Withdrawn, Problem> {
        let (uid, hypervisor) = (owner.uid, &self.node.hypervisor);
        let grace = SignedDuration::from_secs(Lifecycle::default().shutdown_grace_seconds.into());
        let runs = match hypervisor.get(uid).await {
            Ok(domain) => domain.state.is_active(),
            Err(HypervisorError::NotFound { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        if runs && action == StrayAction::ShutDown {
            let now = Timestamp::now();
            let until = asked.unwrap_or(now).checked_add(grace).unwrap_or(now);
            if asked.is_none() {
                tracing::warn!(why, "asking the guest to shut down");
                match hypervisor.shutdown(uid).await {
                    // One that cannot be asked is powered off after the same time.
                    Ok(()) | Err(HypervisorError::Refused { .. } | HypervisorError::NotFound { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if now < until {
                return Ok(Withdrawn::Waiting(until));
            }
        }
        tracing::warn!(why, "taking down what is not this node's");
        gone_is_fine(hypervisor.destroy(uid).await)?;
        let state = match action {
            StrayAction::PowerOff => GuestState::KeepButMemory,
            StrayAction::ShutDown => GuestState::Keep,
        };
        gone_is_fine(hypervisor.undefine(uid, state).await)?;
        for instance in self.instances(uid).await? {
            self.drive(move |gpus| gpus.destroy(&instance.key)).await?;
        }
        self.leave_disks(owner, why, disks).await?;
        self.changed.notify_one();
        Ok(Withdrawn::Whole)
    }

    /// Puts the disks of a desktop aside, or leaves them. What it has for one run only, and a folder without
    /// disks, go.
    pub(super) async fn leave_disks(&self, owner: &Owner, why: &str, disks: Disks) -> Result<(), Problem> {
        let folder = self.node.folders.of(owner.uid);
        self.is_written(owner.uid);
        if disks == Disks::Stay {
            folder.remove_run().await?;
            return Ok(());
        }
        if !folder.remove_run().await? {
            let leftover = Leftover { owner: owner.clone(), why: why.into(), since: Timestamp::now() };
            if let Some(kept) = self.node.leftovers.keep(&folder, leftover).await? {
                tracing::warn!(folder = %kept.display(), why, "disks are kept aside");
            }
        }
        // Only what was put aside is not looked for when the desktop comes back.
        Ok(folder.forget_used().await?)
    }

    /// Removes what is left of a desktop that was being deleted when it was last seen, and is gone since:
    /// nobody is there whom to ask for time.
    ///
    /// # Errors
    /// What could not be released; it can be tried again.
    pub async fn erase(&self, owner: &Owner) -> Result<(), Problem> {
        let uid = owner.uid;
        // One that is not of this desktop is a problem.
        self.domain(uid).await?;
        gone_is_fine(self.node.hypervisor.destroy(uid).await)?;
        gone_is_fine(self.node.hypervisor.undefine(uid, GuestState::Delete).await)?;
        for instance in self.instances(uid).await? {
            self.drive(move |gpus| gpus.destroy(&instance.key)).await?;
        }
        self.node.folders.of(uid).remove().await?;
        self.is_written(uid);
        self.changed.notify_one();
        Ok(())
    }

    /// Forgets that the guest was asked to shut down, now that nobody wants it to: who wants it again asks it again.
    ///
    /// # Errors
    /// When that cannot be told, or noted down.
    pub async fn call_off(&self, owner: &Owner) -> Result<(), Problem> {
        if let Some(record) =
            self.run_record(owner.uid).await?.filter(|record| record.shutdown_sent_at.is_some())
        {
            self.node.folders.of(owner.uid).write_json(super::run_notes::RECORD, record.going_on()).await?;
            self.is_written(owner.uid);
        }
        Ok(())
    }

    /// Whether the desktop was being deleted when its machine was last asked to end.
    ///
    /// # Errors
    /// When that cannot be told.
    pub async fn was_being_deleted(&self, owner: &Owner) -> Result<bool, Problem> {
        Ok(self.run_record(owner.uid).await?.is_some_and(|record| record.deleting))
    }

    /// Whether there is a folder of the desktop, or a record of its disks, or a share of a GPU.
    ///
    /// # Errors
    /// When that cannot be told.
    pub async fn holds_anything(&self, owner: &Owner) -> Result<bool, Problem> {
        let folder = self.node.folders.of(owner.uid);
        let told =
            folder.on_thread(|files| Ok::<_, Problem>(files.is_there()? || files.used()?.is_some())).await?;
        Ok(told || !self.instances(owner.uid).await?.is_empty())
    }

    /// The decision that the folder of a desktop is for.
    ///
    /// # Errors
    /// When that cannot be told.
    pub async fn noted(&self, owner: &Owner) -> Result<Option<AllocationId>, Problem> {
        let noted: Option<Decision> = self.node.folders.of(owner.uid).read_json(DECISION).await?;
        Ok(noted.map(|noted| noted.id))
    }

    /// Removes the folder of a desktop that holds nothing here, when all that it says is that the desktop's
    /// last decision was given back. Returns whether it is gone.
    ///
    /// # Errors
    /// When it cannot be told, or removed.
    pub async fn clear_if_given_back(&self, owner: &Owner) -> Result<bool, Problem> {
        let folder = self.node.folders.of(owner.uid);
        let decision: Option<Decision> = folder.read_json(DECISION).await?;
        if decision.is_none_or(|decision| decision.last_word.is_none())
            || self.domain(owner.uid).await?.0.is_some()
            || !self.instances(owner.uid).await?.is_empty()
        {
            return Ok(false);
        }
        Ok(folder.remove_run().await?)
    }

    /// Does blocking work where that is allowed.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        tokio::task::spawn_blocking(work).await.map_err(|panic| Problem::Internal(panic.to_string()))
    }

    /// Does `work` unless other work on this desktop is still under way, and waits for it for a while.
    /// `None` when it has not ended by then: it goes on, and until it ends nothing else begins for this
    /// desktop. So one whose files do not answer holds up nobody but itself.
    pub async fn alone<T: Send + 'static>(
        self: &Arc<Self>,
        owner: uuid::Uuid,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let place = Place::take(self, owner)?;
        let task = tokio::spawn(async move {
            let _place = place;
            work.await
        });
        match tokio::time::timeout(PATIENCE, task).await {
            Ok(Ok(result)) => Some(result),
            Ok(Err(panic)) => {
                tracing::error!(%panic, "work on a desktop failed");
                None
            }
            Err(_) => {
                tracing::warn!(uid = %owner, "work on a desktop takes long; the others go on");
                None
            }
        }
    }
}

/// How long work on one desktop may keep others waiting: longer than one call into its file system.
const PATIENCE: Duration = Duration::from_secs(30);

fn gone_is_fine(answer: Result<(), HypervisorError>) -> Result<(), HypervisorError> {
    match answer {
        Err(HypervisorError::NotFound { .. }) => Ok(()),
        answer => answer,
    }
}

/// The right to work on one desktop.
struct Place {
    desktops: Arc<Desktops>,
    uid: uuid::Uuid,
}

impl Place {
    fn take(desktops: &Arc<Desktops>, uid: uuid::Uuid) -> Option<Self> {
        let free = super::lock(&desktops.busy).insert(uid);
        free.then(|| Self { desktops: Arc::clone(desktops), uid })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        super::lock(&self.desktops.busy).remove(&self.uid);
    }
}
