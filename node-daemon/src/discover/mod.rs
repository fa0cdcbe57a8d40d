//! `discover`: what a host would show in its `GpuNode`, without a cluster.
#![expect(clippy::disallowed_methods, reason = "adapter: conditions carry times, captures are files")]

mod capture;
mod table;

use std::{collections::BTreeSet, time::Duration};

use anyhow::Context;
use gpudesk_crds::{GpuNode, GpuNodeSpec, gpu_node_status::Acceleration};
use gpudesk_inventory::{
    hook::HookView,
    status::{self, Findings, HypervisorView},
    topology::{HostFacts, uevent::Change},
};
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::{Discover, Output},
    daemon::follow_driver,
    host::{
        changes::Changes,
        hypervisor::Hypervisor,
        kvm_probe::{Kvm, probe},
        libvirt::LibvirtHypervisor,
        source::HostSource,
        survey::Place,
        uevents,
    },
};

/// How long libvirt may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Looks at the host, and prints it.
///
/// # Errors
/// A host file, folder or capture that cannot be read; a capture that cannot be written.
pub async fn run(options: &Discover) -> anyhow::Result<()> {
    let (source, hypervisor, view, node) = look(options).await?;
    show(options, node)?;
    if options.watch {
        watch(options, &source, &hypervisor, &view).await?;
    }
    Ok(())
}

fn show(options: &Discover, mut node: GpuNode) -> anyhow::Result<()> {
    if options.blank_serials {
        capture::blank(&mut node);
    }
    if options.watch && options.output == Output::Json {
        println!("{}", serde_json::to_string(&node)?);
    } else {
        let line = if options.watch && options.output == Output::Yaml { "---\n" } else { "" };
        print!("{line}{}", print(&node, options.output)?);
    }
    Ok(())
}

/// Prints each change, until the process is asked to end.
async fn watch(
    options: &Discover,
    source: &HostSource,
    hypervisor: &HypervisorView,
    view: &HookView,
) -> anyhow::Result<()> {
    let changes = Changes::default();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut said = None;
    let printing = async {
        loop {
            changes.some().await;
            tokio::time::sleep(SETTLE).await;
            let (waiting, source) = (changes.take(), source.clone());
            let (source, facts) = tokio::task::spawn_blocking(move || {
                let facts = source.look(&waiting);
                (source, facts)
            })
            .await
            .context("looking at the host")?;
            let status = status_of(&source, &facts, hypervisor, view);
            if said.as_ref().is_none_or(|said| status::differs(said, &status)) {
                show(options, named(options, status.clone()))?;
                said = Some(status);
            }
        }
    };
    tokio::select! {
        result = uevents::listen(&changes) => result.context("hearing the kernel's messages"),
        () = follow_driver(source, &changes) => Ok(()),
        result = printing => result,
        _ = terminate.recv() => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// Changes come in bursts.
const SETTLE: Duration = Duration::from_millis(300);

/// Looks at the host once. Writes the capture, where one is asked for.
async fn look(options: &Discover) -> anyhow::Result<(HostSource, HypervisorView, HookView, GpuNode)> {
    let source = if let Some(file) = &options.simulate {
        HostSource::simulated(file, &options.node_name, &std::env::temp_dir())?
    } else {
        let root = options.look.host_root.clone();
        let place =
            Place { root, nvml: options.look.nvml.clone(), network_functions: false, state_dir: None };
        HostSource::machine(place, options.capture.is_some())?
    };
    let look = {
        let source = source.clone();
        move || source.look(&BTreeSet::from([Change::Whole]))
    };
    let mut facts = tokio::task::spawn_blocking(look).await.context("looking at the host")?;
    let hypervisor = if source.is_simulated() {
        let acceleration = Acceleration::Simulated;
        HypervisorView::Answers { versions: None, acceleration, why_not_kvm: None }
    } else {
        ask_libvirt(options).await
    };
    let mut view = HookView::NotConfigured;
    if let Some(file) = &options.look.hook {
        let mut hook = options.look.hook_at(file, &options.node_name);
        let so_far = named(options, status_of(&source, &facts, &hypervisor, &view));
        view = hook.ask(&so_far).await;
        if let (Some(mut survey), Some(answer)) = (source.survey(), hook.answer()) {
            survey.set_answer(answer.clone());
            facts = survey.look(&BTreeSet::new());
        }
    }
    if let (Some(file), Some(survey)) = (&options.capture, source.survey()) {
        let count = capture::write(file, &survey, options.blank_serials)?;
        eprintln!("{count} files, links and folders written to {}", file.display());
    }
    let node = named(options, status_of(&source, &facts, &hypervisor, &view));
    Ok((source, hypervisor, view, node))
}

fn named(options: &Discover, status: gpudesk_crds::GpuNodeStatus) -> GpuNode {
    GpuNode { status: Some(status), ..GpuNode::new(&options.node_name, GpuNodeSpec::default()) }
}

fn status_of(
    source: &HostSource,
    facts: &HostFacts,
    hypervisor: &HypervisorView,
    hook: &HookView,
) -> gpudesk_crds::GpuNodeStatus {
    let (gpu_driver_version, vgpu_manager_version) = source.driver_versions();
    status::status(&Findings {
        simulated: source.is_simulated(),
        hypervisor,
        gpu_driver_version,
        vgpu_manager_version,
        unlicensed_vgpus: source.unlicensed_vgpus(),
        hook,
        now: Timestamp::now(),
        ..Findings::of(facts)
    })
}

/// Versions of libvirt and QEMU and whether KVM works, on this machine only.
async fn ask_libvirt(options: &Discover) -> HypervisorView {
    let uri = match options.libvirt_uri.as_deref() {
        Some("none") => return HypervisorView::Silent("it was not asked".into()),
        Some(uri) => uri,
        None if options.look.host_root.is_none() => "qemu:///system",
        None => return HypervisorView::Silent("it was not asked: this is a capture or another root".into()),
    };
    let asked = tokio::time::timeout(PATIENCE, async {
        let hypervisor = LibvirtHypervisor::connect(uri).await.map_err(|error| error.to_string())?;
        let capabilities = hypervisor.capabilities().await.map_err(|error| error.to_string())?;
        let versions = hypervisor.versions().await.ok().map(|versions| versions.view());
        Ok::<_, String>((versions, capabilities))
    });
    let (versions, capabilities) = match asked.await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return HypervisorView::Silent(error),
        Err(_) => return HypervisorView::Silent(format!("no answer within {} s", PATIENCE.as_secs())),
    };
    let why_not_kvm = if capabilities.kvm {
        let emulator = capabilities.emulator.unwrap_or_else(|| "qemu-system-x86_64".into());
        match probe(&emulator).await {
            Kvm::Works => None,
            Kvm::Unusable(why) | Kvm::Hung(why) | Kvm::Untried(why) => Some(why),
        }
    } else {
        Some("libvirt offers no KVM on this host".into())
    };
    let acceleration = if why_not_kvm.is_none() { Acceleration::Kvm } else { Acceleration::Emulation };
    HypervisorView::Answers { versions, acceleration, why_not_kvm }
}

/// The text of a `GpuNode`.
///
/// # Errors
/// When it cannot be written as YAML or JSON.
pub fn print(node: &GpuNode, output: Output) -> anyhow::Result<String> {
    Ok(match output {
        Output::Yaml => gpudesk_crds::yaml::to_string(node)?,
        Output::Json => format!("{}\n", serde_json::to_string_pretty(node)?),
        Output::Table => node.status.as_ref().map(table::print).unwrap_or_default(),
    })
}
