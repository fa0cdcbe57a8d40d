//! `plan` as a command: its options, and how it ends.
#![expect(clippy::disallowed_methods, reason = "adapter: says how far a long plan is")]

use std::{
    io::Write,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use gpudesk_crds::text::plain;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use thiserror::Error;

use super::{
    cluster::{Cluster, ClusterError, Connection},
    estate::Estate,
    files,
    round::{self, Options},
    schema::Schemas,
    table,
};
use crate::placement::compute::{DEFAULT_CPU_OVERCOMMIT, Limits};

/// Why there is no result.
#[derive(Debug, Error)]
pub enum Failure {
    /// The input is wrong; a sentence each.
    #[error("{}", .0.join("\n"))]
    Input(Vec<String>),
    /// The cluster could not be read.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// There is no screen to see now; a sentence.
    #[error("{0}")]
    NotSeen(String),
    /// The API server could not do what it was asked for.
    #[error("{0}")]
    Api(String),
    /// The result could not be printed.
    #[error("printing the result: {0}")]
    Output(#[from] std::io::Error),
}

impl Failure {
    /// What is wrong, a line each.
    pub fn lines(&self) -> Vec<String> {
        match self {
            Self::Input(faults) => faults.iter().map(|fault| plain(fault)).collect(),
            other => other.to_string().lines().map(plain).collect(),
        }
    }

    /// The exit status: 1 for a screen that is not there, 2 for wrong input, 3 for everything else.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::NotSeen(_) => 1,
            Self::Input(_) => 2,
            Self::Cluster(error) if error.is_wrong_input() => 2,
            Self::Cluster(_) | Self::Api(_) | Self::Output(_) => 3,
        }
    }
}

/// What a plan is made for.
#[derive(Clone, Debug, Default, Args)]
pub struct Sources {
    /// Read folders with all folders in them.
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// Machines: host files (see examples/hosts), `FILE=COUNT` for several of a kind, folders of host
    /// files, or GpuNode manifests with status. One machine has the name of its file, several have it
    /// with -1, -2 and so on. A GpuNode manifest of the same name gives it labels, taints and rules.
    #[arg(long, value_name = "FILE[=COUNT]", num_args = 1.., value_hint = clap::ValueHint::AnyPath)]
    pub nodes: Vec<String>,
    /// vCPUs that may stand on one host CPU where desktops share CPUs, as the operator is told.
    #[arg(long, value_name = "NUMBER", default_value_t = DEFAULT_CPU_OVERCOMMIT,
          value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpu_overcommit: u32,
    /// The cluster.
    #[command(flatten)]
    pub connection: Connection,
}

impl Sources {
    /// Bounds of the operator.
    pub fn limits(&self) -> Limits {
        Limits { cpu_overcommit: i64::from(self.cpu_overcommit) }
    }

    /// Reads everything: the cluster if `from_cluster`, over it the machines, over them `manifests`.
    ///
    /// # Errors
    /// [`Failure::Input`] with all that is wrong, or what keeps the cluster from being read.
    pub async fn estate(
        &self,
        manifests: &[String],
        from_cluster: bool,
    ) -> Result<(Estate, String), Failure> {
        let (mut estate, namespace) = if from_cluster {
            let cluster = Cluster::connect(&self.connection).await?;
            (cluster.estate().await?, cluster.namespace)
        } else {
            (Estate::default(), self.connection.namespace_offline().to_owned())
        };
        self.lay(manifests, &mut estate, &namespace).map_err(Failure::Input)?;
        Ok((estate, namespace))
    }

    fn lay(&self, manifests: &[String], estate: &mut Estate, namespace: &str) -> Result<(), Vec<String>> {
        let schemas = Schemas::default();
        let mut faults = files::nodes(&self.nodes, namespace, estate, &schemas).err().unwrap_or_default();
        match files::manifests(manifests, self.recursive, namespace, &schemas) {
            Ok(manifests) => faults.extend(estate.lay(manifests).err().unwrap_or_default()),
            Err(found) => faults.extend(found),
        }
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }
}

/// How a plan is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Tables.
    #[default]
    Table,
    /// The whole plan as YAML.
    Yaml,
    /// The whole plan as JSON.
    Json,
}

/// Options of `plan`.
#[derive(Clone, Debug, Args)]
pub struct Plan {
    /// Manifests of desktops, templates, profiles and nodes: files, folders, or - for standard input.
    /// May be given several times.
    #[arg(short, long = "filename", value_name = "FILE", value_hint = clap::ValueHint::AnyPath)]
    pub filename: Vec<String>,
    /// Begin with what the cluster has: its nodes, and what desktops hold there. Manifests are laid
    /// over it, so that the plan says whether these desktops would fit too.
    #[arg(long)]
    pub from_cluster: bool,
    /// Plan for stopped desktops too, as if all were started.
    #[arg(long)]
    pub all: bool,
    /// Say which desktops would have to move for pending ones to fit. Nothing is moved.
    #[arg(long)]
    pub defragment: bool,
    /// With --defragment: the most desktops that move for one.
    #[arg(long, value_name = "NUMBER", default_value_t = 3, requires = "defragment",
          value_parser = clap::value_parser!(u8).range(1..=16))]
    pub most_moves: u8,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// What it is made for.
    #[command(flatten)]
    pub sources: Sources,
}

/// Plans and prints. True when every desktop that should run has a place.
///
/// # Errors
/// [`Failure`].
pub async fn run(options: &Plan) -> Result<bool, Failure> {
    let refuse = |why: &str| Err(Failure::Input(vec![why.to_owned()]));
    if options.filename.is_empty() && !options.from_cluster {
        return refuse("nothing to plan: give manifests with -f, or --from-cluster");
    }
    let (estate, _) = options.sources.estate(&options.filename, options.from_cluster).await?;
    if estate.nodes.is_empty() && !options.from_cluster {
        return refuse(
            "no machines: give host files or GpuNodes with status with --nodes, or --from-cluster",
        );
    }
    let moves = options.defragment.then_some(usize::from(options.most_moves));
    let choice = Options { limits: options.sources.limits(), all: options.all, most_moves: moves };
    let mut plan = round::plan(&estate, choice, &mut speaker()).map_err(Failure::Input)?;
    plan.notes.extend(plan.refusals());
    say_notes(&plan.notes);
    print(&text(&plan, options.output, table::print)?)?;
    Ok(plan.summary.pending == 0)
}

/// A document as it is asked for.
///
/// # Errors
/// When it cannot be written as YAML or JSON.
pub fn text<T: Serialize + DeserializeOwned>(
    document: &T,
    output: Output,
    table: fn(&T) -> String,
) -> Result<String, Failure> {
    let fault = |error: String| Failure::Output(std::io::Error::other(error));
    match output {
        // YAML and JSON write out by themselves what is no plain text.
        Output::Table => {
            let document = serde_json::to_value(document).map(all_plain).and_then(serde_json::from_value);
            document.map(|document| table(&document)).map_err(|error| fault(error.to_string()))
        }
        Output::Yaml => gpudesk_crds::yaml::to_string(document).map_err(|error| fault(error.to_string())),
        Output::Json => serde_json::to_string_pretty(document)
            .map(|text| format!("{text}\n"))
            .map_err(|error| fault(error.to_string())),
    }
}

/// A document in which no text of others can move a terminal or make a line of its own.
fn all_plain(value: Value) -> Value {
    match value {
        Value::String(text) => plain(&text).into(),
        Value::Array(items) => items.into_iter().map(all_plain).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (plain(&name), all_plain(value))).collect()
        }
        other => other,
    }
}

/// Says what a reader should know, where it is in nobody's way.
pub fn say_notes(notes: &[String]) {
    for note in notes {
        eprintln!("note: {}", plain(note));
    }
}

/// Prints the result. A reader that has read enough is no fault.
///
/// # Errors
/// When it cannot be written.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Says on standard error how far a plan is, every other second; nothing when it is done before.
pub fn speaker() -> impl FnMut(&str, usize) {
    const PAUSE: Duration = Duration::from_secs(2);
    let mut said = Instant::now();
    move |what: &str, count: usize| {
        if said.elapsed() >= PAUSE {
            said = Instant::now();
            eprintln!("{what}: {count}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_make_no_lines_of_their_own() {
        let odd = "in use\nNode: b\u{1b}[2J\u{202e}".to_owned();
        let printed = text(&vec![odd.clone()], Output::Table, |all| all.join("\n")).unwrap();
        assert_eq!(printed, "in use\\nNode: b\\u{1b}[2J\\u{202e}");
        assert_eq!(Failure::Input(vec![odd.clone(), "b".into()]).lines(), [printed.as_str(), "b"]);
        assert_eq!(Failure::Api(odd).lines(), ["in use", "Node: b\\u{1b}[2J\\u{202e}"]);
        let json = text(&vec!["a\u{1b}".to_owned()], Output::Json, |_| String::new());
        assert!(json.is_ok_and(|json| json.contains("\\u001b")));
    }
}
