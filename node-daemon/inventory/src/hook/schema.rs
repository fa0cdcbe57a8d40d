//! Checks a value against the schema of the API, so that what a hook says can be written to it.
//!
//! The API server refuses a whole status for one field that is too long: such a field must not get into
//! it.

use std::sync::LazyLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray,
};
use serde_json::Value;

use super::{HookError, clip, shown};

/// The schema of an entry of `GpuNode.status.devices`, of which a hook says all: it has no model to refer to.
static DEVICE: LazyLock<Option<JSONSchemaProps>> = LazyLock::new(|| {
    let [gpu_node, ..] = gpudesk_crds::schema::all();
    let version = gpu_node.spec.versions.into_iter().next()?;
    let mut schema = version.schema?.open_api_v3_schema?;
    let mut status = schema.properties.as_mut()?.remove("status")?;
    let devices = status.properties.as_mut()?.remove("devices")?;
    match devices.items? {
        JSONSchemaPropsOrArray::Schema(mut device) => {
            device.properties.as_mut()?.retain(|name, _| name != "model" && name != "available");
            Some(*device)
        }
        JSONSchemaPropsOrArray::Schemas(_) => None,
    }
});

/// The schema of one field of a device, where there is such a field.
pub(super) fn device_field(name: &str) -> Option<&'static JSONSchemaProps> {
    DEVICE.as_ref()?.properties.as_ref()?.get(name)
}

/// Checks that the API would take the value. Patterns are left to the types.
pub(super) fn check(value: &Value, schema: &JSONSchemaProps, path: &str) -> Result<(), HookError> {
    let fail = |problem: String| Err(HookError::Field { path: path.into(), problem });
    if value.is_null() && schema.nullable == Some(true) {
        return Ok(());
    }
    if let Some(allowed) = &schema.enum_ {
        if allowed.iter().any(|known| known.0 == *value) {
            return Ok(());
        }
        let allowed: Vec<String> =
            allowed.iter().filter(|known| !known.0.is_null()).map(|known| shown(&known.0)).collect();
        return fail(format!("{} is none of {}", shown(value), allowed.join(", ")));
    }
    match (schema.type_.as_deref(), value) {
        (Some("object"), Value::Object(fields)) => {
            let known = schema.properties.as_ref();
            for (name, value) in fields {
                let path = format!("{path}.{}", clip(name, 60));
                let Some(schema) = known.and_then(|known| known.get(name)) else {
                    return Err(HookError::Field { path, problem: "there is no such field".into() });
                };
                check(value, schema, &path)?;
            }
            let mut required = schema.required.iter().flatten();
            match required.find(|name| !fields.contains_key(*name)) {
                Some(name) => fail(format!("{name} is missing")),
                None => Ok(()),
            }
        }
        (Some("array"), Value::Array(entries)) => {
            if let Some(most) = schema.max_items.filter(|most| exceeds(entries.len(), *most)) {
                return fail(format!("has {} entries, more than {most}", entries.len()));
            }
            let Some(JSONSchemaPropsOrArray::Schema(schema)) = &schema.items else { return Ok(()) };
            let mut entries = entries.iter().enumerate();
            entries.try_for_each(|(index, entry)| check(entry, schema, &format!("{path}[{index}]")))
        }
        (Some("string"), Value::String(text)) => {
            let length = text.chars().count();
            if let Some(most) = schema.max_length.filter(|most| exceeds(length, *most)) {
                return fail(format!("{} has {length} characters, more than {most}", shown(value)));
            }
            if let Some(least) = schema.min_length.filter(|least| !exceeds(length + 1, *least)) {
                return fail(format!("{} has {length} characters, fewer than {least}", shown(value)));
            }
            Ok(())
        }
        (Some("integer"), Value::Number(number)) => match number.as_i64() {
            None => fail(format!("{} is no whole number that fits", shown(value))),
            Some(number) => in_range(number, schema).or_else(fail),
        },
        (Some("boolean"), Value::Bool(_)) | (Some("number"), Value::Number(_)) | (None, _) => Ok(()),
        (Some(kind), _) => fail(format!("{} is no {kind}", shown(value))),
    }
}

fn exceeds(length: usize, most: i64) -> bool {
    i64::try_from(length).unwrap_or(i64::MAX) > most
}

fn in_range(number: i64, schema: &JSONSchemaProps) -> Result<(), String> {
    // Bounds are written as decimals; those of the schema are small enough to be exact.
    #[expect(clippy::cast_precision_loss, reason = "compared with bounds far below 2^53")]
    let value = number as f64;
    if let Some(least) = schema.minimum.filter(|least| value < *least) {
        return Err(format!("{number} is less than {least}"));
    }
    if let Some(most) = schema.maximum.filter(|most| value > *most) {
        return Err(format!("{number} is more than {most}"));
    }
    // Formats say how wide a number may be; what has none is as wide as JSON's.
    if schema.format.as_deref() == Some("int32") && i32::try_from(number).is_err() {
        return Err(format!("{number} does not fit into 32 bits"));
    }
    Ok(())
}
