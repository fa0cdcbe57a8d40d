//! `why` as a command: its options, and how it ends.

use clap::Args;

use super::{document::DesktopExplanation, report, table};
use crate::{
    placement::request::DesktopKey,
    plan::{
        cluster::{Cluster, ClusterError},
        document::State,
        run::{Failure, Output, Sources, print, say_notes, text},
    },
};

/// How many desktops may move in what is said to be nearest.
const MOST_MOVES: usize = 2;

/// Options of `why`.
#[derive(Clone, Debug, Args)]
pub struct Why {
    /// The desktop: NAME, desktop/NAME, or NAMESPACE/NAME as `plan` prints it.
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Ask no cluster, but manifests: files, folders, or - for standard input; for example what
    /// `kubectl get gpunodes,gpuprofiles,desktoptemplates,desktops -A -o yaml` printed. May be given
    /// several times.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::AnyPath)]
    pub from: Vec<String>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// What is looked at.
    #[command(flatten)]
    pub sources: Sources,
}

/// Explains and prints. True when the desktop has its place, as a manifest in the plan, or should have none.
///
/// # Errors
/// [`Failure`]; a desktop that is not there is wrong input.
pub async fn run(options: &Why) -> Result<bool, Failure> {
    let answer = answer(options).await?;
    say_notes(&answer.notes);
    print(&text(&answer, options.output, table::print)?)?;
    Ok(match answer.desktop.state {
        State::Held | State::Stopped => true,
        State::Placed => answer.planned,
        State::Pending => false,
    })
}

async fn answer(options: &Why) -> Result<DesktopExplanation, Failure> {
    let (estate, namespace) = match options.sources.estate(&options.from, options.from.is_empty()).await {
        Err(Failure::Cluster(error)) if error.is_forbidden() => return alone(options, error).await,
        other => other?,
    };
    let key = key(&options.name, &namespace);
    let found =
        report::report(&estate, options.sources.limits(), MOST_MOVES, &key).map_err(Failure::Input)?;
    found.ok_or_else(|| unknown(&key))
}

/// Those who may see their own desktops alone are told what the operator told the desktop.
async fn alone(options: &Why, error: ClusterError) -> Result<DesktopExplanation, Failure> {
    let cluster = Cluster::connect(&options.sources.connection).await?;
    let key = key(&options.name, &cluster.namespace);
    let desktop = cluster.desktop(&key).await?.ok_or_else(|| unknown(&key))?;
    let note = format!("{error}; without it nodes cannot be judged one by one");
    report::of_desktop_alone(&desktop, note).ok_or_else(|| unknown(&key))
}

fn unknown(key: &DesktopKey) -> Failure {
    Failure::Input(vec![format!("Desktop {key} does not exist")])
}

/// The desktop that a name means.
pub fn key(name: &str, namespace: &str) -> DesktopKey {
    match name.split_once('/') {
        Some(("desktop" | "desktops" | "desktops.gpudesk.dev" | "dsk", name)) => {
            DesktopKey::new(namespace, name)
        }
        Some((namespace, name)) => DesktopKey::new(namespace, name),
        None => DesktopKey::new(namespace, name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_kubectl_and_as_the_plan_write_it() {
        let school = DesktopKey::new("school", "anna");
        assert_eq!(key("anna", "school"), school);
        assert_eq!(key("desktop/anna", "school"), school);
        assert_eq!(key("dsk/anna", "school"), school);
        assert_eq!(key("school/anna", "other"), school);
    }
}
