//! Requests as somebody, and what the server says to them.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use gpudesk_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use gpudesk_e2e::identity::service_account_kubeconfig;
use gpudesk_e2e::kubeconfig;
use gpudesk_e2e::waiting::eventually;
use kube::Client;
use serde_json::{Value, json};

/// Somebody who asks.
pub(crate) struct Person {
    client: Client,
    /// Headers that name him, where he is impersonated.
    headers: Vec<(&'static str, String)>,
    /// The field manager of a program, as which it writes unless the path names another.
    manager: Option<&'static str>,
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    method: &'static str,
    pub(crate) path: String,
    content: &'static str,
    pub(crate) body: Value,
}

impl Ask {
    /// The same, judged and not carried out.
    pub(crate) fn dry(&self) -> Self {
        let and = if self.path.contains('?') { '&' } else { '?' };
        Self { path: format!("{}{and}dryRun=All", self.path), ..self.clone() }
    }
}

impl Person {
    /// The holder of every right.
    pub(crate) fn admin(cluster: &Cluster) -> Self {
        Self { client: cluster.client().clone(), headers: vec![], manager: None }
    }

    /// A user without a group.
    pub(crate) fn user(cluster: &Cluster, name: &str) -> Self {
        let headers = vec![
            ("Impersonate-User", name.to_owned()),
            ("Impersonate-Group", "system:authenticated".to_owned()),
        ];
        Self { client: cluster.client().clone(), headers, manager: None }
    }

    /// The operator.
    pub(crate) async fn operator(cluster: &Cluster) -> Result<Self> {
        Self::of(&cluster.operator_kubeconfig().await?, "gpudesk-operator").await
    }

    /// The daemon of a node.
    pub(crate) async fn daemon(cluster: &Cluster, node: &str) -> Result<Self> {
        Self::of(&cluster.daemon_kubeconfig(node).await?, "gpudesk-node-daemon").await
    }

    /// A daemon whose token names no node.
    pub(crate) async fn daemon_of_no_node(cluster: &Cluster) -> Result<Self> {
        let (control_plane, state) = (cluster.control_plane(), cluster.state());
        let account = "gpudesk-node-daemon";
        let path = service_account_kubeconfig(control_plane, state, SYSTEM_NAMESPACE, account, None).await?;
        Self::of(&path, account).await
    }

    async fn of(path: &std::path::Path, manager: &'static str) -> Result<Self> {
        Ok(Self { client: kubeconfig::client(path).await?, headers: vec![], manager: Some(manager) })
    }

    /// The holder of this token.
    pub(crate) async fn with_token(cluster: &Cluster, token: &str) -> Result<Self> {
        let mut config = kube::Config::from_custom_kubeconfig(
            kube::config::Kubeconfig::read_from(cluster.control_plane().kubeconfig())?,
            &kube::config::KubeConfigOptions::default(),
        )
        .await?;
        config.auth_info = kube::config::AuthInfo {
            token: Some(token.to_owned().into()),
            ..kube::config::AuthInfo::default()
        };
        Ok(Self { client: Client::try_from(config)?, headers: vec![], manager: None })
    }

    /// The answer, or the server's words and code.
    pub(crate) async fn try_ask(&self, ask: &Ask) -> Result<Result<Value, (u16, String)>> {
        match self.client.request::<Value>(self.request(ask)?).await {
            Ok(answer) => Ok(Ok(answer)),
            Err(kube::Error::Api(status)) => Ok(Err((status.code, status.message))),
            Err(error) => Err(error).with_context(|| format!("{} {}", ask.method, ask.path)),
        }
    }

    /// The warnings that the server sends with its answer to what he may do.
    pub(crate) async fn warnings(&self, ask: &Ask) -> Result<Vec<String>> {
        let answer = self.client.send(self.request(ask)?.map(kube::client::Body::from)).await?;
        ensure!(answer.status().is_success(), "{} {}: {}", ask.method, ask.path, answer.status());
        let texts = answer.headers().get_all("Warning").iter().map(|value| value.to_str().map(str::to_owned));
        Ok(texts.collect::<Result<_, _>>()?)
    }

    fn request(&self, ask: &Ask) -> Result<http::Request<Vec<u8>>> {
        let mut path = ask.path.clone();
        if let Some(manager) = self.manager.filter(|_| ["PATCH", "PUT"].contains(&ask.method)) {
            path = path.replace("fieldManager=trial", &format!("fieldManager={manager}"));
            if !path.contains("fieldManager=") {
                let and = if path.contains('?') { '&' } else { '?' };
                path = format!("{path}{and}fieldManager={manager}");
            }
        }
        let mut request =
            http::Request::builder().method(ask.method).uri(path).header("Content-Type", ask.content);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let body = if ask.body.is_null() { Vec::new() } else { serde_json::to_vec(&ask.body)? };
        Ok(request.body(body)?)
    }

    /// Asks for what he may do.
    pub(crate) async fn may(&self, ask: &Ask) -> Result<Value> {
        match self.try_ask(ask).await? {
            Ok(answer) => Ok(answer),
            Err((code, words)) => bail!("{} {} {}: {code} {words}", ask.method, ask.path, ask.body),
        }
    }

    /// Asks, in a dry run, for what he may not do; the refusal has to contain `words`.
    ///
    /// A policy is in effect some time after it was made, so it is asked again for a while.
    pub(crate) async fn may_not(&self, ask: &Ask, words: &str) -> Result<()> {
        let dry = ask.dry();
        let what = format!("{} {} {} is refused", ask.method, ask.path, ask.body);
        let said =
            eventually(&what, Duration::from_secs(15), || async { Ok(self.try_ask(&dry).await?.err()) })
                .await?;
        ensure!(
            said.0 == 403 && said.1.contains(words),
            "{what}, but not with {words:?}: {} {}",
            said.0,
            said.1
        );
        Ok(())
    }
}

fn ask(method: &'static str, path: impl Into<String>, content: &'static str, body: Value) -> Ask {
    Ask { method, path: path.into(), content, body }
}

/// Reads.
pub(crate) fn get(path: impl Into<String>) -> Ask {
    ask("GET", path, "application/json", Value::Null)
}

/// Creates.
pub(crate) fn create(path: impl Into<String>, body: Value) -> Ask {
    ask("POST", path, "application/json", body)
}

/// Deletes.
pub(crate) fn delete(path: impl Into<String>) -> Ask {
    ask("DELETE", path, "application/json", Value::Null)
}

/// Puts an object in the place of what is there.
pub(crate) fn replace(path: impl Into<String>, body: Value) -> Ask {
    ask("PUT", path, "application/json", body)
}

/// Merges a patch.
pub(crate) fn merge(path: impl Into<String>, body: Value) -> Ask {
    ask("PATCH", path, "application/merge-patch+json", body)
}

/// Changes single fields, by operations of a JSON patch.
pub(crate) fn change(path: impl Into<String>, operations: Value) -> Ask {
    ask("PATCH", path, "application/json-patch+json", operations)
}

/// Applies with force, under a field manager that others do not have.
pub(crate) fn apply(path: impl Into<String>, body: Value) -> Ask {
    let path = format!("{}?fieldManager=trial&force=true", path.into());
    ask("PATCH", path, "application/apply-patch+yaml", body)
}

/// Path of a namespaced kind of gpudesk.
pub(crate) fn namespaced(namespace: &str, plural_and_name: &str) -> String {
    format!("/apis/gpudesk.dev/v1alpha1/namespaces/{namespace}/{plural_and_name}")
}

/// Path of a GpuNode.
pub(crate) fn gpunode(name: &str) -> String {
    format!("/apis/gpudesk.dev/v1alpha1/gpunodes/{name}")
}

/// An object of gpudesk with these further parts.
pub(crate) fn object(kind: &str, name: &str, parts: Value) -> Value {
    let mut object = json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": kind, "metadata": {"name": name}});
    if let Value::Object(parts) = parts {
        for (key, value) in parts {
            object[&key] = value;
        }
    }
    object
}

/// An allocation to a node, with CPUs.
pub(crate) fn allocation(node: &str) -> Value {
    json!({
        "node": node, "desktopGeneration": 1, "templateGeneration": 1, "decidedAt": "2026-01-01T00:00:00Z",
        "compute": {"cores": 1, "threadsPerCore": 1, "memoryMiB": 64},
    })
}

/// A condition.
pub(crate) fn condition(type_: &str, message: &str) -> Value {
    json!({
        "type": type_, "status": "True", "reason": "AsExpected", "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}
