//! What a desktop is made of, part by part, so that it can be told what has changed since it was decided.
//! Pure.

use std::collections::BTreeMap;

use gpudesk_crds::{
    Allocation, Desktop, DesktopSpec, DesktopTemplate, DesktopTemplateSpec, GpuAllocation,
    desktop::Overrides, desktop_template::Pinning,
};
use serde::Serialize;

use super::validate::Wanted;

/// Parts that the node reads of the template when it makes the machine, and not from the allocation.
const BY_THE_NODE: [&str; 7] =
    ["machine", "disks", "filesystems", "networks", "consoles", "guestAgent", "cloudInit"];

/// Each part by its name in template and desktop, with a digest of what it says.
pub fn made_of(desktop: &Desktop, template: &DesktopTemplate) -> String {
    let DesktopTemplateSpec {
        cpu,
        memory,
        gpus,
        numa,
        machine,
        disks,
        filesystems,
        networks,
        consoles,
        cloud_init,
        guest_agent,
        // Read as things happen, and not at the start.
        lifecycle: _,
        affinity,
        // Whether an override is permitted is no part of what it says.
        allow_overrides: _,
    } = &template.spec;
    let DesktopSpec {
        template_ref: _,
        power_state: _,
        overrides,
        owner: _,
        node_selector,
        tolerations,
        affinity: own_affinity,
        priority: _,
    } = &desktop.spec;
    let none = Overrides::default();
    let own = overrides.as_ref().unwrap_or(&none);
    let parts = [
        ("cpu", digest(own.cpu.as_ref().unwrap_or(cpu))),
        ("memory", digest(own.memory.as_ref().unwrap_or(memory))),
        ("gpus", digest(own.gpus.as_ref().unwrap_or(gpus))),
        ("numa", digest(numa)),
        ("machine", digest(machine)),
        ("disks", digest(disks)),
        ("filesystems", digest(filesystems)),
        ("networks", digest(networks)),
        ("consoles", digest(consoles)),
        ("cloudInit", digest(&own.cloud_init.as_ref().or(cloud_init.as_ref()))),
        ("guestAgent", digest(guest_agent)),
        ("affinity", digest(&(affinity, own_affinity))),
        ("nodeSelector", digest(node_selector)),
        ("tolerations", digest(tolerations)),
    ];
    parts.map(|(name, digest)| format!("{name}:{digest:08x}")).join(" ")
}

/// FNV-1a of what a part says, folded to 32 bits: it tells versions of one object apart, by accident only.
fn digest(part: &impl Serialize) -> u64 {
    let text = serde_json::to_vec(part).unwrap_or_default();
    let hash = text.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    (hash ^ (hash >> 32)) & 0xffff_ffff
}

/// What is another now than what was decided, with both values where the allocation has the old one.
/// `by_node`: whether the node has made the machine of the template as it is now.
pub fn changes(held: &Allocation, wanted: &Wanted, by_node: bool) -> Vec<String> {
    let Some(then) = &held.made_of else { return by_figures(held, wanted) };
    let parts = |text: &str| -> BTreeMap<String, String> {
        let named =
            |part: &str| part.split_once(':').map(|(name, digest)| (name.to_owned(), digest.to_owned()));
        text.split(' ').filter_map(named).collect()
    };
    let (then, now) = (parts(then), parts(&wanted.made_of));
    let mut changes = vec![];
    // What was not noted down then is not known to have changed.
    for (name, _) in now.iter().filter(|(name, digest)| then.get(*name).is_some_and(|then| then != *digest)) {
        match name.as_str() {
            name if by_node && BY_THE_NODE.contains(&name) => {}
            "cpu" => changes.extend(or_name(cpu(held, wanted), "cpu")),
            "memory" => changes.extend(or_name(memory(held, wanted), "memory")),
            "gpus" => changes.extend(or_name(gpus(held, wanted), "gpus")),
            name => changes.push(name.to_owned()),
        }
    }
    changes
}

/// All that an allocation without notes tells.
fn by_figures(held: &Allocation, wanted: &Wanted) -> Vec<String> {
    [cpu(held, wanted), memory(held, wanted), gpus(held, wanted)].concat()
}

fn or_name(found: Vec<String>, name: &str) -> Vec<String> {
    if found.is_empty() { vec![name.to_owned()] } else { found }
}

fn cpu(held: &Allocation, wanted: &Wanted) -> Vec<String> {
    let Some(had) = &held.compute else { return vec![] };
    let now = wanted.request.demand.cpu;
    let pinning = match (had.vcpu_pins.is_empty(), had.threads_only) {
        (true, _) => Pinning::Shared,
        (false, true) => Pinning::DedicatedThreads,
        (false, false) => Pinning::Dedicated,
    };
    let all = [
        ("cpu.cores", had.cores.to_string(), now.cores.to_string()),
        ("cpu.threadsPerCore", had.threads_per_core.to_string(), now.threads_per_core.to_string()),
        ("cpu.pinning", format!("{pinning:?}"), format!("{:?}", now.pinning)),
    ];
    differing(all)
}

fn memory(held: &Allocation, wanted: &Wanted) -> Vec<String> {
    let Some(had) = &held.compute else { return vec![] };
    let now = wanted.request.demand.memory;
    differing([("memory.sizeMiB", had.memory_mib.to_string(), now.mib.to_string())])
}

fn gpus(held: &Allocation, wanted: &Wanted) -> Vec<String> {
    let had = held.gpus.iter().map(|GpuAllocation { name, profile, .. }| format!("{name} of {profile}"));
    let now = wanted.request.demand.shares.iter().map(|share| format!("{} of {}", share.name, share.profile));
    let text = |mut shares: Vec<String>| {
        shares.sort();
        if shares.is_empty() { "none".to_owned() } else { shares.join(" and ") }
    };
    differing([("gpus", text(had.collect()), text(now.collect()))])
}

fn differing<const N: usize>(fields: [(&str, String, String); N]) -> Vec<String> {
    let differing = fields.into_iter().filter(|(_, had, now)| had != now);
    differing.map(|(field, had, now)| format!("{field} was {had} and is {now} now")).collect()
}
