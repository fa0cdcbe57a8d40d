//! YAML that every reader reads alike.
//!
//! In YAML 1.2, which we read and write, `n` is a text and so is `0000:41:00.0`. In YAML 1.1 the one is
//! "no" and the other a number of base 60 (<https://yaml.org/type/bool.html>,
//! <https://yaml.org/type/float.html>). kubectl reads booleans and whole numbers as YAML 1.1 does, and
//! `PyYAML` (and so Ansible) all of it. So what would be misread is told where we read it, and quoted where
//! we write it.

use std::fmt;

use granit_parser::{Event, Parser, ScalarStyle};
use serde::Serialize;

/// Who takes a text without quotes for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// kubectl, and readers of YAML 1.1.
    Kubectl,
    /// Readers of YAML 1.1, but not kubectl.
    Yaml11,
}

/// A text without quotes that some reader takes for something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misread {
    /// Number of the document, from 0.
    pub document: usize,
    /// Path of the field, like `metadata.namespace`.
    pub path: String,
    /// Whether it is the name of the field, not its value.
    pub is_key: bool,
    /// The text.
    pub text: String,
    /// Who misreads it.
    pub reader: Reader,
    /// As what.
    pub taken_for: &'static str,
}

impl fmt::Display for Misread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { document: _, path, is_key, text, reader, taken_for } = self;
        let what = if *is_key { "the name of a field" } else { "a text" };
        let who = match reader {
            Reader::Kubectl => "kubectl takes",
            Reader::Yaml11 => "readers of YAML 1.1, as PyYAML and Ansible, take",
        };
        write!(f, "{path} is {text}, {what} without quotes that {who} for {taken_for}; write {text:?}")
    }
}

/// Who misreads a text without quotes, and as what; `None` when nobody does.
pub fn misread(plain: &str) -> Option<(Reader, &'static str)> {
    let lower = plain.to_ascii_lowercase();
    let capital =
        lower.get(..1).map(str::to_ascii_uppercase).unwrap_or_default() + lower.get(1..).unwrap_or_default();
    let written_so = plain == lower || plain == lower.to_ascii_uppercase() || plain == capital;
    if written_so && ["y", "yes", "n", "no", "on", "off"].contains(&lower.as_str()) {
        return Some((Reader::Kubectl, "a boolean"));
    }
    // What we take for a number ourselves is one for all.
    let is_text = || matches!(serde_yaml::from_str(plain), Ok(serde_yaml::Value::String(_)));
    if whole_number(plain) && is_text() {
        return Some((Reader::Kubectl, "a number"));
    }
    if base_60(plain) && is_text() {
        return Some((Reader::Yaml11, "a number of base 60"));
    }
    if date(plain) && is_text() {
        return Some((Reader::Yaml11, "a date"));
    }
    None
}

fn unsigned(text: &str) -> &str {
    text.strip_prefix(['-', '+']).unwrap_or(text)
}

/// `0123`, `1_000`, `0b101`: octal, with separators, binary.
fn whole_number(text: &str) -> bool {
    let digits = unsigned(text);
    let all = |digits: &str, base: u32| {
        digits.chars().any(|c| c.is_digit(base)) && digits.chars().all(|c| c.is_digit(base) || c == '_')
    };
    if let Some(digits) = digits.strip_prefix("0b") {
        return all(digits, 2);
    }
    if let Some(digits) = digits.strip_prefix("0x") {
        return all(digits, 16);
    }
    // A leading 0 means octal, and 08 is a decimal number with a fraction to some.
    digits.starts_with(|c: char| c.is_ascii_digit()) && all(digits, 10)
}

/// `12:30:45`, `0000:41:00.0`.
fn base_60(text: &str) -> bool {
    let (whole, fraction) = unsigned(text).split_once('.').unwrap_or((unsigned(text), ""));
    let is_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let mut parts = whole.split(':');
    let first = parts.next().unwrap_or_default();
    let mut rest = parts.peekable();
    rest.peek().is_some()
        && first.starts_with(|c: char| c.is_ascii_digit())
        && is_digits(first)
        && is_digits(fraction)
        && rest.all(|part| {
            part.len() <= 2 && is_digits(part) && part.parse::<u8>().is_ok_and(|value| value < 60)
        })
}

/// `2026-11-29`, with or without a time.
fn date(text: &str) -> bool {
    let digits = |part: Option<&str>, least: usize, most: usize| {
        part.is_some_and(|part| {
            (least..=most).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit())
        })
    };
    let day = text.split(['T', 't', ' ']).next().unwrap_or_default();
    let mut parts = day.splitn(3, '-');
    digits(parts.next(), 4, 4) && digits(parts.next(), 1, 2) && digits(parts.next(), 1, 2)
}

/// A place in a document.
enum Level {
    Mapping { key: Option<String> },
    Sequence { next: usize },
}

/// A text without quotes and where it stands.
struct Plain {
    misread: Misread,
    bytes: std::ops::Range<usize>,
}

/// Lists and mappings in each other that a document has at most.
pub const MOST_LEVELS: usize = 128;

/// The line in which a text with that many brackets is nested deeper than [`MOST_LEVELS`], or is no YAML.
pub fn too_deep(text: &str) -> Option<usize> {
    // Most texts are judged by their brackets alone, wherever those stand.
    let (mut open, mut most) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = open.max(most);
    }
    if most <= MOST_LEVELS {
        return None;
    }
    let mut levels = 0_usize;
    for event in Parser::new_from_str(text) {
        let (event, span) = match event {
            Ok(found) => found,
            // The parser has a bound of its own, beyond this one.
            Err(error) => return Some(error.marker().line()),
        };
        match event {
            Event::SequenceStart(..) | Event::MappingStart(..) => levels += 1,
            Event::SequenceEnd | Event::MappingEnd => levels = levels.saturating_sub(1),
            _ => {}
        }
        if levels > MOST_LEVELS {
            return Some(span.start.line());
        }
    }
    None
}

/// All texts of a file that somebody misreads; of a file that is no YAML, those before the fault.
pub fn misreads(text: &str) -> Vec<Misread> {
    scan(text).into_iter().map(|plain| plain.misread).collect()
}

fn scan(text: &str) -> Vec<Plain> {
    let mut found = vec![];
    let mut levels: Vec<Level> = vec![];
    let mut documents = 0usize;
    for event in Parser::new_from_str(text) {
        let Ok((event, span)) = event else { break };
        match event {
            Event::DocumentStart(..) => {
                documents += 1;
                levels.clear();
            }
            Event::Scalar(value, style, _, tag) => {
                let is_key = matches!(levels.last(), Some(Level::Mapping { key: None }));
                if is_key && let Some(Level::Mapping { key }) = levels.last_mut() {
                    *key = Some(value.to_string());
                }
                if style == ScalarStyle::Plain
                    && tag.is_none()
                    && let Some((reader, taken_for)) = misread(&value)
                    && let Some(bytes) = span.byte_range()
                {
                    let document = documents.saturating_sub(1);
                    let path = path(&levels);
                    let text = value.to_string();
                    let misread = Misread { document, path, is_key, text, reader, taken_for };
                    found.push(Plain { misread, bytes });
                }
                if !is_key {
                    done(&mut levels);
                }
            }
            Event::Alias(_) => {
                if let Some(Level::Mapping { key: key @ None }) = levels.last_mut() {
                    *key = Some("*".into());
                } else {
                    done(&mut levels);
                }
            }
            Event::MappingStart(..) => levels.push(Level::Mapping { key: None }),
            Event::SequenceStart(..) => levels.push(Level::Sequence { next: 0 }),
            Event::MappingEnd | Event::SequenceEnd => {
                levels.pop();
                done(&mut levels);
            }
            _ => {}
        }
    }
    found
}

/// A value is read: the next thing is the next field, or the next item.
fn done(levels: &mut [Level]) {
    match levels.last_mut() {
        Some(Level::Mapping { key: key @ None }) => *key = Some("?".into()),
        Some(Level::Mapping { key }) => *key = None,
        Some(Level::Sequence { next }) => *next += 1,
        None => {}
    }
}

fn path(levels: &[Level]) -> String {
    let mut path = String::new();
    for level in levels {
        match level {
            Level::Mapping { key: Some(key) } if path.is_empty() => path.clone_from(key),
            Level::Mapping { key: Some(key) } => path.extend([".", key]),
            Level::Mapping { key: None } => {}
            Level::Sequence { next } => path.extend(["[", &next.to_string(), "]"]),
        }
    }
    path
}

/// Writes YAML in which nobody misreads anything.
///
/// # Errors
/// When the value cannot be written as YAML.
pub fn to_string(value: &impl Serialize) -> Result<String, serde_yaml::Error> {
    let mut text = serde_yaml::to_string(value)?;
    // From the end, so that the places before stay where they are.
    for Plain { misread, bytes } in scan(&text).into_iter().rev() {
        text.replace_range(bytes, &format!("\"{}\"", misread.text));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_is_nested_without_end_is_told_at_once() {
        let nested = |depth: usize| format!("a:\n  {}{}\n", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(too_deep(&nested(MOST_LEVELS - 1)), None);
        assert_eq!(too_deep(&nested(200_000)), Some(2));
        assert_eq!(too_deep(&"[".repeat(200_000)), Some(1));
        assert_eq!(too_deep(&format!("a: '{}'\n", "[".repeat(200_000))), None);
    }

    #[test]
    fn what_readers_of_yaml_1_1_take_for_something_else_is_known() {
        for text in ["n", "Y", "yes", "NO", "On", "off", "0123", "1_000", "0b1_0", "-0017"] {
            assert_eq!(misread(text).map(|(reader, _)| reader), Some(Reader::Kubectl), "{text}");
        }
        for text in ["0000:41:00.0", "12:30:45", "-1:59", "2026-11-29", "2026-11-29T12:00:00Z"] {
            assert_eq!(misread(text).map(|(reader, _)| reader), Some(Reader::Yaml11), "{text}");
        }
        // A text to all, or the same to all.
        for text in [
            "nO",
            "yEs",
            "none",
            "0000:c1:00.0",
            "1:60",
            "10de",
            "a:1",
            "true",
            "17",
            "1.5",
            "~",
            "",
            "1.2.3",
            "v1",
            "0-3",
        ] {
            assert_eq!(misread(text), None, "{text}");
        }
    }

    #[test]
    fn each_is_found_where_it_stands() {
        let text = "metadata: {name: d, namespace: n}\n---\nspec:\n  list:\n  - a: 'no'\n  - b: no\n  on: x\n  \"y\": z\n";
        let found: Vec<(usize, String, bool)> =
            misreads(text).into_iter().map(|found| (found.document, found.path, found.is_key)).collect();
        assert_eq!(
            found,
            [
                (0, "metadata.namespace".into(), false),
                (1, "spec.list[1].b".into(), false),
                (1, "spec.on".into(), true)
            ]
        );
        assert_eq!(
            misreads(text)[0].to_string(),
            "metadata.namespace is n, a text without quotes that kubectl takes for a boolean; write \"n\""
        );
    }

    #[test]
    fn what_is_written_is_quoted_where_somebody_would_misread_it() {
        let value = json!({"pciAddress": "0000:41:00.0", "other": "0000:c1:00.0", "on": ["n", "no", 7, true, "2026-01-01"]});
        let text = to_string(&value).unwrap();
        assert!(text.contains("pciAddress: \"0000:41:00.0\""), "{text}");
        assert_eq!(misreads(&text), []);
        assert_eq!(serde_yaml::from_str::<Value>(&text).unwrap(), value);
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            "[0-9:_.+-]{1,9}",
            "[yYnNoOfFeEsS]{1,3}",
            "[ -~]{0,12}",
            "\\PC{0,8}",
            Just("a\nb: no\n".to_owned()),
        ];
        let leaf = prop_oneof![
            text.clone().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(text.clone(), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_back_and_misread_by_nobody(value in any_value()) {
            let text = to_string(&value).unwrap();
            prop_assert_eq!(misreads(&text), []);
            prop_assert_eq!(serde_yaml::from_str::<Value>(&text).unwrap(), value);
        }

        #[test]
        fn no_text_makes_looking_panic(text in "[-:a-z0-9\\[\\]{}#&*!|>'\"%@ \n]{0,120}") {
            let _ = misreads(&text);
        }
    }
}
