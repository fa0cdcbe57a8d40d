//! A desktop, its template and its profiles in, one request out. Nothing after this step looks
//! into a spec for what should run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gpudesk_crds::{
    AffinityRule as ApiAffinityRule, Desktop, DesktopSpec, DesktopTemplate, GpuProfile, LastGpu,
    LastPlacement, RESTARTED_AT_ANNOTATION, Relation as ApiRelation,
    conditions::Reason,
    desktop::{Overrides, PowerState, Toleration as ApiToleration},
    desktop_template::{GpuRequest, MachineType, Memory, Override},
    desktop_template_devices::{CloudInit, NvmeDisk, SriovNetwork},
    restart_problem,
};

use super::{made_of, status};
use crate::{
    desktop_template::validate as template_validate,
    gpu_profile::validate as profile_validate,
    invalid::Invalid,
    placement::{
        request::{
            AffinityRule, CpuRequest, Demand, FunctionKind, FunctionRequest, MemoryRequest, Previous,
            PreviousCard, Relation, Request, ShareRequest, Toleration,
        },
        snapshot::key_of,
    },
};

/// Shares that one allocation can hold.
const MAX_SHARES: usize = 16;

/// What a desktop names, as far as it exists.
#[derive(Clone, Debug, Default)]
pub struct Referenced {
    /// Its template.
    pub template: Option<Arc<DesktopTemplate>>,
    /// The profiles that exist, by name.
    pub profiles: BTreeMap<String, Arc<GpuProfile>>,
}

/// What a desktop is to get.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// For placement; the home node is filled in by the step that decides.
    pub request: Request,
    /// Generation of the template that this was read from.
    pub template_generation: i64,
    /// Value of the restart annotation.
    pub restarted_at: Option<String>,
    /// Secret that its node must be able to read.
    pub secret: Option<String>,
    /// What it is made of: see `Allocation.madeOf`.
    pub made_of: String,
}

/// A desktop read for a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// What it is to get.
    pub wanted: Wanted,
    /// The fields for which a cluster would still leave it pending, each with its object:
    /// `DesktopTemplate demo/lab: spec.disks[data].nvme`.
    pub refused: Vec<String>,
}

/// Reads a desktop with what it names.
///
/// # Errors
/// The first thing that cannot be; all unsupported fields of one object at once.
pub fn validate(desktop: &Desktop, referenced: &Referenced) -> Result<Wanted, Invalid> {
    if let Some(invalid) = Invalid::unsupported(&of_desktop(desktop), &unsupported(desktop)) {
        return Err(invalid);
    }
    let template = template_of(desktop, referenced)?;
    let fields = template_validate::unsupported(&template.spec);
    if let Some(invalid) = Invalid::unsupported(&of_template(desktop), &fields) {
        return Err(invalid);
    }
    read(desktop, template, referenced)
}

/// Reads a desktop for a plan: what this version does not do yet is planned for all the same, and
/// named.
///
/// # Errors
/// The first thing that cannot be, in a plan as in a cluster.
pub fn validate_for_plan(desktop: &Desktop, referenced: &Referenced) -> Result<Planned, Invalid> {
    let template = template_of(desktop, referenced)?;
    let named =
        |of: String, fields: Vec<String>| fields.into_iter().map(move |field| format!("{of}: {field}"));
    let refused = named(of_desktop(desktop), unsupported(desktop))
        .chain(named(of_template(desktop), template_validate::unsupported(&template.spec)))
        .collect();
    Ok(Planned { wanted: read(desktop, template, referenced)?, refused })
}

fn of_desktop(desktop: &Desktop) -> String {
    format!("Desktop {}", key_of(desktop))
}

fn of_template(desktop: &Desktop) -> String {
    format!("DesktopTemplate {}/{}", key_of(desktop).namespace, desktop.spec.template_ref.name)
}

/// The fields of a desktop that ask for what this version does not do, as paths.
fn unsupported(desktop: &Desktop) -> Vec<String> {
    let suspended = desktop.spec.power_state == PowerState::Suspended;
    suspended.then(|| "spec.powerState: Suspended".to_owned()).into_iter().collect()
}

fn template_of<'a>(desktop: &Desktop, referenced: &'a Referenced) -> Result<&'a DesktopTemplate, Invalid> {
    let template = referenced.template.as_deref().ok_or_else(|| {
        Invalid::new(Reason::TemplateNotFound, format!("{} does not exist", of_template(desktop)))
    })?;
    Invalid::unless_understood(&of_template(desktop), template).map_or(Ok(template), Err)
}

fn read(desktop: &Desktop, template: &DesktopTemplate, referenced: &Referenced) -> Result<Wanted, Invalid> {
    let of_desktop = of_desktop(desktop);
    let DesktopSpec {
        template_ref: _,
        power_state: _,
        overrides: _,
        owner: _,
        node_selector,
        tolerations,
        affinity: own_affinity,
        priority: _,
    } = &desktop.spec;
    let parts = parts(desktop, template)?;
    let restarted_at = restart_annotation(desktop);
    // One that was made by a version that took any value asks for nothing.
    let made = desktop.allocation().and_then(|allocation| allocation.restarted_at.as_ref());
    let asked = restarted_at.as_ref().filter(|asked| Some(*asked) != made);
    if let Some(problem) = asked.and_then(|asked| restart_problem(asked)) {
        return Err(Invalid::new(Reason::InvalidSpec, format!("{of_desktop}: {problem}")));
    }
    check_pages(&of_desktop, parts.memory)?;
    check_labels(&of_desktop, "spec.nodeSelector", node_selector)?;
    for (of, rules) in [(&of_desktop, own_affinity), (&of_template(desktop), &template.spec.affinity)] {
        for rule in rules {
            check_labels(of, &format!("spec.affinity[{}].matchLabels", rule.name), &rule.match_labels)?;
        }
    }
    let demand = Demand {
        node_selector: node_selector.clone(),
        tolerations: tolerations.iter().map(toleration).collect(),
        cpu: parts.cpu,
        memory: MemoryRequest {
            mib: parts.memory.size_mib,
            pages: parts.memory.hugepages,
            allow_fallback: parts.memory.allow_fallback,
        },
        numa: template.spec.numa,
        shares: shares(&of_desktop, template, parts.gpus, referenced)?,
        functions: functions(&of_desktop, template)?,
    };
    Ok(Wanted {
        request: Request {
            desktop: key_of(desktop),
            labels: desktop.metadata.labels.clone().unwrap_or_default(),
            affinity: affinity(&template.spec.affinity, own_affinity),
            home: None,
            previous: previous(desktop),
            demand: Arc::new(demand),
        },
        template_generation: template.metadata.generation.unwrap_or_default(),
        restarted_at,
        secret: secret_of(parts.cloud_init),
        made_of: made_of::made_of(desktop, template),
    })
}

fn toleration(toleration: &ApiToleration) -> Toleration {
    let ApiToleration { key, value } = toleration.clone();
    Toleration { key, value }
}

/// The rules of template and desktop together, each once; their names and their order say nothing.
fn affinity(of_template: &[ApiAffinityRule], own: &[ApiAffinityRule]) -> Vec<AffinityRule> {
    let rules: BTreeSet<AffinityRule> = of_template
        .iter()
        .chain(own)
        .map(|rule| {
            let ApiAffinityRule { name: _, relation, topology_key, match_labels, required } = rule.clone();
            let relation = match relation {
                ApiRelation::Together => Relation::Together,
                ApiRelation::Apart => Relation::Apart,
            };
            AffinityRule { relation, topology_key, match_labels, required }
        })
        .collect();
    rules.into_iter().collect()
}

/// Where the desktop runs, or ran last. Of one that is parked and was never noted down, only the node
/// is known.
fn previous(desktop: &Desktop) -> Option<Previous> {
    let status = desktop.status.as_ref()?;
    if let Some(LastPlacement { node, gpus, allocation_id: _ }) = status::last_placement(status) {
        let cards = gpus.into_iter().map(|gpu| {
            let LastGpu { name, device, device_uuid } = gpu;
            (name, PreviousCard { uuid: device_uuid, address: device })
        });
        return Some(Previous { node, cards: cards.collect() });
    }
    let parked = status.allocation.as_ref()?;
    Some(Previous { node: parked.node.clone(), cards: BTreeMap::new() })
}

/// The functions of network cards and the drives that a template asks for, in its order.
fn functions(of: &str, template: &DesktopTemplate) -> Result<Vec<FunctionRequest>, Invalid> {
    let interfaces = template.spec.networks.iter().filter_map(|network| {
        let SriovNetwork { physical_network, vlan: _ } = network.sriov.clone()?;
        let kind = FunctionKind::NetworkFunction { physical_network };
        Some(FunctionRequest { name: network.name.clone(), kind })
    });
    let drives = template.spec.disks.iter().filter_map(|disk| {
        let NvmeDisk { minimum_size_gib } = disk.nvme.clone()?;
        let kind = FunctionKind::Drive { minimum_gib: minimum_size_gib.into() };
        Some(FunctionRequest { name: disk.name.clone(), kind })
    });
    let functions: Vec<FunctionRequest> = interfaces.chain(drives).collect();
    if !functions.is_empty() && template.spec.machine.machine_type == MachineType::Microvm {
        let message = format!(
            "{of}: a microvm has no PCI bus: leave networks[].sriov and disks[].nvme of the template out or use machine.type q35"
        );
        return Err(Invalid::new(Reason::InvalidSpec, message));
    }
    Ok(functions)
}

/// The value of the restart annotation.
pub fn restart_annotation(desktop: &Desktop) -> Option<String> {
    desktop.metadata.annotations.as_ref()?.get(RESTARTED_AT_ANNOTATION).cloned()
}

/// The Secret that a desktop names, whether or not the rest of it is valid.
pub fn secret_name(desktop: &Desktop, template: Option<&DesktopTemplate>) -> Option<String> {
    let own = desktop.spec.overrides.as_ref().and_then(|overrides| overrides.cloud_init.as_ref());
    secret_of(own.or(template.and_then(|template| template.spec.cloud_init.as_ref())))
}

fn secret_of(cloud_init: Option<&CloudInit>) -> Option<String> {
    cloud_init?.secret_ref.as_ref().map(|secret| secret.name.clone())
}

/// The profiles that a desktop asks for.
pub fn profile_names(desktop: &Desktop, template: &DesktopTemplate) -> BTreeSet<String> {
    let own = desktop.spec.overrides.as_ref().and_then(|overrides| overrides.gpus.as_ref());
    own.unwrap_or(&template.spec.gpus).iter().map(|gpu| gpu.profile_ref.name.clone()).collect()
}

/// Template and overrides merged.
struct Parts<'a> {
    cpu: CpuRequest,
    memory: &'a Memory,
    gpus: &'a [GpuRequest],
    cloud_init: Option<&'a CloudInit>,
}

fn parts<'a>(desktop: &'a Desktop, template: &'a DesktopTemplate) -> Result<Parts<'a>, Invalid> {
    let none = Overrides::default();
    let Overrides { cpu, memory, gpus, cloud_init } = desktop.spec.overrides.as_ref().unwrap_or(&none);
    let asked = [
        (cpu.is_some(), Override::Cpu, "cpu"),
        (memory.is_some(), Override::Memory, "memory"),
        (gpus.is_some(), Override::Gpus, "gpus"),
        (cloud_init.is_some(), Override::CloudInit, "cloudInit"),
    ];
    let refused: Vec<String> = asked
        .iter()
        .filter(|(asked, what, _)| *asked && !template.spec.allow_overrides.contains(what))
        .map(|(_, _, field)| format!("spec.overrides.{field}"))
        .collect();
    if !refused.is_empty() {
        let message = format!(
            "DesktopTemplate {}/{} does not permit {}: spec.allowOverrides of the template would have to name it",
            desktop.metadata.namespace.as_deref().unwrap_or_default(),
            desktop.spec.template_ref.name,
            refused.join(", ")
        );
        return Err(Invalid::new(Reason::OverrideNotAllowed, message));
    }
    let own = desktop.spec.overrides.as_ref();
    let cpu = own.and_then(|o| o.cpu.as_ref()).unwrap_or(&template.spec.cpu);
    Ok(Parts {
        cpu: CpuRequest { cores: cpu.cores, threads_per_core: cpu.threads_per_core, pinning: cpu.pinning },
        memory: own.and_then(|o| o.memory.as_ref()).unwrap_or(&template.spec.memory),
        gpus: own.and_then(|o| o.gpus.as_deref()).unwrap_or(&template.spec.gpus),
        cloud_init: own.and_then(|o| o.cloud_init.as_ref()).or(template.spec.cloud_init.as_ref()),
    })
}

fn check_pages(of: &str, memory: &Memory) -> Result<(), Invalid> {
    match memory.hugepages.mib() {
        Some(page) if memory.size_mib % page != 0 => Err(Invalid::new(
            Reason::InvalidSpec,
            format!(
                "{of}: memory.sizeMiB {} must be a multiple of {page} with memory.hugepages {}",
                memory.size_mib, memory.hugepages
            ),
        )),
        _ => Ok(()),
    }
}

/// A label that nothing can have is a slip of the pen.
fn check_labels(of: &str, field: &str, labels: &BTreeMap<String, String>) -> Result<(), Invalid> {
    let name = |text: &str, most: usize| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        text.len() <= most
            && ends(text.chars().next())
            && ends(text.chars().last())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let domain = |text: &str| {
        text.len() <= 253
            && text.split('.').all(|part| {
                name(part, 253) && !part.contains('_') && !part.contains(|c: char| c.is_ascii_uppercase())
            })
    };
    for (key, value) in labels {
        let legal = match key.split_once('/') {
            Some((prefix, key)) => domain(prefix) && name(key, 63),
            None => name(key, 63),
        };
        if !legal {
            let right = "write letters, digits and - _ . with a letter or digit at both ends, like rack or example.org/rack";
            return Err(Invalid::new(
                Reason::InvalidSpec,
                format!("{of}: {field} names the label {key:?}, which no object can have: {right}"),
            ));
        }
        if !value.is_empty() && !name(value, 63) {
            let right = "write at most 63 letters, digits and - _ . with a letter or digit at both ends";
            return Err(Invalid::new(
                Reason::InvalidSpec,
                format!("{of}: {field}.{key} is {value:?}, which no label can say: {right}"),
            ));
        }
    }
    Ok(())
}

fn shares(
    of: &str,
    template: &DesktopTemplate,
    requests: &[GpuRequest],
    referenced: &Referenced,
) -> Result<Vec<ShareRequest>, Invalid> {
    if !requests.is_empty() && template.spec.machine.machine_type == MachineType::Microvm {
        let message =
            format!("{of}: a microvm has no PCI bus: leave overrides.gpus out or use machine.type q35");
        return Err(Invalid::new(Reason::InvalidSpec, message));
    }
    let mut shares: Vec<ShareRequest> = vec![];
    for GpuRequest { name, profile_ref, count } in requests {
        let profile = referenced.profiles.get(&profile_ref.name).ok_or_else(|| {
            Invalid::new(Reason::ProfileNotFound, format!("GpuProfile {} does not exist", profile_ref.name))
        })?;
        let share = profile_validate::validate(profile).map_err(|invalid| match invalid.reason {
            Reason::NotYetSupported => invalid,
            _ => Invalid { reason: Reason::ProfileInvalid, ..invalid },
        })?;
        for number in 0..*count {
            let name = if *count == 1 { name.clone() } else { format!("{name}-{number}") };
            shares.push(ShareRequest { name, ..share.clone() });
        }
    }
    let names: BTreeSet<&str> = shares.iter().map(|share| share.name.as_str()).collect();
    if names.len() != shares.len() {
        let message = format!("{of}: two of its GPU shares have the same name; names of gpus must differ");
        return Err(Invalid::new(Reason::InvalidSpec, message));
    }
    if shares.len() > MAX_SHARES {
        let message =
            format!("{of}: gpus ask for {} shares; at most {MAX_SHARES} are possible", shares.len());
        return Err(Invalid::new(Reason::InvalidSpec, message));
    }
    Ok(shares)
}
