//! The record of a desktop's run, also while its folder cannot be written: then it is kept in memory, and written as
//! soon as that goes. A daemon that ends before that has forgotten it, and asks the guest to shut down once more.

use uuid::Uuid;

use super::{Desktops, Round, lock, observe::Sight, problem::Problem, record::RunRecord};
use crate::host::hypervisor::DomainEventKind;

/// Name of the file.
pub(super) const RECORD: &str = "run.json";

impl Sight {
    /// Notes a fault of the folder; the first one is told.
    pub(super) fn fault(&mut self, fault: impl Into<Problem>) {
        self.unkept.get_or_insert(fault.into());
    }
}

impl Desktops {
    /// The record of the last run. What could not be written before is tried again.
    pub(super) async fn kept_record(
        &self,
        round: &Round<'_>,
        sight: &mut Sight,
    ) -> Result<Option<RunRecord>, Problem> {
        let unwritten = lock(&self.unwritten).get(&round.owner.uid).cloned();
        match unwritten {
            None => return Ok(round.folder.read_json(RECORD).await?),
            Some(None) => self.drop_record(round, sight).await,
            Some(Some(ref record)) => self.keep_record(round, sight, record.clone()).await,
        }
        Ok(unwritten.flatten())
    }

    /// The same of a desktop that has no round.
    pub(super) async fn run_record(&self, uid: Uuid) -> Result<Option<RunRecord>, Problem> {
        let unwritten = lock(&self.unwritten).get(&uid).cloned();
        match unwritten {
            Some(record) => Ok(record),
            None => Ok(self.node.folders.of(uid).read_json(RECORD).await?),
        }
    }

    /// Writes the record down.
    pub(super) async fn keep_record(&self, round: &Round<'_>, sight: &mut Sight, record: RunRecord) {
        let written = async {
            if !round.folder.exists().await? {
                round.folder.create(&round.owner).await?;
            }
            round.folder.write_json(RECORD, record.clone()).await
        };
        match written.await {
            Ok(()) => self.is_written(round.owner.uid),
            Err(error) => {
                lock(&self.unwritten).insert(round.owner.uid, Some(record));
                sight.fault(error);
            }
        }
    }

    /// Forgets the record.
    pub(super) async fn drop_record(&self, round: &Round<'_>, sight: &mut Sight) {
        match round.folder.remove_file(RECORD).await {
            Ok(()) => self.is_written(round.owner.uid),
            Err(error) => {
                lock(&self.unwritten).insert(round.owner.uid, None);
                sight.fault(error);
            }
        }
    }

    /// What there is of the record on disk is all that there is to say.
    pub(super) fn is_written(&self, uid: Uuid) {
        lock(&self.unwritten).remove(&uid);
    }

    /// Notes why a domain stopped, until it is started anew: one that libvirt has forgotten with its end tells it to
    /// nobody any more.
    pub fn note_end(&self, uid: Uuid, kind: DomainEventKind) {
        match kind {
            DomainEventKind::Stopped { reason } => _ = lock(&self.ends).insert(uid, reason),
            DomainEventKind::Started => _ = lock(&self.ends).remove(&uid),
            _ => {}
        }
    }
}
