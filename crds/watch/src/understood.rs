//! Objects as far as this version understands them. A newer version may have written a value that this one
//! does not know: the object is there all the same, with its name, its labels and what of it can be read. Such an
//! object is *odd*: it counts, and nobody acts on it.

use gpudesk_crds::Desktop;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::{Value, json};
use serde_path_to_error::{Path, Segment};

use crate::lean;

/// What the watch puts on an odd object that it keeps: the fields that are not understood, one a line. No object
/// of the API has it for us.
pub(crate) const ODD: &str = "gpudesk.dev/not-understood";
/// The node that an odd Desktop names in its allocation.
pub(crate) const NODE: &str = "gpudesk.dev/not-understood-node";
/// The node of an odd Desktop says that nothing of the decision that holds is left.
pub(crate) const RELEASED: &str = "gpudesk.dev/not-understood-released";
/// Fields that are named one by one; after them whole parts of spec and status are left out.
const MOST_FIELDS: usize = 32;
/// Where a Desktop says what it holds, and the one part of it that takes nothing.
const ALLOCATION: &str = "status.allocation";
const DECISION: &str = "status.allocation.decision";

/// An object as the watch gets it.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "it lives for a moment")]
pub enum Read<K> {
    /// It parses.
    Whole(K),
    /// It does not.
    Odd {
        /// Its metadata.
        metadata: ObjectMeta,
        /// All of it.
        value: Value,
    },
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Read<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = lean::deserialize(deserializer)?;
        if let Ok(object) = K::deserialize(&value) {
            return Ok(Self::Whole(object));
        }
        let metadata = value.get("metadata").map(ObjectMeta::deserialize).transpose();
        Ok(Self::Odd { metadata: metadata.map_err(serde::de::Error::custom)?.unwrap_or_default(), value })
    }
}

impl<K: Resource> Resource for Read<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dt: &K::DynamicType) -> std::borrow::Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &K::DynamicType) -> std::borrow::Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &K::DynamicType) -> std::borrow::Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &K::DynamicType) -> std::borrow::Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Whole(object) => object.meta(),
            Self::Odd { metadata, .. } => metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Whole(object) => object.meta_mut(),
            Self::Odd { metadata, .. } => metadata,
        }
    }
}

/// The smallest spec of a kind.
fn least(kind: &str) -> Value {
    match kind {
        "Desktop" => json!({"templateRef": {"name": ""}}),
        "DesktopTemplate" => json!({"memory": {"sizeMiB": 1}}),
        "GpuProfile" => json!({"alternatives": []}),
        _ => json!({}),
    }
}

/// What can be read of an object that does not parse, marked as odd. `None` when not even its metadata can.
pub fn as_far_as_understood<K: Resource + DeserializeOwned>(mut value: Value, kind: &str) -> Option<K> {
    let least = least(kind);
    let node = value.pointer("/status/allocation/node").and_then(Value::as_str).map(ToOwned::to_owned);
    let at = |path: &str| value.pointer(path).and_then(Value::as_str);
    let released = at("/status/node/state") == Some("Released")
        && at("/status/allocation/id").is_some_and(|id| at("/status/node/allocationId") == Some(id));
    let mut fields: Vec<String> = vec![];
    let mut object: K = loop {
        let error = match serde_path_to_error::deserialize(&value) {
            Ok(object) => break object,
            Err(error) => error,
        };
        // One line each, whatever was found.
        fields.push(format!("{}: {}", error.path(), error.inner()).replace('\n', " "));
        let depth = if fields.len() < MOST_FIELDS { usize::MAX } else { 2 };
        if leave_out(&mut value, error.path(), depth, &least) {
            continue;
        }
        fields.push("spec: too little of it is understood".to_owned());
        fields.extend(parts_of_status(&value).iter().map(|part| format!("{part}: too little is understood")));
        let bare = json!({"apiVersion": value["apiVersion"], "kind": value["kind"], "metadata": value["metadata"], "spec": least});
        break K::deserialize(bare).ok()?;
    };
    unmark(&mut object);
    object.annotations_mut().insert(ODD.to_owned(), fields.join("\n"));
    object.annotations_mut().extend(released.then(|| (RELEASED.to_owned(), String::new())));
    object.annotations_mut().extend(node.map(|node| (NODE.to_owned(), node)));
    Some(object)
}

/// What a status has: `status.x` each.
fn parts_of_status(value: &Value) -> Vec<String> {
    match &value["status"] {
        Value::Null => vec![],
        Value::Object(parts) => parts.keys().map(|part| format!("status.{part}")).collect(),
        _ => vec!["status".to_owned()],
    }
}

/// Leaves out what is at a path, or what is so deep above it; says whether there was anything.
fn leave_out(value: &mut Value, path: &Path, depth: usize, least: &Value) -> bool {
    let mut segments: Vec<&Segment> = path.iter().take(depth).collect();
    while matches!(segments.last(), Some(Segment::Enum { .. } | Segment::Unknown)) {
        segments.pop();
    }
    let is_spec = |segment: &Segment| matches!(segment, Segment::Map { key } if key == "spec");
    match segments.as_slice() {
        // Something that must be there is not: with a spec that lacks nothing the rest can be read.
        [] => value
            .as_object_mut()
            .is_some_and(|object| object.insert("spec".to_owned(), least.clone()).as_ref() != Some(least)),
        [only] if is_spec(only) => std::mem::replace(&mut value["spec"], least.clone()) != *least,
        [parents @ .., end] => {
            let mut at = value;
            for segment in parents {
                let next = match segment {
                    Segment::Seq { index } => at.get_mut(*index),
                    Segment::Map { key } => at.get_mut(key),
                    Segment::Enum { variant } => at.get_mut(variant),
                    Segment::Unknown => None,
                };
                let Some(next) = next else { return false };
                at = next;
            }
            match (end, at) {
                (Segment::Seq { index }, Value::Array(items)) if *index < items.len() => {
                    items.remove(*index);
                    true
                }
                (Segment::Map { key }, Value::Object(object)) => object.remove(key).is_some(),
                _ => false,
            }
        }
    }
}

/// Takes away what only we may put there.
pub fn unmark<K: Resource>(object: &mut K) {
    let annotations = object.annotations_mut();
    annotations.remove(ODD);
    annotations.remove(NODE);
    annotations.remove(RELEASED);
}

/// The fields of an object that are not understood, each with why; `None` of one that is understood.
pub fn odd<K: Resource>(object: &K) -> Option<&str> {
    object.annotations().get(ODD).map(String::as_str)
}

/// The node of which an odd Desktop holds something that cannot be read, where that can be. `None` where all that
/// it holds is understood.
pub fn holds_unclear(desktop: &Desktop) -> Option<Option<&str>> {
    let of_allocation = |field: &str| {
        (field.starts_with(ALLOCATION) && !field.starts_with(DECISION)) || field.starts_with("status:")
    };
    odd(desktop)?.lines().any(of_allocation).then(|| desktop.annotations().get(NODE).map(String::as_str))
}

/// Whether an odd Desktop holds nothing, for certain: its node has given all of it back, or it never had anything.
pub fn holds_nothing(desktop: &Desktop) -> bool {
    let of_hold = |field: &str| {
        ["status.allocation", "status.node", "status:"].iter().any(|part| field.starts_with(part))
    };
    let clear = !odd(desktop).is_some_and(|fields| fields.lines().any(of_hold));
    desktop.annotations().contains_key(RELEASED)
        || clear
            && desktop.allocation().is_none()
            && desktop.status.as_ref().is_none_or(|status| status.node.is_none())
}

#[cfg(test)]
mod tests {
    use gpudesk_crds::{DesktopTemplate, GpuNode, GpuProfile};

    use super::*;

    /// A desktop with `value` at a path, which does not parse.
    fn desktop(path: &str, value: Value) -> Desktop {
        let mut object = json!({
            "apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop",
            "metadata": {"name": "a", "namespace": "demo", "labels": {"team": "x"}, "annotations": {ODD: "by somebody"}},
            "spec": {"templateRef": {"name": "t"}, "priority": 7},
            "status": {"allocation": {
                "node": "host", "desktopGeneration": 1, "templateGeneration": 1, "decidedAt": "2026-01-01T00:00:00Z",
                "compute": {"cores": 1, "threadsPerCore": 1, "memoryMiB": 64},
            }},
        });
        let (parent, key) = path.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[key] = value;
        assert!(Desktop::deserialize(&object).is_err(), "{path}");
        as_far_as_understood(object, "Desktop").unwrap()
    }

    #[test]
    fn what_is_understood_of_an_object_is_kept_and_what_is_not_is_named() {
        let read = desktop("/spec/powerState", json!("Hibernated"));
        assert_eq!((read.spec.template_ref.name.as_str(), read.spec.priority), ("t", 7));
        assert_eq!(read.labels()["team"], "x");
        let fields = odd(&read).unwrap();
        assert!(fields.starts_with("spec.powerState: unknown variant `Hibernated`"), "{fields}");
        assert_eq!(read.allocation().unwrap().node, "host");
        assert_eq!(holds_unclear(&read), None, "all that it holds is understood");
    }

    #[test]
    fn what_a_desktop_holds_is_understood_whole_or_not_at_all() {
        let gpu = json!({"name": "g", "device": "0000:01:00.0", "product": "T4", "mode": "Sliced", "type": "x",
                         "framebufferMiB": 1, "profile": "p"});
        for (path, value, node) in [
            ("/status/allocation/gpus", json!([gpu]), Some("host")),
            ("/status/allocation/compute", json!("all of it"), Some("host")),
            ("/status/allocation/decidedAt", json!(7), Some("host")),
            ("/status/allocation/node", json!(7), None),
            ("/status/allocation", json!("host"), None),
            ("/status", json!("fine"), None),
        ] {
            let read = desktop(path, value);
            assert_eq!(holds_unclear(&read), Some(node), "{path}: {:?}", odd(&read));
        }
        for (path, value) in [
            ("/status/allocation/decision", json!("by lot")),
            ("/status/conditions", json!("fine")),
            ("/spec/templateRef", json!(7)),
            ("/spec", json!(7)),
        ] {
            let read = desktop(path, value);
            assert_eq!(holds_unclear(&read), None, "{path}: {:?}", odd(&read));
            assert_eq!(read.allocation().unwrap().node, "host", "{path}");
        }
    }

    #[test]
    fn an_object_of_which_nearly_nothing_is_understood_is_there() {
        let many = |item: Value| json!(vec![item; 100]);
        for (path, items) in
            [("/status/conditions", many(json!({"type": 7}))), ("/spec/tolerations", many(json!(7)))]
        {
            let read = desktop(path, items);
            assert_eq!((read.name_any().as_str(), read.spec.template_ref.name.as_str()), ("a", "t"));
            assert_eq!(read.allocation().unwrap().node, "host", "what it holds is understood");
            assert_eq!((holds_unclear(&read), holds_nothing(&read)), (None, false));
        }
        let read = desktop("/status/allocation/gpus", many(json!({"name": 7})));
        assert_eq!(holds_unclear(&read), Some(Some("host")));
    }

    #[test]
    fn a_desktop_that_holds_nothing_closes_nothing_however_much_of_it_is_not_understood() {
        let object = json!({
            "apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop", "metadata": {"name": "a", "namespace": "demo"},
            "spec": {"templateRef": {"name": "t"}, "tolerations": vec![json!(7); 100]},
        });
        let read: Desktop = as_far_as_understood(object, "Desktop").unwrap();
        assert!(odd(&read).unwrap().lines().count() >= MOST_FIELDS);
        assert_eq!((holds_unclear(&read), holds_nothing(&read)), (None, true));
    }

    #[test]
    fn of_each_kind_there_is_something_left_when_nothing_is_understood() {
        let bare = |kind: &str| json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": kind, "metadata": {"name": "a"}, "spec": 7, "status": 7});
        let names = [
            as_far_as_understood::<Desktop>(bare("Desktop"), "Desktop").unwrap().name_any(),
            as_far_as_understood::<DesktopTemplate>(bare("DesktopTemplate"), "DesktopTemplate")
                .unwrap()
                .name_any(),
            as_far_as_understood::<GpuProfile>(bare("GpuProfile"), "GpuProfile").unwrap().name_any(),
            as_far_as_understood::<GpuNode>(bare("GpuNode"), "GpuNode").unwrap().name_any(),
        ];
        assert_eq!(names, ["a"; 4]);
    }
}
