//! A desktop whose node is away, or whose machine is where it should not be: what is said of it, and what the API
//! server is asked before anything is done on that ground.

use gpudesk_crds::{
    ABANDON_DISKS_ANNOTATION, Allocation, AllocationId, Desktop, GpuNode, conditions::Reason, node_identity,
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;

use super::{
    Context, Error, Phase, apply,
    decide::{self, Around, Found, Presence, Step},
    idle_phase, node_of, now, say_idle,
    status::{self, Holding, Situation},
};
use crate::{invalid::Invalid, placement::snapshot::key_of};

/// Of a desktop whose node is lost.
fn lost(desktop: &Desktop, allocation: &Allocation, around: &Around) -> Invalid {
    let node = &allocation.node;
    let known = if decide::is_settled(desktop) {
        "nothing of the desktop runs there, and its disks are there"
    } else {
        "whether the machine runs is not known, and nothing is started in its place"
    };
    let ways = ways(desktop, allocation, around);
    Invalid::new(Reason::NodeLost, format!("GpuNode {node} does not exist: {known}. {ways}"))
}

/// What people can do for a desktop whose node is away.
pub(super) fn ways(desktop: &Desktop, allocation: &Allocation, around: &Around) -> String {
    let node = &allocation.node;
    if around.alive && around.node.is_away() {
        return format!("The daemon of {node} still renews its lease: what runs there is not given up");
    }
    let mut ways = vec![format!("Bring {node} back")];
    let deleted = desktop.metadata.deletion_timestamp.is_some();
    let only_runs = deleted || around.keeps_disks == Some(false);
    if !decide::is_settled(desktop) && only_runs {
        ways.push(format!(
            "or, if it is off for good, let its administrator say so: by the taint node.kubernetes.io/out-of-service of Node \
             {node}, or by spec.outOfService of GpuNode {node}, made again where it is gone"
        ));
    }
    let decision = allocation.decision();
    let word = desktop.next_abandon_word(&decision);
    ways.push(format!(
        "or give up what the desktop has there, its disks too: kubectl annotate --overwrite desktop {} {ABANDON_DISKS_ANNOTATION}={word}",
        desktop.metadata.name.as_deref().unwrap_or_default()
    ));
    let mut ways = ways.join("; ");
    if let Some(said) = desktop.abandon_word().filter(|_| !desktop.abandons(&decision)) {
        let is_of_it = said.split('/').next() == Some(&decision);
        let is = if is_of_it { "was acted on already" } else { "is not the decision that holds" };
        let other = format!(
            ". Its annotation {ABANDON_DISKS_ANNOTATION} names {said:?}, which {is}, and gives up nothing"
        );
        ways += &other;
    }
    ways
}

/// Of a desktop that is to give up what a node has that is heard, or what is no decision of it at all. Words of
/// decisions that are over did what they could.
pub(super) fn is_heard(desktop: &Desktop, allocation: &Allocation) -> Option<Invalid> {
    let (word, decision) = (desktop.abandon_word()?, allocation.decision());
    let of = word.split('/').next().unwrap_or_default();
    let number = of.parse::<AllocationId>().ok().map(AllocationId::number);
    let message = if desktop.abandons(&decision) {
        format!(
            "the annotation {ABANDON_DISKS_ANNOTATION} has no effect while the daemon of {} is heard: stop or delete the desktop",
            allocation.node
        )
    } else if of == decision
        || number.is_some_and(|number| allocation.id.is_some_and(|id| number < id.number()))
    {
        return None;
    } else {
        format!(
            "the annotation {ABANDON_DISKS_ANNOTATION} names {word:?}, which is not the decision that holds ({decision}), and \
             gives up nothing"
        )
    };
    Some(Invalid::new(Reason::AbandonRefused, message))
}

/// Of a desktop of which machines run where its status does not say.
pub(super) fn elsewhere(found: &[Found]) -> Invalid {
    let each: Vec<String> = found
        .iter()
        .map(|found| format!("on {} by decision {}", found.node, found.allocation.decision()))
        .collect();
    let message = format!(
        "a machine of this desktop runs {} and is left alone: nothing is started beside it. The administrator of a node ends one \
         by spec.strays of its GpuNode{}",
        each.join(", and another "),
        if found.len() == 1 { "; with spec.powerState: Running the desktop takes it up" } else { "" },
    );
    Invalid::new(Reason::AllocationConflict, message)
}

/// Of a desktop whose status tells less than was decided.
pub(super) fn forgotten(desktop: &Desktop, decision: AllocationId) -> Invalid {
    let name = desktop.metadata.name.as_deref().unwrap_or_default();
    let message = format!(
        "a machine of this desktop ran by decision {decision}, of which its status does not tell any more: nothing is started beside \
         it. It is given back once its node reports it; where there is none any more, say so: kubectl annotate --overwrite \
         desktop {name} {ABANDON_DISKS_ANNOTATION}={}",
        desktop.next_abandon_word(&decision.to_string())
    );
    Invalid::new(Reason::AllocationConflict, message)
}

/// Whether the API server itself says that a node is away, as a step on that ground needs it.
pub(super) async fn is_away(
    desktop: &Desktop,
    around: &Around,
    step: &Step,
    context: &Context,
) -> Result<bool, Error> {
    let node = node_of(desktop).unwrap_or_default();
    Ok((around.node != Presence::Lost || is_gone(node, context).await?)
        && (*step == Step::NodeLost || is_not_renewed(node, around, context).await?))
}

/// Whether a node's lease is the one by which it was judged: what our own watch shows meanwhile is news, too.
async fn is_not_renewed(node: &str, around: &Around, context: &Context) -> Result<bool, Error> {
    let leases = Api::<Lease>::namespaced(context.writer.client(), &context.namespace);
    let lease = leases.get_opt(&node_identity(node)).await;
    let lease = lease.map_err(|source| Error::Node { node: node.to_owned(), source: Box::new(source) })?;
    let renewed = lease.and_then(|lease| lease.spec?.renew_time);
    Ok(renewed.is_none() || renewed == around.renewed)
}

/// Whether the API server itself says that a `GpuNode` does not exist.
async fn is_gone(node: &str, context: &Context) -> Result<bool, Error> {
    let nodes = Api::<GpuNode>::all(context.writer.client());
    match nodes.get_metadata(node).await {
        Ok(_) => Ok(false),
        // Not any 404 of a proxy, or of a server that does not know the kind: one that names the object.
        Err(kube::Error::Api(status))
            if status.code == 404 && status.details.as_ref().is_some_and(|details| details.name == node) =>
        {
            Ok(true)
        }
        Err(source) => Err(Error::Node { node: node.to_owned(), source: Box::new(source) }),
    }
}

/// Says why the deletion of a desktop does not go on, where nobody else does.
pub(super) async fn wait(desktop: &Desktop, around: &Around, context: &Context) -> Result<(), Error> {
    let Some(allocation) = desktop.allocation() else { return Ok(()) };
    let heard = context.world.heard(&allocation.node).filter(|heard| !heard.heard);
    let Some(heard) = heard else { return Ok(()) };
    let message = format!("{}. {}", heard.silence(&allocation.node), ways(desktop, allocation, around));
    say_away(desktop, Invalid::new(Reason::DaemonSilent, message), context).await
}

/// Says that the node of a desktop is lost, and what people can do.
pub(super) async fn say_lost(desktop: &Desktop, around: &Around, context: &Context) -> Result<(), Error> {
    let Some(allocation) = desktop.allocation() else { return Ok(()) };
    say_away(desktop, lost(desktop, allocation, around), context).await
}

/// Says of a desktop that is deleted why it is not let go yet. What it holds stays its own.
pub(super) async fn say_held(desktop: &Desktop, why: Invalid, context: &Context) -> Result<(), Error> {
    if let Some(allocation) = desktop.allocation().filter(|allocation| allocation.compute.is_some()) {
        let key = key_of(desktop);
        tracing::info!(desktop = %key, why = why.message, "is deleted and not let go yet");
        if may_tell(desktop, context) {
            let holding = Holding { silence: Some(why), ..Holding::default() };
            let status = status::status(desktop, Situation::Holding(holding), &now());
            apply::write_status(&context.writer, desktop, &status).await.map_err(Error::Status)?;
            context.world.tell(&allocation.node, &key);
        }
        return Ok(());
    }
    say_idle(desktop, Phase::Deleting, node_of(desktop).map(ToOwned::to_owned), why, context).await
}

/// Says of a desktop why nothing of it goes on while its node is away. What it has there stays its own.
async fn say_away(desktop: &Desktop, why: Invalid, context: &Context) -> Result<(), Error> {
    let Some(allocation) = desktop.allocation() else { return Ok(()) };
    if decide::is_settled(desktop) {
        return say_idle(desktop, idle_phase(desktop), Some(allocation.node.clone()), why, context).await;
    }
    if !may_tell(desktop, context) {
        return Ok(());
    }
    // What is parked and runs all the same is the node's to say.
    if allocation.compute.is_some() {
        let holding = Holding { silence: Some(why), ..Holding::default() };
        let status = status::status(desktop, Situation::Holding(holding), &now());
        apply::write_status(&context.writer, desktop, &status).await.map_err(Error::Status)?;
    }
    context.world.tell(&allocation.node, &key_of(desktop));
    Ok(())
}

/// Whether it is for the operator to say how a desktop is whose node is away: it says so once, and then as long as
/// nobody there says anything else.
pub(super) fn may_tell(desktop: &Desktop, context: &Context) -> bool {
    let node = node_of(desktop).unwrap_or_default();
    desktop.status.as_ref().is_some_and(status::is_said_silent)
        || !context.world.is_told(node, &key_of(desktop))
}
