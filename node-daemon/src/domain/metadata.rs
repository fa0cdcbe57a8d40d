//! What a domain carries about the Desktop it was made for.
//!
//! libvirt keeps the element and hands it back, so that the daemon needs no record of its own: after
//! a restart it reads from the domains themselves which desktop each is, and what it was given.

use uuid::Uuid;

use super::xml::{Element, Item, NotXml, Xml, read};

/// XML namespace of the element.
pub const NAMESPACE: &str = "https://gpudesk.dev/domain/v1";

/// What a domain carries about the Desktop it was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainMetadata {
    /// UID of the Desktop, which is the domain's UUID too.
    pub desktop_uid: Uuid,
    /// Namespace of the Desktop.
    pub namespace: String,
    /// Name of the Desktop.
    pub name: String,
    /// Version of the daemon that defined the domain.
    pub daemon_version: String,
    /// Generation of the template that the domain was made from.
    pub template_generation: i64,
    /// The restart request that this start answers.
    pub restarted_at: Option<String>,
    /// The allocation that the domain was made from: one JSON document.
    pub allocation: String,
}

/// Why a domain that says it is ours cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// The document cannot be read at all.
    #[error(transparent)]
    NotXml(#[from] NotXml),
    /// A part is not there.
    #[error("the domain's gpudesk metadata has no {what}")]
    Missing {
        /// The part.
        what: &'static str,
    },
    /// A part is there and is not what it should be.
    #[error("the domain's gpudesk metadata: {what} is not valid: {found:?}")]
    Invalid {
        /// The part.
        what: &'static str,
        /// What was found.
        found: String,
    },
    /// The element is there more than once.
    #[error("the domain has gpudesk metadata twice")]
    Twice,
}

impl DomainMetadata {
    pub(super) fn write(&self, xml: &mut Xml) {
        let Self {
            desktop_uid,
            namespace,
            name,
            daemon_version,
            template_generation,
            restarted_at,
            allocation,
        } = self;
        xml.nest("metadata", &[], |xml| {
            xml.nest(
                "gpudesk:desktop",
                &[
                    ("xmlns:gpudesk", &NAMESPACE),
                    ("uid", desktop_uid),
                    ("namespace", namespace),
                    ("name", name),
                ],
                |xml| {
                    xml.empty("gpudesk:daemon", &[("version", daemon_version)]);
                    xml.empty("gpudesk:template", &[("generation", template_generation)]);
                    if let Some(at) = restarted_at {
                        xml.text("gpudesk:restartedAt", &[], at);
                    }
                    xml.text("gpudesk:allocation", &[], allocation);
                },
            );
        });
    }
}

/// Reads the metadata back, from a whole domain or from the element alone.
///
/// Of a whole domain only `/domain/metadata` is looked at. The element alone is what
/// `virDomainGetMetadata` returns: libvirt finds it by its namespace and then leaves the namespace
/// out, so `<desktop>` without one is ours there, and only there.
///
/// `Ok(None)` for a domain that carries no such element: somebody else's. Unknown attributes and
/// elements within it are ignored, so that an older daemon reads what a newer one wrote.
///
/// # Errors
/// [`MetadataError`] when the document is not XML, or says that it is ours and lacks what it must have.
pub fn parse(xml: &str) -> Result<Option<DomainMetadata>, MetadataError> {
    let mut found = Found::default();
    read(xml, |item| match item {
        Item::Open(path) => {
            if let Some((desktop, inside)) = ours(path) {
                found.open(desktop, inside);
            }
        }
        Item::Text(path, text) => {
            if let Some((_, [part])) = ours(path) {
                found.text(part, text);
            }
        }
    })?;
    found.finish()
}

/// Splits a path at our element: the element and what is inside it.
fn ours(path: &[Element]) -> Option<(&Element, &[Element])> {
    match path {
        [domain, metadata, desktop, inside @ ..]
            if domain.is("", "domain") && metadata.is("", "metadata") && desktop.is(NAMESPACE, "desktop") =>
        {
            Some((desktop, inside))
        }
        [desktop, inside @ ..] if desktop.is(NAMESPACE, "desktop") || desktop.is("", "desktop") => {
            Some((desktop, inside))
        }
        _ => None,
    }
}

/// What has been met so far.
#[derive(Default)]
struct Found {
    elements: usize,
    uid: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    version: Option<String>,
    generation: Option<String>,
    restarted_at: Option<String>,
    allocation: Option<String>,
}

impl Found {
    fn open(&mut self, desktop: &Element, inside: &[Element]) {
        let attribute = |element: &Element, name| element.attribute(name).map(str::to_owned);
        match inside {
            [] => {
                self.elements += 1;
                self.uid = attribute(desktop, "uid");
                self.namespace = attribute(desktop, "namespace");
                self.name = attribute(desktop, "name");
            }
            [part] if part.namespace == desktop.namespace => match part.name.as_str() {
                "daemon" => self.version = attribute(part, "version"),
                "template" => self.generation = attribute(part, "generation"),
                "restartedAt" => self.restarted_at = Some(String::new()),
                "allocation" => self.allocation = Some(String::new()),
                _ => {}
            },
            _ => {}
        }
    }

    fn text(&mut self, part: &Element, text: &str) {
        let text_of = match part.name.as_str() {
            "restartedAt" => &mut self.restarted_at,
            "allocation" => &mut self.allocation,
            _ => return,
        };
        if let Some(so_far) = text_of {
            so_far.push_str(text);
        }
    }

    fn finish(self) -> Result<Option<DomainMetadata>, MetadataError> {
        let missing = |what| move || MetadataError::Missing { what };
        match self.elements {
            0 => return Ok(None),
            1 => {}
            _ => return Err(MetadataError::Twice),
        }
        let uid = self.uid.ok_or_else(missing("uid"))?;
        let generation = self.generation.ok_or_else(missing("template generation"))?;
        let allocation = self.allocation.ok_or_else(missing("allocation"))?;
        if serde_json::from_str::<serde::de::IgnoredAny>(&allocation).is_err() {
            return Err(MetadataError::Invalid { what: "allocation", found: allocation });
        }
        Ok(Some(DomainMetadata {
            desktop_uid: uid
                .parse()
                .map_err(|_| MetadataError::Invalid { what: "uid", found: uid.clone() })?,
            namespace: filled("namespace", self.namespace)?,
            name: filled("name", self.name)?,
            daemon_version: self.version.ok_or_else(missing("daemon version"))?,
            template_generation: generation.parse().map_err(|_| MetadataError::Invalid {
                what: "template generation",
                found: generation.clone(),
            })?,
            restarted_at: self.restarted_at,
            allocation,
        }))
    }
}

fn filled(what: &'static str, value: Option<String>) -> Result<String, MetadataError> {
    value.filter(|value| !value.is_empty()).ok_or(MetadataError::Missing { what })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: &str = "7f1c2a58-3c1e-4f0e-9a53-0d4f6f5b9a01";

    fn metadata(allocation: &str) -> DomainMetadata {
        DomainMetadata {
            desktop_uid: UID.parse().unwrap(),
            namespace: "school".into(),
            name: "room-1-07".into(),
            daemon_version: "0.1.0".into(),
            template_generation: 3,
            restarted_at: Some("2026-01-05T08:00:00Z".into()),
            allocation: allocation.into(),
        }
    }

    fn in_domain(metadata: &DomainMetadata) -> String {
        let mut xml = Xml::new();
        xml.nest("domain", &[("type", &"test")], |xml| metadata.write(xml));
        xml.finish().unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let with_all = metadata(r#"{"node":"gpu-1","note":"<&>\"' \u0001 ]]> ünïcode","n":[1,2]}"#);
        assert_eq!(parse(&in_domain(&with_all)), Ok(Some(with_all.clone())));
        let never_restarted = DomainMetadata { restarted_at: None, ..with_all };
        assert_eq!(parse(&in_domain(&never_restarted)), Ok(Some(never_restarted)));
    }

    #[test]
    fn the_element_alone_is_read_with_and_without_its_namespace() {
        let body = format!("uid='{UID}' namespace='a' name='b'>");
        let inside = |p: &str| {
            format!(
                "<{p}daemon version='1'/><{p}template generation='-1'/><{p}allocation>{{}}</{p}allocation>"
            )
        };
        let bare = format!("<desktop {body}{}</desktop>", inside(""));
        let named = format!("<x:desktop xmlns:x='{NAMESPACE}' {body}{}</x:desktop>", inside("x:"));
        let read = parse(&bare).unwrap().unwrap();
        assert_eq!((read.template_generation, read.restarted_at.as_deref()), (-1, None));
        assert_eq!(parse(&named), Ok(Some(read)));
    }

    #[test]
    fn foreign_domains_are_nobodys() {
        for foreign in [
            "<domain><name>theirs</name></domain>",
            "<domain><metadata><desktop uid='x'/></metadata></domain>",
            "<domain><metadata><d:desktop xmlns:d='https://example.org'/></metadata></domain>",
            // Ours, but where a guest's owner could have put it, not where libvirt keeps metadata.
            "<domain><devices><d:desktop xmlns:d='https://gpudesk.dev/domain/v1'/></devices></domain>",
            "",
        ] {
            assert_eq!(parse(foreign), Ok(None), "{foreign}");
        }
    }

    #[test]
    fn broken_ones_of_ours_say_what_is_broken() {
        let whole = in_domain(&metadata("{}"));
        let with = |from: &str, to: &str| {
            assert!(whole.contains(from), "{from}");
            parse(&whole.replace(from, to)).unwrap_err().to_string()
        };
        assert!(with(UID, "banana").contains("uid is not valid: \"banana\""));
        assert!(with(&format!("uid=\"{UID}\""), "").contains("no uid"));
        assert!(with("namespace=\"school\"", "namespace=\"\"").contains("no namespace"));
        assert!(with("generation=\"3\"", "generation=\"three\"").contains("generation is not valid"));
        assert!(with("<gpudesk:daemon version=\"0.1.0\"/>", "").contains("no daemon version"));
        assert!(with(">{}<", ">{<").contains("allocation is not valid"));
        assert!(with("</domain>", "").contains("not well-formed"));
        assert!(with("{}", "&beer;").contains("unknown entity &beer;"));
        let element = &whole[whole.find("<gpudesk:desktop").unwrap()..whole.find("</metadata>").unwrap()];
        assert!(with(element, &element.repeat(2)).contains("twice"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_damage_makes_it_panic(at in 0_usize..600, len in 0_usize..40, put in ".{0,10}") {
            let mut xml = in_domain(&metadata("{\"a\":1}"));
            let floor = |mut i: usize| { i = i.min(xml.len()); while !xml.is_char_boundary(i) { i -= 1 } i };
            let (from, to) = (floor(at), floor(at + len));
            xml.replace_range(from..to, &put);
            let _ = parse(&xml);
        }

        #[test]
        fn every_name_and_allocation_survives(name in "[^\\x00-\\x1f\\u{7f}-\\u{9f}\\u{fffe}\\u{ffff}]{1,20}", value: String) {
            let allocation = serde_json::json!({ "value": value }).to_string();
            prop_assume!(!allocation.contains(['\u{fffe}', '\u{ffff}']));
            let metadata = DomainMetadata { name, ..metadata(&allocation) };
            prop_assert_eq!(parse(&in_domain(&metadata)), Ok(Some(metadata)));
        }
    }
}
