//! Where the journal is kept: one file, written whole, on disk before anything that it tells of is done.
#![expect(clippy::disallowed_methods, reason = "adapter: keeps the journal in a file")]

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::journal::{Journal, VERSION};

/// The file of the journal.
#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
}

impl Store {
    /// Below the state folder.
    pub(super) fn below(state_dir: &Path) -> Self {
        Self { folder: state_dir.into() }
    }

    fn file(&self) -> PathBuf {
        self.folder.join("devices.json")
    }

    /// What was kept; an empty journal where none ever was. One that cannot be read is an error, never "nothing".
    pub(super) fn load(&self, boot: &str) -> Result<Journal, String> {
        let file = self.file();
        let failed = |why: String| {
            format!(
                "what gpudesk made on the cards of this host cannot be read, so nothing is changed: {}: {why}; put the \
                 file back, or, once no desktop of this host has a card, remove it",
                file.display()
            )
        };
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Journal::new(boot)),
            Err(error) => return Err(failed(error.to_string())),
        };
        let value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(version) if version == u64::from(VERSION) => {}
            version => {
                return Err(failed(format!("its version is {version:?}, and this program knows {VERSION}")));
            }
        }
        serde_json::from_value(value).map_err(|error| failed(error.to_string()))
    }

    /// Keeps the journal: when this returns, it is on disk.
    pub(super) fn save(&self, journal: &Journal) -> io::Result<()> {
        let beside = self.folder.join("devices.json.new");
        let mut written =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        written.write_all(&serde_json::to_vec(journal)?)?;
        written.sync_all()?;
        fs::rename(&beside, self.file())?;
        File::open(&self.folder)?.sync_all()
    }

    /// Names it in an error.
    pub(super) fn name(&self) -> String {
        self.file().display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_cannot_be_read_is_never_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::below(folder.path());
        assert_eq!(store.load("b"), Ok(Journal::new("b")));
        store.save(&Journal::new("b")).unwrap();
        assert_eq!(fs::metadata(store.file()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(store.load("other"), Ok(Journal::new("b")), "of which boot it tells is its own");
        for text in
            ["", "{", r#"{"version":2,"boot":"b"}"#, r#"{"boot":"b"}"#, r#"{"version":1,"boot":"b","x":1}"#]
        {
            fs::write(store.file(), text).unwrap();
            assert!(store.load("b").unwrap_err().contains("devices.json"), "{text}");
        }
        fs::remove_file(store.file()).unwrap();
        fs::create_dir(store.file()).unwrap();
        assert!(store.load("b").is_err());
    }
}
