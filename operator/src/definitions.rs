//! Whether the API server has the definitions that this version needs. An operator on older ones would have its
//! writes refused, or cut without a word: it waits, and does not lead.

use std::time::Duration;

use gpudesk_crds::{GROUP, VERSION, schema};
use kube::Client;
use serde_json::{Map, Value};

use crate::{cause, metrics::Metrics};

/// Between looks.
const AGAIN: Duration = Duration::from_secs(3);
/// Fields that are named.
const NAMED: usize = 8;

/// Waits until all that this version needs is defined. Where the schema may not be read, that is said and not waited for.
pub async fn wait(client: &Client, metrics: &Metrics) {
    let mut said = String::new();
    loop {
        match served(client).await {
            Ok(served) => {
                let lacks = lacks(&served);
                metrics.definitions_lack(lacks.len());
                if lacks.is_empty() {
                    return;
                }
                let more = lacks.len().saturating_sub(NAMED);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                let named = lacks.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
                let says = format!("{named}{more}");
                if said != says {
                    tracing::error!(
                        "the definitions in the API are older than this operator and lack {says}: it does not lead. Apply those \
                         of this version: kubectl apply --server-side --force-conflicts -f crds/"
                    );
                    said = says;
                }
            }
            Err(kube::Error::Api(status)) if status.code == 403 => {
                tracing::warn!(
                    "the schema of the API may not be read (ClusterRole system:discovery): whether its definitions are older than \
                     this operator is not known"
                );
                return;
            }
            Err(error) => {
                tracing::warn!(error = %cause::of_request(&error), "the definitions cannot be read; trying again");
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Whether something is known to lack that this version needs.
pub async fn lack(client: &Client) -> bool {
    matches!(served(client).await, Ok(served) if !lacks(&served).is_empty())
}

/// What the API server says of the four kinds; nothing where it knows none.
async fn served(client: &Client) -> kube::Result<Value> {
    let request = http::Request::get(format!("/openapi/v3/apis/{GROUP}/{VERSION}")).body(vec![]);
    match client.request(request.map_err(kube::Error::HttpError)?).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Value::Null),
        answer => answer,
    }
}

/// What of the definitions of this version is not in `served`: `Desktop: status.node` each.
pub fn lacks(served: &Value) -> Vec<String> {
    let none = Map::new();
    let schemas = served.pointer("/components/schemas").and_then(Value::as_object).unwrap_or(&none);
    let mut lacks = vec![];
    for definition in schema::all() {
        let kind = definition.spec.names.kind.as_str();
        let is_of = |schema: &&Value| {
            let kinds = schema["x-kubernetes-group-version-kind"].as_array();
            kinds.is_some_and(|kinds| kinds.iter().any(|of| of["kind"] == kind && of["group"] == GROUP))
        };
        match schemas.values().find(is_of) {
            None => lacks.push(kind.to_owned()),
            Some(there) => {
                let ours = schema::of(&definition);
                for part in ["spec", "status"] {
                    compare(
                        &ours["properties"][part],
                        &there["properties"][part],
                        format!("{kind}: {part}"),
                        &mut lacks,
                    );
                }
            }
        }
    }
    lacks
}

fn compare(ours: &Value, there: &Value, path: String, lacks: &mut Vec<String>) {
    if ours.is_object() && !there.is_object() {
        return lacks.push(path);
    }
    if let (Some(ours), Some(there)) = (ours["enum"].as_array(), there["enum"].as_array()) {
        let unknown = ours.iter().filter(|value| !there.contains(value));
        lacks.extend(unknown.map(|value| format!("{path}={value}")));
    }
    for (name, field) in ours["properties"].as_object().into_iter().flatten() {
        compare(field, &there["properties"][name], format!("{path}.{name}"), lacks);
    }
    for (inner, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
        if ours[inner].is_object() {
            compare(&ours[inner], &there[inner], format!("{path}{mark}"), lacks);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As an API server with the definitions of this version answers.
    fn served() -> Value {
        let schemas: Map<String, Value> = schema::all()
            .iter()
            .map(|definition| {
                let kind = &definition.spec.names.kind;
                let mut schema = schema::of(definition);
                schema["x-kubernetes-group-version-kind"] =
                    json!([{"group": "gpudesk.dev", "kind": kind, "version": "v1alpha1"}]);
                (format!("dev.gpudesk.v1alpha1.{kind}"), schema)
            })
            .collect();
        json!({"components": {"schemas": schemas}})
    }

    #[test]
    fn what_older_definitions_lack_is_named() {
        assert_eq!(lacks(&served()), [""; 0]);
        assert_eq!(lacks(&Value::Null), ["GpuNode", "GpuProfile", "DesktopTemplate", "Desktop"]);
        let without = |pointer: &str, name: &str| {
            let mut served = served();
            let pointer = format!("/components/schemas/dev.gpudesk.v1alpha1.{pointer}");
            match served.pointer_mut(&pointer).unwrap() {
                Value::Object(fields) => _ = fields.remove(name).unwrap(),
                values => values.as_array_mut().unwrap().retain(|value| value != name),
            }
            lacks(&served)
        };
        let node = "Desktop/properties/status/properties/node/properties";
        assert_eq!(without(node, "refusal"), ["Desktop: status.node.refusal"]);
        assert_eq!(
            without(&format!("{node}/state/enum"), "Refused"),
            ["Desktop: status.node.state=\"Refused\""]
        );
        let cells = "GpuNode/properties/status/properties/numaCells/items/properties";
        assert_eq!(without(cells, "memoryMiB"), ["GpuNode: status.numaCells[].memoryMiB"]);
    }
}
