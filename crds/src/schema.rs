//! Pieces of schema that the derive cannot write.

use std::collections::BTreeMap;

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        CustomResourceConversion, CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
    },
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{CustomResourceExt, core::ListMerge};
use schemars::{JsonSchema, Schema, SchemaGenerator};

/// The four definitions, in the order in which the kinds build on each other.
pub fn all() -> [CustomResourceDefinition; 4] {
    [crate::GpuNode::crd(), crate::GpuProfile::crd(), crate::DesktopTemplate::crd(), crate::Desktop::crd()]
        .map(as_stored)
}

/// The schema of a kind's objects, as JSON.
pub fn of(definition: &CustomResourceDefinition) -> serde_json::Value {
    let version = definition.spec.versions.first().and_then(|version| version.schema.as_ref());
    let schema = version.and_then(|version| version.open_api_v3_schema.as_ref());
    schema.and_then(|schema| serde_json::to_value(schema).ok()).unwrap_or_default()
}

/// The definition as an API server stores it, and so that objects stay as they are applied.
///
/// Whoever compares whole objects sees no difference then. `kubectl apply` compares lists of custom
/// resources whole: a default that the server adds inside an item would differ from the manifest at
/// each apply. So items of lists in the spec have no defaults in the schema; the types fill them in
/// when they are read.
fn as_stored(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    crd.spec.names.list_kind = Some(format!("{}List", crd.spec.names.kind));
    crd.spec.conversion = Some(CustomResourceConversion { strategy: "None".into(), webhook: None });
    for version in &mut crd.spec.versions {
        let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        let fields = schema.and_then(|schema| schema.properties.as_mut());
        if let Some(spec) = fields.and_then(|fields| fields.get_mut("spec")) {
            without_defaults_in_items(spec, false);
        }
    }
    crd
}

fn without_defaults_in_items(schema: &mut JSONSchemaProps, in_item: bool) {
    if in_item {
        schema.default = None;
    }
    for field in schema.properties.iter_mut().flat_map(|fields| fields.values_mut()) {
        without_defaults_in_items(field, in_item);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(item)) = &mut schema.items {
        without_defaults_in_items(item, true);
    }
}

/// A list of conditions, keyed by `type` so that two writers do not overwrite each other's.
pub fn conditions(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = generator.subschema_for::<Vec<Condition>>();
    schema.insert("maxItems".into(), 48.into());
    map_list(schema, "type")
}

/// Marks a list schema as a map list with the given key.
fn map_list(schema: Schema, key: &str) -> Schema {
    let mut value = schema.to_value();
    let keyed = kube::core::merge_strategy(&mut value, ListMerge::Map(vec![key.into()]).into());
    debug_assert!(keyed.is_ok(), "a list schema takes a merge strategy");
    Schema::try_from(value).unwrap_or_default()
}

/// A text that is written for the API server and read by no program: never a difference.
pub fn not_read<'de, D: serde::Deserializer<'de>>(text: D) -> Result<Option<String>, D::Error> {
    <serde::de::IgnoredAny as serde::Deserialize>::deserialize(text).map(|_| None)
}

/// An optional enum. The derive would put the enum's own description in place of the field's.
pub fn optional<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = T::json_schema(generator);
    schema.remove("description");
    schema.insert("nullable".into(), true.into());
    schema
}

/// A PCI address that people write: refused with words where the type itself has a pattern.
pub fn pci_address(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({
        "type": "string",
        "nullable": true,
        "maxLength": 16,
        "x-kubernetes-validations": [{
            "rule": "self.matches('^([0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[01][0-9a-fA-F][.][0-7]$')",
            "message": "write domain:bus:device.function in hexadecimal, like 0000:41:00.0"
        }]
    })
}

/// PCI addresses that people write, each once.
pub fn pci_addresses(generator: &mut SchemaGenerator) -> Schema {
    let mut item = pci_address(generator);
    item.remove("nullable");
    schemars::json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": 16,
        "x-kubernetes-list-type": "set",
        "items": item
    })
}

/// Counts by name.
pub fn counts(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 256,
        "additionalProperties": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 4096}
    })
}

/// Labels to match, one at least.
pub fn some_labels(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = label_map(generator);
    schema.insert(
        "x-kubernetes-validations".into(),
        serde_json::json!([{
            "rule": "self.size() > 0",
            "message": "matchLabels must name at least one label of the other desktops"
        }]),
    );
    schema
}

/// Labels to match: at most 16, with the lengths of Kubernetes labels.
pub fn label_map(_: &mut SchemaGenerator) -> Schema {
    let _: Option<BTreeMap<String, String>> = None;
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {"type": "string", "maxLength": 63}
    })
}

/// Parameters of a vGPU, as people write them. Keys have no schema of their own.
pub fn vgpu_params(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {"type": "string", "minLength": 1, "maxLength": 64},
        "x-kubernetes-validations": [{
            "rule": "self.all(key, key.matches('^[A-Za-z0-9_.-]{1,64}$') && self[key].matches('^[A-Za-z0-9_.-]{1,64}$'))",
            "message": "write keys and values of params with letters, digits and . _ - only, like frame_rate_limiter: \"0\""
        }, {
            "rule": "!('vgpu-placement-id' in self)",
            "message": "params cannot have vgpu-placement-id, by which gpudesk places vGPUs"
        }]
    })
}

/// The same in an allocation.
pub fn allocated_params(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = vgpu_params(generator);
    schema.remove("x-kubernetes-validations");
    schema
}

/// Name of the file that holds a definition: `gpudesk.dev_<plural>.yaml`.
pub fn file_name(crd: &CustomResourceDefinition) -> String {
    format!("{}_{}.yaml", crd.spec.group, crd.spec.names.plural)
}

/// A definition as the YAML that is checked in.
///
/// # Errors
/// When the definition cannot be written as YAML, which is a mistake in the types.
pub fn yaml(crd: &CustomResourceDefinition) -> Result<String, serde_yaml::Error> {
    Ok(format!("# Generated by `make generate` from crds/src; do not edit.\n{}", serde_yaml::to_string(crd)?))
}
