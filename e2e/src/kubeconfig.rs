//! Kubeconfig files and the clients made of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;

/// Writes a kubeconfig for the holder of a client certificate, which only its owner can read.
pub(crate) fn write(
    path: &Path,
    server: &str,
    authority: &Path,
    certificate: &Path,
    key: &Path,
) -> Result<()> {
    let cluster = json!({ "server": server, "certificate-authority": authority });
    save(path, &cluster, &json!({ "client-certificate": certificate, "client-key": key }))
}

/// Writes a kubeconfig for the holder of a token, for the cluster that the kubeconfig `like` names.
pub fn write_like(path: &Path, like: &Path, token: &str) -> Result<()> {
    let config = Kubeconfig::read_from(like)?;
    let context = config.current_context.as_deref().context("the kubeconfig has no current context")?;
    let cluster_name = config
        .contexts
        .iter()
        .find(|named| named.name == context)
        .and_then(|named| named.context.as_ref())
        .map(|context| context.cluster.as_str());
    let cluster = config
        .clusters
        .iter()
        .find(|named| Some(named.name.as_str()) == cluster_name)
        .and_then(|named| named.cluster.as_ref())
        .with_context(|| format!("context {context} names no cluster"))?;
    let credentials = json!({ "token": token });
    save(path, &serde_json::to_value(cluster)?, &credentials)
}

/// Writes a kubeconfig like another one, for a place where the API server is found at another address and files of
/// this machine are not.
pub(crate) fn write_elsewhere(path: &Path, like: &Path, address: &str) -> Result<()> {
    let mut config = Kubeconfig::read_from(like)?;
    for cluster in config.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        if let Some(file) = cluster.certificate_authority.take() {
            let pem = fs::read(&file).with_context(|| format!("read {file}"))?;
            cluster.certificate_authority_data = Some(STANDARD.encode(pem));
        }
        cluster.server = Some(format!("https://{address}"));
        // Its certificate is for where it is here.
        cluster.tls_server_name = Some("localhost".into());
    }
    fs::write(path, serde_json::to_string(&config)?).with_context(|| format!("write {}", path.display()))
}

fn save(path: &Path, cluster: &serde_json::Value, credentials: &serde_json::Value) -> Result<()> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "gpudesk", "cluster": cluster }],
        "users": [{ "name": "gpudesk", "user": credentials }],
        "contexts": [{ "name": "gpudesk", "context": { "cluster": "gpudesk", "user": "gpudesk" } }],
        "current-context": "gpudesk",
    });
    // Readers of an older version keep it whole, and the new one was never open to others.
    let part = path.with_extension("part");
    fs::write(&part, "")?;
    fs::set_permissions(&part, fs::Permissions::from_mode(0o600))?;
    fs::write(&part, serde_json::to_string_pretty(&config)?)?;
    fs::rename(&part, path).with_context(|| format!("write {}", path.display()))
}

/// A client that speaks for a kubeconfig.
pub async fn client(path: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}
