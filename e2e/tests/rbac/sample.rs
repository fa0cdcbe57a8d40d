//! Values of a schema: one that it accepts, and another one.

use serde_json::{Map, Value};

const DAY: &str = "2026-01-01T00:00:00Z";
const NEXT_DAY: &str = "2026-01-02T00:00:00Z";

/// A value with every field, and one item in every list.
#[allow(clippy::cast_possible_truncation)]
pub(crate) fn sample(schema: &Value) -> Value {
    if let Some(first) = schema["enum"].get(0) {
        return first.clone();
    }
    match schema["type"].as_str().unwrap_or_default() {
        "object" => {
            let mut value = Map::new();
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                value.insert(name.clone(), sample(field));
            }
            if schema["additionalProperties"].is_object() {
                value.insert("a".into(), sample(&schema["additionalProperties"]));
            }
            value.into()
        }
        "array" => vec![sample(&schema["items"])].into(),
        "integer" | "number" => {
            schema["minimum"].as_f64().map_or(1, |least| (least.ceil() as i64).max(1)).into()
        }
        "boolean" => false.into(),
        _ if schema["format"] == "date-time" => DAY.into(),
        _ => match schema["pattern"].as_str().unwrap_or_default() {
            pattern if pattern.starts_with("^([0-9]{1,4}") => "0-3".into(),
            pattern if pattern.starts_with("^([0-9a-fA-F]{4,8}:") => "0000:41:00.0".into(),
            pattern if pattern.starts_with("^[1-9][0-9]{0,11}-") => "1-00000001".into(),
            _ => {
                let least = schema["minLength"].as_u64().unwrap_or(0) as usize;
                format!("{:a>least$}", "a1").into()
            }
        },
    }
}

/// Another value than `old`; none for an object without fields.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn another(schema: &Value, old: &Value) -> Option<Value> {
    if let Some(values) = schema["enum"].as_array() {
        let at = values.iter().position(|value| value == old).map_or(0, |at| (at + 1) % values.len());
        return values.get(at).cloned();
    }
    Some(match old {
        Value::Bool(old) => (!old).into(),
        Value::Number(old) => {
            let (old, most) = (old.as_i64()?, schema["maximum"].as_f64().unwrap_or(f64::MAX));
            if old as f64 + 1.0 > most { old - 1 } else { old + 1 }.into()
        }
        Value::String(old) if schema["format"] == "date-time" => {
            if old == NEXT_DAY { DAY } else { NEXT_DAY }.into()
        }
        Value::String(old) => next(old).into(),
        _ => return None,
    })
}

/// The text with its last letter or digit changed, so that names, numbers and addresses stay such.
fn next(text: &str) -> String {
    let Some(at) = text.rfind(|c: char| c.is_ascii_alphanumeric()) else { return format!("{text}a") };
    let last = text.as_bytes()[at];
    let other = match last {
        b'7'..=b'9' => b'0',
        b'f' | b'z' => b'a',
        b'F' | b'Z' => b'A',
        other => other + 1,
    };
    format!("{}{}{}", &text[..at], char::from(other), &text[at + 1..])
}
