//! Why an object cannot be acted on: said in a condition, and mended only by a change.

use gpudesk_crds::conditions::Reason;
use kube::Resource;

use crate::understood;

/// A reason of the closed set and the sentence that goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// For programs.
    pub reason: Reason,
    /// For people: the field, its value and what would be right.
    pub message: String,
}

impl Invalid {
    /// A reason and its sentence.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// Of an object that this version does not understand whole; `None` of another.
    pub fn unless_understood<K: Resource>(of: &str, object: &K) -> Option<Self> {
        let fields = understood::odd(object)?;
        Some(Self::new(Reason::NotYetSupported, understood::sentence(of, fields)))
    }

    /// Fields that ask for what this version does not do; `None` when there are none.
    pub fn unsupported(of: &str, fields: &[String]) -> Option<Self> {
        if fields.is_empty() {
            return None;
        }
        let verb = if fields.len() == 1 { "is" } else { "are" };
        Some(Self::new(
            Reason::NotYetSupported,
            format!("{of}: {} {verb} not yet supported", fields.join(", ")),
        ))
    }
}
