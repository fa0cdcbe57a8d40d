//! Parameters of a vGPU in the driver's own words: what of them reaches its file, and when.

use gpudesk_crds::gpu_profile::{PLACEMENT_PARAM, is_vgpu_param, params_not_allowed};
use gpudesk_crds::types::PciAddress;

use crate::{
    devices::{journal::Entry, refusal::Refusal},
    host::gpu_driver::Setup,
};

/// Whether the owner of the card allows what is asked for; without asking whether the driver knows it.
pub(in crate::devices) fn allow(card: PciAddress, setup: &Setup, allowed: &[String]) -> Result<(), Refusal> {
    let refused = params_not_allowed(&setup.params, allowed);
    if refused.is_empty() {
        return Ok(());
    }
    let allowed = if allowed.is_empty() { "none".into() } else { allowed.join(", ") };
    Err(Refusal::Unknown(format!(
        "vgpu.params of the GpuProfile has {}, and the owner of {card} allows {allowed} (spec.devices[].vgpuParams of the \
         GpuNode)",
        refused.join(", ")
    )))
}

/// What the file of a vGPU has to tell, its start included where that is given there; `None` when nothing is to be
/// written. No other text is ever written.
pub(super) fn text(entry: &Entry, start: Option<i32>) -> Result<Option<String>, Refusal> {
    let params = &entry.setup.params;
    if params.is_empty() {
        return Ok(None);
    }
    let odd = |(key, value): &(&String, &String)| {
        !is_vgpu_param(key) || !is_vgpu_param(value) || *key == PLACEMENT_PARAM
    };
    if let Some((key, value)) = params.iter().find(odd) {
        return Err(Refusal::Unknown(format!(
            "vgpu.params has {key:?}: {value:?}, and keys and values are 1 to 64 letters, digits and . _ - \
             ({PLACEMENT_PARAM} is gpudesk's)"
        )));
    }
    let start = start.map(|start| format!("{PLACEMENT_PARAM}={start}"));
    let words = params.iter().map(|(key, value)| format!("{key}={value}"));
    Ok(Some(start.into_iter().chain(words).collect::<Vec<_>>().join(",")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use gpudesk_crds::types::ShareMode;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        host::gpu_driver::{InstanceKey, WantedInstance},
        partition::Share,
    };

    proptest! {
        /// Whatever is asked for: either nothing is written, or a text that is read as exactly that.
        #[test]
        fn what_is_written_says_no_more_than_was_asked_for(
            params in prop::collection::btree_map(".{0,6}|[a-z_]{1,8}", ".{0,6}|[0-9.]{1,3}", 0..4),
            start in proptest::option::of(0..48_i32),
            allowed in prop::collection::vec("[a-z_]{1,8}(=[0-9]{1,2})?", 0..4),
        ) {
            let card = "0000:41:00.0".parse().unwrap();
            let key = InstanceKey { desktop_uid: "d".into(), request: "r".into() };
            let share = Share { mode: ShareMode::Vgpu, type_name: "T".into(), vgpu_type: None, start };
            let setup = Setup { scheduler: None, params: params.clone() };
            let is_allowed = allow(card, &setup, &allowed).is_ok();
            let wanted = WantedInstance {
                key,
                owner: "o".into(),
                allocation: None,
                card,
                share,
                setup,
                partition: None,
                what: crate::host::gpu_driver::What::Card,
            };
            let entry = Entry::new(&wanted, None);
            let plain = |text: &String| is_vgpu_param(text);
            let odd = params.iter().any(|(key, value)| !plain(key) || !plain(value) || key == PLACEMENT_PARAM);
            prop_assert!(!(is_allowed && odd), "nothing odd is ever allowed");
            match text(&entry, start) {
                Err(_) => prop_assert!(odd),
                Ok(None) => prop_assert!(params.is_empty()),
                Ok(Some(written)) => {
                    let read = written.split(',').map(|one| one.split_once('=').unwrap());
                    let mut read: BTreeMap<String, String> =
                        read.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
                    prop_assert_eq!(read.remove(PLACEMENT_PARAM), start.map(|start| start.to_string()));
                    prop_assert_eq!(read, params);
                }
            }
        }
    }
}
