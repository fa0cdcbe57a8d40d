//! The checked-in definitions are those of the types.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use gpudesk_crds::schema;

fn folder(below_the_checkout: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(below_the_checkout)
}

fn differences(folder: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut expected = BTreeSet::new();
    for crd in schema::all() {
        let name = schema::file_name(&crd);
        let wanted = schema::yaml(&crd).unwrap();
        match fs::read_to_string(folder.join(&name)) {
            Err(error) => wrong.push(format!("{name}: {error}")),
            Ok(text) if text != wanted => {
                let line = text.lines().zip(wanted.lines()).take_while(|(old, new)| old == new).count() + 1;
                wrong.push(format!("{name}: differs from the types from line {line} on"));
            }
            Ok(_) => {}
        }
        expected.insert(name);
    }
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.extension().is_some_and(|extension| extension == "yaml") && !expected.contains(&name) {
            wrong.push(format!("{name}: no kind has this definition"));
        }
    }
    wrong
}

fn assert_generated(below_the_checkout: &str) {
    let folder = folder(below_the_checkout);
    let wrong = differences(&folder);
    assert!(wrong.is_empty(), "{}: run `make generate`\n{}", folder.display(), wrong.join("\n"));
}

#[test]
fn the_definitions_for_kubectl_are_those_of_the_types() {
    assert_generated("crds");
}

#[test]
fn the_definitions_in_the_chart_are_those_of_the_types() {
    assert_generated("charts/gpudesk/crds");
}

#[test]
fn a_change_by_hand_and_a_leftover_file_are_seen() {
    let copy = std::env::temp_dir().join(format!("gpudesk-generated-{}", std::process::id()));
    fs::create_dir_all(&copy).unwrap();
    for crd in schema::all() {
        fs::write(copy.join(schema::file_name(&crd)), schema::yaml(&crd).unwrap()).unwrap();
    }
    assert_eq!(differences(&copy), [""; 0]);

    let edited = copy.join("gpudesk.dev_desktops.yaml");
    let text = fs::read_to_string(&edited).unwrap();
    fs::write(&edited, text.replacen("minimum: -1000000", "minimum: -9", 1)).unwrap();
    fs::write(copy.join("gpudesk.dev_laptops.yaml"), "").unwrap();
    fs::remove_file(copy.join("gpudesk.dev_gpunodes.yaml")).unwrap();
    let wrong = differences(&copy);
    fs::remove_dir_all(&copy).unwrap();
    assert_eq!(wrong.len(), 3, "{wrong:?}");
}
