//! What was made by hand on cards and is handed over: how it is named, and what of it is noted down. Pure.

use std::{collections::BTreeSet, fmt, str::FromStr};

use gpudesk_crds::{ADOPT_ANNOTATION, types::PciAddress};
use serde::{Deserialize, Serialize};

use super::{
    journal::{Journal, OurInstance},
    live::LiveCard,
    plan::adopted::is_gone,
};

/// The most names in the annotation.
const MOST: usize = 64;
/// The longest name that is there, in characters.
const LONGEST: usize = 128;

/// Something that was made by hand and handed over, with what is compared before it is unmade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Adopted {
    /// A function that was bound for guests.
    Function {
        /// The function.
        function: PciAddress,
        /// Whether it was reset since.
        #[serde(default)]
        cleaned: bool,
    },
    /// A vGPU of this type on a virtual function.
    Vgpu {
        /// The function.
        function: PciAddress,
        /// Number of the type.
        id: u32,
    },
    /// A mediated device.
    Mdev {
        /// Its UUID.
        uuid: String,
        /// The function that carries it.
        parent: PciAddress,
        /// The driver's name of its type.
        type_id: Option<String>,
    },
    /// A GPU instance.
    GpuInstance(OurInstance),
}

impl Adopted {
    /// Its name; a GPU instance by its place.
    pub fn shown(&self, card: PciAddress) -> String {
        match self {
            Self::Function { function, .. } | Self::Vgpu { function, .. } => function.to_string(),
            Self::Mdev { uuid, .. } => uuid.clone(),
            Self::GpuInstance(place) => format!("the GPU instance at {} of {card}", place.start),
        }
    }
}

impl Journal {
    /// Takes over what was made by hand on a card.
    pub fn adopt(&mut self, name: &str, adopted: Adopted, live: &LiveCard) {
        let card = self.cards.entry(live.function.address).or_default();
        if card.ids.is_empty() {
            card.ids = format!("{}:{}", live.function.vendor, live.function.device);
        }
        card.adopted.push(adopted);
        self.handed.push(name.into());
    }

    /// Forgets what of it is unmade: what is made by hand later under the same name is not meant. All of it, of a card
    /// that is gone itself.
    pub fn adopted_is_gone(&mut self, card: PciAddress, live: Option<&LiveCard>) {
        let mut left = self.adopted(card).to_vec();
        left.retain(|one| live.is_some_and(|live| !is_gone(live, self, one)));
        if let Some(card) = self.cards.get_mut(&card) {
            card.adopted = left;
        }
        self.tidy();
    }

    /// A name was taken away: what it named is its maker's again, unless unmaking it was begun.
    pub fn hand_back(&mut self, card: PciAddress, name: &str, adopted: &Adopted, live: Option<&LiveCard>) {
        self.handed.retain(|handed| handed != name);
        if let Some(card) = self.cards.get_mut(&card) {
            let is_begun = match adopted {
                Adopted::Function { function, cleaned } => {
                    let found = live.and_then(|live| live.find(*function));
                    let is_unbound = found.is_some_and(|function| function.driver.is_none());
                    *cleaned || card.unclean.contains(function) || is_unbound
                }
                // They go by one step.
                Adopted::Vgpu { .. } | Adopted::Mdev { .. } | Adopted::GpuInstance(_) => false,
            };
            card.adopted.retain(|one| is_begun || one != adopted);
        }
        self.tidy();
    }

    /// A function that was taken over stays as the kernel leaves it.
    pub fn let_be(&mut self, card: PciAddress, left: PciAddress) {
        let is_it = |one: &Adopted| matches!(one, Adopted::Function { function, .. } if *function == left);
        if let Some(card) = self.cards.get_mut(&card) {
            card.adopted.retain(|one| !is_it(one));
        }
        self.tidy();
    }

    /// What was taken over on a card and is not unmade yet.
    pub fn adopted(&self, card: PciAddress) -> &[Adopted] {
        self.cards.get(&card).map_or(&[], |card| &card.adopted)
    }
}

/// How a foreign thing is named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ForeignName {
    /// A PCI function, by its address.
    Function(PciAddress),
    /// A mediated device, by its UUID.
    Mdev(uuid::Uuid),
    /// A GPU instance, by the UUID of its MIG device, or by that of its card and its number.
    GpuInstance(String),
}

/// How names begin that are GPU instances.
const MIG: &str = "MIG-";

impl fmt::Display for ForeignName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function(address) => write!(f, "{address}"),
            Self::Mdev(uuid) => write!(f, "{uuid}"),
            Self::GpuInstance(name) => f.write_str(name),
        }
    }
}

impl FromStr for ForeignName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let legal = |c: char| c.is_ascii_alphanumeric() || "-/:._".contains(c);
        if text.len() <= LONGEST {
            if let Some(rest) = text.strip_prefix(MIG)
                && !rest.is_empty()
                && rest.chars().all(legal)
            {
                return Ok(Self::GpuInstance(text.into()));
            }
            if let Ok(address) = text.parse() {
                return Ok(Self::Function(address));
            }
            if text.len() == 36
                && let Ok(uuid) = text.parse()
            {
                return Ok(Self::Mdev(uuid));
            }
        }
        // What was written must not come back whole in a message.
        let shown: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
        Err(format!(
            "{shown:?} names nothing: write it as status.devices[].foreign[].device shows it, a PCI address like \
             0000:41:00.4, the UUID of a mediated device, or MIG- and what follows"
        ))
    }
}

/// What the annotation names, each once; what is no name is told, field and value.
pub fn parse(annotation: &str) -> (BTreeSet<ForeignName>, Vec<String>) {
    let (mut names, mut faults) = (BTreeSet::new(), vec![]);
    let entries = annotation.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    for entry in entries {
        if names.len() + faults.len() == MOST {
            faults.push(format!("it has more than {MOST} entries: take away those that are done"));
            break;
        }
        match entry.parse::<ForeignName>() {
            Ok(name) => _ = names.insert(name),
            Err(why) => faults.push(why),
        }
    }
    if names.is_empty() && faults.is_empty() {
        faults.push(format!(
            "it has no entry: name what status.devices[].foreign[].device shows, separated by commas, or take the \
             annotation {ADOPT_ANNOTATION} away"
        ));
    }
    (names, faults)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_kind_of_name_is_read_and_what_is_none_is_told() {
        let uuid = "11111111-2222-4333-8444-555555555555";
        let text = format!(
            " 0000:41:00.4, {uuid},MIG-5a1b/3,, 41:00.4 ,GPU instance 3,{},0000:41:00.9",
            uuid.replace('-', "")
        );
        let (names, faults) = parse(&text);
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["0000:41:00.4", uuid, "MIG-5a1b/3"], "each once");
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(
            faults[0].starts_with("\"GPU instance 3\" names nothing: write it as status.devices[]"),
            "{faults:?}"
        );
        assert!(parse(" , ").1[0].contains("it has no entry"));
        assert!(parse(&["0000:41:00.9"; 100].join(",")).1[64].contains("more than 64 entries"));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_as_it_was(
            bus in 0_u8.., device in 0_u8..32, function in 0_u8..8, uuid in any::<u128>(), id in "[0-9a-f-]{1,40}(/[0-9]{1,2})?",
        ) {
            let shown = [
                format!("0000:{bus:02x}:{device:02x}.{function}"),
                uuid::Uuid::from_u128(uuid).to_string(),
                format!("MIG-{id}"),
            ];
            for one in &shown {
                prop_assert_eq!(&one.parse::<ForeignName>().unwrap().to_string(), one);
            }
            let (names, faults) = parse(&shown.join(", "));
            prop_assert_eq!((names.len(), faults.len()), (3, 0));
        }

        #[test]
        fn no_text_makes_it_panic_or_answer_nothing(text in "\\PC{0,300}") {
            let (names, faults) = parse(&text);
            prop_assert!(names.len() + faults.len() > 0);
            prop_assert!(names.len() + faults.len() <= MOST + 1);
            for name in names {
                prop_assert_eq!(&name.to_string().parse::<ForeignName>().unwrap(), &name);
            }
            prop_assert!(faults.iter().all(|fault| fault.chars().count() < 500));
        }

        #[test]
        fn any_mix_of_entries_is_read(entries in proptest::collection::vec("[0-9a-f:.,/ -]{0,40}|MIG-[a-z/]{0,4}|0000:41:00.[0-9]", 0..80)) {
            let (names, faults) = parse(&entries.join(","));
            prop_assert!(names.len() + faults.len() <= MOST + 1);
        }
    }
}
