//! Who may change which field: every field of the four kinds, metadata included, is tried as each
//! identity with its real token, and what came of it is compared with the table in `fields.yaml`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt, stream};
use gpudesk_crds::conditions::ConditionType;
use gpudesk_crds::schema;
use gpudesk_e2e::cluster::Cluster;
use gpudesk_e2e::state::checkout;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::ask::{Ask, Person, change, create, get, merge, object};
use crate::people::{give, knows};
use crate::sample::{another, sample};

/// The table: per kind, a field and all below it, and who writes it beside an administrator of the
/// cluster. `server` alone: nobody does.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    writers: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
    /// Fields that a rule of the schema ties to others: the parent and a value of all of it.
    tied: BTreeMap<String, (String, Value)>,
}

/// One change of one field.
#[derive(Clone, Debug)]
struct Change {
    /// The field as the table names it.
    field: String,
    /// Which object, and where in it, as a JSON pointer.
    object: usize,
    pointer: String,
    /// The new value; none: it is removed.
    value: Option<Value>,
}

/// An object that is there, and who may be its daemon.
struct Stored {
    path: String,
    value: Value,
    daemon: Person,
}

/// Everybody who asks for everything.
struct People {
    cluster: Person,
    others: Vec<(&'static str, Person)>,
}

const NODE: &str = "fields-0";

/// Tries every field of one kind.
pub(crate) async fn writers(cluster: Arc<Cluster>, kind: &'static str) -> Result<()> {
    let text = std::fs::read_to_string(checkout().join("e2e/tests/rbac/fields.yaml"))?;
    let table: Table = serde_yaml::from_str(&text)?;
    let namespace = cluster.namespace("fields").await?;
    let mut others = vec![
        ("operator", Person::operator(&cluster).await?),
        ("other daemon", Person::daemon(&cluster, "fields-elsewhere").await?),
    ];
    for (name, role) in [("edit", "edit"), ("admin", "admin"), ("everything", "cluster-admin")] {
        let user = format!("fields-{name}-{}", kind.to_lowercase());
        give(&cluster, &user, role, Some(&namespace)).await?;
        let person = Person::user(&cluster, &user);
        knows(&person, &format!("/apis/gpudesk.dev/v1alpha1/namespaces/{namespace}/desktops")).await?;
        others.push((name, person));
    }
    let people = People { cluster: Person::admin(&cluster), others };
    let metadata = metadata_fields(&people.cluster).await?;

    let crd = schema::all().into_iter().find(|crd| crd.spec.names.kind == kind).context("no such kind")?;
    let crd = serde_json::to_value(crd)?;
    let writers = table.writers.get(kind).with_context(|| format!("{kind} is not in the table"))?;
    let fields = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let stored = store(&cluster, &people.cluster, &crd, &namespace).await?;
    let (changes, mut wrong) = changes(kind, fields, &metadata, &stored, &table)?;
    wrong.extend(ask(kind, &changes, &stored, &people, writers).await?);
    for type_ in ConditionType::ALL {
        let field = format!("status.conditions{{{type_}}}");
        if !table.writers.values().any(|writers| writers.contains_key(&field)) {
            wrong.push(format!("{field} has no writer in the table of any kind"));
        }
    }
    let known = |field: &str| changes.iter().any(|change| below(&change.field, field));
    let unknown = writers.keys().filter(|field| !known(field));
    wrong.extend(unknown.map(|field| format!("{kind} {field} is in the table and not in the schema")));
    let release = json!([{"op": "remove", "path": "/metadata/finalizers"}]);
    people.cluster.may(&change(&stored[0].path, release)).await?;
    ensure!(wrong.is_empty(), "{} of the fields:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// Whether `field` is `prefix` or below it.
fn below(field: &str, prefix: &str) -> bool {
    field.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '{', '[']))
}

/// The fields of metadata, as the server documents them.
async fn metadata_fields(admin: &Person) -> Result<Vec<String>> {
    let document = admin.may(&get("/openapi/v3/apis/gpudesk.dev/v1alpha1")).await?;
    let meta = &document["components"]["schemas"]["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"];
    let fields = meta["properties"].as_object().context("no schema of metadata")?;
    Ok(fields.keys().cloned().collect())
}

/// Creates the accepted manifests of the kind; the first has everything in metadata and status.
async fn store(cluster: &Cluster, admin: &Person, crd: &Value, namespace: &str) -> Result<Vec<Stored>> {
    let (kind, plural) = (&crd["spec"]["names"]["kind"], &crd["spec"]["names"]["plural"]);
    let (kind, plural) = (kind.as_str().context("a kind")?, plural.as_str().context("a plural")?);
    let table = std::fs::read_to_string(checkout().join(format!("e2e/tests/api/{plural}.yaml")))?;
    let cases: Vec<Value> = serde_yaml::from_str(&table)?;
    let namespaced = crd["spec"]["scope"] == "Namespaced";
    let middle = if namespaced { format!("namespaces/{namespace}/") } else { String::new() };
    let folder = format!("/apis/gpudesk.dev/v1alpha1/{middle}{plural}");
    let owner = if namespaced {
        get(format!("/api/v1/namespaces/{namespace}/serviceaccounts/default"))
    } else {
        get("/api/v1/namespaces/kube-system")
    };
    let owner = admin.may(&owner).await?;
    let (owner_kind, owner_uid) =
        (if namespaced { "ServiceAccount" } else { "Namespace" }, &owner["metadata"]["uid"]);

    let mut stored = Vec::new();
    for case in cases.iter().filter(|case| case["refused"].is_null()) {
        let name = format!("fields-{}", stored.len());
        let mut made = object(kind, &name, json!({"spec": case["manifest"]["spec"]}));
        if stored.is_empty() {
            made["metadata"]["labels"] = json!({"rack": "a1", "gpudesk.dev/simulated": "true"});
            made["metadata"]["annotations"] = json!({"example.org/note": "a"});
            made["metadata"]["finalizers"] = json!(["example.org/hold", gpudesk_crds::RELEASE_FINALIZER]);
            made["metadata"]["ownerReferences"] = json!([{
                "apiVersion": "v1", "kind": owner_kind, "name": owner["metadata"]["name"], "uid": owner_uid
            }]);
        }
        admin.may(&create(&folder, made)).await?;
        let path = format!("{folder}/{name}");
        if stored.is_empty() {
            let fields = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
            let mut status = sample(fields);
            let one = sample(&fields["properties"]["conditions"]["items"]);
            let conditions = ConditionType::ALL.iter().map(|type_| {
                let mut condition = one.clone();
                condition["type"] = type_.as_str().into();
                condition
            });
            status["conditions"] = conditions.collect();
            if kind == "Desktop" {
                status["allocation"]["node"] = NODE.into();
            }
            admin.may(&merge(format!("{path}/status"), json!({"status": status}))).await?;
        }
        let value = admin.may(&get(&path)).await?;
        let daemon = if kind == "GpuNode" { name } else { NODE.to_owned() };
        stored.push(Stored { path, value, daemon: Person::daemon(cluster, &daemon).await? });
    }
    ensure!(!stored.is_empty(), "no manifest of {kind} is accepted");
    Ok(stored)
}

/// Every change to try, and the fields of which no object has a value.
fn changes(
    kind: &str,
    fields: &Value,
    metadata: &[String],
    stored: &[Stored],
    table: &Table,
) -> Result<(Vec<Change>, Vec<String>)> {
    let mut changes = Vec::new();
    for field in metadata {
        changes.extend(of_metadata(field, &stored[0].value)?);
    }
    let mut leaves = Vec::new();
    for part in ["spec", "status"] {
        walk(&fields[part], part, &mut leaves);
    }
    let mut missing = Vec::new();
    for (field, schema) in leaves {
        if below(&field, "status.conditions") {
            continue;
        }
        let tied = table.tied.get(&format!("{kind}.{field}"));
        let place = tied.map_or(&field, |(parent, _)| parent);
        let found = stored
            .iter()
            .enumerate()
            .find_map(|(object, stored)| find(&stored.value, place, "").map(|pointer| (object, pointer)));
        let Some((object, pointer)) = found else {
            missing.push(format!("{kind} {field}: no manifest of e2e/tests/api has it"));
            continue;
        };
        let value = match (tied, stored[object].value.pointer(&pointer)) {
            (Some((_, value)), _) => Some(value.clone()),
            (None, old) => another(schema, old.unwrap_or(&Value::Null)),
        };
        if let Some(value) = value {
            changes.push(Change { field, object, pointer, value: Some(value) });
        }
    }
    // A status is also taken away, field by field and condition by condition.
    let status = stored[0].value["status"].as_object().context("no status")?;
    for field in status.keys().filter(|field| *field != "conditions") {
        changes.push(Change {
            field: format!("status.{field}"),
            object: 0,
            pointer: format!("/status/{field}"),
            value: None,
        });
    }
    let conditions = stored[0].value["status"]["conditions"].as_array().context("no conditions")?;
    for (index, condition) in conditions.iter().enumerate() {
        let field = format!("status.conditions{{{}}}", condition["type"].as_str().unwrap_or_default());
        let pointer = format!("/status/conditions/{index}/message");
        changes.push(Change { field: field.clone(), object: 0, pointer, value: Some("another".into()) });
        let pointer = format!("/status/conditions/{index}");
        changes.push(Change { field, object: 0, pointer, value: None });
    }
    Ok((changes, missing))
}

/// What can be tried with a field of metadata.
fn of_metadata(field: &str, value: &Value) -> Result<Vec<Change>> {
    let change = |of: &str, below: &str, value: Option<Value>| Change {
        field: format!("metadata.{field}{of}"),
        object: 0,
        pointer: format!("/metadata/{field}{below}"),
        value,
    };
    Ok(match field {
        "managedFields" => vec![],
        "labels" => vec![
            change("{rack}", "/rack", Some("b2".into())),
            change("{rack}", "/rack", None),
            change("{gpudesk.dev/simulated}", "/gpudesk.dev~1simulated", Some("false".into())),
            change("{gpudesk.dev/pool}", "/gpudesk.dev~1pool", Some("own".into())),
        ],
        "annotations" => vec![
            change("", "/example.org~1note", Some("b".into())),
            change("", "/example.org~1other", Some("b".into())),
            change("", "/example.org~1note", None),
        ],
        "finalizers" => {
            let all = value["metadata"]["finalizers"].as_array().context("no finalizers")?;
            let without = |name: &str| all.iter().filter(|one| *one != name).cloned().collect::<Value>();
            let mut more = all.clone();
            more.push("example.org/more".into());
            vec![
                change("{others}", "", Some(without("example.org/hold"))),
                change("{others}", "", Some(more.into())),
                change("{gpudesk.dev/release}", "", Some(without(gpudesk_crds::RELEASE_FINALIZER))),
            ]
        }
        "ownerReferences" => {
            let nobody = json!([{
                "apiVersion": "v1", "kind": "ConfigMap", "name": "nobody",
                "uid": "00000000-0000-4000-8000-000000000000",
            }]);
            vec![change("", "", Some(nobody)), change("", "", None)]
        }
        "generation" | "deletionGracePeriodSeconds" => vec![change("", "", Some(7.into()))],
        "creationTimestamp" | "deletionTimestamp" => {
            vec![change("", "", Some("2020-01-01T00:00:00Z".into()))]
        }
        "generateName" | "name" | "namespace" | "resourceVersion" | "selfLink" | "uid" => {
            vec![change("", "", Some("other".into()))]
        }
        unknown => bail!("metadata.{unknown} is new: say in `of_metadata` what to try with it"),
    })
}

/// The fields of a schema that have a value of their own.
fn walk<'a>(schema: &'a Value, field: &str, leaves: &mut Vec<(String, &'a Value)>) {
    if let Some(fields) = schema["properties"].as_object() {
        for (name, schema) in fields {
            walk(schema, &format!("{field}.{name}"), leaves);
        }
    } else if schema["items"].is_object() {
        walk(&schema["items"], &format!("{field}[]"), leaves);
    } else if schema["additionalProperties"].is_object() {
        leaves.push((format!("{field}{{}}"), &schema["additionalProperties"]));
    } else {
        leaves.push((field.to_owned(), schema));
    }
}

/// The first place in `value` that `field` names.
fn find(value: &Value, field: &str, pointer: &str) -> Option<String> {
    if field.is_empty() {
        return Some(pointer.to_owned());
    }
    if let Some(rest) = field.strip_prefix("[]") {
        let items = value.as_array()?.iter().enumerate();
        return items.into_iter().find_map(|(index, item)| find(item, rest, &format!("{pointer}/{index}")));
    }
    if let Some(rest) = field.strip_prefix("{}") {
        let (key, item) = value.as_object()?.iter().next()?;
        let key = key.replace('~', "~0").replace('/', "~1");
        return find(item, rest, &format!("{pointer}/{key}"));
    }
    let field = field.strip_prefix('.').unwrap_or(field);
    let end = field.find(['.', '[', '{']).unwrap_or(field.len());
    find(value.get(&field[..end])?, &field[end..], &format!("{pointer}/{}", &field[..end]))
}

/// Tries every change as everybody, on the object and on its status, and says what differs from the
/// table.
async fn ask(
    kind: &str,
    changes: &[Change],
    stored: &[Stored],
    people: &People,
    writers: &BTreeMap<String, BTreeSet<String>>,
) -> Result<Vec<String>> {
    let mut seen = BTreeSet::new();
    let first: BTreeSet<&String> = (changes.iter().map(|change| &change.field))
        .filter(|field| seen.insert(field.split(['.', '[', '{']).take(2).collect::<Vec<_>>()))
        .collect();
    let mut asked: Vec<BoxFuture<'_, Result<_>>> = Vec::new();
    for change in changes {
        let stored = &stored[change.object];
        let all = [("cluster", &people.cluster), ("daemon", &stored.daemon)];
        let subresources: &[&str] = match change.field.split('.').next() {
            Some("metadata") => &["", "/status"],
            Some("spec") => &[""],
            _ => &["/status"],
        };
        let programs = ["cluster", "daemon", "operator"];
        for (who, person) in all.into_iter().chain(people.others.iter().map(|(who, one)| (*who, one))) {
            // Nothing tells fields of a spec or of a status apart for the others: one of each will do.
            if !programs.contains(&who)
                && !first.contains(&change.field)
                && !change.field.starts_with("metadata")
            {
                continue;
            }
            asked.push(Box::pin(async move {
                let mut words = Vec::new();
                for subresource in subresources {
                    match attempt(person, stored, subresource, change).await? {
                        Ok(true) => return Ok((change, who, true, words)),
                        Ok(false) => words.push("nothing changed".to_owned()),
                        Err(said) => words.push(said),
                    }
                }
                Ok((change, who, false, words))
            }));
        }
    }
    let answers: Vec<_> = stream::iter(asked).buffer_unordered(8).try_collect().await?;

    let mut wrong = BTreeSet::new();
    for (change, who, changed, words) in answers {
        let field = &change.field;
        let decided =
            writers.iter().filter(|(prefix, _)| below(field, prefix)).max_by_key(|(prefix, _)| prefix.len());
        let Some((_, writers)) = decided else {
            wrong.insert(format!("{kind} {field}: the table does not say who writes it"));
            continue;
        };
        let may = if who == "cluster" { !writers.contains("server") } else { writers.contains(who) };
        if may != changed {
            let verb = if changed { "changes" } else { "cannot change" };
            let value = change.value.as_ref().map_or("nothing".to_owned(), Value::to_string);
            wrong.insert(format!("{kind} {field}: {who} {verb} it to {value}: {}", words.join("; ")));
        }
    }
    Ok(wrong.into_iter().collect())
}

/// Whether the change was made; or what the server said.
async fn attempt(
    person: &Person,
    stored: &Stored,
    subresource: &str,
    wanted: &Change,
) -> Result<Result<bool, String>> {
    let patch = match &wanted.value {
        Some(value) => json!([{"op": "add", "path": wanted.pointer, "value": value}]),
        None => json!([{"op": "remove", "path": wanted.pointer}]),
    };
    let replaced = wanted.value.is_some() && stored.value.pointer(&wanted.pointer).is_some();
    let patch = if replaced {
        json!([{"op": "replace", "path": wanted.pointer, "value": wanted.value}])
    } else {
        patch
    };
    let ask: Ask = change(format!("{}{subresource}?dryRun=All", stored.path), patch);
    Ok(match person.try_ask(&ask).await? {
        // A condition that is gone makes room for the next one.
        Ok(after) => Ok(after.pointer(&wanted.pointer) != stored.value.pointer(&wanted.pointer)),
        Err((code, words)) => Err(format!("{code} {words}")),
    })
}
