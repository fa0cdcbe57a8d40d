//! What a node needs of a control plane to join it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use kube::Client;

use crate::kubeconfig;
use crate::pki::Pki;
use crate::processes::run;

const PROXY: &str = "kube-proxy";
/// The file among the keys that says where the API server is.
const SERVER: &str = "server";

/// Programs, keys, and where the API server is.
#[derive(Debug, Clone)]
pub struct Joining {
    programs: PathBuf,
    keys: Pki,
    server: String,
}

/// What a program of a node needs to be one to the API server.
#[derive(Debug)]
pub(super) struct NodeAccess {
    /// Its kubeconfig.
    pub(super) kubeconfig: PathBuf,
    /// The certificate authority.
    pub(super) authority: PathBuf,
    /// Its certificate, also to serve with.
    pub(super) certificate: PathBuf,
    /// Its key.
    pub(super) key: PathBuf,
}

impl Joining {
    pub(crate) fn new(programs: &Path, keys: &Pki, server: String) -> Self {
        Self { programs: programs.to_owned(), keys: keys.clone(), server }
    }

    /// From a folder of programs and one of keys, which [`Self::archive`] made.
    pub fn unpacked(programs: &Path, keys: &Path) -> Result<Self> {
        let file = keys.join(SERVER);
        let server = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        Ok(Self::new(programs, &Pki::at(keys), server))
    }

    /// Writes to an archive what node `index` needs of the keys, and no other key.
    pub(super) fn archive(&self, index: u8, file: &Path) -> Result<()> {
        let folder = self.keys.folder();
        fs::write(folder.join(SERVER), &self.server)?;
        let users = [super::name(index), PROXY.to_owned()];
        let of_users = users.iter().flat_map(|user| [format!("{user}.crt"), format!("{user}.key")]);
        let mut tar = Command::new("tar");
        tar.arg("--create").arg("--file").arg(file).arg("--directory").arg(folder);
        run(tar.args([SERVER, "ca.crt"]).args(of_users)).map(drop)
    }

    /// Where the API server is, as host and port.
    pub(super) fn server(&self) -> &str {
        self.server.trim_start_matches("https://")
    }

    /// A client that speaks for node `index`.
    pub async fn client(&self, index: u8) -> Result<Client> {
        kubeconfig::client(&self.access(&super::name(index))?.kubeconfig).await
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    pub(super) fn proxy(&self) -> Result<NodeAccess> {
        self.access(PROXY)
    }

    /// Of a node by its name.
    pub(super) fn access(&self, user: &str) -> Result<NodeAccess> {
        let access = NodeAccess {
            kubeconfig: self.keys.folder().join(format!("{user}.kubeconfig")),
            authority: self.keys.certificate("ca"),
            certificate: self.keys.certificate(user),
            key: self.keys.key(user),
        };
        let (certificate, key) = (&access.certificate, &access.key);
        kubeconfig::write(&access.kubeconfig, &self.server, &access.authority, certificate, key)?;
        Ok(access)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_node_elsewhere_gets_its_own_keys_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let keys = Pki::open_or_create(folder.path().join("keys")).unwrap();
        let (programs, archive) = (Path::new("/programs"), folder.path().join("keys.tar"));
        Joining::new(programs, &keys, "https://10.0.2.100:6443".to_owned()).archive(1, &archive).unwrap();
        let listed = run(Command::new("tar").arg("-tf").arg(&archive)).unwrap();
        let mut listed: Vec<_> = listed.lines().collect();
        listed.sort_unstable();
        assert_eq!(
            listed,
            ["ca.crt", "kube-proxy.crt", "kube-proxy.key", "node-b.crt", "node-b.key", SERVER]
        );

        let there = folder.path().join("there");
        fs::create_dir(&there).unwrap();
        run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&there)).unwrap();
        let joining = Joining::unpacked(programs, &there).unwrap();
        assert_eq!(joining.server(), "10.0.2.100:6443");
        let access = joining.access("node-b").unwrap();
        for file in [access.kubeconfig, access.authority, access.certificate, access.key] {
            assert!(file.starts_with(&there) && file.is_file(), "{}", file.display());
        }
    }
}
