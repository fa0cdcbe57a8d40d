//! A restart is begun only when it can be expected to succeed: a machine that runs is not taken down
//! for one that cannot start.

use super::{
    Desktops, Round,
    desired::{self, Wanted},
    observe::Sight,
    problem::Problem,
};
use gpudesk_crds::{
    DesktopTemplate,
    conditions::{self, ConditionType},
    restart_problem,
};
use kube::ResourceExt;

impl Desktops {
    /// Keeps a machine running that is to be restarted and could not start again, and notes why.
    pub(super) async fn hold_back(&self, round: &mut Round<'_>, sight: &mut Sight) {
        let runs = sight.observed.domain.is_some_and(|domain| domain.active);
        let begun = sight.observed.record.as_ref().is_some_and(|record| record.shutdown_sent_at.is_some());
        let restart = round.wanted == Wanted::Stop && desired::is_restart(round.desktop);
        if !(runs && restart) || begun {
            return;
        }
        let could = match sight.unkept.take() {
            Some(fault) => Err(fault),
            None => self.could_start(round, sight).await,
        };
        if let Err(problem) = could {
            tracing::warn!(%problem, "a restart was asked for and is not done, for the machine could not start again");
            self.metrics.problem(problem.reason());
            round.wanted = Wanted::Run;
            round.held_back = Some(problem);
        }
    }

    /// Whether the machine could start again as it is described now: everything it is made from is there,
    /// and libvirt takes the domain. The one that runs goes on as it is; what libvirt has noted for its
    /// next start is replaced, as it is before each start.
    async fn could_start(&self, round: &Round<'_>, sight: &Sight) -> Result<(), Problem> {
        let annotation = desired::restart_asked(round.desktop).unwrap_or_default();
        if let Some(problem) = restart_problem(annotation) {
            return Err(Problem::Invalid(problem));
        }
        let template = round.template()?;
        if let Some(message) = invalid(template) {
            return Err(Problem::TemplateInvalid { name: template.name_any(), message });
        }
        // A folder that cannot be written would hold its end, or its next start, up.
        if sight.last_word.is_none() {
            self.note_decision(round, None).await?;
        }
        let materials = self.materials(round).await?;
        self.seed(round, &materials).await?;
        let Some(allocation) = round.allocation else {
            return Err(Problem::Internal("no allocation".into()));
        };
        self.give(round, allocation, &materials, &sight.instances).await
    }
}

/// What the operator finds wrong with the template as it is now.
fn invalid(template: &DesktopTemplate) -> Option<String> {
    let valid = conditions::find(&template.status.as_ref()?.conditions, ConditionType::Valid)?;
    let current = valid.observed_generation == template.metadata.generation;
    (current && valid.status == "False").then(|| valid.message.clone())
}
