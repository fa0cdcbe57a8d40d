//! What is told of machines that stray: in the status of the node, and once in the log.

use std::sync::PoisonError;

use gpudesk_crds::{
    GpuNodeSpec,
    gpu_node_status::{self, StrayStanding},
};
use jiff::Timestamp;

use super::Known;
use super::{Judged, Looking, OrphanError, here::Here};
use crate::{
    desktop::{
        standing::Verdict,
        stray::{self, standing_of},
    },
    host::folder::Owner,
};

impl Looking {
    /// Lists the machines that stray, with what is answered to words about them.
    pub(super) fn list(
        &self,
        judged: &[Judged],
        spec: Option<&GpuNodeSpec>,
        known: &mut Known,
        now: Timestamp,
    ) {
        let before = |it: &Judged| it.here.domain.is_some() && known.strays.contains_key(&it.here.owner.uid);
        let listed: Vec<&Judged> = judged
            .iter()
            .filter(|it| match &it.verdict {
                Ok(verdict) => it.here.is_listed(Some(verdict)),
                Err(_) => it.here.is_listed(None) || before(it),
            })
            .collect();
        let remarks: Vec<String> = listed.iter().filter_map(|judged| judged.here.remark()).collect();
        let strays = listed.into_iter().filter_map(|judged| {
            let uid = judged.here.owner.uid;
            let stray = match &judged.verdict {
                Ok(verdict) => judged.here.stray(standing_of(verdict)?, now),
                Err(error) => {
                    // What was known of it stands; of one that was nobody's before, only what failed is known.
                    let stray = judged.here.stray(StrayStanding::Unclear, now);
                    let before = known.strays.get(&uid).filter(|it| it.allocation == stray.allocation);
                    match (before, error) {
                        (Some(before), _) => before.clone(),
                        (None, OrphanError::Changing) => return None,
                        (None, _) => stray,
                    }
                }
            };
            Some((uid, stray))
        });
        known.strays = strays.collect();
        self.this.desktops.set_strays(known.strays.keys().copied().collect());
        let said = spec.into_iter().flat_map(|spec| &spec.strays).filter_map(|word| {
            let judged = judged.iter().find(|judged| judged.here.owner.uid.to_string() == word.uid);
            let answer = match judged {
                Some(Judged { here, verdict: Ok(verdict) }) => {
                    stray::answer(word, Some((verdict, here.trace())))
                }
                Some(Judged { verdict: Err(error), .. }) => Some(error.to_string()),
                None => stray::answer(word, None),
            };
            Some(format!("strays[{}]: {}", word.uid, answer?))
        });
        self.show(known.strays.values().cloned().collect(), remarks, said.collect());
    }

    pub(super) fn show(
        &self,
        mut strays: Vec<gpu_node_status::Stray>,
        remarks: Vec<String>,
        said: Vec<String>,
    ) {
        strays.sort_by(|a, b| a.uid.cmp(&b.uid));
        self.this.seen.send_if_modified(|seen| {
            // When it was first seen is kept by who writes it.
            let same = |a: &gpu_node_status::Stray, b: &gpu_node_status::Stray| {
                gpu_node_status::Stray { since: b.since.clone(), ..a.clone() } == *b
            };
            let before = seen.strays.as_ref();
            let old = before.is_some_and(|before| {
                before.len() == strays.len() && before.iter().zip(&strays).all(|(a, b)| same(a, b))
            });
            let new = !old || seen.remarks != remarks || seen.strays_said != said;
            if new {
                (seen.strays, seen.remarks, seen.strays_said) = (Some(strays), remarks, said);
            }
            new
        });
    }

    pub(super) fn tell_of(&self, here: &Here, verdict: &Verdict) {
        let words = match verdict {
            Verdict::Current | Verdict::OlderHere => return,
            _ if here.is_saved() => "its memory was saved on the host: left as it is",
            Verdict::Newer { .. } => {
                "what is here of it is for a decision that is newer than the present one, or was never heard of: \
                 left as it is"
            }
            Verdict::Unallocated => "it is allocated to no node and its machine runs here: left running",
            // The object may have been lost, and not the desktop.
            Verdict::NoDesktop => "there is no such Desktop and its machine runs here: left running",
            Verdict::Unclear { .. } => "whether it is this node's cannot be understood: left as it is",
            Verdict::MovedOn(_) => return,
        };
        self.tell(&here.owner, words);
    }

    /// Logs `words` of a desktop once, for as long as they are true.
    pub(super) fn tell(&self, owner: &Owner, words: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.insert((owner.uid, words.to_owned())) {
            let desktop = format!("{}/{}", owner.namespace, owner.name);
            tracing::warn!(desktop, uid = %owner.uid, "{words}");
        }
    }
}
