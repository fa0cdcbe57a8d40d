//! Virtual functions of network cards: given whole like cards, with settings of their card that are put back.

use crate::{
    devices::{
        journal::{Change, Entry},
        live::LiveCard,
        network::{NetworkNow, VfSettings},
        refusal::Refusal,
        step::{Setting, Step},
    },
    host::gpu_driver::What,
};

fn now(live: &LiveCard) -> Result<&NetworkNow, Refusal> {
    let function = live.function.address;
    let refused = |why: String| Err(Refusal::Network { function, why });
    match &live.network {
        None => refused("it is no virtual function of a network card".into()),
        Some(Err(why)) => refused(why.clone()),
        Some(Ok(now)) => Ok(now),
    }
}

/// The card is told what the desktop needs.
pub(super) fn there(live: &LiveCard, entry: &Entry) -> Result<Vec<Step>, Refusal> {
    let What::Network(wish) = &entry.what else { return Ok(vec![]) };
    let (now, function) = (now(live)?, live.function.address);
    if now.parent != wish.parent {
        let why = format!("it belongs to {} and not to {}, which was chosen", now.parent, wish.parent);
        return Err(Refusal::Network { function, why });
    }
    if now.is_switchdev {
        let why = format!(
            "its card {} is in mode switchdev, where representors take the place of its settings, and these are not \
             supported: devlink dev eswitch set pci/{} mode legacy",
            now.parent, now.parent
        );
        return Err(Refusal::Network { function, why });
    }
    // A device plugin may have given it to a pod since the host was looked at.
    let is_hosts = live.function.driver.is_some() && !live.function.is_given();
    if let Some(why) = now.in_use.clone().filter(|_| is_hosts) {
        return Err(Refusal::Network { function, why });
    }
    let settings = wish.settings(&now.settings);
    let is_so = settings.of_card() == now.settings.of_card();
    Ok(if is_so { vec![] } else { vec![Step::Network { function, settings: settings.of_card() }] })
}

fn before(live: &LiveCard, changes: &[&Change]) -> Option<VfSettings> {
    let wanted = Setting::Network(live.function.address);
    let change = changes.iter().find(|change| change.setting == wanted)?;
    serde_json::from_str(change.before.as_deref()?).ok()
}

/// The card is told what it was before, while no driver of the host has the function, or before it was taken from one:
/// what changes after that is its own.
pub(super) fn gone(live: &LiveCard, entry: &Entry, changes: &[&Change]) -> Result<Vec<Step>, Refusal> {
    let Some(before) = before(live, changes) else { return Ok(vec![]) };
    let (now, function) = (now(live)?, live.function.address);
    let is_ours = matches!(&entry.what, What::Network(wish)
        if wish.settings(&before).of_card() == now.settings.of_card());
    if !(live.function.is_given() || live.function.driver.is_none() || is_ours) {
        return Ok(vec![]);
    }
    let is_so = before.of_card() == now.settings.of_card();
    Ok(if is_so { vec![] } else { vec![Step::Network { function, settings: before.of_card() }] })
}

/// The MTU of the host's interface, which a driver does not keep.
pub(super) fn mtu(live: &LiveCard, changes: &[&Change]) -> Vec<Step> {
    let Some((before, Some(Ok(now)))) = before(live, changes).zip(Some(&live.network)) else { return vec![] };
    match (before.mtu, now.settings.mtu) {
        (Some(before), Some(is)) if before != is => {
            let settings = VfSettings { mtu: Some(before), ..now.settings.clone() };
            vec![Step::Network { function: live.function.address, settings }]
        }
        _ => vec![],
    }
}
