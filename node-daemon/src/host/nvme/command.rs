//! NVMe admin commands and what drives answer to them, as the NVM Express Base Specification 2.0 and the NVM Command Set
//! Specification 1.0 have them. Pure.

/// All namespaces.
pub(super) const ALL: u32 = u32::MAX;
/// Size of what Identify answers.
pub(super) const IDENTIFY: usize = 4096;
/// Size of what the log of Sanitize holds.
pub(super) const SANITIZE_LOG: usize = 512;

/// A command by its number, the namespace, and the words that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command {
    /// Opcode.
    pub(super) opcode: u8,
    /// Namespace.
    pub(super) namespace: u32,
    /// Command dword 10.
    pub(super) dword10: u32,
    /// Most time that it is waited for, in milliseconds.
    pub(super) timeout_ms: u32,
}

/// Ordinary commands are answered at once.
const SOON: u32 = 60_000;
/// A format may write every block of a large drive.
const LONG: u32 = 6 * 3_600_000;

/// Asks for the controller.
pub(super) const IDENTIFY_CONTROLLER: Command =
    Command { opcode: 0x06, namespace: 0, dword10: 1, timeout_ms: SOON };

/// Asks for a namespace.
pub(super) fn identify(namespace: u32) -> Command {
    Command { opcode: 0x06, namespace, dword10: 0, timeout_ms: SOON }
}

/// Asks how far Sanitize is: log page 81h, as many dwords less one in the upper half.
pub(super) const SANITIZE_STATUS: Command =
    Command { opcode: 0x02, namespace: ALL, dword10: 0x007f_0081, timeout_ms: SOON };

/// Asks for all namespaces that the drive has, attached or not.
pub(super) const ALLOCATED: Command = Command { opcode: 0x06, namespace: 0, dword10: 0x10, timeout_ms: SOON };

/// The namespaces that a list names.
pub(super) fn listed(list: &[u8]) -> impl Iterator<Item = u32> {
    let numbers = list.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
    numbers.take_while(|number| *number != 0)
}

/// The serial number of a controller; `None` when the answer is short.
pub(super) fn serial(controller: &[u8]) -> Option<String> {
    Some(String::from_utf8_lossy(controller.get(4..24)?).trim().to_owned())
}

/// Whether namespaces can be made, taken away and attached; `None` when the answer is short.
pub(super) fn manages_namespaces(controller: &[u8]) -> Option<bool> {
    Some(controller.get(256)? & 0b1000 != 0)
}

/// Whether the controller takes Format NVM; `None` when the answer is short.
pub(super) fn can_format(controller: &[u8]) -> Option<bool> {
    Some(controller.get(256)? & 0b10 != 0)
}

/// Formats a namespace as it is formatted now, with a user data erase; `None` when the answer is short or tells of no
/// namespace.
pub(super) fn format(namespace: u32, identified: &[u8]) -> Option<Command> {
    let size = identified.get(0..8)?;
    if size.iter().all(|byte| *byte == 0) {
        return None;
    }
    let (formatted, protection) = (u32::from(*identified.get(26)?), u32::from(*identified.get(29)?));
    let format = formatted & 0xf;
    let upper = formatted >> 5 & 0b11;
    let metadata_in_line = formatted >> 4 & 1;
    let (kind, first) = (protection & 0b111, protection >> 3 & 1);
    let user_data_erase = 1;
    let dword10 =
        format | metadata_in_line << 4 | kind << 5 | first << 8 | user_data_erase << 9 | upper << 12;
    Some(Command { opcode: 0x80, namespace, dword10, timeout_ms: LONG })
}

/// Sanitizes by a block erase, or a cryptographic one where there is no other; `None` when the controller has neither.
pub(super) fn sanitize(controller: &[u8]) -> Option<Command> {
    let can = controller.get(328)?;
    let action = if can & 0b10 != 0 {
        2
    } else if can & 0b1 != 0 {
        4
    } else {
        return None;
    };
    Some(Command { opcode: 0x84, namespace: 0, dword10: action, timeout_ms: SOON })
}

/// How far Sanitize is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sanitizing {
    /// It goes on; parts of 65536.
    Underway(u16),
    /// The last one succeeded.
    Done,
    /// The last one failed.
    Failed,
    /// Nothing that the specification knows.
    Unclear(u16),
}

/// Reads the log of Sanitize; `None` when it is short.
pub(super) fn sanitizing(log: &[u8]) -> Option<Sanitizing> {
    let word = |at: usize| Some(u16::from_le_bytes([*log.get(at)?, *log.get(at + 1)?]));
    let (progress, status) = (word(0)?, word(2)?);
    Some(match status & 0b111 {
        1 | 4 => Sanitizing::Done,
        2 => Sanitizing::Underway(progress),
        3 => Sanitizing::Failed,
        other => Sanitizing::Unclear(other),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn namespace(formatted: u8, protection: u8) -> Vec<u8> {
        let mut identified = vec![0; IDENTIFY];
        (identified[0], identified[26], identified[29]) = (1, formatted, protection);
        identified
    }

    #[test]
    fn a_namespace_is_formatted_as_it_is() {
        // The second of its formats, metadata in line, protection of type 1 in the first bytes.
        let command = format(3, &namespace(0b01_0001, 0b1001)).unwrap();
        assert_eq!((command.opcode, command.namespace, command.dword10), (0x80, 3, 0x331));
        // The eighteenth.
        assert_eq!(format(1, &namespace(0b10_0001, 0)).unwrap().dword10, 0x1201);
        assert_eq!(format(1, &vec![0; IDENTIFY]), None, "an inactive namespace is identified by zeros");
    }

    #[test]
    fn a_controller_is_told_by_its_serial_number_and_tells_all_that_it_has() {
        let mut identified = vec![b' '; IDENTIFY];
        identified[4..11].copy_from_slice(b"S64YNE0");
        identified[256] = 0b1010;
        assert_eq!(serial(&identified).as_deref(), Some("S64YNE0"));
        assert_eq!((can_format(&identified), manages_namespaces(&identified)), (Some(true), Some(true)));
        assert_eq!((serial(&[]), manages_namespaces(&[])), (None, None));
        let mut list = vec![0; IDENTIFY];
        (list[0], list[4], list[12]) = (1, 7, 9);
        assert_eq!(listed(&list).collect::<Vec<_>>(), [1, 7], "it ends with a zero");
    }

    #[test]
    fn the_mildest_sanitize_that_reaches_all_is_chosen() {
        let controller = |can: u8| {
            let mut identified = vec![0; IDENTIFY];
            identified[328] = can;
            sanitize(&identified).map(|command| (command.opcode, command.dword10))
        };
        assert_eq!(controller(0b111), Some((0x84, 2)));
        assert_eq!(controller(0b101), Some((0x84, 4)));
        assert_eq!(controller(0b100), None, "overwriting takes days");
    }

    #[test]
    fn only_a_sanitize_that_ended_well_is_done() {
        let log = |status: u8| sanitizing(&[0, 0x80, status, 1]);
        assert_eq!(log(1), Some(Sanitizing::Done));
        assert_eq!(log(4), Some(Sanitizing::Done));
        assert_eq!(log(2), Some(Sanitizing::Underway(0x8000)));
        assert_eq!(log(3), Some(Sanitizing::Failed));
        assert_eq!(log(0), Some(Sanitizing::Unclear(0)), "never sanitized");
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = (can_format(&bytes), sanitize(&bytes), sanitizing(&bytes), serial(&bytes));
            prop_assert!(listed(&bytes).count() <= bytes.len() / 4);
            if let Some(command) = format(1, &bytes) {
                prop_assert_eq!(command.dword10 >> 9 & 0b111, 1, "always with an erase");
                prop_assert_eq!(command.dword10 >> 14, 0);
            }
        }
    }
}
