//! A file in memory for what can only be read by its path.

use std::{fs, path::PathBuf};

/// Writes `bytes` to the one file of this process, and says where it is.
pub fn file(bytes: &[u8]) -> PathBuf {
    let path = PathBuf::from(format!("/dev/shm/gpudesk-fuzz-{}", std::process::id()));
    fs::write(&path, bytes).expect("/dev/shm can be written");
    path
}
