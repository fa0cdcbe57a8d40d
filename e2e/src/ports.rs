//! Free TCP ports on 127.0.0.1.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{LazyLock, Mutex, PoisonError};

use anyhow::{Result, bail};

/// Below the range from which the kernel takes the local end of outgoing
/// connections (32768 and up by default), so that only another server can come
/// in between the choice of a port and its use.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

static GIVEN: LazyLock<Mutex<BTreeSet<u16>>> = LazyLock::new(Mutex::default);

/// A port on which nothing listens now and which this process was not given before.
///
/// Another process may still take it before its user binds it: whoever starts a
/// server on it tries again with another port when the server reports a clash.
pub fn free() -> Result<u16> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let width = u32::from(RANGE.end - RANGE.start);
    // Checkouts side by side start at different places; the process id is spread enough for that.
    let start = std::process::id().wrapping_mul(2_654_435_761) % width;
    for step in 0..width {
        let offset = u16::try_from((start + step) % width)?;
        let port = RANGE.start + offset;
        if !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            given.insert(port);
            return Ok(port);
        }
    }
    bail!("no free TCP port on 127.0.0.1 in {RANGE:?}")
}
