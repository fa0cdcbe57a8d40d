//! What a virtual function may take of the time of an Intel card, as the owner of the card wants it: set while a desktop
//! has the function (`sriov_admin` of the driver xe, Linux 6.19).

use gpudesk_crds::types::PciAddress;

use crate::devices::{
    journal::{Change, Journal},
    live::{LiveCard, QuotaSeen, VirtualFunction},
    refusal::Refusal,
    step::{Quota, Setting, Step},
};

const ALL: [Quota; 2] = [Quota::ExecQuantum, Quota::PreemptTimeout];

fn wished(journal: &Journal, card: PciAddress) -> Vec<(Quota, u32)> {
    let wish = journal.cards.get(&card).map(|card| card.wish).unwrap_or_default();
    let value = |quota| match quota {
        Quota::ExecQuantum => wish.quantum_ms,
        Quota::PreemptTimeout => wish.timeout_us,
    };
    ALL.into_iter().filter_map(|quota| Some((quota, value(quota)?))).collect()
}

/// Whether the card has what is wished for its functions.
pub(super) fn fit(live: &LiveCard, journal: &Journal) -> Result<(), Refusal> {
    let card = live.function.address;
    let Some((quota, _)) = wished(journal, card).into_iter().next() else { return Ok(()) };
    if live.sriov.is_some_and(|sriov| sriov.quotas) {
        return Ok(());
    }
    Err(Refusal::Unknown(format!(
        "the rule of spec.devices for {card} has virtualFunctions.{}, and the driver of this kernel has no quotas of \
         virtual functions: the driver xe of Linux 6.19 or later has (sriov_admin); remove the field, or update the kernel",
        quota.field()
    )))
}

/// The steps that are left until a function has what is wished.
pub(super) fn there(live: &LiveCard, journal: &Journal, vf: &VirtualFunction) -> Result<Vec<Step>, Refusal> {
    let card = live.function.address;
    let function = vf.function.address;
    let mut steps = vec![];
    for (quota, value) in wished(journal, card) {
        match vf.quotas.of(quota) {
            QuotaSeen::Value(is) if *is == value => {}
            QuotaSeen::Value(_) => {
                steps.push(Step::Quota { card, function, number: vf.quotas.number, quota, value });
            }
            QuotaSeen::Unclear(why) => {
                return Err(Refusal::Unknown(format!(
                    "{} of {function} cannot be told ({why}), so nobody could put it back: write one value to it on the \
                     host first",
                    quota.file()
                )));
            }
            QuotaSeen::None => return fit(live, journal).map(|()| vec![]),
        }
    }
    Ok(steps)
}

/// The steps that put back what was set for a share. What somebody else set since then stays.
pub(super) fn back(live: &LiveCard, journal: &Journal, changes: &[&Change]) -> Vec<Step> {
    let card = live.function.address;
    let step = |change: &&Change| {
        let Setting::Quota(function, quota) = change.setting else { return None };
        let vf = live.virtual_function(function)?;
        let before = change.before.as_deref()?.parse().ok()?;
        let QuotaSeen::Value(is) = *vf.quotas.of(quota) else { return None };
        let ours = wished(journal, card).into_iter().find(|(of, _)| *of == quota);
        let is_ours = ours.is_none_or(|(_, value)| value == is);
        (is != before && is_ours).then_some(Step::Quota {
            card,
            function,
            number: vf.quotas.number,
            quota,
            value: before,
        })
    };
    changes.iter().filter_map(step).collect()
}
