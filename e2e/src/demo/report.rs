//! What the demo shows at its end.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use gpudesk_crds::domain_name;

use super::{DESKTOP, Host, NAMESPACE, Progress, Real, foreign_cluster, pods};
use crate::accelerator::accelerator;
use crate::cluster::SYSTEM_NAMESPACE;
use crate::programs::binaries;
use crate::screen::Screen;

/// Saves the screen and prints the tables and the ways in and out.
pub(super) async fn print(real: &Real, progress: Progress) -> Result<()> {
    let Real { cluster, node, host, .. } = real;
    let picture = cluster.state().join("hello.png");
    let domain = domain_name(NAMESPACE, DESKTOP);
    Screen::settled(host, &domain, Duration::from_secs(30)).await?;
    // As a user does: through the relay of the node.
    let plugin = binaries()?.join("kubectl-desktop");
    let mut command = Command::new(&plugin);
    command.args(["view", DESKTOP, "-n", NAMESPACE, "--screenshot"]).arg(&picture);
    cluster.run(&mut command)?;
    progress.say(&format!("screen of {NAMESPACE}/{DESKTOP}: {}", picture.display()));

    let kubeconfig = cluster.control_plane().kubeconfig().display().to_string();
    let kubectl = cluster.control_plane().program("kubectl");
    println!();
    for kinds in ["gpunodes", "gpuprofiles", "desktoptemplates,desktops"] {
        println!("$ kubectl get {kinds} -A");
        println!("{}", cluster.kubectl(["get", kinds, "--all-namespaces"])?);
    }
    match host {
        Host::Node(_) => {
            println!("$ kubectl get pods -n {SYSTEM_NAMESPACE} -o wide\n{}", pods::pods(cluster));
            println!(
                "The operator and the node daemon of {node} are the chart's own pods; those of simulated hosts"
            );
            println!("are processes of this machine.");
        }
        Host::Libvirt(_) => {
            println!("The operator and the node daemons are processes of this machine, no pods.");
        }
    }
    println!("{NAMESPACE}/{DESKTOP} is a real QEMU guest on {node}, run with {}.", accelerator());
    println!("sim-rtx-pro-6000 and sim-l40s are simulated: they have no cards and run no guests.");
    println!();
    println!("  its screen     export KUBECONFIG={kubeconfig}");
    println!("                 {} view {DESKTOP} -n {NAMESPACE} --port 5950", plugin.display());
    println!("                 vncviewer 127.0.0.1::5950       user student, password gpudesk");
    println!("                 (from elsewhere: ssh -L 5950:127.0.0.1:5950 THIS-MACHINE)");
    println!("  as a picture   {}", picture.display());
    println!("  kubectl        export KUBECONFIG={kubeconfig}");
    println!(
        "                 export PATH=$PATH:{}",
        kubectl.parent().context("kubectl lies in a folder")?.display()
    );
    println!("                 kubectl get gpudesk -A; kubectl explain desktop.spec");
    println!("  libvirt        virsh -c '{}' list", host.uri());
    println!("  logs           {}", cluster.state().logs().display());
    println!("  stop it all    {}", down());
    println!();
    progress.say("done");
    Ok(())
}

/// The command that ends this demo, with the settings that it was begun with.
pub(super) fn down() -> String {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let folder =
        set("GPUDESK_STATE_DIR").map(|value| format!("GPUDESK_STATE_DIR='{value}' ")).unwrap_or_default();
    let cluster = set("KUBECONFIG").filter(|_| foreign_cluster());
    let cluster = cluster.map(|value| format!(" KUBECONFIG='{value}'")).unwrap_or_default();
    format!("{folder}make demo-down{cluster}")
}
