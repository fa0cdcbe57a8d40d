//! Writing and reading XML, with every value escaped and none concatenated.
//!
//! The writer is thin on purpose: it turns values into text, remembers the first one that XML cannot
//! carry, and gives that error at the end, so that the configurators stay free of error plumbing.

use std::fmt::Display;

use quick_xml::Writer;
use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};
use quick_xml::name::ResolveResult;
use quick_xml::reader::NsReader;

use super::DomainError;

/// Attributes in the order they are written.
pub(super) type Attributes<'a> = [(&'static str, &'a dyn Display)];

/// A document being written: two spaces of indentation, no declaration.
pub(super) struct Xml {
    writer: Writer<Vec<u8>>,
    fault: Option<DomainError>,
}

impl Xml {
    pub(super) fn new() -> Self {
        Self { writer: Writer::new_with_indent(Vec::new(), b' ', 2), fault: None }
    }

    /// `<name a='1'/>`
    pub(super) fn empty(&mut self, name: &'static str, attributes: &Attributes<'_>) {
        let start = self.start(name, attributes);
        self.event(name, Event::Empty(start));
    }

    /// `<name a='1'>text</name>`
    pub(super) fn text(&mut self, name: &'static str, attributes: &Attributes<'_>, text: impl Display) {
        let text = self.legal(name, &text);
        let start = self.start(name, attributes);
        self.event(name, Event::Start(start));
        self.event(name, Event::Text(BytesText::new(&text)));
        self.event(name, Event::End(BytesEnd::new(name)));
    }

    /// `<name a='1'>` ... `</name>`
    pub(super) fn nest(
        &mut self,
        name: &'static str,
        attributes: &Attributes<'_>,
        inside: impl FnOnce(&mut Self),
    ) {
        let start = self.start(name, attributes);
        self.event(name, Event::Start(start));
        inside(self);
        self.event(name, Event::End(BytesEnd::new(name)));
    }

    /// The document with a final newline.
    ///
    /// # Errors
    /// The first value that XML 1.0 cannot carry, by the name of its element.
    pub(super) fn finish(self) -> Result<String, DomainError> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let mut text = String::from_utf8(self.writer.into_inner())
            .map_err(|_| DomainError::Unencodable { element: "domain" })?;
        text.push('\n');
        Ok(text)
    }

    fn start(&mut self, name: &'static str, attributes: &Attributes<'_>) -> BytesStart<'static> {
        let mut start = BytesStart::new(name);
        for (key, value) in attributes {
            let value = self.legal(name, value);
            start.push_attribute((*key, value.as_str()));
        }
        start
    }

    fn legal(&mut self, element: &'static str, value: &dyn Display) -> String {
        let value = value.to_string();
        if !value.chars().all(is_xml_char) {
            self.fault.get_or_insert(DomainError::Unencodable { element });
        }
        value
    }

    fn event(&mut self, element: &'static str, event: Event<'_>) {
        if self.writer.write_event(event).is_err() {
            self.fault.get_or_insert(DomainError::Unencodable { element });
        }
    }
}

/// The `Char` production of XML 1.0: what a document may hold at all, escaped or not.
fn is_xml_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..)
}

/// `yes` or `no`, as libvirt spells most of its booleans.
pub(super) fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// `on` or `off`, as libvirt spells the rest of them.
pub(super) fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

/// Why a document could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not well-formed XML: {0}")]
pub struct NotXml(pub(super) String);

/// One element as it is met: its namespace (empty when it has none), local name and attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) namespace: String,
    pub(super) name: String,
    attributes: Vec<(String, String)>,
}

impl Element {
    pub(super) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn is(&self, namespace: &str, name: &str) -> bool {
        self.namespace == namespace && self.name == name
    }
}

/// What [`read`] reports.
pub(super) enum Item<'a> {
    /// An element opens; the last of the path is the element itself.
    Open(&'a [Element]),
    /// Character data, unescaped; one element's text may come in several pieces.
    Text(&'a [Element], &'a str),
}

/// Reads a document in one pass and reports what it meets, each with the path from the root.
///
/// Knows the five predefined entities and character references and no others, so a document cannot
/// grow while it is read.
///
/// # Errors
/// [`NotXml`] for what is not well formed, is cut short, or has an unknown entity.
pub(super) fn read(xml: &str, mut report: impl FnMut(Item<'_>)) -> Result<(), NotXml> {
    let mut reader = NsReader::from_str(xml);
    let mut path: Vec<Element> = Vec::new();
    loop {
        let (namespace, event) = reader.read_resolved_event().map_err(|e| NotXml(e.to_string()))?;
        let namespace = match namespace {
            ResolveResult::Bound(namespace) => Some(namespace.0.to_string()),
            ResolveResult::Unbound => Some(String::new()),
            ResolveResult::Unknown(_) => None,
        };
        match event {
            Event::Start(start) => {
                path.push(element(namespace, &start)?);
                report(Item::Open(&path));
            }
            Event::Empty(start) => {
                path.push(element(namespace, &start)?);
                report(Item::Open(&path));
                path.pop();
            }
            Event::End(_) => {
                path.pop();
            }
            Event::Text(text) => report(Item::Text(&path, &text.xml10_content())),
            Event::CData(text) => report(Item::Text(&path, &text.xml10_content())),
            Event::GeneralRef(reference) => {
                let character = reference.resolve_char_ref().map_err(|e| NotXml(e.to_string()))?;
                if let Some(character) = character {
                    report(Item::Text(&path, character.encode_utf8(&mut [0; 4])));
                } else {
                    let name = reference.xml10_content();
                    let text = quick_xml::escape::resolve_xml_entity(&name)
                        .ok_or_else(|| NotXml(format!("unknown entity &{name};")))?;
                    report(Item::Text(&path, text));
                }
            }
            Event::Eof if path.is_empty() => return Ok(()),
            Event::Eof => return Err(NotXml("the document ends inside an element".to_owned())),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
        }
    }
}

fn element(namespace: Option<String>, start: &BytesStart<'_>) -> Result<Element, NotXml> {
    let name = start.local_name().into_inner().to_owned();
    let namespace = namespace.ok_or_else(|| NotXml(format!("<{name}>: prefix without a namespace")))?;
    let attributes = start
        .attributes()
        .map(|attribute| {
            let attribute = attribute.map_err(|e| NotXml(e.to_string()))?;
            let value = attribute
                .normalized_value(quick_xml::XmlVersion::Explicit1_0)
                .map_err(|e| NotXml(e.to_string()))?;
            Ok((attribute.key.into_inner().to_owned(), value.into_owned()))
        })
        .collect::<Result<_, NotXml>>()?;
    Ok(Element { namespace, name, attributes })
}
