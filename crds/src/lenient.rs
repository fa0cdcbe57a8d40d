//! Reading what a newer version wrote into a status.
//!
//! A word that this version does not know costs what it is said of, never the object: a program that
//! cannot read an object knows nothing of what it holds. Each falls to the safe side: what is not known is
//! not offered, not healthy, not free. What people write in a spec and what the operator allocates are
//! read strictly: nobody may act on half of them. So are hugepages: without their size, the memory in them
//! would count as free.

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error, IntoDeserializer, value},
};
use serde_json::Value;

use crate::{
    gpu_node_status::{
        HostDevice, HostDeviceKind, MigBackedType, ModeSupport, Placement, TypeCount, VgpuDisplay,
    },
    types::{ShareMode, VgpuSeries},
};

fn known<T: DeserializeOwned>(text: &str) -> Option<T> {
    let text: value::StrDeserializer<'_, value::Error> = text.into_deserializer();
    T::deserialize(text).ok()
}

/// A word; one that is not known counts as absent.
pub(crate) fn word<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.as_deref().and_then(known))
}

/// A part that only whole is of use; one that is not understood counts as absent.
pub(crate) fn part<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<Value>::deserialize(from)?.and_then(|value| serde_json::from_value(value).ok()))
}

/// The mode of a share that exists; one that is not known may hold anything of its card, so all of it.
pub(crate) fn mode_of_existing<'de, D: Deserializer<'de>>(from: D) -> Result<ShareMode, D::Error> {
    Ok(known(&String::deserialize(from)?).unwrap_or(ShareMode::Passthrough))
}

/// An item that one word tells what it is.
pub(crate) trait Worded: DeserializeOwned {
    /// The word.
    type Word: DeserializeOwned;
    /// The field with the word.
    const FIELD: &'static str;
}

impl Worded for ModeSupport {
    type Word = ShareMode;
    const FIELD: &'static str = "mode";
}
impl Worded for Placement {
    type Word = ShareMode;
    const FIELD: &'static str = "mode";
}
impl Worded for TypeCount {
    type Word = ShareMode;
    const FIELD: &'static str = "mode";
}
impl Worded for MigBackedType {
    type Word = VgpuSeries;
    const FIELD: &'static str = "series";
}
impl Worded for VgpuDisplay {
    type Word = VgpuSeries;
    const FIELD: &'static str = "series";
}
impl Worded for HostDevice {
    type Word = HostDeviceKind;
    const FIELD: &'static str = "kind";
}

/// What is offered or counted, without items of which it is not known what they are.
pub(crate) fn items<'de, D: Deserializer<'de>, T: Worded>(from: D) -> Result<Vec<T>, D::Error> {
    let is_known = |item: &Value| {
        item.get(T::FIELD).and_then(Value::as_str).is_none_or(|text| known::<T::Word>(text).is_some())
    };
    let items = Vec::<Value>::deserialize(from)?.into_iter().filter(is_known);
    items.map(|item| serde_json::from_value(item).map_err(D::Error::custom)).collect()
}
