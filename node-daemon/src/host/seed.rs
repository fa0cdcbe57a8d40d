//! The seed disk: a FAT image labelled `CIDATA` that cloud-init reads as `NoCloud`.

use std::io::{Cursor, Write};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use thiserror::Error;
use uuid::Uuid;

/// What a desktop is told at its first boot.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed {
    /// User data: `#cloud-config` or a script.
    pub user_data: Vec<u8>,
    /// Network configuration.
    pub network_data: Option<Vec<u8>>,
}

/// Why no seed disk was made.
#[derive(Debug, Error)]
#[error("the seed disk could not be made: {0}")]
pub struct SeedError(#[from] std::io::Error);

/// Room for the file system itself and for rounding each file up.
const OVERHEAD: usize = 256 << 10;

impl Seed {
    /// The image for desktop `uid` with host name `name`.
    ///
    /// # Errors
    /// [`SeedError`] when the file system cannot be written, which only a fault of this program causes.
    pub fn image(&self, uid: Uuid, name: &str) -> Result<Vec<u8>, SeedError> {
        let meta_data = format!("instance-id: {uid}\nlocal-hostname: {name}\n");
        let files = [
            ("meta-data", Some(meta_data.as_bytes())),
            ("user-data", Some(self.user_data.as_slice())),
            ("network-config", self.network_data.as_deref()),
        ];
        let content: usize = files.iter().filter_map(|(_, data)| data.map(<[u8]>::len)).sum();
        let size = (content + OVERHEAD).next_multiple_of(64 << 10);
        let mut image = Cursor::new(vec![0; size]);
        let id = uid.as_u64_pair().0 >> 32;
        let options = FormatVolumeOptions::new()
            .volume_label(*b"CIDATA     ")
            .volume_id(u32::try_from(id).unwrap_or_default());
        fatfs::format_volume(&mut image, options)?;
        image.set_position(0);
        let system = FileSystem::new(&mut image, FsOptions::new())?;
        for (name, data) in files {
            if let Some(data) = data {
                let mut file = system.root_dir().create_file(name)?;
                file.truncate()?;
                file.write_all(data)?;
                file.flush()?;
            }
        }
        system.unmount()?;
        Ok(image.into_inner())
    }
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // User data holds passwords.
        write!(f, "Seed({} bytes of user data)", self.user_data.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const UID: &str = "7f1c2a58-3c1e-4f0e-9a53-0d4f6f5b9a01";

    fn read(image: &[u8], name: &str) -> Option<Vec<u8>> {
        let system = FileSystem::new(Cursor::new(image.to_vec()), FsOptions::new()).unwrap();
        let mut file = system.root_dir().open_file(name).ok()?;
        let mut data = vec![];
        file.read_to_end(&mut data).unwrap();
        Some(data)
    }

    #[test]
    fn what_was_written_is_read_back() {
        let seed =
            Seed { user_data: b"#cloud-config\n".to_vec(), network_data: Some(b"version: 2\n".to_vec()) };
        let image = seed.image(UID.parse().unwrap(), "anna").unwrap();
        let system = FileSystem::new(Cursor::new(image.clone()), FsOptions::new()).unwrap();
        assert_eq!(system.volume_label(), "CIDATA");
        assert_eq!(system.read_volume_label_from_root_dir().unwrap().as_deref(), Some("CIDATA"));
        let meta_data = format!("instance-id: {UID}\nlocal-hostname: anna\n");
        assert_eq!(read(&image, "meta-data").unwrap(), meta_data.into_bytes());
        assert_eq!(read(&image, "user-data").unwrap(), b"#cloud-config\n");
        assert_eq!(read(&image, "network-config").unwrap(), b"version: 2\n");
    }

    #[test]
    fn a_secret_of_a_mebibyte_fits_and_no_network_makes_no_file() {
        let seed = Seed { user_data: vec![b'x'; 1 << 20], network_data: None };
        let image = seed.image(UID.parse().unwrap(), "anna").unwrap();
        assert_eq!(read(&image, "user-data").unwrap().len(), 1 << 20);
        assert_eq!(read(&image, "network-config"), None);
    }

    #[test]
    fn no_log_shows_user_data() {
        let seed = Seed { user_data: b"password".to_vec(), network_data: None };
        assert!(!format!("{seed:?}").contains("password"));
    }
}
