//! What a definition refuses of a value: fields, types, ranges, lengths, choices and keys. Pure.
//!
//! Rules (CEL) are not asked. Patterns are left to the types that parse the text.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// One thing that is refused.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault<'s> {
    /// It is of another type than this.
    Type(&'s str),
    /// A field that must be there is not. The value is the object.
    Missing(&'s str),
    /// There is no such field; these are there. The value is the field's.
    Unknown(&'s str, &'s Map<String, Value>),
    /// It is none of these.
    Choice(Vec<&'s str>),
    /// A text of more characters than this.
    Longer(u64),
    /// A text of fewer characters than this.
    Shorter(u64),
    /// More entries than this.
    More(u64),
    /// Fewer entries than this.
    Fewer(u64),
    /// A number that is not between these.
    Outside(Option<f64>, Option<f64>),
    /// An entry with the same values of these keys as an earlier one; without keys, the same entry.
    Twice(Vec<&'s str>),
}

/// What becomes of a fault: called with it, the path, the value that may be mended in place, and the schema
/// that refuses it. False leaves the value out; what then lacks a required field is [`Fault::Missing`].
pub trait Remedy: FnMut(Fault<'_>, &str, &mut Value, &Value) -> bool {}

impl<F: FnMut(Fault<'_>, &str, &mut Value, &Value) -> bool> Remedy for F {}

/// Looks through a value, innermost first. False when the value itself is to be left out.
pub fn look(schema: &Value, value: &mut Value, path: &str, remedy: &mut impl Remedy) -> bool {
    let wanted = schema["type"].as_str();
    let fault = match (wanted, &mut *value) {
        (Some("object"), Value::Object(_)) => return fields(schema, value, path, remedy),
        (Some("array"), Value::Array(_)) => return entries(schema, value, path, remedy),
        (Some("string"), Value::String(text)) => text_fault(schema, text),
        (Some("integer"), Value::Number(number)) if !number.is_f64() => number_fault(schema, number.as_f64()),
        (Some("number"), Value::Number(number)) => number_fault(schema, number.as_f64()),
        // Without a value it is as if the field were absent: whoever needs it says so.
        (Some("boolean"), Value::Bool(_)) | (None, _) | (_, Value::Null) => None,
        (Some(wanted), _) => Some(Fault::Type(wanted)),
    };
    fault.is_none_or(|fault| remedy(fault, path, value, schema))
}

/// The path of a field.
pub fn joined(path: &str, field: &str) -> String {
    if path.is_empty() { field.into() } else { format!("{path}.{field}") }
}

fn fields(schema: &Value, value: &mut Value, path: &str, remedy: &mut impl Remedy) -> bool {
    let known = schema["properties"].as_object();
    let Some(object) = value.as_object_mut() else { return true };
    object.retain(|name, value| match (known.and_then(|known| known.get(name)), known) {
        (Some(field), _) => look(field, value, &joined(path, name), remedy),
        (None, Some(known)) => remedy(Fault::Unknown(name, known), path, value, schema),
        (None, None) => look(&schema["additionalProperties"], value, &joined(path, name), remedy),
    });
    let most = schema["maxProperties"].as_u64().filter(|most| object.len() as u64 > *most);
    let missing = texts(&schema["required"]).into_iter();
    let missing: Vec<_> = missing.filter(|name| object.get(*name).is_none_or(Value::is_null)).collect();
    let faults = most.map(Fault::More).into_iter().chain(missing.into_iter().map(Fault::Missing));
    // Each of them is told, also after one that was not mended.
    faults.map(|fault| remedy(fault, path, value, schema)).filter(|fits| !fits).count() == 0
}

fn entries(schema: &Value, value: &mut Value, path: &str, remedy: &mut impl Remedy) -> bool {
    let keys = texts(&schema["x-kubernetes-list-map-keys"]);
    let is_set = schema["x-kubernetes-list-type"] == "set";
    let (mut index, mut seen) = (0, BTreeSet::new());
    let Some(items) = value.as_array_mut() else { return true };
    let of = &schema["items"];
    let wanted = of["type"].as_str().filter(|_| of["nullable"] != true);
    items.retain_mut(|item| {
        let path = format!("{path}[{index}]");
        index += 1;
        let fits = match wanted {
            // An entry is there, and has to have a value.
            Some(wanted) if item.is_null() => remedy(Fault::Type(wanted), &path, item, of),
            _ => look(of, item, &path, remedy),
        };
        fits && (keys.is_empty() && !is_set
            || seen.insert(identity(item, &keys))
            || remedy(Fault::Twice(keys.clone()), &path, item, schema))
    });
    let count = items.len() as u64;
    let most = schema["maxItems"].as_u64().filter(|most| count > *most).map(Fault::More);
    let least = schema["minItems"].as_u64().filter(|least| count < *least).map(Fault::Fewer);
    most.or(least).is_none_or(|fault| remedy(fault, path, value, schema))
}

/// What tells an entry from the others of its list.
pub fn identity(item: &Value, keys: &[&str]) -> String {
    if keys.is_empty() {
        return item.to_string();
    }
    keys.iter().map(|key| item[*key].clone()).collect::<Value>().to_string()
}

fn text_fault<'s>(schema: &'s Value, text: &str) -> Option<Fault<'s>> {
    let count = text.chars().count() as u64;
    let choices = texts(&schema["enum"]);
    if !choices.is_empty() && !choices.contains(&text) {
        return Some(Fault::Choice(choices));
    }
    let most = schema["maxLength"].as_u64().filter(|most| count > *most).map(Fault::Longer);
    most.or_else(|| schema["minLength"].as_u64().filter(|least| count < *least).map(Fault::Shorter))
}

fn number_fault(schema: &Value, number: Option<f64>) -> Option<Fault<'static>> {
    let of_type = |bound: i32| (schema["format"] == "int32").then_some(f64::from(bound));
    let least = schema["minimum"].as_f64().or(of_type(i32::MIN));
    let most = schema["maximum"].as_f64().or(of_type(i32::MAX));
    let range = least.unwrap_or(f64::MIN)..=most.unwrap_or(f64::MAX);
    (!range.contains(&number.unwrap_or(f64::NAN))).then_some(Fault::Outside(least, most))
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}
