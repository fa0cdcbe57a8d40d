//! An object of the API as a value, without what no program of gpudesk reads: it never is in memory, however much of
//! it there is.

use std::fmt;

use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, Visitor},
};
use serde_json::{Map, Value};

use crate::trim;

/// Reads an object.
///
/// # Errors
/// It is not one.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    Part::Object.deserialize(deserializer)
}

/// Which map is read.
#[derive(Clone, Copy)]
enum Part {
    Object,
    Metadata,
    Annotations,
    /// Read as it is.
    Other,
    /// Not kept.
    Nothing,
}

impl Part {
    /// What a field of it is.
    fn field(self, name: &str) -> Self {
        match (self, name) {
            (Self::Object, "metadata") => Self::Metadata,
            (Self::Metadata, "annotations") => Self::Annotations,
            (Self::Metadata, "managedFields") => Self::Nothing,
            (Self::Annotations, _) if !trim::is_read(name) => Self::Nothing,
            _ => Self::Other,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Part {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self {
            Self::Other => serde::Deserialize::deserialize(deserializer),
            Self::Nothing => deserializer.deserialize_ignored_any(IgnoredAny).map(|_| Value::Null),
            Self::Object | Self::Metadata | Self::Annotations => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Part {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Metadata => "metadata",
            Self::Annotations => "annotations",
            Self::Object | Self::Other | Self::Nothing => "an object",
        })
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut read = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            let part = self.field(&name);
            let value = fields.next_value_seed(part)?;
            if !matches!(part, Self::Nothing) {
                read.insert(name, value);
            }
        }
        Ok(Value::Object(read))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_nobody_reads_is_never_in_memory() {
        let object = json!({
            "kind": "Desktop",
            "metadata": {
                "name": "a", "labels": {"exam": "a"}, "managedFields": [{"manager": "x", "fieldsV1": {"f:spec": {}}}],
                "annotations": {"team": "x", "gpudesk.dev/restartedAt": "now"},
            },
            "spec": {"metadata": {"managedFields": 1}, "annotations": {"team": 1}},
            "status": null,
        });
        let read = deserialize(&object).unwrap();
        assert_eq!(
            read,
            json!({
                "kind": "Desktop",
                "metadata": {"name": "a", "labels": {"exam": "a"}, "annotations": {"gpudesk.dev/restartedAt": "now"}},
                "spec": {"metadata": {"managedFields": 1}, "annotations": {"team": 1}},
                "status": null,
            })
        );
        assert_eq!(deserialize(&json!({"metadata": null})).unwrap(), json!({"metadata": null}));
        assert!(deserialize(&json!(["a"])).is_err() && deserialize(&json!({"metadata": "a"})).is_err());
    }
}
