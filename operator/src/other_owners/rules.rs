//! Taints on published devices that are cards of gpudesk: a `DeviceTaintRule` for each, which belongs to the `GpuNode`. With
//! the effect `NoSchedule` new pods do not get the device; `NoExecute`, which ends those that have it, is never written.
//!
//! A rule is named by what it says, so it is made and removed and never changed. The API is `resource.k8s.io/v1` in Kubernetes
//! 1.37, `v1beta2` in 1.36 and `v1alpha3` from 1.33, the last two by feature gates (KEP 5055); what is written here is the same
//! in all of them.
//!
//! A rule selects by driver, pool and device and by no node, so a node could have devices of another node tainted by naming
//! them in slices of its own. A rule is made only where all slices of a pool are of the node.

use std::collections::{BTreeMap, BTreeSet};

use gpudesk_crds::{GpuNode, OPERATOR_FIELD_MANAGER, types::PciAddress};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams},
    core::{ApiResource, DynamicObject},
};
use ring::digest;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Known, OtherOwners, Published, Sight, judge};
use crate::{
    secret_access::{NODE_LABEL, owner_reference},
    writer::{WriteError, Writer},
};

/// Key of the taint.
pub const TAINT: &str = "gpudesk.dev/managed";
/// Its effect.
const EFFECT: &str = "NoSchedule";
/// What names of rules begin with.
pub(super) const PREFIX: &str = "gpudesk-";
/// Rules of a node, at most; its cards have them by turns.
pub const MOST: usize = 64;
/// Rules that a round makes, at most: the watch shows them, and that begins the next round.
pub(super) const ROUND: usize = 16;
/// Kind, for figures.
const KIND: &str = "DeviceTaintRule";

/// The name of the rule for a device on a node that has this UID.
pub fn name(uid: &str, device: &Published) -> String {
    let mut hash = digest::Context::new(&digest::SHA256);
    for part in [uid, &device.driver, &device.pool, &device.device] {
        hash.update(part.as_bytes());
        hash.update(&[0]);
    }
    let hash = hash.finish();
    let first = hash.as_ref().first_chunk().copied().unwrap_or_default();
    format!("{PREFIX}{:032x}", u128::from_be_bytes(first))
}

/// What a rule for a device says.
pub fn spec(device: &Published) -> Value {
    json!({
        "deviceSelector": {"driver": device.driver, "pool": device.pool, "device": device.device},
        "taint": {"key": TAINT, "effect": EFFECT},
    })
}

/// Whether a rule says what one of ours does.
pub(super) fn is_sound(spec: &Value) -> bool {
    let selector = spec["deviceSelector"].as_object();
    let names = ["driver", "pool", "device"];
    // The API server may write down fields that select nothing.
    selector.is_some_and(|selector| {
        names.iter().all(|name| selector.get(*name).is_some_and(Value::is_string))
            && selector.iter().all(|(name, value)| names.contains(&name.as_str()) || value.is_null())
    }) && spec["taint"]["key"] == TAINT
        && spec["taint"]["effect"] == EFFECT
        && spec["taint"]["value"].as_str().unwrap_or_default().is_empty()
}

/// The rules that a node should have, by name. Its cards have them by turns, and of each card first those that are there: who
/// publishes a card under many names takes no rule from another card, and none that stands from the same card before that
/// has more than its share.
pub fn wanted(node: &GpuNode, known: &Known) -> BTreeMap<String, Published> {
    let uid = node.uid().unwrap_or_default();
    let mut cards: BTreeMap<PciAddress, BTreeSet<(bool, Published, String)>> = BTreeMap::new();
    for (card, device) in judge::managed(node, &known.published) {
        if is_alone(&device, known) {
            let name = name(&uid, &device);
            let missing = known.rules.as_ref().is_none_or(|there| !there.contains(&name));
            cards.entry(card).or_default().insert((missing, device, name));
        }
    }
    let mut turns: Vec<_> = cards.into_values().map(BTreeSet::into_iter).collect();
    let mut wanted: BTreeMap<String, Published> = BTreeMap::new();
    while !turns.is_empty() {
        turns.retain_mut(|devices| {
            if wanted.len() == MOST {
                return false;
            }
            let next = devices.find(|(_, _, name)| !wanted.contains_key(name));
            let Some((_, device, name)) = next else { return false };
            wanted.insert(name, device);
            true
        });
    }
    wanted
}

/// Whether the pool of a device is of no other node.
pub fn is_alone(device: &Published, known: &Known) -> bool {
    known.alone.contains(&(device.driver.clone(), device.pool.clone()))
}

impl OtherOwners {
    /// Removes the rules of a node that are not wanted any more and makes those that are missing, some each round. Does nothing
    /// while slices or rules are not all known, or the node says nothing of its cards: what is not seen is not gone.
    ///
    /// # Errors
    /// Those of the writes, but for refusals, which are said once.
    pub async fn bring_rules(&self, node: &GpuNode, writer: &Writer) -> Result<(), WriteError> {
        let Some((api, missing, remove)) = self.rules_to_write(node) else { return Ok(()) };
        let rules: Api<DynamicObject> = Api::all_with(writer.client(), &api);
        let params =
            PostParams { field_manager: Some(OPERATOR_FIELD_MANAGER.into()), ..PostParams::default() };
        let node_name = node.name_any();
        let mut refusal = None;
        for name in remove {
            match writer.counted(KIND, rules.delete(&name, &DeleteParams::default()).await.map(|_| ())) {
                // Until the watch shows that it is gone it is there; then its node is woken, which may want it anew.
                Ok(()) | Err(WriteError::Gone) => {
                    tracing::info!(node = node_name, rule = name, "the taint of a device is taken away");
                }
                Err(error) => {
                    refusal = Some(refused(error)?);
                    break;
                }
            }
        }
        let mut made = 0;
        for (name, device) in missing {
            if made == ROUND {
                break;
            }
            // Before the watch can show it, and that it is gone.
            self.lock().made.insert(name.clone());
            let answer = rules.create(&params, &object(node, &api, &name, &device)).await.map(|_| ());
            let answer = writer.counted(KIND, answer);
            if answer.is_err() {
                self.lock().made.remove(&name);
            }
            match answer {
                Ok(()) => {
                    tracing::info!(node = node_name, rule = name, driver = device.driver, pool = device.pool,
                        device = device.device, address = %device.address, "a device that is a card of gpudesk is tainted");
                    made += 1;
                }
                // There already. If it is ours the watch shows it, and only then is the device tainted.
                Err(WriteError::Conflict) => {
                    tracing::debug!(node = node_name, rule = name, "a DeviceTaintRule of this name is there");
                }
                Err(error) => {
                    refusal = Some(refused(error)?);
                    break;
                }
            }
        }
        self.note(&node_name, refusal);
        Ok(())
    }

    /// What is to be made and to be removed.
    fn rules_to_write(
        &self,
        node: &GpuNode,
    ) -> Option<(ApiResource, BTreeMap<String, Published>, Vec<String>)> {
        node.status.as_ref()?;
        let known = self.known(&node.name_any());
        let mut inner = self.lock();
        let api = inner.rules_api.clone().filter(|_| self.taints && known.slices == Sight::Whole)?;
        let wanted = wanted(node, &known);
        let uid = node.uid().unwrap_or_default();
        let is_taken = |(_, device): &(PciAddress, Published)| {
            !is_alone(device, &known) && inner.rules.contains_key(&name(&uid, device))
        };
        let taken = judge::managed(node, &known.published).iter().any(is_taken);
        let pauses = inner.pauses(&node.name_any(), taken, Instant::now());
        let there = inner.rules.iter().filter(|(_, rule)| rule.node == node.name_any());
        // One that somebody changed is removed, and made anew once it is gone.
        let remove = there.filter(|(name, rule)| !rule.sound || !wanted.contains_key(*name));
        let remove = remove.map(|(name, _)| name.clone()).collect();
        let is_there = |name: &String| inner.rules.contains_key(name) || inner.made.contains(name);
        let make = wanted.into_iter().filter(|(name, _)| !pauses && !is_there(name)).collect();
        Some((api, make, remove))
    }

    /// Keeps what the API server refused in a round over a node, where it did.
    fn note(&self, node: &str, refusal: Option<(u16, String)>) {
        let mut inner = self.lock();
        let Some((code, text)) = refusal else {
            inner.refusals.remove(node);
            if inner.refusals.is_empty() {
                inner.refused = None;
            }
            return;
        };
        if inner.refused.as_ref() != Some(&text) {
            tracing::warn!(
                error = text,
                "DeviceTaintRules are not written: see the ClusterRole gpudesk-operator, or set the chart value operator.deviceTaintRules to false"
            );
            inner.refused = Some(text);
        }
        if inner.refusals.insert(node.to_owned(), code) != Some(code) {
            inner.news.insert(node.to_owned());
        }
    }
}

/// The API server's code and words, where it refused.
fn refused(error: WriteError) -> Result<(u16, String), WriteError> {
    let text = error.to_string();
    match error {
        WriteError::Refused(cause) => match cause.as_ref() {
            kube::Error::Api(status) => Ok((status.code, text)),
            _ => Ok((0, text)),
        },
        other => Err(other),
    }
}

/// A rule as it is made.
fn object(node: &GpuNode, api: &ApiResource, name: &str, device: &Published) -> DynamicObject {
    let mut object = DynamicObject::new(name, api).data(json!({"spec": spec(device)}));
    // A label holds 63 characters, a node's name more.
    let label = Some(node.name_any()).filter(|name| name.len() <= 63).unwrap_or_default();
    object.metadata.labels = Some(BTreeMap::from([(NODE_LABEL.to_owned(), label)]));
    object.metadata.owner_references = owner_reference(node).map(|owner| vec![owner]);
    object
}
