//! What happens to cards that their admin should hear of, and what resets come to. Pure.

use gpudesk_crds::types::PciAddress;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    handed::Adopted,
    journal::{Journal, Reset},
};
use crate::host::gpu_driver::InstanceKey;

/// The most that is kept to be told; the newest count.
const MOST: usize = 64;

/// Something that happened to a card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Notice {
    /// The card.
    pub card: PciAddress,
    /// What.
    pub what: Happened,
    /// When.
    pub at: Timestamp,
    /// Why, in one sentence.
    pub why: String,
}

/// What can happen to a card that its admin should hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Happened {
    /// Nobody gets it any more.
    CardQuarantined,
    /// It is given again.
    CardReturned,
}

impl Happened {
    /// As the reason of an Event has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CardQuarantined => "CardQuarantined",
            Self::CardReturned => "CardReturned",
        }
    }
}

impl Journal {
    /// Nobody gets the card before it is seen healthy.
    pub fn quarantine(&mut self, card: PciAddress, why: String, now: Timestamp) {
        let before = self.cards.entry(card).or_default().quarantine.replace(why.clone());
        if before.is_none() {
            self.tell(card, Happened::CardQuarantined, why, now);
        }
    }

    /// Keeps something to be told.
    pub(super) fn tell(&mut self, card: PciAddress, what: Happened, why: String, at: Timestamp) {
        self.notices.push(Notice { card, what, at, why });
        let too_many = self.notices.len().saturating_sub(MOST);
        self.notices.drain(..too_many);
    }

    /// Notes what the registers of a function told before its first user.
    pub fn note_registers(&mut self, card: PciAddress, function: PciAddress, told: Option<u32>) {
        self.cards.entry(card).or_default().registers.entry(function).or_insert(told);
    }

    /// Notes what a reset of a function came to.
    pub fn note_reset(
        &mut self,
        card: PciAddress,
        key: Option<&InstanceKey>,
        of: Option<PciAddress>,
        reset: Reset,
    ) {
        let is_clean = reset.fault.is_none();
        let noted = self.cards.entry(card).or_default();
        noted.last_reset = Some(reset);
        noted.unclean.retain(|function| Some(*function) != of);
        noted.unclean.extend(of.filter(|_| !is_clean));
        for adopted in &mut noted.adopted {
            if let Adopted::Function { function, cleaned } = adopted
                && Some(*function) == of
            {
                *cleaned = is_clean;
            }
        }
        if let Some(entry) = key.and_then(|key| self.entry_mut(key)) {
            entry.cleaned.extend(of.filter(|_| is_clean));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_told_of_once_and_the_newest_words_are_kept() {
        let (card, now) = ("0000:41:00.0".parse().unwrap(), Timestamp::UNIX_EPOCH);
        let mut journal = Journal::new("b");
        journal.quarantine(card, "first".into(), now);
        journal.quarantine(card, "second".into(), now);
        assert_eq!(journal.notices.len(), 1);
        assert_eq!(journal.cards[&card].quarantine.as_deref(), Some("second"));
        for n in 0..100 {
            journal.tell(card, Happened::CardReturned, n.to_string(), now);
        }
        assert_eq!((journal.notices.len(), journal.notices[63].why.as_str()), (64, "99"));
    }
}
