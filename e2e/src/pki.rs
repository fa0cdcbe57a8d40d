//! Keys and certificates of a control plane of its own.
//!
//! ```text
//! ca ──┬─ apiserver        serves 127.0.0.1, the first node's address, and that for a VM
//!      ├─ etcd             serves 127.0.0.1, and is its own gateway's client
//!      ├─ admin            system:masters
//!      ├─ controllers, scheduler, kube-proxy    system:kube-controller-manager, ...
//!      ├─ kubelet-client   what the API server is to kubelets
//!      └─ node-a, node-b   system:node:node-a, ...; each also serves its kubelet
//! front-proxy-ca ── front-proxy
//! service-accounts         the pair that signs and checks tokens
//! ```
//! All keys are ECDSA P-256, the one for service-account tokens too: the API server signs
//! with ES256 then, and no RSA key has to be searched for at every start.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::node::{self, vm};

/// The first address of the range of services: that of the API server for pods.
const SERVICE_ADDRESS: &str = "10.0.0.1";

/// A folder of keys and certificates.
#[derive(Debug, Clone)]
pub(crate) struct Pki {
    folder: PathBuf,
}

impl Pki {
    /// The keys in `folder`, made there if it does not exist. The folder appears whole or not at all.
    pub(crate) fn open_or_create(folder: PathBuf) -> Result<Self> {
        if !folder.exists() {
            let part = folder.with_extension("part");
            if part.exists() {
                fs::remove_dir_all(&part)?;
            }
            fs::create_dir(&part)?;
            fs::set_permissions(&part, fs::Permissions::from_mode(0o700))?;
            create(&part).context("make keys and certificates")?;
            fs::rename(&part, &folder)?;
        }
        Ok(Self { folder })
    }

    /// The keys in a folder that has them.
    pub(crate) fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The certificate file of this name.
    pub(crate) fn certificate(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.crt"))
    }

    /// The private key file of this name.
    pub(crate) fn key(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.key"))
    }

    /// The public key file of this name.
    pub(crate) fn public_key(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.pub"))
    }
}

fn create(folder: &Path) -> Result<()> {
    let ca = Authority::create(folder, "ca")?;
    ca.issue("apiserver", "kube-apiserver", None, &[ExtendedKeyUsagePurpose::ServerAuth])?;
    let both = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    ca.issue("etcd", "etcd", None, &both)?;
    let client = [ExtendedKeyUsagePurpose::ClientAuth];
    ca.issue("admin", "admin", Some("system:masters"), &client)?;
    for (file, user) in [
        ("controllers", "system:kube-controller-manager"),
        ("scheduler", "system:kube-scheduler"),
        ("kube-proxy", "system:kube-proxy"),
    ] {
        ca.issue(file, user, None, &client)?;
    }
    ca.issue("kubelet-client", "kubelet-client", Some("system:masters"), &client)?;
    for index in 0..node::MOST {
        let name = node::name(index);
        ca.issue(&name, &format!("system:node:{name}"), Some("system:nodes"), &both)?;
    }
    Authority::create(folder, "front-proxy-ca")?.issue("front-proxy", "front-proxy", None, &client)?;

    let tokens = KeyPair::generate()?;
    write(folder, "service-accounts.key", &tokens.serialize_pem())?;
    write(folder, "service-accounts.pub", &tokens.public_key_pem())
}

struct Authority<'a> {
    folder: &'a Path,
    issuer: Issuer<'static, KeyPair>,
}

impl<'a> Authority<'a> {
    fn create(folder: &'a Path, name: &str) -> Result<Self> {
        let mut parameters = parameters(name, None)?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        write(folder, &format!("{name}.crt"), &parameters.self_signed(&key)?.pem())?;
        Ok(Self { folder, issuer: Issuer::new(parameters, key) })
    }

    fn issue(
        &self,
        file: &str,
        common_name: &str,
        organization: Option<&str>,
        usages: &[ExtendedKeyUsagePurpose],
    ) -> Result<()> {
        let mut parameters = parameters(common_name, organization)?;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = usages.to_vec();
        let key = KeyPair::generate()?;
        write(self.folder, &format!("{file}.crt"), &parameters.signed_by(&key, &self.issuer)?.pem())?;
        write(self.folder, &format!("{file}.key"), &key.serialize_pem())
    }
}

fn parameters(common_name: &str, organization: Option<&str>) -> Result<CertificateParams> {
    let names = ["127.0.0.1", "localhost", "kubernetes.default.svc", SERVICE_ADDRESS, vm::API_SERVER];
    let nodes = (0..node::MOST).map(node::address);
    let mut parameters =
        CertificateParams::new(names.map(str::to_owned).into_iter().chain(nodes).collect::<Vec<_>>())?;
    parameters.distinguished_name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        parameters.distinguished_name.push(DnType::OrganizationName, organization);
    }
    Ok(parameters)
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join(name))?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    Ok(())
}
