//! Whether a card answers where its registers are, and not only in its configuration: a kernel can take one for ready that
//! answers all with ones (Linux d591f68, 81f64e9).
//!
//! The first word of the region with its registers is read through the kernel's `resourceN`: of a function that nobody
//! uses and no driver of the host has, that is awake, and that has its memory switched on. Elsewhere such a read ends in
//! nothing but an error on the bus. What it says means nothing by itself, for a word may be all ones in good health. So it is read before the
//! first user and noted down; only a card that told something then, and tells nothing but ones later, is not back.

use std::{io, thread, time::Duration};

use gpudesk_crds::types::PciAddress;
use gpudesk_inventory::topology::pci;

use super::kernel::{Kernel, function, line, maybe, text};

/// What nobody answers.
pub(super) const NOTHING: u32 = u32::MAX;
/// The bit of the command register with which a function answers to addresses of memory.
const MEMORY: u8 = 2;
/// How long after a reset the registers may take, in steps that double: some cards come back later than their
/// configuration.
const PAUSES: u32 = if cfg!(test) { 2 } else { 7 };

/// The first word of a function's registers.
///
/// # Errors
/// Why it cannot be read. That says nothing of the card.
pub(super) fn read(kernel: &dyn Kernel, address: PciAddress) -> io::Result<u32> {
    let folder = function(address);
    let cannot = |why: &str| Err(io::Error::other(why.to_owned()));
    // Theirs are behind the card's own switch, and of some cards answer only while it is their turn.
    if maybe(kernel.link(&format!("{folder}/physfn")))?.is_some() {
        return cannot("it is a virtual function");
    }
    if line(kernel, &format!("{folder}/power_state"))?.is_some_and(|state| state != "D0") {
        return cannot("it is asleep");
    }
    let config = kernel.read(&format!("{folder}/config"))?;
    if config.get(4).is_none_or(|command| command & MEMORY == 0) {
        return cannot("its memory is switched off");
    }
    let regions = text(kernel, &format!("{folder}/resource"))?.unwrap_or_default();
    match region(&regions) {
        Some(region) => kernel.peek(&format!("{folder}/resource{region}")),
        None => cannot("it has no region of memory"),
    }
}

/// Which of a function's regions has its registers: the first that may not be read ahead; on cards that have none such,
/// as NVIDIA's newer ones, the first of all.
fn region(resource: &str) -> Option<i32> {
    const READ_AHEAD: u64 = 0x2000;
    let lines: Vec<&str> = resource.lines().collect();
    let has_registers = |index: i32| {
        let line = lines.get(usize::try_from(index).ok()?)?;
        let flags = line.split_whitespace().nth(2)?.strip_prefix("0x")?;
        Some(u64::from_str_radix(flags, 16).ok()? & READ_AHEAD == 0)
    };
    let all = pci::bars(resource).into_iter().filter(|bar| !bar.unassigned && bar.size_bytes >= 4);
    let all: Vec<i32> = all.map(|bar| bar.index).collect();
    all.iter().copied().find(|index| has_registers(*index) == Some(true)).or(all.first().copied())
}

/// Whether the registers were seen to answer after a reset, where they told `before` when nobody had used the card yet.
///
/// # Errors
/// Why the card is not back.
pub(super) fn answer(kernel: &dyn Kernel, address: PciAddress, before: Option<u32>) -> Result<bool, String> {
    let Some(before) = before.filter(|before| *before != NOTHING) else {
        return Ok(read(kernel, address).is_ok_and(|told| told != NOTHING));
    };
    let mut why = String::new();
    for pause in 0..PAUSES {
        if pause > 0 {
            thread::sleep(Duration::from_millis(50 << pause));
        }
        why = match read(kernel, address) {
            Ok(told) if told != NOTHING => return Ok(true),
            Ok(_) => "are all ones".into(),
            Err(error) => format!("cannot be read ({error})"),
        };
    }
    Err(format!("its registers {why}, which told {before:#010x} before its first user"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn registers_are_where_nothing_is_read_ahead_and_else_in_the_first_region() {
        let nothing = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
        let registers = "0x00000000f6000000 0x00000000f6ffffff 0x0000000000040200\n";
        let memory = "0x0000380000000000 0x000038000fffffff 0x000000000014220c\n";
        let ports = "0x0000000000004000 0x000000000000407f 0x0000000000040101\n";
        // Lines as Linux has them for an L40S, an Instinct, an H100.
        assert_eq!(region(&[registers, memory, nothing, memory, nothing, ports].concat()), Some(0));
        assert_eq!(region(&[memory, nothing, memory, nothing, ports, registers].concat()), Some(5));
        assert_eq!(region(&[memory, nothing, memory, nothing, memory].concat()), Some(0));
        let given_up = "0x0000000000000000 0x0000000000ffffff 0x0000000020040200\n";
        assert_eq!(region(&[given_up, nothing, ports].concat()), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,200}", words in "(0x[0-9a-f]{0,17} ?){0,20}\n?") {
            for text in [text, words] {
                prop_assert!(region(&text).is_none_or(|region| (0..6).contains(&region)));
            }
        }
    }
}
