//! The fabric manager, asked through its own library `libnvfm.so.1`.
//!
//! Source: `nv_fm_agent.h` and `nv_fm_types.h` of NVIDIA's packages (drivers 450 to 590), which give every structure its
//! size in the version that it begins with: a library with another layout refuses the call. Structures are read and written
//! as the words of 32 bits that they consist of.
#![expect(unsafe_code, reason = "calls a C library by its interface")]
#![expect(clippy::disallowed_methods, reason = "adapter: measures how long the manager takes")]

use std::{
    ffi::{OsString, c_int, c_uint, c_void},
    path::{Path, PathBuf},
    ptr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use libloading::Library;

use super::{FabricError, FabricManager, Member, Partition};

/// Where the library is beside the one that an option names; as with NVML.
const USUAL: [&str; 4] = [
    "libnvfm.so.1",
    "/run/nvidia/driver/usr/lib/x86_64-linux-gnu/libnvfm.so.1",
    "/run/nvidia/driver/usr/lib/aarch64-linux-gnu/libnvfm.so.1",
    "/run/nvidia/driver/usr/lib64/libnvfm.so.1",
];
/// Where the manager listens when it is told to by `FM_CMD_UNIX_SOCKET_PATH`, as NVIDIA's own drivers for clusters have it.
const SOCKET: &str = "/run/nvidia-fabricmanager/socket";
/// And without that (`FM_CMD_PORT_NUMBER`).
const LOOPBACK: &str = "127.0.0.1:6666";
/// How long a connection may take, in milliseconds.
const CONNECT_MS: u32 = 3000;
/// How long somebody waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// `FM_MAX_FABRIC_PARTITIONS`, `FM_MAX_NUM_GPUS`.
const MOST_PARTITIONS: usize = 64;
const MOST_GPUS: usize = 16;
/// Words of `fmFabricPartitionGpuInfo_t`: a number, 80 bytes of UUID, 32 of PCI address, three numbers.
const GPU: usize = 1 + 20 + 8 + 3;
/// Words of `fmFabricPartitionInfo_t`.
const PARTITION: usize = 3 + MOST_GPUS * GPU;
/// Words of `fmFabricPartitionList_v2`, of `fmActivatedFabricPartitionList_v1` and of `fmConnectParams_v2`; that of
/// before lacks the last word.
const LIST: usize = 3 + MOST_PARTITIONS * PARTITION;
const ACTIVATED: usize = 2 + MOST_PARTITIONS;
const CONNECT: usize = 1 + 64 + 3;

/// `fmReturn_t`.
const VERSION_MISMATCH: c_int = -6;
const NOT_CONFIGURED: c_int = -8;
const NOT_READY: c_int = -22;

/// `MAKE_FM_PARAM_VERSION`: size and version.
fn version(words: usize, version: u32) -> u32 {
    u32::try_from(words * 4).unwrap_or(0) | version << 24
}

type Handle = *mut c_void;

/// The functions that are used of the library.
#[derive(Clone, Copy)]
struct Functions {
    init: unsafe extern "C" fn() -> c_int,
    shutdown: unsafe extern "C" fn() -> c_int,
    connect: unsafe extern "C" fn(*mut u32, *mut Handle) -> c_int,
    disconnect: unsafe extern "C" fn(Handle) -> c_int,
    list: unsafe extern "C" fn(Handle, *mut u32) -> c_int,
    activate: unsafe extern "C" fn(Handle, c_uint) -> c_int,
    deactivate: unsafe extern "C" fn(Handle, c_uint) -> c_int,
    restore: unsafe extern "C" fn(Handle, *mut u32) -> c_int,
}

/// The library, loaded, for as long as its functions are.
struct Loaded {
    functions: Functions,
    _library: Option<Library>,
}

impl Loaded {
    fn open(candidates: &[OsString]) -> Result<Self, FabricError> {
        let mut why = "it is in none of the usual places".to_owned();
        for candidate in candidates {
            // SAFETY: loading runs the initialisers of NVIDIA's library, which is made to be loaded so.
            match unsafe { Library::new(candidate) } {
                Ok(library) => return Self::of(library),
                // Why one that is there cannot be loaded says more than that others are not there.
                Err(error) if Path::new(candidate).exists() => why = error.to_string(),
                Err(_) => {}
            }
        }
        Err(FabricError::Absent(format!("the fabric manager's library libnvfm.so.1 is not to be had: {why}")))
    }

    fn of(library: Library) -> Result<Self, FabricError> {
        let missing = |error: libloading::Error| {
            FabricError::Absent(format!(
                "the fabric manager's library libnvfm.so.1 is of another kind: {error}"
            ))
        };
        // SAFETY: these are the types that `nv_fm_agent.h` gives the functions: a structure goes by its address, a handle is
        // an address, and the rest are numbers.
        let functions = unsafe {
            Functions {
                init: *library.get(b"fmLibInit\0").map_err(missing)?,
                shutdown: *library.get(b"fmLibShutdown\0").map_err(missing)?,
                connect: *library.get(b"fmConnect\0").map_err(missing)?,
                disconnect: *library.get(b"fmDisconnect\0").map_err(missing)?,
                list: *library.get(b"fmGetSupportedFabricPartitions\0").map_err(missing)?,
                activate: *library.get(b"fmActivateFabricPartition\0").map_err(missing)?,
                deactivate: *library.get(b"fmDeactivateFabricPartition\0").map_err(missing)?,
                restore: *library.get(b"fmSetActivatedFabricPartitions\0").map_err(missing)?,
            }
        };
        Ok(Self { functions, _library: Some(library) })
    }
}

/// Where the manager listens.
#[derive(Clone, Debug)]
enum Address {
    Socket(PathBuf),
    Tcp(&'static str),
}

/// A connection for one question: a manager that began anew in between is no other.
struct Connection {
    functions: Functions,
    handle: Handle,
}

impl Connection {
    fn open(functions: Functions, address: &Address) -> Result<Self, FabricError> {
        // SAFETY: it takes nothing.
        checked("fmLibInit", unsafe { (functions.init)() })?;
        let mut connection = Self { functions, handle: ptr::null_mut() };
        let mut params = connect_params(address);
        // SAFETY: the words are those of the structure, and live as long as the call; the handle is a place of its type.
        let mut code = unsafe { (functions.connect)(params.as_mut_ptr(), &raw mut connection.handle) };
        if code == VERSION_MISMATCH {
            params[0] = version(CONNECT - 1, 1);
            // SAFETY: as before; this version of the structure is the same without its last word.
            code = unsafe { (functions.connect)(params.as_mut_ptr(), &raw mut connection.handle) };
        }
        match checked("fmConnect", code) {
            Ok(()) if !connection.handle.is_null() => Ok(connection),
            Ok(()) => Err(FabricError::Refused("fmConnect: it gave no connection".into())),
            Err(error) => {
                connection.handle = ptr::null_mut();
                let place = match address {
                    Address::Socket(path) => path.display().to_string(),
                    Address::Tcp(address) => (*address).to_owned(),
                };
                Err(FabricError::Absent(format!(
                    "the fabric manager cannot be reached at {place} ({error}): run it with FABRIC_MODE=1 and \
                     FM_CMD_UNIX_SOCKET_PATH={SOCKET}"
                )))
            }
        }
    }

    fn partitions(&self) -> Result<Vec<Partition>, FabricError> {
        let mut words = vec![0_u32; LIST];
        words[0] = version(LIST, 1);
        // SAFETY: the words are those of the structure, and live as long as the call; the handle is open.
        let code = unsafe { (self.functions.list)(self.handle, words.as_mut_ptr()) };
        checked("fmGetSupportedFabricPartitions", code)?;
        read_list(&words).map_err(FabricError::Refused)
    }

    fn activate(&self, id: u32) -> Result<(), FabricError> {
        // SAFETY: the handle is open.
        checked("fmActivateFabricPartition", unsafe { (self.functions.activate)(self.handle, id) })
    }

    fn deactivate(&self, id: u32) -> Result<(), FabricError> {
        // SAFETY: the handle is open.
        checked("fmDeactivateFabricPartition", unsafe { (self.functions.deactivate)(self.handle, id) })
    }

    fn restore(&self, active: &[u32]) -> Result<(), FabricError> {
        let mut words = vec![0_u32; ACTIVATED];
        let room = words.get_mut(2..2 + active.len()).filter(|room| room.len() == active.len());
        let Some(room) = room else {
            return Err(FabricError::Refused(format!("{} partitions are more than it takes", active.len())));
        };
        room.copy_from_slice(active);
        words[0] = version(ACTIVATED, 1);
        words[1] = u32::try_from(active.len()).unwrap_or(0);
        // SAFETY: the words are those of the structure, and live as long as the call; the handle is open.
        let code = unsafe { (self.functions.restore)(self.handle, words.as_mut_ptr()) };
        checked("fmSetActivatedFabricPartitions", code)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: the handle is open and used no more; the library was initialised, and each thread does so for itself.
        unsafe {
            if !self.handle.is_null() {
                (self.functions.disconnect)(self.handle);
            }
            (self.functions.shutdown)();
        }
    }
}

/// `fmConnectParams_v2`.
fn connect_params(address: &Address) -> Vec<u32> {
    let (text, is_socket) = match address {
        Address::Socket(path) => (path.display().to_string(), true),
        Address::Tcp(address) => ((*address).to_owned(), false),
    };
    let mut words = vec![0_u32; CONNECT];
    words[0] = version(CONNECT, 2);
    // A byte is left for the end of the text.
    for (word, bytes) in words[1..65].iter_mut().zip(text.as_bytes().chunks(4)).take(63) {
        let mut four = [0; 4];
        four[..bytes.len()].copy_from_slice(bytes);
        *word = u32::from_ne_bytes(four);
    }
    // `NV_FM_API_ADDR_TYPE_INET`, `NV_FM_API_ADDR_TYPE_UNIX`.
    (words[65], words[66], words[67]) = (CONNECT_MS, is_socket.into(), if is_socket { 2 } else { 1 });
    words
}

/// What `fmFabricPartitionList_v2` says.
fn read_list(words: &[u32]) -> Result<Vec<Partition>, String> {
    let size = |number: u32, most: usize, what: &str| match usize::try_from(number) {
        Ok(number) if number <= most => Ok(number),
        _ => Err(format!("it tells of {number} {what}, which are more than there can be")),
    };
    let [_, count, _, rest @ ..] = words else { return Err("its list has no begin".into()) };
    let count = size(*count, MOST_PARTITIONS, "partitions")?;
    let mut found = vec![];
    for partition in rest.chunks_exact(PARTITION).take(count) {
        let gpus = size(partition[2], MOST_GPUS, "cards of one partition")?;
        found.push(Partition {
            id: partition[0],
            active: partition[1] != 0,
            members: partition[3..].chunks_exact(GPU).take(gpus).map(member).collect(),
        });
    }
    if found.len() == count { Ok(found) } else { Err("its list ends too soon".into()) }
}

fn member(words: &[u32]) -> Member {
    let text = |words: &[u32]| {
        let bytes: Vec<u8> =
            words.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    };
    // All zeros stand for a card that it does not know.
    let pci = Some(text(&words[21..29])).filter(|pci| pci.chars().any(|c| !"0:.".contains(c)));
    Member { physical_id: words[0], uuid: text(&words[1..21]), pci }
}

/// A return code as a result.
fn checked(function: &str, code: c_int) -> Result<(), FabricError> {
    let words = match code {
        0 => return Ok(()),
        NOT_CONFIGURED | NOT_READY => return Err(FabricError::NotConfigured),
        -1 => "an argument is not valid, or there is no such partition",
        -2 => "an error that it does not name",
        -3 => "not supported: it takes FABRIC_MODE=1",
        -4 => "not initialised, or the partition is not active",
        -5 => "timed out",
        VERSION_MISMATCH => "its library has another version of the structure",
        -7 => "in use: the partition is active, or another has its cards",
        -9 => "the connection is gone",
        -10 => "an NVLink does not work",
        _ => return Err(FabricError::Refused(format!("{function}: error {code}"))),
    };
    Err(FabricError::Refused(format!("{function}: {words}")))
}

/// The manager of this machine. One question at a time, each on a thread of its own that nobody waits for without end.
pub struct Nvfm {
    candidates: Vec<OsString>,
    socket: PathBuf,
    loaded: Mutex<Option<Arc<Loaded>>>,
    asked: Arc<(Mutex<Option<Instant>>, Condvar)>,
    patience: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nvfm {
    /// The manager whose library stands beside NVML's, or in its usual places. Nothing is loaded before it is asked.
    pub fn beside(nvml: Option<&Path>) -> Self {
        let beside = nvml.and_then(|nvml| Some(nvml.parent()?.join("libnvfm.so.1").into_os_string()));
        Self {
            candidates: beside.into_iter().chain(USUAL.iter().map(OsString::from)).collect(),
            socket: SOCKET.into(),
            loaded: Mutex::default(),
            asked: Arc::default(),
            patience: PATIENCE,
        }
    }

    fn loaded(&self) -> Result<Arc<Loaded>, FabricError> {
        let mut loaded = lock(&self.loaded);
        if let Some(loaded) = &*loaded {
            return Ok(Arc::clone(loaded));
        }
        let found = Arc::new(Loaded::open(&self.candidates)?);
        *loaded = Some(Arc::clone(&found));
        Ok(found)
    }

    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Connection) -> Result<T, FabricError> + Send + 'static,
    ) -> Result<T, FabricError> {
        let until = Instant::now() + self.patience;
        let loaded = self.loaded()?;
        let (asked, free) = &*self.asked;
        let mut since = lock(asked);
        while let Some(begun) = *since {
            let left = until.saturating_duration_since(Instant::now());
            // Nobody waits behind one that is late already.
            if left.is_zero() || begun.elapsed() >= self.patience {
                return Err(FabricError::NoAnswer(begun.elapsed().as_secs()));
            }
            since = free.wait_timeout(since, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *since = Some(Instant::now());
        drop(since);
        let turn = Turn(Arc::clone(&self.asked));
        let address =
            if self.socket.exists() { Address::Socket(self.socket.clone()) } else { Address::Tcp(LOOPBACK) };
        let (sender, receiver) = mpsc::sync_channel(1);
        let begun = thread::Builder::new().name("nvfm".into()).spawn(move || {
            let answer = Connection::open(loaded.functions, &address).and_then(|open| question(&open));
            drop(turn);
            let _ = sender.send(answer);
        });
        begun
            .map_err(|error| FabricError::Absent(format!("no thread to ask the fabric manager: {error}")))?;
        let left = until.saturating_duration_since(Instant::now());
        receiver.recv_timeout(left).unwrap_or(Err(FabricError::NoAnswer(self.patience.as_secs())))
    }
}

/// The one question that is asked, until it is answered.
struct Turn(Arc<(Mutex<Option<Instant>>, Condvar)>);

impl Drop for Turn {
    fn drop(&mut self) {
        *lock(&self.0.0) = None;
        self.0.1.notify_one();
    }
}

impl FabricManager for Nvfm {
    fn partitions(&self) -> Result<Vec<Partition>, FabricError> {
        self.ask(Connection::partitions)
    }
    fn activate(&self, id: u32) -> Result<(), FabricError> {
        tracing::info!(id, "activating a fabric partition");
        self.ask(move |open| open.activate(id))
    }
    fn deactivate(&self, id: u32) -> Result<(), FabricError> {
        tracing::info!(id, "deactivating a fabric partition");
        self.ask(move |open| open.deactivate(id))
    }
    fn restore(&self, active: &[u32]) -> Result<(), FabricError> {
        tracing::info!(?active, "telling the fabric manager which partitions were active");
        let active = active.to_vec();
        self.ask(move |open| open.restore(&active))
    }
}

#[cfg(test)]
#[path = "library_tests.rs"]
mod tests;
