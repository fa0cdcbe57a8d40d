//! What NVIDIA's kernel driver says of a card in `/proc/driver/nvidia/gpus/ADDRESS/information`.
//!
//! Source: the README of NVIDIA's Linux driver, "Using the /proc file system interface".

/// Name and identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Information {
    /// Product name: `NVIDIA L40S`.
    pub model: Option<String>,
    /// UUID: `GPU-5a1b…`. Absent while the driver does not know it: it prints question marks then.
    pub uuid: Option<String>,
}

/// Reads lines such as `Model: \t\t NVIDIA L40S`.
pub fn information(text: &str) -> Information {
    let value = |key: &str| {
        let value = text.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            (found.trim() == key).then(|| value.trim())
        })?;
        let says_nothing = value.is_empty() || value.contains('?') || value == "Unknown";
        (!says_nothing).then(|| value.chars().filter(|c| !c.is_control()).take(96).collect())
    };
    Information { model: value("Model"), uuid: value("GPU UUID") }
}

/// The NUMA cell of a card's memory, in `/proc/driver/nvidia/gpus/ADDRESS/numa_status`; `None` for a
/// card of which the CPU does not see the memory as its own (-1).
pub fn memory_cell(text: &str) -> Option<i32> {
    let value = text.lines().find_map(|line| line.trim_start().strip_prefix("Node:"))?;
    value.trim().parse().ok().filter(|cell| *cell >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_card_tells_the_cell_of_its_memory() {
        assert_eq!(memory_cell("Node:\t\t1\nStatus:\t\tonline\n"), Some(1));
        assert_eq!(memory_cell("Node:\t\t-1\n"), None);
        assert_eq!(memory_cell(""), None);
    }

    #[test]
    fn a_card_has_a_name_and_an_identity() {
        let text = "Model: \t\t NVIDIA L40S\nIRQ:   \t\t 317\nGPU UUID: \t GPU-3e1a7b6c-1d5f-93c7-0b1c-5f3c9d1e2a4b\nVideo BIOS: \t 95.02.66.00.02\n";
        let found = information(text);
        assert_eq!(found.model.as_deref(), Some("NVIDIA L40S"));
        assert_eq!(found.uuid.as_deref(), Some("GPU-3e1a7b6c-1d5f-93c7-0b1c-5f3c9d1e2a4b"));
    }

    #[test]
    fn what_the_driver_does_not_know_yet_is_absent() {
        let text = "Model: \t\t Unknown\nGPU UUID: \t GPU-????????-????-????-????-????????????\n";
        assert_eq!(information(text), Information::default());
        assert_eq!(information(""), Information::default());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            let _ = (information(&text), memory_cell(&text));
        }
    }
}
