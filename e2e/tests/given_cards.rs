//! Cards of a GPU node given to desktops: `kubectl apply` outside, the chart's daemon, vfio, mdev, SR-IOV, libvirt
//! and QEMU inside, NVIDIA's library played beside the driver that is played, and a guest that says what it was given.
//!
//! In each way of giving the daemon is killed twice, once while a share is made and once while it is unmade.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gpudesk_crds::conditions::ConditionType;
use gpudesk_crds::{Desktop, GpuNode};
use gpudesk_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use gpudesk_e2e::gpu_node::GpuNodeVm;
use gpudesk_e2e::gpu_node::machine::{L40S, RTX_6000, RTX_PRO_6000, T4};
use gpudesk_e2e::objects::{Objects, condition};
use gpudesk_e2e::processes::Lifetime;
use gpudesk_e2e::programs::{self, Service};
use gpudesk_e2e::real_host::built;
use gpudesk_e2e::state::{StateDir, checkout};
use gpudesk_e2e::trials::{Environment, Suite};
use gpudesk_e2e::waiting::{eventually, until};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::api::{Patch, PatchParams};
use kube::config::Kubeconfig;
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::sync::Mutex;

const NODE: &str = "gpu-node";
/// Emulation in emulation is slow.
const SLOW: Duration = Duration::from_mins(6);
const LIBRARY: &str = "libgpudesk_fake_nvml.so";
const LOG: &str = "/var/log/daemon.log";

/// One vCPU that runs for a moment; it says on its serial line which PCI functions it has.
const TEMPLATE: &str = "
cpu: {cores: 1, model: qemu64}
memory: {sizeMiB: 64}
machine: {firmware: DirectKernel, directKernel: {kernel: tiny.elf}}
disks: [{name: data, blank: {sizeGiB: 1}}]
guestAgent: false
gpus: [{name: card, profileRef: {name: PROFILE}}]
lifecycle: {shutdownGraceSeconds: 5, restartPolicy: Always}
";

fn main() -> ExitCode {
    Suite::<Node>::new("given_cards")
        .trial("a_whole_card_and_its_companion_are_given_and_come_back", whole)
        .trial("a_mediated_device_is_made_given_and_unmade", mediated)
        .trial("vgpus_on_gpu_instances_are_made_given_and_unmade", on_instances)
        .trial("a_vgpu_by_vendor_vfio_is_given_again_after_a_reboot_and_unmade", vendor_vfio)
        .run()
}

struct Node {
    vm: GpuNodeVm,
    _operator: Service,
    cluster: Cluster,
    kubeconfig: PathBuf,
    /// How the daemon is started in the VM.
    start: String,
    one_by_one: Mutex<()>,
}

impl Node {
    async fn start_in(state: &Arc<StateDir>) -> Result<Self> {
        let cluster = Cluster::start_in(state, Lifetime::Test).await?;
        let kubeconfig = cluster.daemon_kubeconfig(NODE).await?;
        let server = Kubeconfig::read_from(&kubeconfig)?.clusters.remove(0).cluster.context("a cluster")?;
        let server: http::Uri = server.server.context("a server")?.parse()?;
        let vm = GpuNodeVm::start_with(state, server.port_u16()).await?;
        let binaries = programs::binaries()?;
        if std::env::var_os("GPUDESK_BIN_DIR").is_none_or(|folder| folder.is_empty()) {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.current_dir(checkout()).args(["build", "--quiet", "--package", "gpudesk-fake-nvml"]);
            ensure!(cargo.status()?.success(), "the stand-in for NVML is not built");
        }
        let daemon = vm.install(&binaries.join("gpudesk-node-daemon")).await?;
        let library = vm.install(&binaries.join(LIBRARY)).await?;
        std::fs::copy(built("e2e/guest/build-tiny.sh")?, vm.share().join("tiny.elf"))?;
        vm.run("mkdir -p /var/lib/gpudesk/images && mv /host/tiny.elf /var/lib/gpudesk/images/").await?;
        let arguments = arguments(&cluster).await?;
        let start = format!(
            "GPUDESK_FAKE_NVML=/run/nvml/world.yaml KUBECONFIG=/run/kubeconfig setsid {daemon} {arguments} \
             --nvml={library} --acceleration=emulation --give-back-after=0 --guest-network-filter=external >>{LOG} 2>&1 </dev/null & \
             echo $! >/run/daemon.pid"
        );
        let operator = cluster.start_operator().await?;
        let node = Self { vm, _operator: operator, cluster, kubeconfig, start, one_by_one: Mutex::new(()) };
        node.begin().await?;
        Ok(node)
    }

    /// What a boot does not leave: the way to the API server, what the driver has in the kernel, and the daemon.
    async fn begin(&self) -> Result<()> {
        let world = format!(
            "sysfs: /sys\nrecorder: calls\ncards:\n\
             - {{pciId: '10de:26b1', address: '{RTX_6000}'}}\n\
             - {{pciId: '10de:1eb8', address: '{T4}'}}\n\
             - {{pciId: '10de:26b9', address: '{L40S}'}}\n\
             - {{pciId: '10de:2bb5', prefix: DC, address: '{RTX_PRO_6000}'}}\n"
        );
        self.vm.join(&self.kubeconfig).await?;
        self.vm.run(&format!("mkdir -p /run/nvml && cat >/run/nvml/world.yaml <<'END'\n{world}END")).await?;
        self.vm.run(&self.start).await?;
        let nodes: Api<GpuNode> = Api::all(self.cluster.client().clone());
        // Each cell has one core and 1 GiB.
        until(&nodes, NODE, "it is there", SLOW, |_| true).await?;
        let spec = json!({"spec": {"housekeeping": {"coresPerNumaCell": 0, "memoryMiBPerNumaCell": 512}}});
        nodes.patch(NODE, &PatchParams::default(), &Patch::Merge(spec)).await?;
        let ready = until(&nodes, NODE, "it is ready", SLOW, |node| {
            let status = node.status.as_ref();
            let conditions = status.map(|status| status.conditions.as_slice()).unwrap_or_default();
            gpudesk_crds::conditions::is_true(conditions, ConditionType::Ready)
        });
        self.explained(ready.await.map(drop)).await
    }

    /// With the last words of the daemon, where something failed.
    async fn explained<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Ok(value) => Ok(value),
            Err(error) => {
                let log = self.vm.output(&format!("tail -n 60 {LOG}")).await?.stdout;
                Err(error.context(log))
            }
        }
    }

    async fn objects(&self, name: &str) -> Result<Objects> {
        Ok(Objects::new(self.cluster.client(), &self.cluster.namespace(name).await?))
    }

    /// Ends the daemon without a word at the next step of these words. [`Self::revive`] waits for it.
    async fn kill_at(&self, step: &str) -> Result<()> {
        let script = format!(
            "rm -f /run/killed
             cat >/run/killer <<'END'
             grep -m1 -q -F '{step}' <(tail -n0 -F {LOG})
             kill -KILL $(cat /run/daemon.pid)
             touch /run/killed
END
             setsid bash /run/killer </dev/null >/dev/null 2>&1 &
             sleep 1"
        );
        self.vm.run(&script).await.map(drop)
    }

    /// Starts the daemon again, once it was killed.
    async fn revive(&self) -> Result<()> {
        let killed = eventually("the daemon gets to the step at which it is killed", SLOW, || async {
            Ok((self.vm.output("test -e /run/killed").await?.status == 0).then_some(()))
        });
        self.explained(killed.await).await?;
        self.vm.run(&self.start).await?;
        Ok(())
    }

    /// What the guest of a desktop wrote on its serial line since it last began, once it says that it is ready.
    async fn said(&self, desktop: &Desktop) -> Result<String> {
        let uid = desktop.uid().context("a desktop has a UID")?;
        let log = format!("cat /var/lib/gpudesk/*/{uid}/serial.log");
        eventually("the guest says what it has", SLOW, || async {
            let said = self.vm.output(&log).await?.stdout;
            Ok(said.contains("tiny: ready").then_some(said))
        })
        .await
    }

    /// A desktop with a share of this profile that runs, although the daemon was killed at this step of making it.
    async fn given(&self, objects: &Objects, profile: &str, spec: &str, step: &str) -> Result<Desktop> {
        self.kill_at(step).await?;
        objects.profile(profile, spec).await?;
        objects.template(profile, &TEMPLATE.replace("PROFILE", profile)).await?;
        objects.desktop(profile, &format!("templateRef: {{name: {profile}}}")).await?;
        self.revive().await?;
        self.ready(objects, profile).await
    }

    async fn ready(&self, objects: &Objects, name: &str) -> Result<Desktop> {
        let desktops = objects.desktops();
        let ready = until(&desktops, name, "it is ready", SLOW, |desktop| {
            condition(desktop, ConditionType::Ready).is_some_and(|it| it.status == "True")
        });
        self.explained(ready.await).await
    }

    /// Deletes a desktop, of which the end is interrupted at this step.
    async fn taken_back(&self, objects: &Objects, name: &str, step: &str) -> Result<()> {
        self.kill_at(step).await?;
        let gone = objects.delete(name, SLOW);
        let (gone, revived) = tokio::join!(gone, self.revive());
        revived?;
        self.explained(gone).await
    }

    async fn driver(&self, function: &str) -> Result<String> {
        let link = format!("/sys/bus/pci/devices/{function}/driver");
        let driver = self.vm.run(&format!("basename $(readlink {link} || echo none)")).await?;
        Ok(driver.trim().to_owned())
    }

    /// The numbers of the types on the virtual functions of a card, but 0.
    async fn types(&self, card: &str) -> Result<Vec<String>> {
        let script =
            format!("cat /sys/bus/pci/devices/{card}/virtfn*/nvidia/current_vgpu_type 2>/dev/null || :");
        let found = self.vm.run(&script).await?;
        Ok(found.split_whitespace().filter(|id| *id != "0").map(Into::into).collect())
    }

    /// Waits until a card has no virtual functions and its driver, as it was found.
    async fn as_found(&self, card: &str) -> Result<()> {
        let found = eventually("the card is as it was found", SLOW, || async {
            let on = self.vm.read(&format!("/sys/bus/pci/devices/{card}/sriov_numvfs")).await?;
            let reserved = self.vm.read(&format!("/sys/bus/pci/devices/{card}/driver_override")).await?;
            let is_so = on == "0" && reserved == "(null)" && self.driver(card).await? == "nvidia";
            Ok(is_so.then_some(()))
        });
        self.explained(found.await).await
    }
}

/// The chart's own arguments of the daemon, for this node.
async fn arguments(cluster: &Cluster) -> Result<String> {
    let sets: Api<DaemonSet> = Api::namespaced(cluster.client().clone(), SYSTEM_NAMESPACE);
    let set = sets.get("gpudesk-node-daemon").await?;
    let pod = set.spec.context("a DaemonSet has a spec")?.template.spec.context("its pod has a spec")?;
    let arguments = pod.containers[0].args.clone().unwrap_or_default();
    // Emulated, and without nft.
    let others = |argument: &&String| !argument.starts_with("--acceleration") && !argument.contains("filter");
    let arguments = arguments.iter().filter(others);
    let known = |argument: &String| {
        argument
            .replace("$(NODE_NAME)", NODE)
            .replace("$(POD_IP)", "10.0.2.15")
            .replace("$(HOST_IP)", "10.0.2.15")
    };
    Ok(arguments.map(known).collect::<Vec<_>>().join(" "))
}

/// The guest sees the functions that QEMU emulates in the slot, for vfio-pci shows the ids of the hardware.
async fn whole(node: Arc<Node>) -> Result<()> {
    let _changing = node.one_by_one.lock().await;
    let objects = node.objects("whole").await?;
    let sound = RTX_6000.replace(".0", ".1");
    let (driver, of_sound) = (node.driver(RTX_6000).await?, node.driver(&sound).await?);
    let profile = "{alternatives: [{passthrough: {}}], devices: {products: ['*RTX 6000*']}}";
    let step = format!("taking {RTX_6000} from the driver");
    let desktop = node.given(&objects, "whole", profile, &step).await?;
    for function in [RTX_6000, &sound] {
        ensure!(node.driver(function).await? == "vfio-pci", "{function}");
    }
    let said = node.said(&desktop).await?;
    ensure!(said.contains("1b36:0010") && said.contains("8086:293e"), "{said}");
    let step = format!("taking {sound} from the driver vfio-pci");
    node.taken_back(&objects, "whole", &step).await?;
    ensure!(node.driver(RTX_6000).await? == driver && node.driver(&sound).await? == of_sound);
    for function in [RTX_6000, &sound] {
        let reserved = node.vm.read(&format!("/sys/bus/pci/devices/{function}/driver_override")).await?;
        ensure!(reserved == "(null)", "{function}: {reserved}");
    }
    Ok(())
}

async fn mediated(node: Arc<Node>) -> Result<()> {
    let _changing = node.one_by_one.lock().await;
    let objects = node.objects("mediated").await?;
    let profile =
        "{alternatives: [{vgpu: {series: Q, framebufferMiB: 2048}}], devices: {products: ['*T4*']}}";
    let desktop = node.given(&objects, "mediated", profile, "making the mediated device").await?;
    let made = node.vm.run("ls /sys/bus/mdev/devices").await?;
    ensure!(made.lines().count() == 1, "{made}");
    let carrier = node.vm.run(&format!("ls -d /sys/bus/pci/devices/{T4}/{}", made.trim())).await?;
    ensure!(!carrier.is_empty());
    let said = node.said(&desktop).await?;
    ensure!(said.contains("1b36:000f"), "{said}");
    node.taken_back(&objects, "mediated", "unmaking the mediated device").await?;
    ensure!(node.vm.run("ls /sys/bus/mdev/devices").await?.is_empty());
    Ok(())
}

/// Three desktops of a lab on GPU instances of one card, and one that does not fit beside them. MIG and the virtual
/// functions are off before and after.
async fn on_instances(node: Arc<Node>) -> Result<()> {
    let _changing = node.one_by_one.lock().await;
    let objects = node.objects("lab").await?;
    let on = |alternatives: &str| {
        format!("{{alternatives: [{alternatives}], devices: {{products: ['*RTX PRO 6000*']}}}}")
    };
    let api = on("{mig: {profile: 1g.24gb, graphics: true}}, {passthrough: {}}");
    let step = format!("switching virtual functions of {RTX_PRO_6000}");
    let first = node.given(&objects, "api", &api, &step).await?;
    for (name, profile) in [
        ("render", on("{mig: {profile: 2g.48gb, graphics: true}}")),
        ("develop", on("{mig: {profile: 1g.24gb, graphics: true, framebufferMiB: 8192}}")),
        ("draw", on("{vgpu: {series: Q, framebufferMiB: 24576}}")),
    ] {
        objects.profile(name, &profile).await?;
        objects.template(name, &TEMPLATE.replace("PROFILE", name)).await?;
        objects.desktop(name, &format!("templateRef: {{name: {name}}}")).await?;
    }
    let render = node.ready(&objects, "render").await?;
    node.ready(&objects, "develop").await?;
    let mut types = node.types(RTX_PRO_6000).await?;
    types.sort();
    ensure!(types == ["1558", "1561", "1567"], "{types:?}");
    for desktop in [&first, &render] {
        let said = node.said(desktop).await?;
        ensure!(said.contains("10de:2bb5"), "{said}");
    }
    // Time-sliced vGPUs are hidden while MIG is on.
    let desktops = objects.desktops();
    let waits = until(&desktops, "draw", "it says what is in its way", SLOW, |desktop| {
        condition(desktop, ConditionType::Ready)
            .is_some_and(|it| it.status == "False" && it.message.contains("no free placement"))
    });
    node.explained(waits.await).await?;
    for name in ["draw", "develop", "render"] {
        node.explained(objects.delete(name, SLOW).await).await?;
    }
    node.taken_back(&objects, "api", "unmaking GPU instance").await?;
    node.as_found(RTX_PRO_6000).await?;
    let calls = node.vm.run("cat /run/nvml/calls").await?;
    let made =
        |call: &str| calls.lines().filter(|line| line.starts_with(call) && line.ends_with("= 0")).count();
    ensure!(made("nvmlDeviceSetMigMode") == 2, "{calls}");
    ensure!(made("nvmlDeviceCreateGpuInstanceWithPlacement") == 3, "{calls}");
    ensure!(made("nvmlGpuInstanceDestroy") == 3, "{calls}");
    Ok(())
}

async fn vendor_vfio(node: Arc<Node>) -> Result<()> {
    let _changing = node.one_by_one.lock().await;
    let objects = node.objects("vendor").await?;
    let profile =
        "{alternatives: [{vgpu: {series: Q, framebufferMiB: 24576}}], devices: {products: ['*L40S*']}}";
    let desktop = node.given(&objects, "vendor", profile, "making a vGPU of type 1155").await?;
    ensure!(node.types(L40S).await? == ["1155"]);
    let said = node.said(&desktop).await?;
    ensure!(said.contains("10de:26b9"), "{said}");
    let where_it_is = format!("grep -l 1155 /sys/bus/pci/devices/{L40S}/virtfn*/nvidia/current_vgpu_type");
    let before = node.vm.run(&where_it_is).await?;

    // The power button of the host: nothing of what was made is left, and all of it is made again.
    node.vm.run("sync").await?;
    node.vm.reset().await?;
    ensure!(node.types(L40S).await?.is_empty());
    node.begin().await?;
    let again = eventually("the desktop has its vGPU again", SLOW, || async {
        Ok((node.types(L40S).await? == ["1155"]).then_some(()))
    });
    node.explained(again.await).await?;
    let desktops = objects.desktops();
    let running = until(&desktops, "vendor", "it runs again", SLOW, |desktop| {
        let status = desktop.status.as_ref();
        let ready = condition(desktop, ConditionType::Ready).is_some_and(|it| it.status == "True");
        ready && status.is_some()
    });
    node.explained(running.await).await?;
    ensure!(node.vm.run(&where_it_is).await? == before, "on the same function");

    node.taken_back(&objects, "vendor", "unmaking the vGPU").await?;
    node.as_found(L40S).await
}

impl Environment for Node {
    async fn start() -> Result<Self> {
        let state = Arc::new(StateDir::for_test("given-cards")?);
        match Self::start_in(&state).await {
            Ok(node) => Ok(node),
            Err(error) => {
                Err(error.context(format!("logs: {}", state.collect_logs("given_cards")?.display())))
            }
        }
    }

    async fn stop(self) -> Result<()> {
        self.vm.stop()?;
        self.cluster.stop_control_plane()
    }

    fn collect_logs(&self, suite: &str) -> Result<Option<PathBuf>> {
        self.cluster.save_evidence(suite).map(Some)
    }
}
