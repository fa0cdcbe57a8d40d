//! Secrets that desktops on this node name, read with the node's own identity.
//!
//! The daemon's own account may read no Secret. It may ask for a token of the service account
//! `gpudesk-node-<node>`, to which the operator gives just the Secrets of the desktops of this node.

use gpudesk_crds::node_identity;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Secret, ServiceAccount},
};
use kube::{Api, Client, Config, api::PostParams, config::AuthInfo};
use thiserror::Error;

use crate::host::seed::Seed;

/// Shortest life of a token that the API server gives.
const TOKEN_SECONDS: i64 = 600;

/// Why a Secret was not read.
#[derive(Debug, Error)]
pub enum SecretError {
    /// It does not exist, or this node may not read it.
    #[error("Secret {namespace}/{name} does not exist or may not be read by this node: {message}")]
    NotThere {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The words of the API server.
        message: String,
    },
    /// It lacks a key.
    #[error("Secret {namespace}/{name} has no key {key:?}")]
    NoKey {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The key.
        key: &'static str,
    },
    /// The API server did not answer, or gave no token.
    #[error("Secret {namespace}/{name} could not be read: {message}")]
    Api {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What went wrong.
        message: String,
    },
}

/// Reads the Secrets of desktops.
#[derive(Clone)]
pub struct Secrets {
    client: Client,
    config: Config,
    node: String,
    system_namespace: String,
}

impl Secrets {
    /// With the daemon's own client, and the configuration that it was made from.
    pub fn new(client: Client, config: Config, node: &str, system_namespace: &str) -> Self {
        Self { client, config, node: node.into(), system_namespace: system_namespace.into() }
    }

    /// The first-boot configuration in a Secret: keys `userData` and, if there, `networkData`. Read
    /// at this moment, kept nowhere.
    ///
    /// # Errors
    /// [`SecretError`].
    pub async fn seed(&self, namespace: &str, name: &str) -> Result<Seed, SecretError> {
        let failed = |error: kube::Error| match error {
            kube::Error::Api(status) if [403, 404].contains(&status.code) => SecretError::NotThere {
                namespace: namespace.into(),
                name: name.into(),
                message: status.message,
            },
            error => SecretError::Api {
                namespace: namespace.into(),
                name: name.into(),
                message: error.to_string(),
            },
        };
        let client = self.node_client().await.map_err(failed)?;
        let secret = Api::<Secret>::namespaced(client, namespace).get(name).await.map_err(failed)?;
        let mut data = secret.data.unwrap_or_default();
        let user_data = data.remove("userData").ok_or_else(|| SecretError::NoKey {
            namespace: namespace.into(),
            name: name.into(),
            key: "userData",
        })?;
        let network_data = data.remove("networkData").map(|data| data.0);
        Ok(Seed { user_data: user_data.0, network_data })
    }

    /// A client with the identity of the node.
    async fn node_client(&self) -> Result<Client, kube::Error> {
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: vec![],
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Node".into()),
                    name: Some(self.node.clone()),
                    uid: None,
                }),
                expiration_seconds: Some(TOKEN_SECONDS),
            },
            ..TokenRequest::default()
        };
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), &self.system_namespace);
        let account = node_identity(&self.node);
        let answer = accounts.create_token_request(&account, &PostParams::default(), &request).await?;
        let token = answer.status.map(|status| status.token).unwrap_or_default();
        let mut config = self.config.clone();
        config.auth_info = AuthInfo { token: Some(token.into()), ..AuthInfo::default() };
        gpudesk_watch::client(&config)
    }
}
