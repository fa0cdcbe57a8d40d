//! What the owner's rules say of one card, also where several name it.
//!
//! Placement and the node read rules here and nowhere else, so they cannot differ. The order of the rules
//! means nothing: where two name a card, the more protective wins, and where neither is, nobody knows what
//! the owner wants, and the card is left alone.

use std::fmt::Debug;

use crate::{
    gpu_node::{DeviceMode, DevicePolicy, GpuNodeSpec, Management},
    gpu_node_status::Device,
    types::ShareMode,
};

/// What holds for a card.
#[derive(Clone, Debug, PartialEq)]
pub struct CardRule {
    /// The rule, or what several come to together.
    pub policy: DevicePolicy,
    /// What the owner should know of it, in one sentence that names the rules; absent where one rule names
    /// the card.
    pub note: Option<String>,
}

impl CardRule {
    /// Whether gpudesk leaves the card alone.
    pub fn keeps(&self) -> bool {
        keeps(&self.policy)
    }
}

impl DevicePolicy {
    /// Whether the rule names this card.
    pub fn selects(&self, card: &Device) -> bool {
        let same = |asked: &Option<String>, has: &Option<String>| match (asked, has) {
            (Some(asked), Some(has)) => asked.trim().eq_ignore_ascii_case(has.trim()),
            (Some(_) | None, _) => false,
        };
        same(&self.selector.uuid, &card.uuid)
            || same(&self.selector.serial, &card.serial)
            || self.selector.pci_address == Some(card.pci_address)
    }

    /// What the rule asks of a card that it cannot do: field, value, and what would be right.
    fn unmet(&self, card: &Device) -> Option<String> {
        let mode = self.mode.unwrap_or_default();
        let offered = [ShareMode::Passthrough, ShareMode::Vgpu, ShareMode::Mig, ShareMode::VirtualFunctions];
        let offered: Vec<ShareMode> = offered.into_iter().filter(|mode| card.offers(*mode)).collect();
        if mode != DeviceMode::Auto && !offered.iter().any(|offered| mode.allows(*offered)) {
            let why = card.supports.iter().find(|support| mode.allows(support.mode) && !support.supported);
            let why = why.and_then(|support| support.reason.as_ref());
            let why = why.map_or_else(String::new, |why| format!(" ({why})"));
            let right = if offered.is_empty() {
                "this card offers no mode now".to_owned()
            } else {
                let names: Vec<String> = offered.iter().map(ShareMode::to_string).collect();
                format!("this card offers {}", names.join(", "))
            };
            return Some(format!(
                "devices[{}].mode {mode:?} is not to be had{why}: {right}; until one of these, Auto or Host is written \
                 no desktop gets it",
                self.name
            ));
        }
        let settings = [
            ("persistenceMode", self.persistence_mode.is_some()),
            ("powerLimitWatts", self.power_limit_watts.is_some()),
            ("lockClocksMHz", self.lock_clocks_mhz.is_some()),
            ("vgpuParams", !self.vgpu_params.is_empty()),
        ];
        if let Some((field, _)) = settings.iter().find(|(_, is_set)| *is_set)
            && card.vendor_id != "10de"
        {
            return Some(format!(
                "devices[{}].{field} takes NVIDIA's driver, and this card is of the vendor {}: remove the field; until \
                 then no desktop gets the card",
                self.name, card.vendor_id
            ));
        }
        if self.virtual_functions.is_some() && card.vendor_id != "8086" {
            return Some(format!(
                "devices[{}].virtualFunctions takes Intel's driver xe, and this card is of the vendor {}: remove the field; \
                 until then no desktop gets the card",
                self.name, card.vendor_id
            ));
        }
        if let Some(said) = self.unmet_size(card, mode) {
            return Some(said);
        }
        let scheduler = self.vgpu_scheduler.filter(|_| mode.allows(ShareMode::Vgpu))?;
        let name = format!("{scheduler:?}");
        let offered = card.vgpu.as_ref().map_or(&[][..], |vgpu| &vgpu.schedulers);
        (card.offers(ShareMode::Vgpu) && !offered.contains(&name)).then(|| {
            let offered = if offered.is_empty() {
                "its driver tells of none (NVML tells: nodeDaemon.discovery.nvml)".to_owned()
            } else {
                format!("this card offers {}", offered.join(", "))
            };
            format!(
                "devices[{}].vgpuScheduler {name} is not to be had: {offered}; until one of these is written, or the field \
                 removed, no desktop gets the card",
                self.name
            )
        })
    }
}

impl DevicePolicy {
    /// A size of its memory region that a card cannot have, where it is to be given whole.
    fn unmet_size(&self, card: &Device, mode: DeviceMode) -> Option<String> {
        let asked = self.resizable_bar_mib.filter(|_| mode.allows(ShareMode::Passthrough))?;
        let offered = card.resizable_bar.as_ref().map_or(&[][..], |bar| &bar.sizes_mib);
        let wrong = card.offers(ShareMode::Passthrough) && !offered.contains(&asked);
        wrong.then(|| {
            let offered: Vec<String> = offered.iter().map(ToString::to_string).collect();
            let offered = if offered.is_empty() {
                "no memory region of this card can be resized: remove the field".to_owned()
            } else {
                format!("this card offers {}: write one of these", offered.join(", "))
            };
            let name = &self.name;
            format!(
                "devices[{name}].resizableBarMiB {asked} is not to be had: {offered}; until then no desktop gets the card"
            )
        })
    }
}

impl GpuNodeSpec {
    /// What the rules of `devices` say of `card`, one of the cards of the node; `None` when nothing.
    ///
    /// A rule that keeps a card by its UUID or serial number holds also while the card does not tell it,
    /// as without its driver: then it counts for each card that may be the one.
    #[expect(clippy::needless_pass_by_value, reason = "an iterator is given as it was made")]
    pub fn rule_for<'a>(
        &self,
        card: &Device,
        cards: impl Iterator<Item = &'a Device> + Clone,
    ) -> Option<CardRule> {
        let seen = |policy: &DevicePolicy| cards.clone().any(|card| policy.selects(card));
        let may_be = |policy: &DevicePolicy| keeps(policy) && may_name(policy, card) && !seen(policy);
        let named: Vec<&DevicePolicy> =
            self.devices.iter().filter(|policy| policy.selects(card) || may_be(policy)).collect();
        match named.as_slice() {
            [] => None,
            [only] if only.selects(card) => Some(CardRule { policy: (*only).clone(), note: None }),
            [only] => {
                let by = if only.selector.uuid.is_some() { "UUID" } else { "serial number" };
                let note = format!(
                    "devices[{}] keeps a card by its {by}, no card tells that one now, and this card tells none: it \
                     may be the one, so name it by its pciAddress",
                    only.name
                );
                Some(CardRule { policy: (*only).clone(), note: Some(note) })
            }
            _ => Some(together(named)),
        }
    }

    /// What the rules ask of `card` that it cannot do, a sentence each. No desktop gets such a card: what its owner
    /// wants of it cannot be had, and nobody asked for anything else. Nothing of one that is kept anyway.
    pub fn unmet<'a>(&self, card: &Device, cards: impl Iterator<Item = &'a Device> + Clone) -> Vec<String> {
        if self.rule_for(card, cards).is_none_or(|rule| rule.keeps()) {
            return vec![];
        }
        let named = self.devices.iter().filter(|policy| policy.selects(card));
        named.filter_map(|policy| policy.unmet(card)).collect()
    }
}

fn keeps(policy: &DevicePolicy) -> bool {
    policy.management == Some(Management::Unmanaged) || policy.mode == Some(DeviceMode::Host)
}

/// Whether the card could be the one that a rule names by what the card does not tell.
fn may_name(policy: &DevicePolicy, card: &Device) -> bool {
    let of_nvidia =
        |uuid: &String| !uuid.to_ascii_uppercase().starts_with("GPU-") || card.vendor_id == "10de";
    card.uuid.is_none() && policy.selector.uuid.as_ref().is_some_and(of_nvidia)
        || card.serial.is_none() && policy.selector.serial.is_some()
}

/// Several rules for one card.
fn together(mut all: Vec<&DevicePolicy>) -> CardRule {
    // The order in which they are written must not show.
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<String> = all.iter().map(|policy| format!("devices[{}]", policy.name)).collect();
    let names = names.join(" and ");
    let mut policy = DevicePolicy {
        management: all.iter().find_map(|policy| policy.management),
        max_temperature_celsius: all.iter().filter_map(|policy| policy.max_temperature_celsius).min(),
        ..all[0].clone()
    };
    if let Some(keeper) = all.iter().find(|policy| keeps(policy)) {
        policy.management = Some(Management::Unmanaged);
        let note = format!(
            "{names} name this card: devices[{}] keeps it from desktops, and that holds; let one rule name a card",
            keeper.name
        );
        return CardRule { policy, note: Some(note) };
    }
    let mut differ: Vec<String> = vec![];
    policy.mode =
        one("mode", all.iter().map(|p| p.mode.filter(|mode| *mode != DeviceMode::Auto)), &mut differ);
    policy.layout = one("layout", all.iter().map(|p| p.layout.clone()), &mut differ);
    policy.vgpu_placement = one("vgpuPlacement", all.iter().map(|p| p.vgpu_placement), &mut differ);
    policy.vgpu_scheduler = one("vgpuScheduler", all.iter().map(|p| p.vgpu_scheduler), &mut differ);
    let params = all.iter().map(|p| Some(p.vgpu_params.clone()).filter(|params| !params.is_empty()));
    policy.vgpu_params = one("vgpuParams", params, &mut differ).unwrap_or_default();
    policy.persistence_mode = one("persistenceMode", all.iter().map(|p| p.persistence_mode), &mut differ);
    policy.power_limit_watts = one("powerLimitWatts", all.iter().map(|p| p.power_limit_watts), &mut differ);
    policy.lock_clocks_mhz = one("lockClocksMHz", all.iter().map(|p| p.lock_clocks_mhz), &mut differ);
    policy.virtual_functions = one("virtualFunctions", all.iter().map(|p| p.virtual_functions), &mut differ);
    policy.resizable_bar_mib = one("resizableBarMiB", all.iter().map(|p| p.resizable_bar_mib), &mut differ);
    let note = if differ.is_empty() {
        format!("{names} name the same card and agree: all of them hold")
    } else {
        policy.management = Some(Management::Unmanaged);
        format!(
            "{names} name this card and differ in {}, so it is left alone: let one rule name a card",
            differ.join(", ")
        )
    };
    CardRule { policy, note: Some(note) }
}

/// The value that all who set the field set; its name goes to `differ` when they set several.
fn one<T: PartialEq + Debug>(
    field: &str,
    values: impl Iterator<Item = Option<T>>,
    differ: &mut Vec<String>,
) -> Option<T> {
    let mut values = values.flatten();
    let first = values.next()?;
    if values.all(|value| value == first) {
        Some(first)
    } else {
        differ.push(field.into());
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gpu_node::{DeviceSelector, VgpuPlacement, VgpuScheduler, VirtualFunctionQuotas},
        gpu_node_status::{ModeSupport, Placement, VgpuState},
    };

    fn card(address: &str, uuid: Option<&str>) -> Device {
        let mut card = Device::new(address.parse().unwrap(), "10de", "26b9");
        card.uuid = uuid.map(Into::into);
        card
    }

    fn by(name: &str, selector: DeviceSelector) -> DevicePolicy {
        DevicePolicy {
            name: name.into(),
            selector,
            management: None,
            mode: None,
            layout: None,
            vgpu_placement: None,
            vgpu_scheduler: None,
            vgpu_params: vec![],
            max_temperature_celsius: None,
            persistence_mode: None,
            power_limit_watts: None,
            resizable_bar_mib: None,
            lock_clocks_mhz: None,
            virtual_functions: None,
        }
    }

    fn by_uuid(name: &str, uuid: &str) -> DevicePolicy {
        by(name, DeviceSelector { uuid: Some(uuid.into()), ..DeviceSelector::default() })
    }

    fn by_address(name: &str, address: &str) -> DevicePolicy {
        by(name, DeviceSelector { pci_address: address.parse().ok(), ..DeviceSelector::default() })
    }

    /// What both orders of the rules say, which must be the same.
    fn rule(devices: [DevicePolicy; 2], cards: &[Device]) -> Option<CardRule> {
        let [a, b] = devices;
        let of =
            |devices| GpuNodeSpec { devices, ..GpuNodeSpec::default() }.rule_for(&cards[0], cards.iter());
        let found = of(vec![a.clone(), b.clone()]);
        assert_eq!(found, of(vec![b, a]));
        found
    }

    #[test]
    fn the_more_protective_of_two_rules_wins_in_any_order() {
        let cards = [card("0000:08:00.0", Some("GPU-1"))];
        for protect in [
            (|policy: &mut DevicePolicy| policy.management = Some(Management::Unmanaged))
                as fn(&mut DevicePolicy),
            |policy| policy.mode = Some(DeviceMode::Host),
        ] {
            let (mut keep, mut share) = (by_address("keep", "0000:08:00.0"), by_uuid("share", "gpu-1"));
            protect(&mut keep);
            share.vgpu_placement = Some(VgpuPlacement::MixedSize);
            let found = rule([keep, share], &cards).unwrap();
            assert!(found.keeps());
            let note = found.note.unwrap();
            assert!(note.contains("devices[keep] and devices[share]"), "{note}");
        }
    }

    #[test]
    fn rules_that_contradict_each_other_leave_the_card_alone_and_rules_that_do_not_hold_together() {
        let cards = [card("0000:08:00.0", Some("GPU-1"))];
        let (mut one, mut other) = (by_address("a", "0000:08:00.0"), by_uuid("b", "GPU-1"));
        one.mode = Some(DeviceMode::Vgpu);
        other.vgpu_placement = Some(VgpuPlacement::MixedSize);
        let found = rule([one.clone(), other.clone()], &cards).unwrap();
        assert!(!found.keeps() && found.note.is_some());
        assert_eq!((found.policy.mode, found.policy.vgpu_placement), (one.mode, other.vgpu_placement));
        other.mode = Some(DeviceMode::Passthrough);
        let found = rule([one, other], &cards).unwrap();
        assert!(found.keeps() && found.note.unwrap().contains("differ in mode"));
    }

    #[test]
    fn what_a_card_cannot_do_is_named_with_what_it_can() {
        let mut one = card("0000:08:00.0", Some("GPU-1"));
        let support = |mode, supported, reason: Option<&str>| ModeSupport {
            mode,
            supported,
            reason: reason.map(Into::into),
        };
        one.supports = vec![
            support(ShareMode::Passthrough, true, None),
            support(ShareMode::Vgpu, true, None),
            support(ShareMode::Mig, false, Some("the card has no MIG")),
        ];
        one.placements = vec![Placement::new("L40S-8Q", ShareMode::Vgpu, 8192, 6)];
        let unmet = |change: &dyn Fn(&mut DevicePolicy), card: &Device| {
            let mut rule = by_uuid("a", "GPU-1");
            change(&mut rule);
            let spec = GpuNodeSpec { devices: vec![rule], ..GpuNodeSpec::default() };
            spec.unmet(card, std::iter::once(card))
        };
        for mode in [DeviceMode::Auto, DeviceMode::Passthrough, DeviceMode::Vgpu, DeviceMode::Host] {
            assert_eq!(unmet(&|rule| rule.mode = Some(mode), &one), Vec::<String>::new(), "{mode:?}");
        }
        let mig = unmet(&|rule| rule.mode = Some(DeviceMode::Mig), &one);
        for part in ["devices[a].mode Mig", "(the card has no MIG)", "offers Passthrough, Vgpu;"] {
            assert!(mig.len() == 1 && mig[0].contains(part), "{mig:?}");
        }
        // A mode in which nothing is offered is none, though nobody denies it.
        one.placements.clear();
        let vgpu = unmet(&|rule| rule.mode = Some(DeviceMode::Vgpu), &one);
        assert!(vgpu[0].contains("offers Passthrough;"), "{vgpu:?}");
        let kept = |rule: &mut DevicePolicy| {
            (rule.mode, rule.management) = (Some(DeviceMode::Mig), Some(Management::Unmanaged));
        };
        assert_eq!(unmet(&kept, &one), Vec::<String>::new(), "it is kept anyway");

        one.placements = vec![Placement::new("L40S-8Q", ShareMode::Vgpu, 8192, 6)];
        let fixed = |rule: &mut DevicePolicy| rule.vgpu_scheduler = Some(VgpuScheduler::FixedShare);
        one.vgpu = Some(VgpuState { scheduler: Some("BestEffort".into()), ..VgpuState::default() });
        let said = unmet(&fixed, &one);
        assert!(said[0].contains("devices[a].vgpuScheduler FixedShare") && said[0].contains("tells of none"));
        one.vgpu = None;
        assert!(unmet(&fixed, &one)[0].contains("tells of none"), "what is not seen is not to be had");
        let offers = |names: &[&str]| {
            let schedulers = names.iter().map(|name| (*name).to_owned()).collect();
            Some(VgpuState { scheduler: Some("BestEffort".into()), schedulers, ..VgpuState::default() })
        };
        one.vgpu = offers(&["BestEffort", "EqualShare"]);
        assert!(unmet(&fixed, &one)[0].contains("this card offers BestEffort, EqualShare;"));
        one.vgpu = offers(&["BestEffort", "FixedShare"]);
        assert_eq!(unmet(&fixed, &one), Vec::<String>::new());
        let whole = |rule: &mut DevicePolicy| {
            (rule.mode, rule.vgpu_scheduler) =
                (Some(DeviceMode::Passthrough), Some(VgpuScheduler::EqualShare));
        };
        assert_eq!(unmet(&whole, &one), Vec::<String>::new(), "it has no vGPUs");
    }

    #[test]
    fn a_card_that_does_not_tell_its_uuid_now_may_be_the_one_that_is_kept() {
        let mut keep = by_uuid("keep", "GPU-1");
        keep.management = Some(Management::Unmanaged);
        let other = by_address("other", "0000:ff:00.0");
        let silent = card("0000:08:00.0", None);
        let found =
            rule([keep.clone(), other.clone()], &[silent.clone(), card("0000:09:00.0", Some("GPU-2"))]);
        assert!(found.unwrap().keeps());
        let seen = [silent.clone(), card("0000:09:00.0", Some("GPU-1"))];
        assert_eq!(rule([keep.clone(), other.clone()], &seen), None, "the one that is meant is seen");
        let shared = by_address("share", "0000:08:00.0");
        assert!(rule([keep.clone(), shared], std::slice::from_ref(&silent)).unwrap().keeps());
        let of_amd = Device { vendor_id: "1002".into(), ..silent };
        assert_eq!(rule([keep, other], &[of_amd]), None, "no card of NVIDIA's");
    }

    #[test]
    fn quotas_of_intels_driver_keep_a_card_of_another_vendor() {
        let address = "0000:41:00.0";
        let mut policy = by_address("a", address);
        policy.virtual_functions =
            Some(VirtualFunctionQuotas { exec_quantum_ms: Some(20), ..Default::default() });
        let spec = GpuNodeSpec { devices: vec![policy], ..GpuNodeSpec::default() };
        for (vendor, unmet) in [("8086", 0), ("1002", 1)] {
            let card = Device::new(address.parse().unwrap(), vendor, "56c0");
            let said = spec.unmet(&card, [&card].into_iter());
            assert_eq!(said.len(), unmet, "{said:?}");
            assert!(
                said.iter()
                    .all(|said| said.starts_with("devices[a].virtualFunctions takes Intel's driver xe"))
            );
        }
    }

    #[test]
    fn a_size_that_a_card_does_not_offer_is_named_with_those_that_it_does() {
        let address = "0000:41:00.0";
        let mut policy = by_address("a", address);
        policy.resizable_bar_mib = Some(300);
        let mut spec = GpuNodeSpec { devices: vec![policy], ..GpuNodeSpec::default() };
        let mut card = Device::new(address.parse().unwrap(), "1002", "744c");
        card.supports = vec![ModeSupport { mode: ShareMode::Passthrough, supported: true, reason: None }];
        let said = |spec: &GpuNodeSpec, card: &Device| spec.unmet(card, std::iter::once(card));
        assert!(said(&spec, &card)[0].contains("no memory region of this card can be resized"));
        card.resizable_bar =
            Some(crate::gpu_node_status::ResizableBar { index: 0, sizes_mib: vec![256, 32768] });
        let text = &said(&spec, &card)[0];
        assert!(
            text.contains("devices[a].resizableBarMiB 300") && text.contains("offers 256, 32768"),
            "{text}"
        );
        spec.devices[0].resizable_bar_mib = Some(32768);
        assert_eq!(said(&spec, &card), Vec::<String>::new());
    }

    #[test]
    fn settings_of_nvidias_driver_keep_a_card_of_another_vendor() {
        let address = "0000:41:00.0";
        let mut policy = by_address("a", address);
        policy.power_limit_watts = Some(250);
        let spec = GpuNodeSpec { devices: vec![policy], ..GpuNodeSpec::default() };
        for (vendor, unmet) in [("10de", 0), ("1002", 1)] {
            let card = Device::new(address.parse().unwrap(), vendor, "26b9");
            let said = spec.unmet(&card, [&card].into_iter());
            assert_eq!(said.len(), unmet, "{said:?}");
            assert!(
                said.iter().all(|said| said.starts_with("devices[a].powerLimitWatts takes NVIDIA's driver"))
            );
        }
    }
}
