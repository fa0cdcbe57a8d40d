//! A status as the API server would take it.
//!
//! The definition of the kind is applied to what is about to be written, so that one odd value costs
//! itself and not the whole status. What is mended is named, field and value. The definition has no
//! validation rules below `status`; patterns are kept by the types whose text they describe.

use std::{collections::BTreeSet, sync::LazyLock};

use gpudesk_crds::{GpuNodeStatus, schema};
use serde_json::Value;

/// Most sentences; the first ones say enough.
const MOST: usize = 16;

/// The schema of `GpuNode.status`.
static STATUS: LazyLock<Value> = LazyLock::new(|| {
    let [node, ..] = schema::all();
    let version = node.spec.versions.first().and_then(|version| version.schema.as_ref());
    let schema = version.and_then(|version| version.open_api_v3_schema.as_ref());
    let schema = schema.and_then(|schema| serde_json::to_value(schema).ok()).unwrap_or_default();
    schema["properties"]["status"].clone()
});

/// The status without what the API server would refuse, and a sentence for each thing that was left out
/// or cut.
pub(super) fn mended(status: GpuNodeStatus) -> (GpuNodeStatus, Vec<String>) {
    let Ok(mut value) = serde_json::to_value(&status) else { return (status, vec![]) };
    let mut faults = vec![];
    let fits = mend(&STATUS, &mut value, "status", &mut faults);
    if fits && faults.is_empty() {
        return (status, faults);
    }
    let mended =
        if fits { serde_json::from_value(value).unwrap_or_default() } else { GpuNodeStatus::default() };
    faults.truncate(MOST);
    (mended, faults)
}

/// Makes `value` fit; false when only leaving it out helps.
fn mend(schema: &Value, value: &mut Value, path: &str, faults: &mut Vec<String>) -> bool {
    match value {
        Value::Object(_) => mend_fields(schema, value, path, faults),
        Value::Array(_) => mend_entries(schema, value, path, faults),
        Value::String(text) => {
            let count = text.chars().count() as u64;
            let choices = schema["enum"].as_array();
            if choices.is_some_and(|choices| !choices.iter().any(|choice| choice == text)) {
                return refuse(faults, path, text, "not one of the values that are possible");
            }
            if schema["minLength"].as_u64().is_some_and(|least| count < least) {
                return refuse(faults, path, text, "too short");
            }
            let Some(most) = schema["maxLength"].as_u64().filter(|most| count > *most) else { return true };
            if schema["pattern"].is_string() || schema["format"].is_string() {
                return refuse(faults, path, text, &format!("longer than {most} characters"));
            }
            faults.push(format!("{path} has {count} characters: it is cut to {most}"));
            *text = text.chars().take(usize::try_from(most).unwrap_or(usize::MAX)).collect();
            true
        }
        Value::Number(number) => {
            let given = number.as_f64().unwrap_or(f64::NAN);
            let least = schema["minimum"].as_f64().unwrap_or(f64::MIN);
            let most = schema["maximum"].as_f64().unwrap_or(f64::MAX);
            (least..=most).contains(&given)
                || refuse(faults, path, &number.to_string(), &format!("outside of {least} to {most}"))
        }
        Value::Null | Value::Bool(_) => true,
    }
}

fn refuse(faults: &mut Vec<String>, path: &str, value: &str, why: &str) -> bool {
    let value: String = value.chars().take(40).collect();
    faults.push(format!("{path} is {value:?}, {why}: it is left out"));
    false
}

fn mend_fields(schema: &Value, value: &mut Value, path: &str, faults: &mut Vec<String>) -> bool {
    let (Some(properties), Some(object)) = (schema["properties"].as_object(), value.as_object_mut()) else {
        return true;
    };
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut fits = true;
    object.retain(|name, value| {
        let Some(schema) = properties.get(name) else { return true };
        let keep = mend(schema, value, &format!("{path}.{name}"), faults);
        fits &= keep || !required.contains(&name.as_str());
        keep
    });
    fits
}

fn mend_entries(schema: &Value, value: &mut Value, path: &str, faults: &mut Vec<String>) -> bool {
    let Some(items) = value.as_array_mut() else { return true };
    let mut number = 0;
    items.retain_mut(|item| {
        let path = format!("{path}[{number}]");
        number += 1;
        mend(&schema["items"], item, &path, faults)
    });
    let keys: Vec<&str> = schema["x-kubernetes-list-map-keys"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let is_set = schema["x-kubernetes-list-type"] == "set";
    if !keys.is_empty() || is_set {
        let mut seen: BTreeSet<String> = BTreeSet::new();
        items.retain(|item| {
            let identity: Value =
                if is_set { item.clone() } else { keys.iter().map(|key| item[*key].clone()).collect() };
            let identity = identity.to_string();
            if seen.contains(&identity) {
                let shown: String = identity.chars().take(80).collect();
                faults.push(format!("{path} has {shown} twice: the first counts"));
                return false;
            }
            seen.insert(identity)
        });
    }
    if let Some(most) = schema["maxItems"].as_u64().filter(|most| items.len() as u64 > *most) {
        faults.push(format!("{path} has {} entries: the first {most} are shown", items.len()));
        items.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    }
    let count = items.len() as u64;
    schema["minItems"]
        .as_u64()
        .is_none_or(|least| count >= least || refuse(faults, path, &format!("{count} entries"), "too few"))
}

#[cfg(test)]
mod tests {
    use gpudesk_crds::gpu_node_status::{CacheDomain, Device, Host, HostCpus, NumaCell};
    use proptest::prelude::*;

    use super::*;

    fn cell(id: i32) -> NumaCell {
        NumaCell { id, cores: vec!["0".parse().unwrap()], ..NumaCell::default() }
    }

    fn of_cells(numa_cells: Vec<NumaCell>) -> GpuNodeStatus {
        GpuNodeStatus { numa_cells, ..GpuNodeStatus::default() }
    }

    #[test]
    fn what_fits_stays_as_it_is() {
        let status = of_cells(vec![cell(0), cell(1)]);
        assert_eq!(mended(status.clone()), (status, vec![]));
    }

    #[test]
    fn a_key_that_comes_twice_is_named_and_taken_once() {
        let cache = CacheDomain { level: 3, ..CacheDomain::default() };
        let status = of_cells(vec![NumaCell { caches: vec![cache.clone(), cache], ..cell(0) }]);
        let (mended, faults) = mended(status);
        assert_eq!(mended.numa_cells[0].caches.len(), 1);
        assert_eq!(faults, ["status.numaCells[0].caches has [\"\"] twice: the first counts"]);
    }

    #[test]
    fn each_bound_is_kept_and_said() {
        let mut device = Device::new("0000:41:00.0".parse().unwrap(), "10de", "26b9");
        device.driver = Some("x".repeat(65));
        device.module_id = Some(-1);
        device.bars = vec![gpudesk_crds::gpu_node_status::Bar { index: 6, size_bytes: 1, unassigned: false }];
        let mut status = of_cells(vec![NumaCell { sockets: (0..2000).collect(), ..cell(0) }, cell(-1)]);
        status.devices = vec![device];
        let (mended, faults) = mended(status);
        assert_eq!(faults.len(), 5, "{faults:?}");
        let card = &mended.devices[0];
        assert_eq!((card.driver.as_ref().unwrap().len(), card.module_id, card.bars.len()), (64, None, 0));
        assert_eq!((mended.numa_cells.len(), mended.numa_cells[0].sockets.len()), (1, 1024));
        assert!(faults.iter().any(|fault| fault.contains("status.numaCells[1].id is \"-1\"")), "{faults:?}");
    }

    #[test]
    fn the_longest_set_of_cpus_is_short_enough() {
        let online = (0..4096).map(|cpu| cpu * 2).collect();
        let cpus = Some(HostCpus { online, ..HostCpus::default() });
        let status =
            GpuNodeStatus { host: Some(Host { cpus, ..Host::default() }), ..GpuNodeStatus::default() };
        assert_eq!(mended(status).1, [""; 0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_was_mended_fits(
            ids in proptest::collection::vec(-2_i32..3, 0..5),
            text in "\\PC{0,700}",
            levels in proptest::collection::vec(-1_i32..12, 0..6),
        ) {
            let caches = levels.iter().map(|level| CacheDomain { level: *level, ..CacheDomain::default() });
            let cells = ids.iter().map(|id| NumaCell { caches: caches.clone().collect(), ..cell(*id) });
            let mut status = of_cells(cells.collect());
            status.missing = vec![text.clone(); 80];
            let mut device = Device::new("0000:41:00.0".parse().unwrap(), "10de", "26b9");
            (device.unavailable, device.product) = (Some(text.clone()), text);
            status.devices = vec![device.clone(), device];
            let (mended_once, _) = mended(status);
            let (again, faults) = mended(mended_once.clone());
            prop_assert_eq!(faults, Vec::<String>::new());
            prop_assert_eq!(again, mended_once);
        }
    }
}
