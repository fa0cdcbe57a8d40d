//! Values that are more than a string: what is printed is read back, and nothing panics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use gpudesk_crds::types::{CpuSet, PciAddress};
use proptest::prelude::*;

fn any_address() -> impl Strategy<Value = PciAddress> {
    (any::<u32>(), any::<u8>(), 0u8..32, 0u8..8).prop_map(|(domain, bus, device, function)| PciAddress {
        domain,
        bus,
        device,
        function,
    })
}

/// Texts that nearly are values: the parser gets further into them than into any text.
fn nearly() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[0-9a-fA-F:. ,-]{0,40}",
        "[0-9]{1,12}(-[0-9]{1,12}){0,3}(,[0-9]{1,12}-?)*",
        any_address().prop_map(|address| address.to_string()),
    ]
}

proptest! {
    #[test]
    fn a_printed_address_is_read_back(address in any_address()) {
        prop_assert_eq!(address.to_string().parse::<PciAddress>().unwrap(), address);
    }

    #[test]
    fn a_printed_cpu_set_is_read_back(cpus in proptest::collection::btree_set(0..CpuSet::LIMIT, 0..200)) {
        let set: CpuSet = cpus.iter().copied().collect();
        prop_assert_eq!(set.len(), cpus.len());
        let read: CpuSet = set.to_string().parse().unwrap();
        prop_assert_eq!(&read, &set);
        prop_assert!(read.iter().eq(cpus));
    }

    #[test]
    fn no_text_panics_and_what_is_read_is_printed_alike(text in nearly()) {
        if let Ok(address) = text.parse::<PciAddress>() {
            prop_assert_eq!(address.to_string().parse::<PciAddress>().unwrap(), address);
        }
        if let Ok(set) = text.parse::<CpuSet>() {
            prop_assert!(set.iter().all(|cpu| cpu < CpuSet::LIMIT));
            prop_assert_eq!(set.to_string().parse::<CpuSet>().unwrap(), set);
        }
    }

    #[test]
    fn what_the_schema_lets_through_as_an_address_is_read(
        text in "([0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[01][0-9a-fA-F]\\.[0-7]",
    ) {
        prop_assert!(text.parse::<PciAddress>().is_ok(), "{}", text);
    }
}

#[test]
fn each_form_of_an_address_is_printed_as_sysfs_does() {
    for (text, printed) in [
        ("0000:41:00.0", "0000:41:00.0"),
        ("41:00.0", "0000:41:00.0"),
        ("00000000:41:00.0", "0000:41:00.0"),
        ("0000:C1:1F.7", "0000:c1:1f.7"),
        ("10000:01:00.0", "10000:01:00.0"),
    ] {
        assert_eq!(text.parse::<PciAddress>().map(|address| address.to_string()).as_deref(), Ok(printed));
    }
}

#[test]
fn what_is_no_address_is_refused_with_what_would_be_right() {
    for text in
        ["", ".", "::.", "0:41:0.0", "0000:41:20.0", "0000:41:00.8", "0000:41:00", "0000:+1:00.0", "é0:00.0"]
    {
        let error = text.parse::<PciAddress>().expect_err(text).to_string();
        assert!(error.contains("like 0000:41:00.0"), "{error}");
    }
}

#[test]
fn ranges_are_read_and_printed_short() {
    for (text, printed) in [
        ("", ""),
        ("\n", ""),
        ("0", "0"),
        ("3,1,2", "1-3"),
        ("0-3,8,10-11", "0-3,8,10,11"),
        ("0-8191", "0-8191"),
        ("1,1-1", "1"),
    ] {
        assert_eq!(text.parse::<CpuSet>().map(|set| set.to_string()).as_deref(), Ok(printed), "{text:?}");
    }
}

#[test]
fn hostile_texts_cost_no_memory_and_do_not_come_back_whole() {
    for text in ["0-4294967295", "8192", "5-1", "-", "1-", "-1", "0-1-2", "1,,2", "٣", "1 ,2"] {
        assert!(text.parse::<CpuSet>().is_err(), "{text}");
    }
    let long = "9".repeat(1 << 20);
    for message in
        [long.parse::<CpuSet>().unwrap_err().to_string(), long.parse::<PciAddress>().unwrap_err().to_string()]
    {
        assert!(message.len() < 300, "{} bytes", message.len());
    }
    // The same range a thousand times is one range.
    let repeated = vec!["0-8191"; 1000].join(",");
    assert_eq!(repeated.parse::<CpuSet>().unwrap().len(), 8192);
    let mut set = CpuSet::default();
    set.extend([u32::MAX, 8192]);
    set.insert(8192);
    assert!(set.is_empty());
}

#[test]
fn a_bad_value_in_an_object_is_an_error_and_no_panic() {
    assert!(serde_json::from_str::<PciAddress>("\"junk\"").is_err());
    assert!(serde_json::from_str::<PciAddress>("12").is_err());
    assert!(serde_json::from_str::<CpuSet>("\"1-\"").is_err());
    assert_eq!(serde_json::to_string(&"41:00.0".parse::<PciAddress>().unwrap()).unwrap(), "\"0000:41:00.0\"");
}
