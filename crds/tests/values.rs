//! `charts/gpudesk/README.md` is the table of what values.yaml and its comments say. After a change:
//! `GPUDESK_UPDATE_GOLDENS=1 cargo test --workspace --all-features --test values`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

const HEAD: &str = "# gpudesk

Operator, node daemon, access rules and admission policies. What it is, how it is installed, upgraded and
removed: [README](../../README.md).

Every value of [values.yaml](values.yaml), which [values.schema.json](values.schema.json) checks:

| Value | Default | What it is |
| --- | --- | --- |
";

fn chart(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("charts/gpudesk").join(file)
}

/// The settings of a part of the schema: `None` where a value is one setting, whatever its shape.
fn settings(schema: &Value) -> Option<&serde_json::Map<String, Value>> {
    schema.get("properties")?.as_object()
}

/// Comments above keys, by the path of the key, such as `operator.replicas`.
fn comments(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut path: Vec<(usize, &str)> = Vec::new();
    let mut words: Vec<&str> = Vec::new();
    for line in text.lines() {
        let inner = line.trim_start();
        let depth = line.len() - inner.len();
        if let Some(comment) = inner.strip_prefix('#') {
            words.push(comment.trim());
            continue;
        }
        if let Some((key, _)) = inner.split_once(':').filter(|_| !inner.starts_with('-')) {
            path.retain(|(at, _)| *at < depth);
            path.push((depth, key));
            let keys: Vec<_> = path.iter().map(|(_, key)| *key).collect();
            if !words.is_empty() {
                found.insert(keys.join("."), words.join(" "));
            }
        }
        words.clear();
    }
    found
}

struct Table<'a> {
    comments: BTreeMap<String, String>,
    schema: &'a Value,
    rows: String,
    wrong: Vec<String>,
}

impl Table<'_> {
    fn part(&mut self, above: &str, values: &serde_yaml::Value, schema: &Value) {
        let of_schema = settings(schema).unwrap();
        for (key, value) in values.as_mapping().unwrap() {
            let key = key.as_str().unwrap();
            let path = format!("{above}{key}");
            let Some(schema) = of_schema.get(key) else {
                self.wrong.push(format!("{path}: not in values.schema.json"));
                continue;
            };
            let comment = self.comments.remove(&path);
            if settings(schema).is_some() {
                if let Some(comment) = comment {
                    writeln!(self.rows, "| **`{path}`** | | {} |", comment.replace('|', "\\|")).unwrap();
                }
                self.part(&format!("{path}."), value, schema);
            } else if let Some(comment) = comment {
                let value = serde_json::to_string(value).unwrap();
                writeln!(self.rows, "| `{path}` | `{value}` | {} |", comment.replace('|', "\\|")).unwrap();
            } else {
                self.wrong.push(format!("{path}: no comment above it in values.yaml"));
            }
        }
        for key in of_schema.keys().filter(|key| values.get(key.as_str()).is_none() && *key != "global") {
            self.wrong.push(format!("{above}{key}: in values.schema.json, not in values.yaml"));
        }
    }

    fn of(values: &str, schema: &Value) -> (String, Vec<String>) {
        let parsed: serde_yaml::Value = serde_yaml::from_str(values).unwrap();
        let mut table = Table { comments: comments(values), schema, rows: String::new(), wrong: Vec::new() };
        table.part("", &parsed, table.schema);
        let lost = table.comments.keys().map(|path| format!("{path}: its comment says nothing in the table"));
        table.wrong.extend(lost);
        (table.rows, table.wrong)
    }
}

#[test]
fn the_table_of_values_is_that_of_their_comments() {
    let values = fs::read_to_string(chart("values.yaml")).unwrap();
    let schema = serde_json::from_str(&fs::read_to_string(chart("values.schema.json")).unwrap()).unwrap();
    let (rows, wrong) = Table::of(&values, &schema);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let wanted = format!("{HEAD}{rows}");
    if std::env::var_os("GPUDESK_UPDATE_GOLDENS").is_some() {
        fs::write(chart("README.md"), &wanted).unwrap();
    }
    let found = fs::read_to_string(chart("README.md")).unwrap_or_default();
    let line = found.lines().zip(wanted.lines()).take_while(|(found, wanted)| found == wanted).count() + 1;
    assert!(
        found == wanted,
        "charts/gpudesk/README.md differs from values.yaml from line {line} on; see this test's head"
    );
}

#[test]
fn a_value_without_comment_or_schema_is_seen() {
    let schema = serde_json::json!({"properties": {
        "a": {"properties": {"b": {"type": "integer"}, "c": {"$ref": "#/$defs/texts"}}},
        "d": {}, "global": {}, "e": {},
    }});
    let values = "# Of a.\na:\n  # One\n  # or two.\n  b: 1\n  # Texts.\n  c:\n    # Lost.\n    k: v\n\n# Not of d.\n\nd: x\nf: 1\n";
    let (rows, wrong) = Table::of(values, &schema);
    let rows: Vec<_> = rows.lines().collect();
    assert_eq!(
        rows,
        ["| **`a`** | | Of a. |", "| `a.b` | `1` | One or two. |", r#"| `a.c` | `{"k":"v"}` | Texts. |"#]
    );
    let keys: Vec<_> = wrong.iter().map(|line| line.split_once(':').unwrap().0).collect();
    assert_eq!(keys, ["d", "f", "e", "a.c.k"], "{wrong:?}");
}
