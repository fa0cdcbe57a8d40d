//! Cards of a GPU node given to desktops: `kubectl apply` outside, the chart's daemon, vfio, mdev, SR-IOV, libvirt
//! and QEMU inside, NVIDIA's library played beside the driver that is played, and a guest that says what it was given.
//!
//! In each way of giving the daemon is killed twice, once while a share is made and once while it is unmade; in `make soak`
//! after every single change of the card, until nothing is left to change.
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
use gpudesk_e2e::gpu_node::machine::{L40S, NIC, NVME, RTX_6000, RTX_PRO_6000, T4};
use gpudesk_e2e::objects::{Objects, condition};
use gpudesk_e2e::processes::Lifetime;
use gpudesk_e2e::programs::{self, Service};
use gpudesk_e2e::real_host::built;
use gpudesk_e2e::state::{StateDir, checkout};
use gpudesk_e2e::trials::{Environment, Suite, soak};
use gpudesk_e2e::waiting::{eventually, until};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::api::{Patch, PatchParams};
use kube::config::Kubeconfig;
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::sync::Mutex;

const NODE: &str = "gpu-node";
/// Emulation in emulation is slow, and a daemon that dies after each change more so.
fn slow() -> Duration {
    Duration::from_mins(if soak() { 30 } else { 6 })
}
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

/// The same guest with a drive and a network function.
const WITH_OTHERS: &str = "
cpu: {cores: 1, model: qemu64}
memory: {sizeMiB: 64}
machine: {firmware: DirectKernel, directKernel: {kernel: tiny.elf}}
disks: [{name: data, nvme: {minimumSizeGiB: 1}}]
networks: [{name: lan, sriov: {physicalNetwork: campus, vlan: 20}}]
guestAgent: false
lifecycle: {shutdownGraceSeconds: 5, restartPolicy: Always}
";

fn main() -> ExitCode {
    Suite::<Node>::new("given_cards")
        .trial("a_whole_card_and_its_companion_are_given_and_come_back", whole)
        .trial("a_mediated_device_is_made_given_and_unmade", mediated)
        .trial("vgpus_on_gpu_instances_are_made_given_and_unmade", on_instances)
        .trial("a_drive_is_erased_and_a_network_function_comes_back_after_their_user", others)
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
             --nvml={library} --acceleration=emulation --give-back-after=0 --network-functions --guest-network-filter=external >>{LOG} 2>&1 </dev/null & \
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
        until(&nodes, NODE, "it is there", slow(), |_| true).await?;
        let spec = json!({"spec": {
            "housekeeping": {"coresPerNumaCell": 0, "memoryMiBPerNumaCell": 512},
            "devices": [{"name": "cool", "selector": {"pciAddress": L40S}, "powerLimitWatts": 250}],
        }});
        nodes.patch(NODE, &PatchParams::default(), &Patch::Merge(spec)).await?;
        let ready = until(&nodes, NODE, "it is ready", slow(), |node| {
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

    /// Ends the daemon without a word at the next step of these words, or after each change of a card.
    /// [`Self::revive`] waits for it.
    async fn kill_at(&self, step: &str) -> Result<()> {
        if soak() {
            return self.kill_after_each_change().await;
        }
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

    /// Starts a daemon in the place of this one that ends itself after the first change of a card, and another when it
    /// did. One that has nothing to change goes on.
    async fn kill_after_each_change(&self) -> Result<()> {
        let script = format!(
            "rm -f /run/kills /run/enough
             cat >/run/killer <<'END'
             export GPUDESK_KILL_AFTER=card-changed
             kill -KILL $(cat /run/daemon.pid)
             while {}; do
                 wait $(cat /run/daemon.pid)
                 test $? = 137 -a ! -e /run/enough || break
                 echo >>/run/kills
             done
END
             setsid bash /run/killer </dev/null >/dev/null 2>&1 &
             sleep 1",
            self.start
        );
        self.vm.run(&script).await.map(drop)
    }

    /// Starts one again that lives, where daemons were killed after each change; how many were.
    async fn enough(&self) -> Result<usize> {
        let killed = self
            .vm
            .run("cat /run/kills 2>/dev/null | wc -l; touch /run/enough; kill -KILL $(cat /run/daemon.pid)");
        let killed: usize = killed.await?.trim().parse()?;
        ensure!(killed > 0, "no daemon got as far as to change a card");
        self.vm.run(&self.start).await?;
        Ok(killed)
    }

    /// Starts the daemon again, once it was killed.
    async fn revive(&self) -> Result<()> {
        if soak() {
            return Ok(());
        }
        let killed = eventually("the daemon gets to the step at which it is killed", slow(), || async {
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
        eventually("the guest says what it has", slow(), || async {
            let said = self.vm.output(&log).await?.stdout;
            Ok(said.contains("tiny: ready").then_some(said))
        })
        .await
    }

    /// A desktop with a share of this profile that runs, although the daemon was killed at this step of making it.
    async fn given(&self, objects: &Objects, profile: &str, spec: &str, step: &str) -> Result<Desktop> {
        objects.profile(profile, spec).await?;
        self.started(objects, profile, &TEMPLATE.replace("PROFILE", profile), step).await
    }

    /// A desktop of this template that runs, although the daemon was killed at this step of making it.
    async fn started(&self, objects: &Objects, name: &str, template: &str, step: &str) -> Result<Desktop> {
        self.kill_at(step).await?;
        objects.template(name, template).await?;
        objects.desktop(name, &format!("templateRef: {{name: {name}}}")).await?;
        self.revive().await?;
        let desktop = self.ready(objects, name).await?;
        if soak() {
            println!("{name}: made by {} daemons that were killed", self.enough().await?);
        }
        Ok(desktop)
    }

    async fn ready(&self, objects: &Objects, name: &str) -> Result<Desktop> {
        let desktops = objects.desktops();
        let ready = until(&desktops, name, "it is ready", slow(), |desktop| {
            condition(desktop, ConditionType::Ready).is_some_and(|it| it.status == "True")
        });
        self.explained(ready.await).await
    }

    /// Deletes a desktop, of which the end is interrupted at this step.
    async fn taken_back(&self, objects: &Objects, name: &str, step: &str) -> Result<()> {
        self.kill_at(step).await?;
        let gone = objects.delete(name, slow());
        let (gone, revived) = tokio::join!(gone, self.revive());
        revived?;
        self.explained(gone).await?;
        if soak() {
            println!("{name}: unmade by {} daemons that were killed", self.enough().await?);
        }
        Ok(())
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
        let found = eventually("the card is as it was found", slow(), || async {
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

/// What somebody left on the drive is in no file system, so nothing of the host minds it; it is gone after the next user.
/// What the host told its network card of the function holds again then.
async fn others(node: Arc<Node>) -> Result<()> {
    let _changing = node.one_by_one.lock().await;
    let objects = node.objects("others").await?;
    let function = format!("$(basename $(readlink /sys/bus/pci/devices/{NIC}/virtfn0))");
    let interface = format!("$(ls /sys/bus/pci/devices/{NIC}/net)");
    let script = format!(
        "modprobe igbvf && echo 2 >/sys/bus/pci/devices/{NIC}/sriov_numvfs
         ip link set {interface} vf 0 mac 0a:00:00:00:00:01 vlan 7 qos 3 spoofchk off
         echo {function}"
    );
    let function = node.vm.run(&script).await?.trim().to_owned();
    let of_function = node.driver(&function).await?;
    let told =
        || async { node.vm.run(&format!("ip -j -d link show {interface}")).await.map(|text| vfs(&text)) };
    let before = told().await??;
    ensure!(before[0].to_string().contains("0a:00:00:00:00:01"), "{before}");

    // Where the drive could have several controllers, the folder has the path to it, and the device another name.
    let namespace = format!(
        "name=$(basename /sys/bus/pci/devices/{NVME}/nvme/nvme*/nvme*n1 | sed 's/c[0-9]*n/n/') && test -b /dev/$name && echo $name"
    );
    let name = node.vm.run(&namespace).await?;
    let device = format!("/dev/{}", name.trim());
    node.vm.run(&format!("yes secret | head -c 4096 | dd of={device} bs=4096 seek=512 conv=fsync")).await?;
    let left = |device: &str| {
        format!(
            "dd if={device} bs=4096 skip=512 count=1 iflag=direct 2>/dev/null | tr -d '\\000' | head -c 6"
        )
    };
    ensure!(node.vm.run(&left(&device)).await?.trim() == "secret", "the mark is not on the drive");

    // Without a word of its owner nobody gets the drive.
    let nodes: Api<GpuNode> = Api::all(node.cluster.client().clone());
    let say = |spec: serde_json::Value| {
        let nodes = nodes.clone();
        async move {
            let patch = Patch::Merge(json!({ "spec": spec }));
            nodes.patch(NODE, &PatchParams::default(), &patch).await
        }
    };
    say(json!({"physicalNetworks": [{"name": "campus", "devices": [NIC]}]})).await?;
    objects.template("others", WITH_OTHERS).await?;
    objects.desktop("waits", "templateRef: {name: others}").await?;
    let all = objects.desktops();
    let waits = until(&all, "waits", "it says what is missing", slow(), |desktop| {
        condition(desktop, ConditionType::Ready)
            .is_some_and(|it| it.status == "False" && it.message.contains("no free NVMe drive"))
    });
    node.explained(waits.await).await?;
    node.explained(objects.delete("waits", slow()).await).await?;

    say(json!({"nvmeDrives": [{"name": "scratch", "selector": {"serial": "gpudesk"}, "erase": "Format"}]}))
        .await?;
    let step = format!("taking {NVME} from the driver");
    let desktop = node.started(&objects, "scratch", WITH_OTHERS, &step).await?;
    for given in [NVME, &function] {
        ensure!(node.driver(given).await? == "vfio-pci", "{given}");
    }
    let during = told().await??;
    let own = during[0].to_string();
    ensure!(!own.contains("0a:00:00:00:00:01") && own.contains("\"vlan\":20"), "{during}");
    ensure!(during[1] == before[1], "another function was told something: {during}");
    let said = node.said(&desktop).await?;
    ensure!(said.contains("1b36:0010") && said.contains("8086:10ca"), "{said}");

    node.taken_back(&objects, "scratch", &format!("erasing {NVME} (Format)")).await?;
    let erased = until(&nodes, NODE, "the drive is erased and free again", slow(), |gpu_node| {
        let devices = gpu_node.status.as_ref().map(|status| status.host_devices.as_slice());
        let drive = devices.unwrap_or_default().iter().find(|one| one.pci_address.to_string() == NVME);
        drive.is_some_and(|drive| {
            let erased =
                drive.last_erase.as_ref().filter(|erase| erase.succeeded && erase.method == "Format");
            drive.usable && drive.size_mib == Some(1024) && erased.is_some()
        })
    });
    node.explained(erased.await.map(drop)).await?;
    ensure!(node.driver(NVME).await? == "nvme" && node.driver(&function).await? == of_function);
    for given in [NVME, &function] {
        let reserved = node.vm.read(&format!("/sys/bus/pci/devices/{given}/driver_override")).await?;
        ensure!(reserved == "(null)", "{given}: {reserved}");
    }
    let after = told().await??;
    ensure!(after == before, "before {before}, after {after}");
    let name = node.vm.run(&namespace).await?;
    let found = node.vm.run(&left(&format!("/dev/{}", name.trim()))).await?;
    ensure!(found.trim().is_empty(), "what was left is still on the drive: {found}");
    node.vm.run(&format!("echo 0 >/sys/bus/pci/devices/{NIC}/sriov_numvfs")).await?;
    Ok(())
}

/// What a network card says of its functions, as `ip` prints it, without figures.
fn vfs(text: &str) -> Result<serde_json::Value> {
    let mut links: serde_json::Value = serde_json::from_str(text)?;
    let mut functions = links[0]["vfinfo_list"].take();
    for function in functions.as_array_mut().context("the card has functions")? {
        function.as_object_mut().context("a function is told of")?.remove("stats");
    }
    Ok(functions)
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
    let waits = until(&desktops, "draw", "it says what is in its way", slow(), |desktop| {
        condition(desktop, ConditionType::Ready)
            .is_some_and(|it| it.status == "False" && it.message.contains("no free placement"))
    });
    node.explained(waits.await).await?;
    for name in ["draw", "develop", "render"] {
        node.explained(objects.delete(name, slow()).await).await?;
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
    // The rule of its card holds as long as it is given.
    let calls = || node.vm.run("cat /run/nvml/calls");
    ensure!(calls().await?.contains("nvmlDeviceSetPowerManagementLimit 0000:82:00.0 250000 = 0"));
    let where_it_is = format!("grep -l 1155 /sys/bus/pci/devices/{L40S}/virtfn*/nvidia/current_vgpu_type");
    let before = node.vm.run(&where_it_is).await?;

    // The power button of the host: nothing of what was made is left, and all of it is made again.
    node.vm.run("sync").await?;
    node.vm.reset().await?;
    ensure!(node.types(L40S).await?.is_empty());
    node.begin().await?;
    let again = eventually("the desktop has its vGPU again", slow(), || async {
        Ok((node.types(L40S).await? == ["1155"]).then_some(()))
    });
    node.explained(again.await).await?;
    let desktops = objects.desktops();
    let running = until(&desktops, "vendor", "it runs again", slow(), |desktop| {
        let status = desktop.status.as_ref();
        let ready = condition(desktop, ConditionType::Ready).is_some_and(|it| it.status == "True");
        ready && status.is_some()
    });
    node.explained(running.await).await?;
    ensure!(node.vm.run(&where_it_is).await? == before, "on the same function");

    node.taken_back(&objects, "vendor", "unmaking the vGPU").await?;
    node.as_found(L40S).await?;
    let calls = calls().await?;
    let last = calls.lines().rfind(|call| call.starts_with("nvmlDeviceSetPowerManagementLimit"));
    ensure!(last.is_some_and(|call| call.ends_with(" 450000 = 0")), "{calls}");
    Ok(())
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
