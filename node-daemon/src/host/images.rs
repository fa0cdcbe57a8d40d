//! Golden images and kernels: files that the node's owner put into its image folders.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why an image cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ImageError {
    /// It is in none of the folders.
    #[error("no image {file:?} on node {node}: looked in {roots}")]
    NotFound {
        /// The file looked for.
        file: String,
        /// The node.
        node: String,
        /// The folders, as people read them.
        roots: String,
    },
    /// It is a path instead of a name.
    #[error("{name:?} is not the name of an image: write a file name without / and without a leading dot")]
    NotAName {
        /// What was given.
        name: String,
    },
}

/// Where images are found.
#[derive(Clone, Debug)]
pub struct ImageStore {
    node: String,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Folders(Vec<PathBuf>),
    /// Of a simulated host: every image but these. Its files exist in name only.
    AllBut(Vec<String>),
}

impl ImageStore {
    /// The images in these folders of `node`, the first one that has it.
    pub fn folders(node: &str, folders: Vec<PathBuf>) -> Self {
        Self { node: node.into(), content: Content::Folders(folders) }
    }

    /// For a simulated host: every image but those `missing`.
    pub fn pretended(node: &str, missing: Vec<String>) -> Self {
        Self { node: node.into(), content: Content::AllBut(missing) }
    }

    /// Whether files exist in name only.
    pub fn is_pretended(&self) -> bool {
        matches!(self.content, Content::AllBut(_))
    }

    /// The golden image of this name: `<folder>/<name>.qcow2`.
    ///
    /// # Errors
    /// [`ImageError`], naming node and folders.
    pub fn image(&self, name: &str) -> Result<PathBuf, ImageError> {
        self.find(name, &format!("{name}.qcow2"))
    }

    /// A kernel or initial RAM disk: `<folder>/<name>`.
    ///
    /// # Errors
    /// [`ImageError`], naming node and folders.
    pub fn kernel(&self, name: &str) -> Result<PathBuf, ImageError> {
        self.find(name, name)
    }

    fn find(&self, name: &str, file: &str) -> Result<PathBuf, ImageError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(ImageError::NotAName { name: name.chars().take(80).collect() });
        }
        match &self.content {
            Content::Folders(folders) => {
                let found = folders.iter().map(|folder| folder.join(file)).find(|path| path.is_file());
                found.ok_or_else(|| self.not_found(file, folders))
            }
            Content::AllBut(missing) if missing.iter().any(|image| image == name) => {
                Err(self.not_found(file, &[PretendFolder::path()]))
            }
            Content::AllBut(_) => Ok(PretendFolder::path().join(file)),
        }
    }

    fn not_found(&self, file: &str, folders: &[PathBuf]) -> ImageError {
        let roots: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        let roots = if roots.is_empty() { "no folder, for none is set".into() } else { roots.join(", ") };
        ImageError::NotFound { file: file.into(), node: self.node.clone(), roots }
    }
}

struct PretendFolder;

impl PretendFolder {
    fn path() -> PathBuf {
        Path::new("/simulated/images").to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_folder_that_has_an_image_gives_it() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::File::create(b.path().join("debian-12.qcow2")).unwrap();
        std::fs::File::create(b.path().join("vmlinuz")).unwrap();
        let store = ImageStore::folders("node-a", vec![a.path().into(), b.path().into()]);
        assert_eq!(store.image("debian-12").unwrap(), b.path().join("debian-12.qcow2"));
        assert_eq!(store.kernel("vmlinuz").unwrap(), b.path().join("vmlinuz"));
        let error = store.image("windows-11").unwrap_err().to_string();
        for part in ["windows-11.qcow2", "node-a", a.path().to_str().unwrap(), b.path().to_str().unwrap()] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_path_is_not_a_name() {
        let store = ImageStore::folders("n", vec!["/".into()]);
        for name in ["../etc/passwd", "etc/passwd", "", ".hidden", "a\0b", "ä"] {
            assert!(matches!(store.kernel(name), Err(ImageError::NotAName { .. })), "{name:?}");
        }
    }

    #[test]
    fn a_simulated_host_has_every_image_but_the_missing() {
        let store = ImageStore::pretended("n", vec!["gone".into()]);
        assert!(store.image("anything").is_ok());
        assert!(matches!(store.image("gone"), Err(ImageError::NotFound { .. })));
    }
}
