//! The store below the API server, through etcd's JSON gateway.
//!
//! An object written here passes no schema, no CEL rule and no admission: this is how a test
//! makes an object that the API server would refuse, as an older version may have left one.

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};

/// A client of etcd.
#[derive(Clone)]
pub struct Etcd {
    client: Client,
}

#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    kvs: Vec<Pair>,
}

#[derive(Deserialize)]
struct Pair {
    value: String,
}

/// The key of a custom resource's object, as the API server stores it.
pub fn key(group: &str, plural: &str, namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("/registry/{group}/{plural}/{namespace}/{name}"),
        None => format!("/registry/{group}/{plural}/{name}"),
    }
}

impl Etcd {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Stores a document under a key, whatever was there.
    pub async fn put(&self, key: &str, document: &Value) -> Result<()> {
        let value = STANDARD.encode(serde_json::to_vec(document)?);
        self.call("/v3/kv/put", &json!({ "key": STANDARD.encode(key), "value": value })).await?;
        Ok(())
    }

    /// The document under a key; `None` when there is none.
    ///
    /// # Errors
    /// Also when the value is no JSON: the API server stores its built-in kinds in another form.
    pub async fn get(&self, key: &str) -> Result<Option<Value>> {
        let answer = self.call("/v3/kv/range", &json!({ "key": STANDARD.encode(key) })).await?;
        let range: Range = serde_json::from_value(answer)?;
        let Some(pair) = range.kvs.first() else { return Ok(None) };
        let bytes = STANDARD.decode(&pair.value)?;
        serde_json::from_slice(&bytes).map(Some).with_context(|| format!("the value of {key} is no JSON"))
    }

    /// Removes a document, as a backup from before it does: nobody is asked, and no finalizer is waited for.
    pub async fn remove(&self, key: &str) -> Result<()> {
        self.call("/v3/kv/deleterange", &json!({ "key": STANDARD.encode(key) })).await?;
        Ok(())
    }

    async fn call(&self, path: &str, body: &Value) -> Result<Value> {
        let request = http::Request::post(path)
            .header("content-type", "application/json")
            .body(serde_json::to_vec(body)?)?;
        self.client.request(request).await.with_context(|| format!("etcd {path}"))
    }
}
