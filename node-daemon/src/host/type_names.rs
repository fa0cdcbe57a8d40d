//! Names of vGPU types, kept over restarts of the daemon: the list of a virtual function shrinks as
//! those beside it are used, so it cannot name what exists already.
#![expect(clippy::disallowed_methods, reason = "adapter: keeps the names in a file")]

use std::{fs, path::Path};

use gpudesk_inventory::scan::TypeNames;

const FILE: &str = "vgpu-type-names.json";

/// The names that were kept; none when there is no such file, or none that can be read.
pub fn load(state_dir: &Path) -> TypeNames {
    let bytes = fs::read(state_dir.join(FILE)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

/// Keeps the names. Where they cannot be written they are learnt again after a restart.
pub fn save(state_dir: &Path, names: &TypeNames) {
    let written = serde_json::to_vec(names).map_err(std::io::Error::from).and_then(|bytes| {
        let beside = state_dir.join(format!("{FILE}.new"));
        fs::write(&beside, bytes)?;
        fs::rename(beside, state_dir.join(FILE))
    });
    if let Err(error) = written {
        tracing::warn!(%error, "names of vGPU types cannot be kept");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_again() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(load(folder.path()), TypeNames::default());
        let names = TypeNames([("10de:26b9".to_owned(), [(1155, "L40S-24Q".to_owned())].into())].into());
        save(folder.path(), &names);
        assert_eq!(load(folder.path()), names);
        fs::write(folder.path().join(FILE), b"{").unwrap();
        assert_eq!(load(folder.path()), TypeNames::default());
    }
}
