//! What becomes of disks that are nobody's: put aside under the brake, kept, given back, erased.

use std::{collections::HashSet, sync::Arc};

use gpudesk_crds::{
    GpuNodeSpec, gpu_node_status,
    gpu_node_words::{LeftoverAction, LeftoverWord},
};
use uuid::Uuid;

use super::{Found, Known, Look, Looking, Missed, OrphanError, template_of};
use crate::{
    brake,
    desktop::{attach::may_take, problem::Problem, standing::Verdict, stray::Plan},
    host::{
        folder::{FolderError, Owner},
        leftovers::{Kept, due},
    },
};

/// What there is of leftovers.
pub(super) struct Leftovers {
    pub(super) all: Vec<gpu_node_status::Leftover>,
    pub(super) said: Vec<(bool, String)>,
    pub(super) unerased: Option<String>,
}

/// Whether a leftover may be erased by its age: what an admin has just spoken of, or may have, is not taken from
/// him.
fn may_go(spec: Option<&GpuNodeSpec>, name: &str) -> bool {
    spec.is_some_and(|spec| spec.leftovers.iter().all(|word| word.name != name))
}

impl Looking {
    /// Puts those aside that are missed and off, unless they are many; returns those that are held back.
    pub(super) async fn put_aside(
        self: &Arc<Self>,
        missed: Missed,
        total: usize,
        spec: Option<&GpuNodeSpec>,
        known: &mut Known,
        look: &mut Look,
    ) -> Result<Option<brake::Held>, OrphanError> {
        let (leftovers, rules) = (&self.this.desktops.node().leftovers, &self.this.settings.brake);
        let kept = match known.removals.take() {
            Some(removals) => removals,
            None => leftovers.removals().await?,
        };
        let mut removals = kept.clone();
        let Missed { off: mut missed, running, mut certain } = missed;
        // A desktop that was deleted is let go when nothing of it is here: it was listed before.
        let mut still = HashSet::new();
        for here in &missed {
            let holds = match here.domain {
                Some(_) => Ok(true),
                None => self.this.desktops.holds_anything(&here.owner).await,
            };
            // What cannot be told of one holds up no other.
            if holds.unwrap_or_else(|error| self.doubt(&here.owner, error, &mut certain, look)) {
                still.insert(here.owner.uid);
            }
        }
        missed.retain(|here| still.contains(&here.owner.uid));
        let owners: Vec<Owner> = missed.iter().map(|here| here.owner.clone()).collect();
        removals.note(&owners, rules, look.now);
        if removals != kept {
            leftovers.note_removals(removals.clone()).await?;
        }
        let noted = removals.clone();
        let let_go = spec.and_then(|spec| spec.remove_orphans_before.as_ref()).map(|time| time.0);
        let (mut orphans, mut removed) = (vec![], HashSet::new());
        for here in &missed {
            let uid = here.owner.uid;
            let deleted = self.this.desktops.was_being_deleted(&here.owner).await;
            let unknown = deleted.is_err();
            let deleted = deleted.unwrap_or_else(|error| !self.doubt(&here.owner, error, &mut certain, look));
            if unknown || !deleted {
                orphans.push(uid);
                continue;
            }
            // Twice, and not at once: it is gone for good.
            let twice = removals.since(uid).and_then(|since| since.checked_add(self.this.settings.look).ok());
            match twice {
                // Not while its admin's words are not known.
                Some(at) if at <= look.now => removed.extend(spec.map(|_| uid)),
                Some(at) => look.until(at),
                None => {}
            }
        }
        let ruling = removals.rule(&orphans, total, running, let_go, certain, rules, look.now);
        if let Some(again) = ruling.again {
            look.until(again);
        }
        for here in missed {
            let uid = here.owner.uid;
            let found = if removed.contains(&uid) || ruling.go.contains(&uid) {
                Arc::clone(self).act(here, Plan::PutAside, None).await
            } else {
                Found::Still
            };
            if matches!(found, Found::Nothing) {
                if ruling.go.contains(&uid) {
                    removals.went(uid, let_go, look.now);
                }
            } else {
                look.count(Some(&Verdict::NoDesktop));
            }
        }
        if removals != noted {
            leftovers.note_removals(removals.clone()).await?;
        }
        known.removals = Some(removals);
        Ok(ruling.held)
    }

    /// Erases, gives back and lists leftovers; returns them with the answers to words about them.
    pub(super) async fn keep_leftovers(
        self: &Arc<Self>,
        spec: Option<&GpuNodeSpec>,
        look: &mut Look,
    ) -> Result<Leftovers, FolderError> {
        let (leftovers, retention) = (&self.this.desktops.node().leftovers, &self.this.settings.retention);
        let all = leftovers.list().await?;
        let mut said = vec![];
        for word in spec.into_iter().flat_map(|spec| &spec.leftovers) {
            let kept = all.iter().find(|kept| kept.name == word.name);
            let answer = match kept {
                None => Some((false, "no such leftover is here".to_owned())),
                Some(kept) => self.obey(kept, word).await.err().map(|refusal| (true, refusal)),
            };
            said.extend(
                answer.map(|(refused, words)| (refused, format!("leftovers[{}]: {words}", word.name))),
            );
        }
        let rest: Vec<Kept> = leftovers.list().await?;
        for kept in due(&rest, retention, look.now) {
            if may_go(spec, &kept.name)
                && let Err(error) =
                    self.erase(kept, "it was kept long enough, or they take too much room").await
            {
                tracing::warn!(%error, "not all is erased that should be");
            }
        }
        // Also what a daemon before this one began, or what takes long.
        let unerased = leftovers.finish().await.err();
        if let Some(error) = &unerased {
            tracing::warn!(%error, "not all is erased that should be");
        }
        // That it takes long is no fault.
        let unerased = unerased.filter(|error| !matches!(error, FolderError::Thread(_)));
        let all = leftovers.list().await?;
        for kept in &all {
            if !retention.keep.is_zero()
                && let Ok(at) = kept.since.checked_add(retention.keep)
            {
                look.until(at.max(look.now.checked_add(self.this.settings.look).unwrap_or(at)));
            }
        }
        self.this.metrics.set_leftovers(all.len(), all.iter().map(|kept| kept.bytes).sum());
        let all = all.iter().map(|kept| kept.shown(retention)).collect();
        Ok(Leftovers { all, said, unerased: unerased.map(|error| error.to_string()) })
    }

    /// That something of one desktop cannot be told: it is here, and nothing goes. Returns true.
    fn doubt(&self, owner: &Owner, error: Problem, certain: &mut bool, look: &mut Look) -> bool {
        *certain = false;
        let error = OrphanError::from(error);
        look.note(owner, &error);
        self.tell(owner, &format!("left as it is: {error}"));
        true
    }

    pub(super) async fn erase(&self, kept: &Kept, why: &str) -> Result<(), FolderError> {
        let Owner { namespace, name, uid } = &kept.owner;
        tracing::warn!(leftover = kept.name, desktop = format!("{namespace}/{name}"), %uid, since = %kept.since, why, "a leftover is erased");
        self.this.metrics.leftover_erased();
        self.this.desktops.node().leftovers.erase(&kept.name).await
    }

    /// Does what an admin says of a leftover, or says why not.
    pub(super) async fn obey(self: &Arc<Self>, kept: &Kept, word: &LeftoverWord) -> Result<(), String> {
        let words = |error: OrphanError| error.to_string();
        self.this.cluster.check(&self.this.client).await.map_err(|error| error.to_string())?;
        let to = match (word.action, &word.attach_to) {
            (Some(LeftoverAction::Erase), None) => {
                return self
                    .erase(kept, "spec.leftovers of the GpuNode says so")
                    .await
                    .map_err(|error| error.to_string());
            }
            (None, Some(to)) => to,
            _ => return Err("write exactly one of action and attachTo".into()),
        };
        let named = Owner { namespace: to.namespace.clone(), name: to.name.clone(), uid: Uuid::nil() };
        let target =
            may_take(&self.this.desktops.node().name, self.read(&named).await.map_err(words)?.as_ref())?;
        let (this, leftover, uid) = (Arc::clone(self), kept.name.clone(), target.uid);
        let attaching = async move {
            // Only now nothing else is done with that desktop.
            let live = this.read(&named).await.map_err(words)?;
            let target = may_take(&this.this.desktops.node().name, live.as_ref())?;
            if target.uid != uid {
                return Err("it is another Desktop of that name by now".to_owned());
            }
            let name = template_of(&target, live.as_ref()).unwrap_or_default();
            let template = this.stores.templates.get(&target.namespace, name).await;
            let template = template.map_err(|error| error.to_string())?;
            let template =
                template.ok_or_else(|| format!("the template {name} of the Desktop does not exist"))?;
            let attached = this.this.desktops.attach(&leftover, &target, &template).await;
            attached.map_err(|error| error.to_string())?
        };
        self.this
            .desktops
            .alone(uid, attaching)
            .await
            .unwrap_or_else(|| Err("the desktop is being worked on".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_admin_may_have_spoken_of_is_not_erased() {
        let word = LeftoverWord { name: "a".into(), ..LeftoverWord::default() };
        let spec = GpuNodeSpec { leftovers: vec![word], ..GpuNodeSpec::default() };
        assert!(may_go(Some(&spec), "b") && !may_go(Some(&spec), "a"));
        assert!(!may_go(None, "b"), "what he says is not understood");
    }
}
