//! Whether an object is one that the API server would take: the definitions of the four kinds, applied
//! here. Pure.
//!
//! Fields, types, ranges and lengths by the schema, then its validation rules. Patterns are left to the
//! types that parse the text.

use std::collections::BTreeMap;

use gpudesk_crds::schema;
use kube::core::cel::{CompiledSchema, Validator, compile_schema};
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
            let version = crd.spec.versions.first().and_then(|version| version.schema.as_ref());
            let schema = version.and_then(|schema| schema.open_api_v3_schema.as_ref());
            let schema = schema.and_then(|schema| serde_json::to_value(schema).ok()).unwrap_or_default();
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

    /// What is wrong with an object of `kind`: field, value and what would be right, a sentence each.
    /// Rules are asked only of an object that has the right shape.
    pub fn faults(&self, kind: &str, object: &Value) -> Vec<String> {
        let Some((schema, compiled)) = self.kinds.get(kind) else {
            return vec![format!("kind is {kind:?}; write one of {}", listed(self.kinds()))];
        };
        let mut faults = Vec::new();
        metadata(object, &mut faults);
        check(schema, object, "", &mut faults);
        if faults.is_empty()
            && let Err(errors) = self.validator.validate_compiled(compiled, object, None)
        {
            faults.extend(errors.into_vec().iter().map(|error| rule_fault(object, error)));
        }
        faults.truncate(MOST);
        faults
    }
}

fn rule_fault(object: &Value, error: &kube::core::cel::ValidationError) -> String {
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

fn metadata(object: &Value, faults: &mut Vec<String>) {
    let metadata = match object.get("metadata") {
        Some(Value::Object(metadata)) => metadata,
        None | Some(Value::Null) => return faults.push("metadata.name is missing".into()),
        Some(other) => {
            return faults.push(format!("metadata is {}; write fields, with a name", shown(other)));
        }
    };
    for field in metadata.keys().filter(|field| !METADATA.contains(&field.as_str())) {
        faults.push(unknown("metadata", field, METADATA.iter().copied()));
    }
    match metadata.get("name") {
        Some(Value::String(name)) if is_name(name) => {}
        Some(name) if !name.is_null() => faults.push(format!(
            "metadata.name is {}; write lower-case letters, digits, hyphens and dots, with a letter or digit at \
             both ends, at most 253 characters",
            shown(name)
        )),
        _ => faults.push("metadata.name is missing".into()),
    }
    for map in ["labels", "annotations"] {
        for (key, value) in metadata.get(map).and_then(Value::as_object).into_iter().flatten() {
            if !value.is_string() {
                faults.push(format!("metadata.{map}.{key} is {}; write a text, in quotes", shown(value)));
            }
        }
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

fn check(schema: &Value, value: &Value, path: &str, faults: &mut Vec<String>) {
    if faults.len() >= MOST {
        return;
    }
    match (schema["type"].as_str(), value) {
        (Some("object"), Value::Object(_)) => fields(schema, value, path, faults),
        (Some("array"), Value::Array(items)) => entries(schema, items, path, faults),
        (Some("string"), Value::String(text)) => text_fits(schema, text, path, faults),
        (Some("integer"), Value::Number(number)) if number.is_i64() || number.is_u64() => {
            number_fits(schema, number.as_f64().unwrap_or(f64::MAX), value, path, faults);
        }
        (Some("number"), Value::Number(number)) => {
            number_fits(schema, number.as_f64().unwrap_or(f64::MAX), value, path, faults);
        }
        // Without a value it is as if the field were absent: whoever needs it says so.
        (Some("boolean"), Value::Bool(_)) | (None, _) | (_, Value::Null) => {}
        (Some(wanted), _) => faults.push(format!("{path} is {}; write {}", shown(value), words(wanted))),
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

fn fields(schema: &Value, value: &Value, path: &str, faults: &mut Vec<String>) {
    let (Some(properties), Some(object)) = (schema["properties"].as_object(), value.as_object()) else {
        return entries_of_map(schema, value, path, faults);
    };
    for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if object.get(required).is_none_or(Value::is_null) {
            faults.push(format!("{} is missing", joined(path, required)));
        }
    }
    for (name, value) in object {
        match properties.get(name) {
            Some(schema) => check(schema, value, &joined(path, name), faults),
            None if path.is_empty() && ["apiVersion", "kind", "metadata"].contains(&name.as_str()) => {}
            None => faults.push(unknown(path, name, properties.keys().map(String::as_str))),
        }
    }
}

fn entries_of_map(schema: &Value, value: &Value, path: &str, faults: &mut Vec<String>) {
    let values = &schema["additionalProperties"];
    let Some(map) = value.as_object().filter(|_| values.is_object()) else { return };
    if let Some(most) = schema["maxProperties"].as_u64().filter(|most| map.len() as u64 > *most) {
        faults.push(format!("{path} has {} entries; at most {most} are possible", map.len()));
    }
    for (key, value) in map {
        check(values, value, &joined(path, key), faults);
    }
}

fn entries(schema: &Value, items: &[Value], path: &str, faults: &mut Vec<String>) {
    let count = items.len() as u64;
    if let Some(most) = schema["maxItems"].as_u64().filter(|most| count > *most) {
        faults.push(format!("{path} has {count} entries; at most {most} are possible"));
    }
    if let Some(least) = schema["minItems"].as_u64().filter(|least| count < *least) {
        faults.push(format!("{path} has {count} entries; at least {least} must be there"));
    }
    for (index, item) in items.iter().enumerate() {
        check(&schema["items"], item, &format!("{path}[{index}]"), faults);
    }
    let keys: Vec<&str> = schema["x-kubernetes-list-map-keys"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let identity = |item: &Value| keys.iter().map(|key| item[key].clone()).collect::<Vec<Value>>();
    for (index, item) in items.iter().enumerate().filter(|_| !keys.is_empty()) {
        if items.iter().take(index).any(|earlier| identity(earlier) == identity(item)) {
            let (key, value) = (keys.join(", "), shown(&item[keys.first().copied().unwrap_or_default()]));
            faults
                .push(format!("{path}[{index}].{key} is {value}, as of an earlier entry; each must differ"));
        }
    }
}

fn text_fits(schema: &Value, text: &str, path: &str, faults: &mut Vec<String>) {
    let choices: Vec<&str> =
        schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !choices.is_empty() && !choices.contains(&text) {
        let near = nearest(text, choices.iter().copied()).map(|near| format!("did you mean {near}? "));
        let near = near.unwrap_or_default();
        faults.push(format!("{path} is {text:?}; {near}write one of {}", listed(choices.into_iter())));
    }
    let count = text.chars().count() as u64;
    if let Some(most) = schema["maxLength"].as_u64().filter(|most| count > *most) {
        faults.push(format!("{path} has {count} characters; at most {most} are possible"));
    }
    if schema["minLength"].as_u64().is_some_and(|least| count < least) {
        faults.push(format!("{path} is empty; write something, or leave the field out"));
    }
}

fn number_fits(schema: &Value, number: f64, value: &Value, path: &str, faults: &mut Vec<String>) {
    let (least, most) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
    let (least_of_type, most_of_type) = match schema["format"].as_str() {
        Some("int32") => (f64::from(i32::MIN), f64::from(i32::MAX)),
        _ => (f64::MIN, f64::MAX),
    };
    let (from, to) = (least.unwrap_or(least_of_type), most.unwrap_or(most_of_type));
    if number < from || number > to {
        let range = match (least, most) {
            (Some(least), Some(most)) => format!("{least} to {most}"),
            (Some(least), None) => format!("{least} or more"),
            (None, _) => format!("at most {to}"),
        };
        faults.push(format!("{path} is {value}; write {range}"));
    }
}

fn joined(path: &str, field: &str) -> String {
    if path.is_empty() { field.into() } else { format!("{path}.{field}") }
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

    use super::*;

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
    fn metadata_is_checked_too() {
        let mut object = desktop(&json!({"templateRef": {"name": "a"}}));
        object["metadata"] = json!({"name": "Anna", "lables": {}});
        let faults = Schemas::default().faults("Desktop", &object);
        assert_eq!(faults[0], "metadata.lables is not a known field; did you mean labels?");
        assert!(faults[1].starts_with("metadata.name is \"Anna\"; write lower-case"));
    }
}
