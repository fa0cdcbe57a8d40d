//! From the text of manifests to objects, each with the place that it stands at. Pure.

use std::{collections::BTreeMap, fmt};

use gpudesk_crds::{
    Desktop, DesktopTemplate, GROUP, GpuNode, GpuProfile, VERSION,
    yaml::{self, Misread, Reader},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::schema::{Schemas, drop_nulls};

/// Where an object stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// Name of the file as it was given; `-` for standard input.
    pub file: String,
    /// Number of the document in it, from 1.
    pub document: usize,
    /// Number of the item, from 1, when the document is a list.
    pub item: Option<usize>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = if self.file == "-" { "standard input" } else { &self.file };
        write!(f, "{file}, document {}", self.document)?;
        self.item.map_or(Ok(()), |item| write!(f, ", item {item}"))
    }
}

/// An object of ours.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A machine.
    Node(Box<GpuNode>),
    /// A share.
    Profile(Box<GpuProfile>),
    /// A shape.
    Template(Box<DesktopTemplate>),
    /// A desktop.
    Desktop(Box<Desktop>),
}

/// What texts say.
#[derive(Debug, Default)]
pub struct Manifests {
    /// The objects in the order in which they stand.
    pub objects: Vec<(Origin, Object)>,
    /// How many objects of other kinds there are.
    pub ignored: BTreeMap<String, usize>,
    /// What some readers would take for something else, a sentence each.
    pub notes: Vec<String>,
    /// What is wrong: place, object, field, value and what would be right, a sentence each.
    pub faults: Vec<String>,
}

impl Manifests {
    /// How much was found, of whatever kind and however wrong.
    pub fn found(&self) -> usize {
        self.objects.len() + self.ignored.values().sum::<usize>() + self.faults.len()
    }

    /// Reads all documents of a file, YAML or JSON. An object without namespace is one of `namespace`.
    /// After a document that cannot be read, the rest of the file is not looked at.
    pub fn read(&mut self, file: &str, text: &str, namespace: &str, schemas: &Schemas) {
        let misreads = yaml::misreads(text);
        for (index, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
            let origin = Origin { file: file.into(), document: index + 1, item: None };
            match value_of(document) {
                Ok(Value::Null) => {}
                Ok(value) if is_ours(&value) => {
                    let of_texts = |misread: &&Misread| {
                        let place = |item: &Value, path| schemas.is_text(item["kind"].as_str()?, path);
                        // What is no text anyway is judged by its type.
                        misread.is_key
                            || match list_item(&misread.path) {
                                Some((index, path)) => place(&value["items"][index], path),
                                None => place(&value, &misread.path),
                            }
                            .unwrap_or(true)
                    };
                    for misread in
                        misreads.iter().filter(|misread| misread.document == index).filter(of_texts)
                    {
                        let said = format!("{origin}: {misread}");
                        match misread.reader {
                            Reader::Kubectl => self.faults.push(said),
                            Reader::Yaml11 => self.notes.push(said),
                        }
                    }
                    self.document(origin, value, namespace, schemas);
                }
                Ok(value) => self.document(origin, value, namespace, schemas),
                Err(error) => {
                    self.faults.push(format!("{origin}: not YAML: {error}"));
                    return;
                }
            }
        }
    }

    fn document(&mut self, origin: Origin, mut value: Value, namespace: &str, schemas: &Schemas) {
        let kind = value["kind"].as_str().unwrap_or_default().to_owned();
        let Some(items) = list_of(&kind, &mut value, schemas) else {
            return self.object(origin, &kind, value, namespace, schemas);
        };
        for (index, mut item) in items.into_iter().enumerate() {
            let origin = Origin { item: Some(index + 1), ..origin.clone() };
            // Items of a typed list need not repeat what they are.
            if let (Some(of), Some(fields)) = (kind.strip_suffix("List"), item.as_object_mut())
                && !of.is_empty()
            {
                fields.entry("kind").or_insert_with(|| of.into());
                fields.entry("apiVersion").or_insert_with(|| value["apiVersion"].clone());
            }
            let kind = item["kind"].as_str().unwrap_or_default().to_owned();
            self.object(origin, &kind, item, namespace, schemas);
        }
    }

    fn object(&mut self, origin: Origin, kind: &str, value: Value, namespace: &str, schemas: &Schemas) {
        let Some(api) = value["apiVersion"].as_str() else {
            let what = if value.get("coresPerSocket").is_some() {
                "this is a host file: give it with --nodes"
            } else {
                "apiVersion is missing; a manifest has apiVersion, kind and metadata"
            };
            return self.faults.push(format!("{origin}: {what}"));
        };
        if kind.is_empty() {
            return self.faults.push(format!("{origin}: kind is missing"));
        }
        let (group, version) = api.split_once('/').unwrap_or(("", api));
        if group != GROUP {
            return *self.ignored.entry(format!("{kind} ({api})")).or_default() += 1;
        }
        let of = subject(&origin, kind, &value, namespace);
        if version != VERSION {
            return self.faults.push(format!("{of}: apiVersion is {api:?}; write {GROUP}/{VERSION}"));
        }
        if !is_namespaced(kind)
            && let Some(given) = value["metadata"]["namespace"].as_str().filter(|given| !given.is_empty())
        {
            self.notes.push(format!(
                "{of}: metadata.namespace is {given:?}; a {kind} is of no namespace, and it is ignored"
            ));
        }
        let faults = schemas.faults(kind, &value);
        if !faults.is_empty() {
            return self.faults.extend(faults.iter().map(|fault| format!("{of}: {fault}")));
        }
        match object(kind, value, namespace) {
            Ok(object) => self.objects.push((origin, object)),
            Err(error) => self.faults.push(format!("{of}: {error}")),
        }
    }
}

/// The number of the item that a path in a list goes through, and the path in it.
fn list_item(path: &str) -> Option<(usize, &str)> {
    let (index, path) = path.strip_prefix("items[")?.split_once("].")?;
    Some((index.parse().ok()?, path))
}

/// Whether a document is an object of ours, or a list that may hold some.
fn is_ours(value: &Value) -> bool {
    let group = value["apiVersion"].as_str().unwrap_or_default().split('/').next().unwrap_or_default();
    group == GROUP || value["kind"].as_str().is_some_and(|kind| kind.ends_with("List"))
}

/// Whether a text is a manifest, as against a host file.
pub fn is_manifest(text: &str) -> bool {
    // What cannot be read is met again and again: no document follows it.
    serde_yaml::Deserializer::from_str(text)
        .map_while(|document| value_of(document).ok())
        .find(|document| !document.is_null())
        .is_some_and(|document| document.get("apiVersion").is_some())
}

/// One document, with the merge keys (`<<`) of YAML carried out.
fn value_of(document: serde_yaml::Deserializer<'_>) -> Result<Value, String> {
    let mut value = serde_yaml::Value::deserialize(document).map_err(|error| error.to_string())?;
    value.apply_merge().map_err(|error| error.to_string())?;
    if !is_finite(&value) {
        return Err("a number is .inf or .nan, which JSON does not have".into());
    }
    let mut value = serde_json::to_value(value).map_err(|error| error.to_string())?;
    make_whole(&mut value);
    Ok(value)
}

fn is_finite(value: &serde_yaml::Value) -> bool {
    match value {
        serde_yaml::Value::Number(number) => number.as_f64().is_none_or(f64::is_finite),
        serde_yaml::Value::Sequence(items) => items.iter().all(is_finite),
        serde_yaml::Value::Mapping(fields) => fields.values().all(is_finite),
        serde_yaml::Value::Tagged(tagged) => is_finite(&tagged.value),
        _ => true,
    }
}

/// A number without a fraction is a whole one, also one that is written as `1e3`, as for kubectl.
fn make_whole(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            let whole = number.as_f64().filter(|number| number.fract() == 0.0);
            if let Some(whole) = whole.and_then(|number| format!("{number:.0}").parse::<i64>().ok()) {
                *value = whole.into();
            }
        }
        Value::Object(fields) => fields.values_mut().for_each(make_whole),
        Value::Array(items) => items.iter_mut().for_each(make_whole),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The items of a list of any kind; `None` for what is no list.
fn list_of(kind: &str, value: &mut Value, schemas: &Schemas) -> Option<Vec<Value>> {
    let ours =
        kind.strip_suffix("List").is_some_and(|of| of.is_empty() || schemas.kinds().any(|kind| kind == of));
    let items = value.get_mut("items").filter(|_| ours)?;
    match items.take() {
        Value::Array(items) => Some(items),
        _ => Some(vec![]),
    }
}

fn subject(origin: &Origin, kind: &str, value: &Value, namespace: &str) -> String {
    let Some(name) = value["metadata"]["name"].as_str() else { return format!("{origin} ({kind})") };
    if is_namespaced(kind) {
        let namespace = value["metadata"]["namespace"].as_str().unwrap_or(namespace);
        format!("{origin} ({kind} {namespace}/{name})")
    } else {
        format!("{origin} ({kind} {name})")
    }
}

fn is_namespaced(kind: &str) -> bool {
    ["Desktop", "DesktopTemplate"].contains(&kind)
}

fn object(kind: &str, mut value: Value, namespace: &str) -> Result<Object, serde_json::Error> {
    if is_namespaced(kind)
        && let Some(metadata) = value["metadata"].as_object_mut()
        && metadata.get("namespace").is_none_or(|has| has.is_null() || has == "")
    {
        metadata.insert("namespace".into(), namespace.into());
    }
    drop_nulls(&mut value);
    Ok(match kind {
        "GpuNode" => Object::Node(typed(value)?),
        "GpuProfile" => Object::Profile(typed(value)?),
        "DesktopTemplate" => Object::Template(typed(value)?),
        _ => Object::Desktop(typed(value)?),
    })
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<Box<T>, serde_json::Error> {
    serde_json::from_value(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Manifests {
        let mut manifests = Manifests::default();
        manifests.read("room.yaml", text, "default", &Schemas::default());
        manifests
    }

    const DESKTOP: &str = "apiVersion: gpudesk.dev/v1alpha1\nkind: Desktop\nmetadata: {name: anna}\nspec: {templateRef: {name: office}}\n";

    #[test]
    fn documents_lists_and_typed_lists_give_the_same_objects() {
        let indented = DESKTOP.replace('\n', "\n  ");
        let list = format!("apiVersion: v1\nkind: List\nitems:\n- {indented}");
        let typed = "apiVersion: gpudesk.dev/v1alpha1\nkind: DesktopList\nitems:\n- metadata: {name: anna}\n  spec: {templateRef: {name: office}}\n";
        let plain = read(&format!("---\n# nothing\n---\n{DESKTOP}"));
        assert_eq!(plain.objects[0].0.to_string(), "room.yaml, document 2");
        for text in [list.as_str(), typed] {
            let other = read(text);
            assert_eq!(other.faults, Vec::<String>::new());
            assert_eq!(other.objects[0].1, plain.objects[0].1);
            assert_eq!(other.objects[0].0.to_string(), "room.yaml, document 1, item 1");
        }
        let Object::Desktop(desktop) = &plain.objects[0].1 else { panic!("no desktop") };
        assert_eq!(desktop.metadata.namespace.as_deref(), Some("default"));
    }

    #[test]
    fn json_and_merge_keys_are_read() {
        let json = r#"{"apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop", "metadata": {"name": "anna"}, "spec": {"templateRef": {"name": "office"}}}"#;
        assert_eq!(read(json).objects[0].1, read(DESKTOP).objects[0].1);
        let merged = DESKTOP.replace("spec: {", "spec: {<<: {priority: 7}, ");
        let Object::Desktop(desktop) = &read(&merged).objects[0].1 else { panic!("no desktop") };
        assert_eq!(desktop.spec.priority, 7);
    }

    #[test]
    fn a_whole_number_is_one_however_it_is_written() {
        for (written, is) in [("1e1", 10), ("-1e1", -10), ("1e+3", 1000), ("5.0", 5)] {
            let Object::Desktop(desktop) =
                &read(&DESKTOP.replace("spec: {", &format!("spec: {{priority: {written}, "))).objects[0].1
            else {
                panic!("no desktop")
            };
            assert_eq!(desktop.spec.priority, is, "{written}");
        }
        for (written, said) in [
            ("1.5", "spec.priority is 1.5; write a whole number"),
            (".inf", "not YAML: a number is .inf or .nan, which JSON does not have"),
            ("1e7", "spec.priority is 10000000; write -1000000 to 1000000"),
        ] {
            let faults = read(&DESKTOP.replace("spec: {", &format!("spec: {{priority: {written}, "))).faults;
            assert!(faults.len() == 1 && faults[0].ends_with(said), "{faults:?}");
        }
    }

    #[test]
    fn other_kinds_are_counted_and_left_out() {
        let manifests = read(
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n",
        );
        assert_eq!(manifests.ignored, BTreeMap::from([("Namespace (v1)".to_owned(), 2)]));
        assert!(manifests.objects.is_empty() && manifests.faults.is_empty());
    }

    #[test]
    fn a_fault_names_file_document_object_field_and_value() {
        let faults = read(&DESKTOP.replace("spec: {", "spec: {priority: high, ")).faults;
        assert_eq!(
            faults,
            ["room.yaml, document 1 (Desktop default/anna): spec.priority is \"high\"; write a whole number"]
        );
        let faults = read(&DESKTOP.replace("v1alpha1", "v1")).faults;
        assert!(
            faults[0].ends_with("apiVersion is \"gpudesk.dev/v1\"; write gpudesk.dev/v1alpha1"),
            "{faults:?}"
        );
        let faults = read(&DESKTOP.replace("kind: Desktop", "kind: Desktops")).faults;
        assert!(faults[0].contains("kind is \"Desktops\"; write one of Desktop, "), "{faults:?}");
        let faults = read("coresPerSocket: 4\nmemoryMiB: 1\n").faults;
        assert_eq!(faults, ["room.yaml, document 1: this is a host file: give it with --nodes"]);
        let faults = read("a: [\n").faults;
        assert!(faults[0].starts_with("room.yaml, document 1: not YAML: "), "{faults:?}");
        let faults = read("a: 1\na: 2\n").faults;
        assert!(faults[0].contains("duplicate"), "{faults:?}");
    }

    #[test]
    fn what_kubectl_takes_for_something_else_is_refused_and_what_others_do_is_noted() {
        let faults = read(&DESKTOP.replace("{name: anna}", "{name: anna, namespace: n}")).faults;
        assert_eq!(
            faults,
            [
                "room.yaml, document 1: metadata.namespace is n, a text without quotes that kubectl takes for a boolean; write \"n\""
            ]
        );
        let quoted = read(&DESKTOP.replace("{name: anna}", "{name: anna, namespace: \"n\"}"));
        assert!(quoted.faults.is_empty() && quoted.notes.is_empty());
        let rule = "devices: [{name: keep, selector: {pciAddress: 0000:41:00.0}, management: Unmanaged}]";
        let node = format!(
            "apiVersion: gpudesk.dev/v1alpha1\nkind: GpuNode\nmetadata: {{name: host}}\nspec: {{{rule}}}\n"
        );
        let noted = read(&node);
        assert_eq!((noted.faults.len(), noted.objects.len()), (0, 1));
        assert!(
            noted.notes[0].contains("spec.devices[0].selector.pciAddress is 0000:41:00.0"),
            "{:?}",
            noted.notes
        );
        assert!(
            noted.notes[0].contains("PyYAML and Ansible, take for a number of base 60"),
            "{:?}",
            noted.notes
        );
        // Where no text belongs, what is right is no text in quotes.
        let template = "apiVersion: gpudesk.dev/v1alpha1\nkind: DesktopTemplate\nmetadata: {name: t}\nspec: {memory: {sizeMiB: 1024}, disks: [{name: s, image: {name: any}}]}\n";
        for (base, field, said) in [
            (DESKTOP, "powerState: on", "write one of Running, Stopped, Suspended"),
            (DESKTOP, "priority: 010", "spec.priority is \"010\"; write 10, or 8 as kubectl reads it"),
            (DESKTOP, "priority: '7'", "spec.priority is \"7\"; write 7"),
            (template, "guestAgent: no", "spec.guestAgent is \"no\"; write false"),
            (template, "guestAgent: \"On\"", "spec.guestAgent is \"On\"; write true"),
        ] {
            let manifest = base.replace("spec: {", &format!("spec: {{{field}, "));
            let list =
                format!("apiVersion: v1\nkind: List\nitems:\n- {}", manifest.trim().replace('\n', "\n  "));
            for text in [manifest, list] {
                let faults = read(&text).faults;
                assert!(faults.len() == 1 && faults[0].ends_with(said), "{text}: {faults:?}");
            }
        }
        let profile = "apiVersion: gpudesk.dev/v1alpha1\nkind: GpuProfile\nmetadata: {name: p, namespace: school}\nspec: {alternatives: [{passthrough: {}}]}\n";
        let said = read(profile).notes;
        assert!(
            said[0].ends_with(
                "metadata.namespace is \"school\"; a GpuProfile is of no namespace, and it is ignored"
            ),
            "{said:?}"
        );
        // What is not ours is not ours to judge.
        assert!(
            read("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {a: yes}\n").faults.is_empty()
        );
    }

    #[test]
    fn a_value_that_no_schema_can_judge_is_named_too() {
        let node = "apiVersion: gpudesk.dev/v1alpha1\nkind: GpuNode\nmetadata: {name: host}\nspec: {}\nstatus: {devices: [{pciAddress: '41', vendorId: '10de', deviceId: '2bb5', product: x}]}\n";
        let faults = read(node).faults;
        assert!(faults[0].contains("\"41\" is no PCI address: write "), "{faults:?}");
    }

    #[test]
    fn a_text_that_is_no_yaml_is_no_manifest() {
        assert!(!is_manifest("# gpudesk\n\n- a: `b`: {\n\t@"));
        assert!(is_manifest("---\n---\napiVersion: v1\n"));
    }

    #[test]
    fn no_text_makes_reading_panic() {
        let schemas = Schemas::default();
        proptest!(|(text in "[-:a-z\\[\\]{}#&*!|>'\"%@ \n]{0,200}")| {
            Manifests::default().read("x", &text, "default", &schemas);
        });
    }

    #[test]
    fn no_manifest_makes_reading_panic() {
        let schemas = Schemas::default();
        let node = || prop_oneof![Just("Desktop"), Just("GpuNode"), Just("GpuProfile"), Just("List")];
        let value = || {
            prop_oneof![
                Just("{}"),
                Just("[]"),
                Just("null"),
                Just("7"),
                Just("-1.5"),
                Just("a"),
                Just("[{}]")
            ]
        };
        proptest!(|(kind in node(), metadata in value(), field in "spec|items|status", inner in "[a-z]{1,9}", value in value())| {
            let text = format!(
                "apiVersion: gpudesk.dev/v1alpha1\nkind: {kind}\nmetadata: {metadata}\n{field}: {{{inner}: {value}}}\n"
            );
            Manifests::default().read("x", &text, "default", &schemas);
        });
    }
}
