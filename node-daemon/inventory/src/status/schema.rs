//! A status as the API server would take it.
//!
//! The definition of the kind is applied to what is about to be written, so that one odd value costs
//! itself and not the whole status. What is mended is named, field and value. The definition has no
//! validation rules below `status`; patterns are kept by the types whose text they describe.

use std::sync::LazyLock;

use gpudesk_crds::{
    GpuNodeStatus,
    faults::{self, Fault},
    schema,
};
use serde_json::Value;

/// Most sentences; the first ones say enough.
const MOST: usize = 16;

/// The schema of `GpuNode.status`.
static STATUS: LazyLock<Value> =
    LazyLock::new(|| schema::of(&schema::all()[0])["properties"]["status"].clone());

/// The status without what the API server would refuse, and a sentence for each thing that was left out
/// or cut.
pub(super) fn mended(status: GpuNodeStatus) -> (GpuNodeStatus, Vec<String>) {
    let Ok(mut value) = serde_json::to_value(&status) else { return (status, vec![]) };
    let mut faults = vec![];
    let mut mend = |fault: Fault<'_>, path: &str, value: &mut Value, schema: &Value| {
        let (fits, said) = mend(fault, path, value, schema);
        faults.extend(said);
        fits
    };
    let fits = faults::look(&STATUS, &mut value, "status", &mut mend);
    if fits && faults.is_empty() {
        return (status, faults);
    }
    let mended =
        if fits { serde_json::from_value(value).unwrap_or_default() } else { GpuNodeStatus::default() };
    faults.truncate(MOST);
    (mended, faults)
}

/// Makes `value` fit, or has it left out; and what is said of that.
fn mend(fault: Fault<'_>, path: &str, value: &mut Value, schema: &Value) -> (bool, Option<String>) {
    let free = schema["pattern"].is_null() && schema["format"].is_null();
    let why = match (fault, &mut *value) {
        (Fault::Longer(most), Value::String(text)) if free => {
            let count = text.chars().count();
            *text = text.chars().take(usize::try_from(most).unwrap_or(usize::MAX)).collect();
            return (true, Some(format!("{path} has {count} characters: it is cut to {most}")));
        }
        (Fault::More(most), Value::Array(items)) => {
            let count = items.len();
            items.truncate(usize::try_from(most).unwrap_or(usize::MAX));
            return (true, Some(format!("{path} has {count} entries: the first {most} are shown")));
        }
        (Fault::Twice(keys), _) => {
            let shown: String = faults::identity(value, &keys).chars().take(80).collect();
            return (false, Some(format!("{path} is {shown} again: the first counts")));
        }
        (Fault::Unknown(..), _) => return (true, None),
        // It was left out, and that was said.
        (Fault::Missing(_), _) => return (false, None),
        (Fault::Choice(_), _) => "not one of the values that are possible".to_owned(),
        (Fault::Type(wanted), _) => format!("not of type {wanted}"),
        (Fault::Longer(most), _) => format!("longer than {most} characters"),
        (Fault::Shorter(least), _) => format!("shorter than {least} characters"),
        (Fault::More(most), _) => format!("more than {most} entries"),
        (Fault::Fewer(least), _) => format!("fewer than {least} entries"),
        (Fault::Outside(least, most), _) => {
            format!("outside of {} to {}", least.unwrap_or(f64::MIN), most.unwrap_or(f64::MAX))
        }
    };
    let value = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
    let value: String = value.chars().take(40).collect();
    (false, Some(format!("{path} is {value:?}, {why}: it is left out")))
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
        assert_eq!(faults, ["status.numaCells[0].caches[1] is [\"\"] again: the first counts"]);
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
