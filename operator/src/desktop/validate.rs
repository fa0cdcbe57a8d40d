//! A desktop, its template and its profiles in, one request out. Nothing after this step looks
//! into a spec for what should run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gpudesk_crds::{
    Desktop, DesktopSpec, DesktopTemplate, GpuProfile, RESTARTED_AT_ANNOTATION,
    conditions::Reason,
    desktop::{Overrides, PowerState},
    desktop_template::{GpuRequest, MachineType, Memory, Override, Pinning},
    desktop_template_devices::CloudInit,
};

use crate::{
    desktop_template::validate as template_validate,
    gpu_profile::validate as profile_validate,
    invalid::Invalid,
    placement::{
        request::{CpuRequest, MemoryRequest, Request, ShareRequest},
        snapshot::key_of,
    },
};

/// Shares that one allocation can hold.
const MAX_SHARES: usize = 16;
/// Characters of the restart annotation that an allocation can hold.
const MAX_RESTARTED_AT: usize = 128;

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
}

/// Reads a desktop with what it names.
///
/// # Errors
/// The first thing that cannot be; all unsupported fields of one object at once.
pub fn validate(desktop: &Desktop, referenced: &Referenced) -> Result<Wanted, Invalid> {
    let key = key_of(desktop);
    let of_desktop = format!("Desktop {key}");
    let DesktopSpec {
        template_ref,
        power_state,
        overrides: _,
        owner: _,
        node_selector,
        tolerations,
        priority: _,
    } = &desktop.spec;
    let asked = [
        (!tolerations.is_empty(), "spec.tolerations"),
        (*power_state == PowerState::Suspended, "spec.powerState: Suspended"),
    ];
    let fields: Vec<String> =
        asked.iter().filter(|(asked, _)| *asked).map(|(_, f)| (*f).to_owned()).collect();
    if let Some(invalid) = Invalid::unsupported(&of_desktop, &fields) {
        return Err(invalid);
    }
    let template_name = format!("{}/{}", key.namespace, template_ref.name);
    let Some(template) = &referenced.template else {
        let message = format!("DesktopTemplate {template_name} does not exist");
        return Err(Invalid::new(Reason::TemplateNotFound, message));
    };
    let of_template = format!("DesktopTemplate {template_name}");
    if let Some(invalid) = Invalid::unsupported(&of_template, &template_validate::unsupported(&template.spec))
    {
        return Err(invalid);
    }
    let parts = parts(desktop, template)?;
    let restarted_at = restart_annotation(desktop);
    if restarted_at.as_ref().is_some_and(|value| value.chars().count() > MAX_RESTARTED_AT) {
        let message = format!(
            "{of_desktop}: annotation {RESTARTED_AT_ANNOTATION} is longer than {MAX_RESTARTED_AT} characters"
        );
        return Err(Invalid::new(Reason::InvalidSpec, message));
    }
    check_pages(&of_desktop, parts.memory)?;
    Ok(Wanted {
        request: Request {
            desktop: key,
            node_selector: node_selector.clone(),
            home: None,
            cpu: parts.cpu,
            memory: MemoryRequest {
                mib: parts.memory.size_mib,
                pages: parts.memory.hugepages,
                allow_fallback: parts.memory.allow_fallback,
            },
            numa: template.spec.numa,
            shares: shares(&of_desktop, template, parts.gpus, referenced)?,
        },
        template_generation: template.metadata.generation.unwrap_or_default(),
        restarted_at,
        secret: secret_of(parts.cloud_init),
    })
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
        cpu: CpuRequest {
            cores: cpu.cores,
            threads_per_core: cpu.threads_per_core,
            dedicated: cpu.pinning == Pinning::Dedicated,
        },
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
