//! What nodes refused to give although it was decided: it is left out of what they offer until they say
//! something else of it, or for a time that grows. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use gpudesk_crds::{AllocationId, GpuNode, Refusal, gpu_node_status::Device, types::PciAddress};

use crate::placement::request::DesktopKey;

/// How long something is left out after its first refusal; after each further one twice as long.
const FIRST: Duration = Duration::from_mins(1);
/// The longest time.
const LONGEST: Duration = Duration::from_hours(1);
/// What a node says so soon after it refused is not about that.
const SOON: Duration = Duration::from_secs(10);
/// A desktop that was refused so often waits for news of a node that refused it.
const MOST: u32 = 3;

/// What nodes refused.
#[derive(Debug, Default)]
pub struct Refusals {
    nodes: BTreeMap<String, BTreeMap<PciAddress, Left>>,
    desktops: BTreeMap<DesktopKey, Refused>,
}

/// That a desktop was refused too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Until when it waits.
    pub until: Instant,
    /// How often it was.
    pub times: u32,
}

/// A card that is left out.
#[derive(Debug)]
struct Left {
    /// What its node said of it then.
    said: Device,
    times: u32,
    since: Instant,
    until: Instant,
    /// It was left out of what was offered last.
    out: bool,
    why: String,
}

/// A desktop that was refused.
#[derive(Debug)]
struct Refused {
    last: AllocationId,
    times: u32,
    /// The same, where one that names no card of the node counts as [`MOST`].
    weight: u32,
    /// What the desktop asked for, once it waits.
    made_of: Option<String>,
    by: BTreeSet<String>,
    until: Instant,
}

impl Refusals {
    /// A node refused a decision. Said again of the same decision it changes nothing; returns whether it
    /// was new.
    pub fn note(
        &mut self,
        desktop: &DesktopKey,
        decision: AllocationId,
        node: &str,
        object: Option<&GpuNode>,
        refusal: &Refusal,
        now: Instant,
    ) -> bool {
        let refused = self.desktops.entry(desktop.clone()).or_insert_with(|| Refused {
            last: decision,
            times: 0,
            weight: 0,
            made_of: None,
            by: BTreeSet::new(),
            until: now,
        });
        if refused.times > 0 && refused.last == decision {
            return false;
        }
        refused.last = decision;
        refused.by.insert(node.to_owned());
        let said = refusal.device.and_then(|device| Some((device, said(object?, device)?)));
        // Where no card of the node is named there is nothing to leave out: the desktop waits at once.
        refused.times = refused.times.saturating_add(1);
        refused.weight = refused.weight.saturating_add(if said.is_some() { 1 } else { MOST });
        refused.until = now + wait(refused.weight.saturating_sub(MOST - 1));
        let Some((device, said)) = said else { return true };
        let left = self.nodes.entry(node.to_owned()).or_default();
        let left = left.entry(device).or_insert_with(|| Left {
            said: said.clone(),
            times: 0,
            since: now,
            until: now,
            out: false,
            why: String::new(),
        });
        // What was decided before the first word came in counts once.
        if left.until <= now {
            let again = now.saturating_duration_since(left.until) < LONGEST;
            left.times = if again { left.times.saturating_add(1) } else { 1 };
            left.until = now + wait(left.times);
        }
        (left.said, left.since) = (said, now);
        left.why.clone_from(&refusal.message);
        true
    }

    /// A node is gone, with all that it said: that is news for the desktops that waited for some.
    pub fn node_gone(&mut self, node: &str, now: Instant) -> Vec<DesktopKey> {
        self.nodes.remove(node);
        self.end_waits(node, now)
    }

    fn end_waits(&mut self, node: &str, now: Instant) -> Vec<DesktopKey> {
        let waited = self.desktops.iter_mut().filter(|(_, refused)| refused.by.contains(node));
        waited
            .map(|(desktop, refused)| {
                refused.until = now;
                desktop.clone()
            })
            .collect()
    }

    /// Only these desktops are there.
    pub fn retain(&mut self, there: impl Fn(&DesktopKey) -> bool) {
        self.desktops.retain(|desktop, _| there(desktop));
    }

    /// A desktop runs, or is gone.
    pub fn forget(&mut self, desktop: &DesktopKey) {
        self.desktops.remove(desktop);
    }

    /// What a desktop that was refused too often waits for. One that asks for something else now does not wait.
    pub fn waits(&mut self, desktop: &DesktopKey, made_of: &str) -> Option<Wait> {
        let refused = self.desktops.get_mut(desktop).filter(|refused| refused.weight >= MOST)?;
        if refused.made_of.get_or_insert_with(|| made_of.to_owned()) != made_of {
            self.desktops.remove(desktop);
            return None;
        }
        Some(Wait { until: refused.until, times: refused.times })
    }

    /// A node was seen; returns the desktops that waited for news of it, when there is some.
    pub fn news(&mut self, object: &GpuNode, now: Instant) -> Vec<DesktopKey> {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let Some(left) = self.nodes.get_mut(name) else { return vec![] };
        let before = left.len();
        left.retain(|device, left| {
            now < left.since + SOON || said(object, *device).as_ref() == Some(&left.said)
        });
        if left.len() == before {
            return vec![];
        }
        self.end_waits(name, now)
    }

    /// What a node offers, less what it refused; the node as it is when there is nothing to leave out.
    pub fn offer(&mut self, object: &GpuNode, now: Instant) -> Option<GpuNode> {
        let name = object.metadata.name.as_deref()?;
        let left = self.nodes.get_mut(name)?;
        let mut less = None;
        for (device, left) in left.iter_mut() {
            left.out = left.until > now;
            if !left.out {
                continue;
            }
            let object = less.get_or_insert_with(|| object.clone());
            let devices = object.status.iter_mut().flat_map(|status| &mut status.devices);
            for card in devices.filter(|card| card.pci_address == *device) {
                card.unavailable.get_or_insert_with(|| format!("the node refused it: {}", left.why));
            }
        }
        if left.is_empty() {
            self.nodes.remove(name);
        }
        less
    }

    /// Nodes that are to offer again what was left out for long enough.
    ///
    /// What was offered again for so long that another refusal would be a first one is forgotten.
    pub fn over(&mut self, now: Instant) -> Vec<String> {
        self.nodes.retain(|_, left| {
            left.retain(|_, left| left.out || now < left.until + LONGEST);
            !left.is_empty()
        });
        let over = |left: &BTreeMap<_, Left>| left.values().any(|left| left.out && left.until <= now);
        self.nodes.iter().filter(|(_, left)| over(left)).map(|(node, _)| node.clone()).collect()
    }
}

fn wait(times: u32) -> Duration {
    FIRST.saturating_mul(1 << times.saturating_sub(1).min(6)).min(LONGEST)
}

fn said(object: &GpuNode, device: PciAddress) -> Option<Device> {
    object.status.as_ref()?.devices.iter().find(|card| card.pci_address == device).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(note: &str) -> GpuNode {
        let object = json!({
            "apiVersion": "gpudesk.dev/v1alpha1", "kind": "GpuNode", "metadata": {"name": "n"}, "spec": {},
            "status": {"devices": [
                {"pciAddress": "0000:41:00.0", "product": note, "vendorId": "10de", "deviceId": "2bb5"},
                {"pciAddress": "0000:42:00.0", "product": "p", "vendorId": "10de", "deviceId": "2bb5"},
            ]},
        });
        serde_json::from_value(object).unwrap()
    }

    fn id(number: u64) -> AllocationId {
        format!("{number}-00000000").parse().unwrap()
    }

    fn refusal(device: Option<&str>) -> Refusal {
        Refusal { device: device.map(|d| d.parse().unwrap()), cpus: None, message: "in use".into() }
    }

    fn unavailable(object: Option<&GpuNode>) -> Vec<bool> {
        let devices = object.unwrap().status.iter().flat_map(|status| &status.devices);
        devices.map(|device| device.unavailable.is_some()).collect()
    }

    #[expect(clippy::disallowed_methods, reason = "there is no other way to make an Instant")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_card_is_left_out_until_its_node_says_something_else_of_it_or_for_a_while() {
        let now = start();
        let key = DesktopKey::new("school", "anna");
        let mut refusals = Refusals::default();
        let card = refusal(Some("0000:41:00.0"));
        assert!(refusals.note(&key, id(1), "n", Some(&node("p")), &card, now));
        assert!(!refusals.note(&key, id(1), "n", Some(&node("p")), &card, now), "said twice");
        assert_eq!(unavailable(refusals.offer(&node("p"), now).as_ref()), [true, false]);
        assert_eq!(refusals.news(&node("another"), now), [], "too soon to be about it");
        let later = now + SOON;
        assert_eq!(refusals.news(&node("p"), later), []);
        assert_eq!(refusals.news(&node("another"), later), vec![key.clone()]);
        assert!(refusals.offer(&node("another"), later).is_none(), "there was news of the card");
        // Others that were decided before the first word came in make it no longer.
        for number in 2..9 {
            let other = DesktopKey::new("school", &number.to_string());
            assert!(refusals.note(&other, id(1), "n", Some(&node("p")), &card, now));
        }
        assert!(refusals.offer(&node("p"), now).is_some());
        assert!(refusals.over(now + FIRST / 2).is_empty());
        assert_eq!(refusals.over(now + FIRST), ["n"]);
        assert!(refusals.offer(&node("p"), now + FIRST).is_none());
        assert!(refusals.over(now + FIRST).is_empty());
        refusals.note(&key, id(3), "n", Some(&node("p")), &card, now + FIRST);
        assert!(
            refusals.offer(&node("p"), now + FIRST * 2).is_some(),
            "the second time it is left out longer"
        );
        assert!(refusals.offer(&node("p"), now + FIRST * 3).is_none());
        refusals.over(now + FIRST * 2 + LONGEST);
        assert_eq!(refusals.nodes.len(), 1, "one more would be the third");
        refusals.over(now + FIRST * 3 + LONGEST);
        assert!(refusals.nodes.is_empty(), "and now the first");
        refusals.note(&key, id(4), "n", Some(&node("p")), &card, now);
        assert!(refusals.node_gone("n", now).contains(&key));
        assert!(refusals.offer(&node("p"), now).is_none());
        refusals.retain(|_| false);
        assert!(refusals.desktops.is_empty());
    }

    #[test]
    fn who_was_refused_three_times_waits_longer_and_longer_or_for_news() {
        let now = start();
        let key = DesktopKey::new("school", "anna");
        let mut refusals = Refusals::default();
        let waits = |refusals: &mut Refusals, made_of: &str, now: Instant| {
            refusals.waits(&key, made_of).filter(|wait| wait.until > now)
        };
        let mut rests = vec![];
        for number in 1..=10 {
            refusals.note(&key, id(number), "n", Some(&node("p")), &refusal(Some("0000:41:00.0")), now);
            rests.push(waits(&mut refusals, "a", now).map_or(0, |wait| (wait.until - now).as_secs() / 60));
        }
        assert_eq!(rests, [0, 0, 1, 2, 4, 8, 16, 32, 60, 60]);
        refusals.news(&node("another"), now + SOON);
        assert_eq!(waits(&mut refusals, "a", now + SOON), None, "there is news");
        refusals.note(&key, id(11), "n", Some(&node("p")), &refusal(Some("0000:41:00.0")), now);
        assert!(waits(&mut refusals, "a", now).is_some());
        assert!(waits(&mut refusals, "b", now).is_none(), "it asks for something else");
        for odd in [refusal(None), refusal(Some("0000:99:00.0"))] {
            refusals.note(&key, id(12), "n", Some(&node("p")), &odd, now);
            assert!(refusals.offer(&node("p"), now + FIRST).is_none(), "no card of the node is named");
            let times = waits(&mut refusals, "b", now).map(|wait| wait.times);
            assert_eq!(times, Some(1), "so nothing keeps it from the same again");
            refusals.forget(&key);
            assert_eq!(waits(&mut refusals, "b", now), None, "it ran");
        }
    }
}
