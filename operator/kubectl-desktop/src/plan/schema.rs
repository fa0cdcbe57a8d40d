//! Whether an object is one that the API server would take: the definitions of the four kinds, applied
//! here. Pure.
//!
//! Fields, types, ranges and lengths by the schema, then its validation rules. Patterns are left to the
//! types that parse the text.

use std::collections::BTreeMap;

use gpudesk_crds::{
    faults::{self, Fault, joined},
    schema,
};
use kube::core::cel::{CompiledSchema, ErrorKind, Validator, compile_schema};
use serde_json::Value;

use super::spelling::nearest;

/// The most faults that are named of one object.
const MOST: usize = 20;

/// The definitions of the kinds, ready to be applied.
pub struct Schemas {
    kinds: BTreeMap<String, (Value, CompiledSchema)>,
    validator: Validator,
}

impl std::fmt::Debug for Schemas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Schemas").field("kinds", &self.kinds.keys()).finish_non_exhaustive()
    }
}

impl Default for Schemas {
    fn default() -> Self {
        let mut kinds = BTreeMap::new();
        for crd in schema::all() {
            let schema = schema::of(&crd);
            let compiled = compile_schema(&schema);
            kinds.insert(crd.spec.names.kind, (schema, compiled));
        }
        Self { kinds, validator: Validator::new() }
    }
}

impl Schemas {
    /// The kinds.
    pub fn kinds(&self) -> impl Iterator<Item = &str> {
        self.kinds.keys().map(String::as_str)
    }

    /// Whether the field of an object of `kind` at `path` is a free text; `None` when it is not known.
    pub fn is_text(&self, kind: &str, path: &str) -> Option<bool> {
        let mut schema = &self.kinds.get(kind)?.0;
        for step in path.split(['.', '[']) {
            schema = match schema.get("items") {
                Some(items) if step.ends_with(']') => items,
                _ => schema["properties"].get(step).or_else(|| schema.get("additionalProperties"))?,
            };
        }
        Some(schema.get("type")? == "string" && schema.get("enum").is_none())
    }

    /// What is wrong with an object of `kind`: field, value and what would be right, a sentence each.
    /// A rule is asked where all that it reads has the right shape.
    pub fn faults(&self, kind: &str, object: &Value) -> Vec<String> {
        let Some((schema, compiled)) = self.kinds.get(kind) else {
            return vec![format!("kind is {kind:?}; write one of {}", listed(self.kinds()))];
        };
        let (mut faults, mut misshapen) = (Vec::new(), Vec::new());
        if !metadata(kind, object, &mut faults) {
            misshapen.push("metadata.name".to_owned());
        }
        if let Some(Value::String(namespace)) = object.pointer("/metadata/namespace")
            && ["Desktop", "DesktopTemplate"].contains(&kind)
            && !namespace.is_empty()
            && (namespace.len() > 63 || namespace.contains('.') || !is_name(namespace))
        {
            faults.push(format!(
                "metadata.namespace is {}; write lower-case letters, digits and hyphens, with a letter or digit at both \
                 ends, at most 63 characters",
                shown(&namespace.as_str().into())
            ));
        }
        let mut note = |fault: Fault<'_>, path: &str, value: &mut Value, _: &Value| {
            let keeps_shape =
                matches!(fault, Fault::Shorter(_) | Fault::Fewer(_) | Fault::Outside(..) | Fault::Twice(_));
            if let Some(said) = sentence(fault, path, value) {
                faults.push(said);
                misshapen.extend((!keeps_shape).then(|| path.to_owned()));
            }
            true
        };
        faults::look(schema, &mut object.clone(), "", &mut note);
        let mut stored = object.clone();
        drop_nulls(&mut stored);
        let errors = self.validator.validate_compiled(compiled, &stored, None);
        let errors = errors.err().into_iter().flatten();
        let judged = errors.filter(|error| !misshapen.iter().any(|path| path.starts_with(&error.field_path)));
        faults.extend(judged.map(|error| rule_fault(&stored, &error)));
        faults.truncate(MOST);
        faults
    }
}

/// A field without a value is absent, as for the API server.
pub(super) fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn rule_fault(object: &Value, error: &kube::core::cel::ValidationError) -> String {
    if error.kind != ErrorKind::ValidationFailure {
        // What the library says of it is about the library.
        let path = if error.field_path.is_empty() { "the object" } else { &error.field_path };
        return format!("{path} cannot be judged by its rule: {}", error.rule);
    }
    let pointer: String =
        format!(".{}", error.field_path).replace('[', ".").replace(']', "").replace('.', "/");
    match object.pointer(&pointer) {
        Some(value @ (Value::String(_) | Value::Number(_) | Value::Bool(_))) => {
            format!("{} is {}; {}", error.field_path, shown(value), error.message)
        }
        _ => error.to_string(),
    }
}

/// The fields that an object's metadata can have.
const METADATA: &[&str] = &[
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// Looks through the metadata of an object of `kind`. False when its name will not do.
fn metadata(kind: &str, object: &Value, faults: &mut Vec<String>) -> bool {
    let metadata = match object.get("metadata") {
        Some(Value::Object(metadata)) => metadata,
        None | Some(Value::Null) => {
            faults.push("metadata.name is missing".into());
            return false;
        }
        Some(other) => {
            faults.push(format!("metadata is {}; write fields, with a name", shown(other)));
            return false;
        }
    };
    for field in metadata.keys().filter(|field| !METADATA.contains(&field.as_str())) {
        faults.push(unknown("metadata", field, METADATA.iter().copied()));
    }
    // As the rules of the definitions have it.
    let (characters, dots, most) = match kind {
        "Desktop" => ("digits and hyphens", false, 63),
        "GpuNode" => ("digits, hyphens and dots", true, 200),
        _ => ("digits, hyphens and dots", true, 63),
    };
    let fits = |name: &str| is_name(name) && name.len() <= most && (dots || !name.contains('.'));
    let has_name = match metadata.get("name") {
        Some(Value::String(name)) if fits(name) => true,
        Some(name) if !name.is_null() => {
            faults.push(format!(
                "metadata.name is {}; write lower-case letters, {characters}, with a letter or digit at both ends, \
                 at most {most} characters",
                shown(name)
            ));
            false
        }
        _ => {
            faults.push("metadata.name is missing".into());
            false
        }
    };
    for map in ["labels", "annotations"] {
        for (key, value) in metadata.get(map).and_then(Value::as_object).into_iter().flatten() {
            if !is_key(key) {
                faults.push(format!(
                    "metadata.{map} has the name {}; write letters, digits, hyphens, underscores and dots, with a letter or \
                     digit at both ends, at most 63 characters, and before it, where wanted, a DNS name and a slash",
                    shown(&key.as_str().into())
                ));
            }
            match value.as_str() {
                None => faults.push(format!("metadata.{map}.{key} is {}; write a text, in quotes", shown(value))),
                Some(text) if map == "labels" && !text.is_empty() && !is_label(text) => faults.push(format!(
                    "metadata.labels.{key} is {}; write letters, digits, hyphens, underscores and dots, with a letter or digit \
                     at both ends, at most 63 characters",
                    shown(value)
                )),
                Some(_) => {}
            }
        }
    }
    has_name
}

/// A value of a label, and the last part of its name.
fn is_label(text: &str) -> bool {
    let ends = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
        && ends(text.bytes().next())
        && ends(text.bytes().last())
}

/// The name of a label or an annotation.
fn is_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_name(prefix) && is_label(name),
        None => is_label(key),
    }
}

/// A DNS subdomain, as names of objects are.
fn is_name(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let label = |label: &str| {
        label.bytes().all(|c| plain(c) || c == b'-')
            && label.bytes().next().is_some_and(plain)
            && label.bytes().last().is_some_and(plain)
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// What is wrong with the value at `path`, and what would be right.
fn sentence(fault: Fault<'_>, path: &str, value: &Value) -> Option<String> {
    let count = match value {
        Value::String(text) => text.chars().count(),
        Value::Array(items) => items.len(),
        Value::Object(entries) => entries.len(),
        _ => 0,
    };
    Some(match fault {
        Fault::Unknown("apiVersion" | "kind" | "metadata", _) if path.is_empty() => return None,
        Fault::Unknown(field, fields) => unknown(path, field, fields.keys().map(String::as_str)),
        Fault::Missing(field) => format!("{} is missing", joined(path, field)),
        Fault::Type(wanted) => {
            let meant = value.as_str().and_then(|text| meant(wanted, text));
            let is = if value.is_null() { "has no value".into() } else { format!("is {}", shown(value)) };
            format!("{path} {is}; write {}", meant.unwrap_or_else(|| words(wanted).into()))
        }
        Fault::Choice(choices) => {
            let near = nearest(value.as_str().unwrap_or_default(), choices.iter().copied());
            let near = near.map(|near| format!("did you mean {near}? ")).unwrap_or_default();
            format!("{path} is {value}; {near}write one of {}", listed(choices.into_iter()))
        }
        Fault::Longer(most) => format!("{path} has {count} characters; at most {most} are possible"),
        Fault::Shorter(_) => format!("{path} is empty; write something, or leave the field out"),
        Fault::More(most) => format!("{path} has {count} entries; at most {most} are possible"),
        Fault::Fewer(least) => format!("{path} has {count} entries; at least {least} must be there"),
        Fault::Outside(least, most) => {
            let range = match (least, most) {
                (Some(least), Some(most)) => format!("{least} to {most}"),
                (Some(least), None) => format!("{least} or more"),
                (None, most) => format!("at most {}", most.unwrap_or(f64::MAX)),
            };
            format!("{path} is {value}; write {range}")
        }
        Fault::Twice(keys) => {
            let key = keys.first().copied().unwrap_or_default();
            let (path, value) = (joined(path, &keys.join(", ")), shown(value.get(key).unwrap_or(value)));
            format!("{path} is {value}, as of an earlier entry; each must differ")
        }
    })
}

/// What a text stands for where a boolean or a whole number is wanted.
fn meant(wanted: &str, text: &str) -> Option<String> {
    match (wanted, text.to_ascii_lowercase().as_str()) {
        ("boolean", "y" | "yes" | "on" | "true") => Some("true".into()),
        ("boolean", "n" | "no" | "off" | "false") => Some("false".into()),
        ("integer", digits) => {
            let number: i64 = digits.parse().ok()?;
            // A leading 0 means octal to kubectl.
            match i64::from_str_radix(digits, 8) {
                Ok(octal) if digits.starts_with('0') && octal != number => {
                    Some(format!("{number}, or {octal} as kubectl reads it"))
                }
                _ => Some(number.to_string()),
            }
        }
        _ => None,
    }
}

fn words(wanted: &str) -> &'static str {
    match wanted {
        "object" => "fields (name: value)",
        "array" => "a list",
        "string" => "a text; in quotes where it looks like a number or like true and false",
        "integer" => "a whole number",
        "number" => "a number",
        _ => "true or false",
    }
}

fn unknown<'a>(path: &str, field: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let full = joined(path, field);
    match nearest(field, known.clone()) {
        Some(near) => format!("{full} is not a known field; did you mean {near}?"),
        None => format!("{full} is not a known field; known here: {}", listed(known)),
    }
}

fn listed<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

/// A value for a message: whole when short.
fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "a set of fields".into(),
        Value::Array(_) => "a list".into(),
        other => {
            let text = other.to_string();
            if text.chars().count() <= 80 {
                text
            } else {
                text.chars().take(77).chain("...".chars()).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::manifest::Manifests, *};

    fn desktop(spec: &Value) -> Value {
        json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop", "metadata": {"name": "anna"}, "spec": spec})
    }

    fn only_fault(object: &Value) -> String {
        let faults = Schemas::default().faults("Desktop", object);
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults[0].clone()
    }

    #[test]
    fn a_good_object_has_no_fault() {
        let object = desktop(&json!({"templateRef": {"name": "office"}, "priority": 5, "owner": null}));
        assert_eq!(Schemas::default().faults("Desktop", &object), Vec::<String>::new());
    }

    #[test]
    fn each_fault_names_field_value_and_what_would_be_right() {
        let with = |field: &str, value: Value| {
            let mut spec = json!({"templateRef": {"name": "office"}});
            spec[field] = value;
            only_fault(&desktop(&spec))
        };
        assert_eq!(
            with("powerstate", json!("Running")),
            "spec.powerstate is not a known field; did you mean powerState?"
        );
        assert!(with("colour", json!(1)).contains("known here: "));
        assert_eq!(
            with("powerState", json!("Runing")),
            "spec.powerState is \"Runing\"; did you mean Running? write one of Running, Stopped, Suspended"
        );
        assert_eq!(with("priority", json!("high")), "spec.priority is \"high\"; write a whole number");
        assert_eq!(with("priority", json!(2_000_000)), "spec.priority is 2000000; write -1000000 to 1000000");
        assert_eq!(with("owner", json!("")), "spec.owner is empty; write something, or leave the field out");
        assert!(
            with("nodeSelector", json!({"a": true})).starts_with("spec.nodeSelector.a is true; write a text")
        );
        assert_eq!(only_fault(&desktop(&json!({}))), "spec.templateRef is missing");
    }

    #[test]
    fn rules_of_the_definitions_are_asked() {
        let gpus = json!([{"name": "GPU", "profileRef": {"name": "p"}}]);
        let fault = only_fault(&desktop(&json!({"templateRef": {"name": "a"}, "overrides": {"gpus": gpus}})));
        assert!(fault.starts_with("spec.overrides.gpus[0].name is \"GPU\"; write lower-case"), "{fault}");
    }

    #[test]
    fn names_in_a_keyed_list_must_differ() {
        let gpu = json!({"name": "a", "profileRef": {"name": "p"}});
        let overrides = json!({"gpus": [gpu, gpu]});
        let fault = only_fault(&desktop(&json!({"templateRef": {"name": "a"}, "overrides": overrides})));
        assert_eq!(fault, "spec.overrides.gpus[1].name is \"a\", as of an earlier entry; each must differ");
    }

    #[test]
    fn rules_are_asked_beside_other_faults_where_what_they_read_has_the_right_shape() {
        let gpu = |name: &str| json!({"name": name, "profileRef": {"name": "p"}});
        let overrides =
            json!({"gpus": [gpu("A"), gpu("a"), gpu("a")], "cpu": {"cores": 400, "threadsPerCore": 2}});
        let object =
            desktop(&json!({"templateRef": {"name": "t"}, "priority": 2_000_000, "overrides": overrides}));
        let said = Schemas::default().faults("Desktop", &object);
        for words in [
            "spec.priority is 2000000;",
            "spec.overrides.gpus[0].name is \"A\";",
            "spec.overrides.gpus[2].name is \"a\", as of",
            "spec.overrides.cpu: cores x threadsPerCore",
        ] {
            assert_eq!(said.iter().filter(|said| said.starts_with(words)).count(), 1, "{words}: {said:?}");
        }
        assert_eq!(said.len(), 4, "{said:?}");
        // What has another type is not judged by the rules above it; what stands beside it is.
        let overrides = json!({"gpus": [gpu("A")], "cpu": {"cores": "many"}});
        let object = desktop(&json!({"templateRef": {"name": "t"}, "overrides": overrides}));
        let said = Schemas::default().faults("Desktop", &object);
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(said[0], "spec.overrides.cpu.cores is \"many\"; write a whole number");
    }

    #[test]
    fn an_entry_without_a_value_is_named() {
        let object = desktop(&json!({"templateRef": {"name": "t"}, "tolerations": [null]}));
        assert_eq!(only_fault(&object), "spec.tolerations[0] has no value; write fields (name: value)");
    }

    #[test]
    fn a_rule_that_cannot_be_applied_is_named_without_the_words_of_a_library() {
        let schema =
            json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.missing.size() > 0"}]});
        let error = Validator::new().validate(&schema, &json!({}), None).unwrap_err();
        let said = rule_fault(&json!({}), &error[0]);
        assert_eq!(said, "the object cannot be judged by its rule: self.missing.size() > 0");
    }

    #[test]
    fn the_rule_for_a_name_is_that_of_its_kind() {
        let schemas = Schemas::default();
        let said = |kind: &str, name: &str| {
            let spec = match kind {
                "Desktop" => json!({"templateRef": {"name": "t"}}),
                "DesktopTemplate" => {
                    json!({"memory": {"sizeMiB": 64}, "disks": [{"name": "s", "image": {"name": "i"}}]})
                }
                "GpuProfile" => json!({"alternatives": [{"passthrough": {}}]}),
                _ => json!({}),
            };
            let object = json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
            let stored = schemas.validator.validate_compiled(&schemas.kinds[kind].1, &object, None).is_ok();
            (schemas.faults(kind, &object), stored)
        };
        for (kind, most) in [("Desktop", 63), ("DesktopTemplate", 63), ("GpuProfile", 63), ("GpuNode", 200)] {
            assert_eq!(said(kind, &"a".repeat(most)), (vec![], true));
            for (name, by_rule) in [
                ("x_y".to_owned(), true),
                ("a".repeat(most + 1), false),
                ("w6.a".to_owned(), kind != "Desktop"),
            ] {
                let (faults, stored) = said(kind, &name);
                assert_eq!(stored, by_rule, "{kind} {name}");
                let words = format!("at most {most} characters");
                match (kind, name.as_str()) {
                    ("Desktop", _) | (_, "x_y") => assert!(faults.len() == 1 && faults[0].ends_with(&words)),
                    (_, "w6.a") => assert_eq!(faults, Vec::<String>::new()),
                    _ => assert!(faults.len() == 1 && faults[0].contains(&words), "{faults:?}"),
                }
            }
        }
    }

    #[test]
    fn manifests_are_taken_and_refused_as_by_the_api_server() {
        let schemas = Schemas::default();
        for (kind, table) in [
            ("Desktop", include_str!("../../../../e2e/tests/api/desktops.yaml")),
            ("DesktopTemplate", include_str!("../../../../e2e/tests/api/desktoptemplates.yaml")),
            ("GpuNode", include_str!("../../../../e2e/tests/api/gpunodes.yaml")),
            ("GpuProfile", include_str!("../../../../e2e/tests/api/gpuprofiles.yaml")),
        ] {
            let cases: Vec<Value> = serde_yaml::from_str(table).unwrap();
            for case in cases {
                let mut manifest = case["manifest"].clone();
                manifest["apiVersion"] = "gpudesk.dev/v1alpha1".into();
                manifest["kind"] = kind.into();
                if manifest["metadata"]["name"].is_null() {
                    manifest["metadata"]["name"] = "a".into();
                }
                let mut read = Manifests::default();
                read.read("a.json", &manifest.to_string(), "default", &schemas);
                let refused = case["refused"].as_array().is_some_and(|words| !words.is_empty());
                assert_eq!(!read.faults.is_empty(), refused, "{kind}, {}: {:?}", case["name"], read.faults);
                let internals = ["evaluation", "overload", "Unsupported"];
                assert!(
                    !internals.iter().any(|word| read.faults.concat().contains(word)),
                    "{kind}: {:?}",
                    read.faults
                );
            }
        }
    }

    #[test]
    fn metadata_is_checked_too() {
        let mut object = desktop(&json!({"templateRef": {"name": "a"}}));
        object["metadata"] = json!({"name": "Anna", "lables": {}});
        let faults = Schemas::default().faults("Desktop", &object);
        assert_eq!(faults[0], "metadata.lables is not a known field; did you mean labels?");
        assert!(faults[1].starts_with("metadata.name is \"Anna\"; write lower-case"));
        for (field, wrong, right) in [
            ("namespace", vec![json!("Scho ol"), json!("a".repeat(64)), json!("a.b")], json!("school")),
            (
                "labels",
                vec![json!({"a b": "c"}), json!({"a": "c d"}), json!({"a": "b".repeat(64)})],
                json!({"x.org/A_b": "", "b": "1.c"}),
            ),
            ("annotations", vec![json!({"a/b/c": "c"}), json!({"": "c"})], json!({"a": "what ever"})),
        ] {
            for value in wrong {
                object["metadata"] = json!({"name": "anna", field: value});
                let fault = only_fault(&object);
                assert!(
                    fault.starts_with(&format!("metadata.{field}")) && fault.contains("; write "),
                    "{fault}"
                );
            }
            object["metadata"] = json!({"name": "anna", field: right});
            assert_eq!(Schemas::default().faults("Desktop", &object), Vec::<String>::new());
        }
    }
}
