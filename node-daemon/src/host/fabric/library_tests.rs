//! The library by its C interface, with one in its place that is as strict: it takes structures of its version alone.

use std::{cell::RefCell, slice};

use proptest::prelude::*;

use super::*;

#[test]
fn structures_have_the_versions_of_nvidias_headers() {
    // sizeof of each by `nv_fm_types.h`, in C: 272 and 268, 131852, 264.
    assert_eq!(version(CONNECT, 2), 0x0200_0110);
    assert_eq!(version(CONNECT - 1, 1), 0x0100_010c);
    assert_eq!(version(LIST, 1), 0x0102_030c);
    assert_eq!(version(ACTIVATED, 1), 0x0100_0108);
    assert_eq!((GPU * 4, PARTITION * 4), (128, 2060));
}

/// A manager behind the interface; each test has its own, for it asks from one thread.
#[derive(Default)]
struct Manager {
    old: bool,
    active: Vec<u32>,
    waits: bool,
    address: String,
    connections: i32,
    initialised: bool,
}

thread_local! {
    static MANAGER: RefCell<Manager> = RefCell::default();
}

fn manager<T>(act: impl FnOnce(&mut Manager) -> T) -> T {
    MANAGER.with_borrow_mut(act)
}

unsafe extern "C" fn init() -> c_int {
    manager(|own| if std::mem::replace(&mut own.initialised, true) { -7 } else { 0 })
}
unsafe extern "C" fn shutdown() -> c_int {
    manager(|own| own.initialised = false);
    0
}
unsafe extern "C" fn connect(params: *mut u32, handle: *mut Handle) -> c_int {
    manager(|own| {
        let size = if own.old { 67 } else { 68 };
        // SAFETY: the caller gives at least the older structure.
        let words = unsafe { slice::from_raw_parts(params, 67) };
        if words[0] != (if own.old { 0x0100_010c } else { 0x0200_0110 }) {
            return -6;
        }
        // SAFETY: by its version.
        let words = unsafe { slice::from_raw_parts(params, size) };
        let bytes: Vec<u8> = words[1..65].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let end = bytes.iter().position(|byte| *byte == 0).unwrap();
        own.address = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let is_socket = words[66] == 1;
        assert!(own.old || words[67] == if is_socket { 2 } else { 1 });
        assert_eq!((is_socket, words[65]), (own.address.starts_with('/'), CONNECT_MS));
        own.connections += 1;
        // SAFETY: a place of the caller.
        unsafe { *handle = ptr::dangling_mut() };
        0
    })
}
unsafe extern "C" fn disconnect(_: Handle) -> c_int {
    manager(|own| own.connections -= 1);
    0
}
unsafe extern "C" fn list(_: Handle, words: *mut u32) -> c_int {
    manager(|own| {
        if own.waits {
            return -8;
        }
        // SAFETY: the caller gives the structure.
        let words = unsafe { slice::from_raw_parts_mut(words, LIST) };
        if words[0] != 0x0102_030c {
            return -6;
        }
        words[1] = 2;
        for (n, ids) in [(0, &[1, 2][..]), (1, &[2])] {
            let at = 3 + n * PARTITION;
            let id = u32::try_from(n).unwrap() + 4;
            (words[at], words[at + 1], words[at + 2]) =
                (id, own.active.contains(&id).into(), u32::try_from(ids.len()).unwrap());
            for (n, id) in ids.iter().enumerate() {
                let gpu = at + 3 + n * GPU;
                words[gpu] = *id;
                let zeros = if *id == 1 { b"00000000:41:00.0" } else { b"00000000:00:00.0" };
                for (word, four) in words[gpu + 21..].iter_mut().zip(zeros.chunks(4)) {
                    *word = u32::from_ne_bytes(four.try_into().unwrap());
                }
                if *id == 1 {
                    words[gpu + 1] = u32::from_ne_bytes(*b"GPU-");
                }
            }
        }
        0
    })
}
unsafe extern "C" fn activate(_: Handle, id: c_uint) -> c_int {
    manager(|own| {
        if !(4..6).contains(&id) {
            return -1;
        }
        // Both have card 2.
        if !own.active.is_empty() {
            return -7;
        }
        own.active.push(id);
        0
    })
}
unsafe extern "C" fn deactivate(_: Handle, id: c_uint) -> c_int {
    manager(|own| {
        let before = own.active.len();
        own.active.retain(|active| *active != id);
        if own.active.len() < before { 0 } else { -4 }
    })
}
unsafe extern "C" fn restore(_: Handle, words: *mut u32) -> c_int {
    manager(|own| {
        // SAFETY: the caller gives the structure.
        let words = unsafe { slice::from_raw_parts(words, ACTIVATED) };
        if words[0] != 0x0100_0108 {
            return -6;
        }
        own.active = words[2..2 + usize::try_from(words[1]).unwrap()].to_vec();
        own.waits = false;
        0
    })
}

const FUNCTIONS: Functions =
    Functions { init, shutdown, connect, disconnect, list, activate, deactivate, restore };

fn ask<T>(question: impl FnOnce(&Connection) -> Result<T, FabricError>) -> Result<T, FabricError> {
    let answer =
        Connection::open(FUNCTIONS, &Address::Socket(SOCKET.into())).and_then(|open| question(&open));
    assert_eq!(manager(|own| (own.connections, own.initialised)), (0, false), "nothing is left open");
    answer
}

#[test]
fn partitions_are_listed_activated_and_deactivated_by_either_version_of_the_library() {
    for old in [false, true] {
        manager(|own| *own = Manager { old, ..Manager::default() });
        let all = ask(Connection::partitions).unwrap();
        assert_eq!(manager(|own| own.address.clone()), SOCKET);
        let known = Member { physical_id: 1, uuid: "GPU-".into(), pci: Some("00000000:41:00.0".into()) };
        let unknown = Member { physical_id: 2, ..Member::default() };
        let expected = [
            Partition { id: 4, active: false, members: vec![known, unknown.clone()] },
            Partition { id: 5, active: false, members: vec![unknown] },
        ];
        assert_eq!(all, expected);
        ask(|open| open.activate(4)).unwrap();
        assert!(ask(Connection::partitions).unwrap()[0].active);
        let refused = ask(|open| open.activate(5)).unwrap_err().to_string();
        assert!(refused.contains("another has its cards"), "{refused}");
        assert!(matches!(ask(|open| open.activate(9)), Err(FabricError::Refused(_))));
        ask(|open| open.deactivate(4)).unwrap();
        assert!(matches!(ask(|open| open.deactivate(4)), Err(FabricError::Refused(_))));
    }
}

#[test]
fn a_manager_that_began_anew_is_told_what_was_active() {
    manager(|own| *own = Manager { waits: true, ..Manager::default() });
    assert_eq!(ask(Connection::partitions), Err(FabricError::NotConfigured));
    ask(|open| open.restore(&[5])).unwrap();
    let active: Vec<bool> = ask(Connection::partitions).unwrap().iter().map(|one| one.active).collect();
    assert_eq!(active, [false, true]);
    assert!(ask(|open| open.restore(&[0; 65])).is_err());
}

unsafe extern "C" fn hangs() -> c_int {
    thread::sleep(Duration::from_secs(2));
    -2
}

#[test]
fn a_manager_that_does_not_answer_holds_up_nobody_without_end() {
    let functions = Functions { init: hangs, ..FUNCTIONS };
    let nvfm = Nvfm {
        loaded: Mutex::new(Some(Arc::new(Loaded { functions, _library: None }))),
        patience: Duration::from_millis(100),
        ..Nvfm::beside(None)
    };
    let begun = Instant::now();
    for _ in 0..2 {
        assert!(matches!(nvfm.partitions(), Err(FabricError::NoAnswer(_))));
    }
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[test]
fn without_its_library_there_is_nobody_to_ask() {
    let mut nvfm = Nvfm::beside(Some(Path::new("/nonexistent/libnvidia-ml.so.1")));
    assert_eq!(nvfm.candidates[0], "/nonexistent/libnvfm.so.1");
    nvfm.candidates.truncate(1);
    let error = nvfm.partitions().unwrap_err().to_string();
    assert!(error.contains("libnvfm.so.1 is not to be had"), "{error}");
}

proptest! {
    #[test]
    fn no_list_makes_it_panic_or_tells_of_more_than_there_can_be(
        mut words in proptest::collection::vec(any::<u32>(), 0..2000), count in 0_u32..70, gpus in 0_u32..20, whole in any::<bool>(),
    ) {
        if whole {
            words.resize(LIST, gpus);
            words[1] = count;
        }
        match read_list(&words) {
            Ok(found) => prop_assert!(found.len() <= MOST_PARTITIONS && found.iter().all(|one| one.members.len() <= MOST_GPUS)),
            Err(why) => prop_assert!(!whole || why.contains("more than there can be")),
        }
    }

    #[test]
    fn an_address_is_written_with_its_end(path in "/[a-z/]{0,300}") {
        let words = connect_params(&Address::Socket(path.clone().into()));
        let bytes: Vec<u8> = words[1..65].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let end = bytes.iter().position(|byte| *byte == 0).unwrap();
        prop_assert_eq!(&bytes[..end], &path.as_bytes()[..path.len().min(252)]);
    }
}
