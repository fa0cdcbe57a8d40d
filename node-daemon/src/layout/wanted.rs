//! The list on the command line: names with counts, found among what the card offers.

use std::collections::BTreeMap;

use gpudesk_crds::{
    gpu_node_status::{Device, MigBackedType, Placement},
    types::ShareMode,
};
use thiserror::Error;

use super::OnInstance;

/// The most shares that a list may ask for.
const MOST: usize = 256;

/// A list that cannot be answered.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BadList {
    /// Nothing in it, or nothing between two commas.
    #[error("{option} is {list:?}; write names with commas between them, like {example}")]
    Empty {
        /// The option.
        option: &'static str,
        /// What it says.
        list: String,
        /// What would be right.
        example: &'static str,
    },
    /// A count that is none.
    #[error("{option} has {part:?}; write NAME or NAME*COUNT, with a COUNT of 1 to {MOST}")]
    Count {
        /// The option.
        option: &'static str,
        /// The part.
        part: String,
    },
    /// Too many altogether.
    #[error("{option} asks for {count} shares; at most {MOST} are placed at once")]
    Many {
        /// The option.
        option: &'static str,
        /// How many.
        count: usize,
    },
    /// The card has no such type.
    #[error("{option} has {name:?}; the card offers {offered}")]
    Unknown {
        /// The option.
        option: &'static str,
        /// The name.
        name: String,
        /// What there is.
        offered: String,
    },
}

/// What is asked for, in the card's own names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) mode: ShareMode,
    pub(super) mixed: bool,
    pub(super) shares: Vec<AskedShare>,
    pub(super) notes: Vec<String>,
}

/// One share: a vGPU, or a GPU instance with what is on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AskedShare {
    pub(super) type_name: String,
    pub(super) vgpus: Vec<OnInstance>,
}

/// Splits `NAME*COUNT,NAME`.
fn names(option: &'static str, example: &'static str, list: &str) -> Result<Vec<(String, usize)>, BadList> {
    let mut names = vec![];
    for part in list.split(',').map(str::trim) {
        if part.is_empty() {
            return Err(BadList::Empty { option, list: list.into(), example });
        }
        let (name, count) = match part.split_once('*') {
            None => (part, 1),
            Some((name, count)) => {
                let count = count.trim().parse().ok().filter(|count| (1..=MOST).contains(count));
                let bad = || BadList::Count { option, part: part.into() };
                (name.trim(), count.ok_or_else(bad)?)
            }
        };
        names.push((name.to_owned(), count));
    }
    let count = names.iter().map(|(_, count)| count).sum();
    if count > MOST { Err(BadList::Many { option, count }) } else { Ok(names) }
}

fn of_mode(card: &Device, mode: ShareMode) -> impl Iterator<Item = &Placement> {
    card.placements.iter().filter(move |placement| placement.mode == mode)
}

fn unknown(option: &'static str, name: &str, card: &Device, mode: ShareMode) -> BadList {
    let offered: Vec<&str> = of_mode(card, mode)
        .flat_map(|place| {
            std::iter::once(place.type_name.as_str())
                .chain(place.vgpu_types.iter().map(|vgpu| vgpu.type_name.as_str()))
        })
        .collect();
    BadList::Unknown { option, name: name.into(), offered: offered.join(", ") }
}

/// GPU instances by their profiles, and vGPUs on GPU instances by their types: of one type as many on an
/// instance as it holds, for all vGPUs of an instance have one framebuffer size.
pub(super) fn mig(card: &Device, list: &str) -> Result<Asked, BadList> {
    const OPTION: &str = "--mig";
    let mut asked = Asked { mode: ShareMode::Mig, mixed: false, shares: vec![], notes: vec![] };
    let names = names(OPTION, "3g.40gb,2g.20gb,1g.10gb*2", list)?;
    // Those on instances, by profile and framebuffer size, in the order of the list.
    let mut backed: BTreeMap<(usize, i64), Vec<(&MigBackedType, usize)>> = BTreeMap::new();
    for (name, count) in &names {
        if let Some(place) = of_mode(card, ShareMode::Mig).find(|place| place.type_name == *name) {
            if place.vgpu_types.is_empty() && place.series.is_none() {
                let note = format!("no vGPU lives on a GPU instance {name}: desktops cannot have it");
                if !asked.notes.contains(&note) {
                    asked.notes.push(note);
                }
            }
            let share = AskedShare { type_name: name.clone(), vgpus: vec![] };
            asked.shares.extend(std::iter::repeat_n(share, *count));
            continue;
        }
        let found = card.placements.iter().enumerate().find_map(|(at, place)| {
            let of_mig = place.mode == ShareMode::Mig;
            let vgpu = place.vgpu_types.iter().find(|vgpu| of_mig && vgpu.type_name == *name)?;
            Some((at, vgpu))
        });
        let (at, vgpu) = found.ok_or_else(|| unknown(OPTION, name, card, ShareMode::Mig))?;
        backed.entry((at, vgpu.framebuffer_mib)).or_default().push((vgpu, *count));
    }
    for ((at, _), vgpus) in backed {
        let most = vgpus.iter().map(|(vgpu, _)| vgpu.max_per_instance).min().unwrap_or(1).max(1);
        let (mut on, mut room) = (vec![], most);
        let instance = |on: &mut Vec<OnInstance>| AskedShare {
            type_name: card.placements[at].type_name.clone(),
            vgpus: std::mem::take(on),
        };
        for (vgpu, count) in vgpus {
            let mut left = i32::try_from(count).unwrap_or(i32::MAX);
            while left > 0 {
                let here = left.min(room);
                on.push(OnInstance { type_name: vgpu.type_name.clone(), count: here });
                (left, room) = (left - here, room - here);
                if room == 0 {
                    asked.shares.push(instance(&mut on));
                    room = most;
                }
            }
        }
        if !on.is_empty() {
            asked.shares.push(instance(&mut on));
        }
    }
    Ok(asked)
}

/// Time-sliced vGPUs. Names are those of the driver, or their part behind the first hyphen.
pub(super) fn vgpu(card: &Device, list: &str, mixed: bool) -> Result<Asked, BadList> {
    const OPTION: &str = "--vgpu";
    let mut shares = vec![];
    let mut sizes = vec![];
    for (name, count) in names(OPTION, "8Q,12Q*2,16Q", list)? {
        let is_meant = |place: &&Placement| {
            place.type_name == name || place.type_name.split_once('-').is_some_and(|(_, short)| short == name)
        };
        let place = of_mode(card, ShareMode::Vgpu).find(is_meant);
        let place = place.ok_or_else(|| unknown(OPTION, &name, card, ShareMode::Vgpu))?;
        sizes.push(place.framebuffer_mib);
        let share = AskedShare { type_name: place.type_name.clone(), vgpus: vec![] };
        shares.extend(std::iter::repeat_n(share, count));
    }
    let unlike = sizes.iter().any(|size| Some(size) != sizes.first());
    let notes = if unlike && !mixed {
        vec!["the sizes differ: the card must be in mixed-size mode (vgpuPlacement: MixedSize)".into()]
    } else {
        vec![]
    };
    Ok(Asked { mode: ShareMode::Vgpu, mixed: mixed || unlike, shares, notes })
}
