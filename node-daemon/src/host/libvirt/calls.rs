//! What is asked of libvirt, as plain blocking functions over a connection.

use std::os::fd::{FromRawFd, OwnedFd};

use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::ErrorNumber;
use virt::stream::Stream;
use virt::sys;

use super::fault::Fault;
use crate::domain::{DomainCapabilities, HostCapabilities, LiveDomain, metadata};
use crate::host::hypervisor::{
    Capabilities, DomainDetails, DomainState, DomainSummary, GuestState, NetworkSummary, Screenshot, Version,
    Versions,
};

type Outcome<T> = Result<T, Fault>;

/// Seconds an agent has to answer.
const AGENT_SECONDS: i32 = 5;
/// Seconds in which an agent would say that it does not obey a shutdown.
const SHUTDOWN_SECONDS: i32 = 1;
/// A screen of 8192 x 8192 as a pixmap has 192 MiB; what is larger is not a screen.
const PICTURE_LIMIT: usize = 256 << 20;

pub(super) fn list(connect: &Connect) -> Outcome<Vec<DomainSummary>> {
    let mut summaries = Vec::new();
    for domain in connect.list_all_domains(0)? {
        match summary(&domain) {
            Ok(summary) => summaries.push(summary),
            // Gone since it was listed.
            Err(fault) if fault.is(ErrorNumber::NoDomain) => {}
            Err(fault) => return Err(fault),
        }
    }
    Ok(summaries)
}

pub(super) fn get(connect: &Connect, uuid: Uuid) -> Outcome<DomainSummary> {
    summary(&connect.lookup_domain_by_uuid(uuid)?)
}

fn summary(domain: &Domain) -> Outcome<DomainSummary> {
    let metadata = domain.metadata(
        sys::VIR_DOMAIN_METADATA_ELEMENT.cast_signed(),
        Some(metadata::NAMESPACE),
        sys::VIR_DOMAIN_AFFECT_CURRENT,
    );
    let metadata = match metadata {
        Ok(xml) => Some(xml),
        Err(error) if error.code().is(ErrorNumber::NoDomainMetadata) => None,
        Err(error) => return Err(error.into()),
    };
    Ok(DomainSummary { uuid: domain.uuid()?, name: domain.name()?, state: state(domain)?, metadata })
}

fn state(domain: &Domain) -> Outcome<DomainState> {
    use virt::domain::{DomainShutoffReason, DomainState as V, DomainStateReason};
    use virt::enumutil::Enum;
    let (state, reason) = domain.state()?;
    if let Enum::Known(DomainStateReason::Shutoff(reason)) = &reason {
        // A libvirtd that was started anew has forgotten the reason, and not that there is saved memory.
        if domain
            .has_managed_save(0)
            .or_else(|error| if unsupported(&error) { Ok(false) } else { Err(error) })?
        {
            return Ok(DomainState::Saved);
        }
        // A domain whose process was killed is off, and only the reason tells that it crashed. Where libvirt was
        // started anew since, or has the domain from elsewhere, none tells.
        let told = [
            (DomainShutoffReason::Crashed, DomainState::Crashed),
            (DomainShutoffReason::Destroyed, DomainState::PoweredOff),
            (DomainShutoffReason::Shutdown, DomainState::ShutDown),
        ];
        return Ok(told.iter().find(|(it, _)| reason.is(*it)).map_or(DomainState::Off, |(_, state)| *state));
    }
    Ok(match state.unwrap_or(V::NoState) {
        V::NoState | V::Running | V::Blocked => DomainState::Running,
        V::Paused => DomainState::Paused,
        V::Shutdown => DomainState::ShuttingDown,
        V::Shutoff => DomainState::Off,
        V::Crashed => DomainState::Crashed,
        V::PMSuspended => DomainState::Asleep,
    })
}

pub(super) fn define(connect: &Connect, xml: &str) -> Outcome<Uuid> {
    Ok(connect.define_domain_xml(xml)?.uuid()?)
}

pub(super) fn start(connect: &Connect, uuid: Uuid) -> Outcome<()> {
    let domain = connect.lookup_domain_by_uuid(uuid)?;
    unless_already(domain.create(), &domain, true)
}

pub(super) fn shutdown(connect: &Connect, uuid: Uuid) -> Outcome<()> {
    let domain = connect.lookup_domain_by_uuid(uuid)?;
    if describe(&domain)?.agent_connected {
        // libvirt's own way waits until the guest is down, up to a minute. The agent never answers a
        // shutdown that it obeys, so the time running out is the good news.
        let command = r#"{"execute":"guest-shutdown","arguments":{"mode":"powerdown"}}"#;
        match domain.qemu_agent_command(command, SHUTDOWN_SECONDS, 0) {
            Ok(_) => return Ok(()),
            Err(error) if error.code().is(ErrorNumber::AgentCommandTimeout) => return Ok(()),
            Err(error) => tracing::debug!(%uuid, %error, "the agent was not asked: pressing the button"),
        }
    }
    let answer = domain.shutdown_flags(sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN);
    let answer = match answer {
        Err(error) if unsupported(&error) => domain.shutdown(),
        answer => answer,
    };
    unless_already(answer, &domain, false)
}

pub(super) fn confine(connect: &Connect, uuid: Uuid, cpus: &[u32]) -> Outcome<()> {
    let domain = connect.lookup_domain_by_uuid(uuid)?;
    let mut map = vec![];
    for cpu in cpus.iter().map(|cpu| *cpu as usize) {
        if map.len() <= cpu / 8 {
            map.resize(cpu / 8 + 1, 0_u8);
        }
        map[cpu / 8] |= 1 << (cpu % 8);
    }
    let vcpus = domain.vcpus_flags(sys::VIR_DOMAIN_VCPU_LIVE)?;
    for vcpu in 0..vcpus {
        domain.pin_vcpu_flags(vcpu, &map, sys::VIR_DOMAIN_AFFECT_LIVE)?;
    }
    domain.pin_emulator(&map, sys::VIR_DOMAIN_AFFECT_LIVE)?;
    Ok(())
}

pub(super) fn destroy(connect: &Connect, uuid: Uuid) -> Outcome<()> {
    let domain = connect.lookup_domain_by_uuid(uuid)?;
    unless_already(domain.destroy(), &domain, false)
}

/// Success also when the domain is in the wanted state already, or by somebody else's doing. The
/// drivers name that differently, so the state is asked and not the error.
fn unless_already(
    answer: Result<(), virt::error::Error>,
    domain: &Domain,
    wanted_active: bool,
) -> Outcome<()> {
    match answer {
        Ok(()) => Ok(()),
        Err(_) if domain.is_active().is_ok_and(|active| active == wanted_active) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether the driver does not know what it was asked, a flag or the whole call.
fn unsupported(error: &virt::error::Error) -> bool {
    [ErrorNumber::InvalidArg, ErrorNumber::ConfigUnsupported, ErrorNumber::NoSupport]
        .into_iter()
        .any(|number| error.code().is(number))
}

pub(super) fn undefine(connect: &Connect, uuid: Uuid, state: GuestState) -> Outcome<()> {
    let domain = connect.lookup_domain_by_uuid(uuid)?;
    // Without this flag libvirt refuses where there is saved memory.
    let saved = if state == GuestState::Keep { 0 } else { sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE };
    let records = sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA;
    let files = match state {
        GuestState::Keep | GuestState::KeepButMemory => {
            sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | sys::VIR_DOMAIN_UNDEFINE_KEEP_TPM
        }
        GuestState::Delete => sys::VIR_DOMAIN_UNDEFINE_NVRAM | sys::VIR_DOMAIN_UNDEFINE_TPM,
    };
    // The test driver and older libvirts know fewer flags: what they do not know they do not keep.
    let mut answer = Ok(());
    for flags in [saved | records | files, saved | records, saved, 0] {
        answer = domain.undefine_flags(flags);
        if !answer.as_ref().is_err_and(unsupported) {
            break;
        }
    }
    Ok(answer?)
}

pub(super) fn details(connect: &Connect, uuid: Uuid) -> Outcome<DomainDetails> {
    let domain = connect.lookup_domain_by_uuid(uuid)?;
    Ok(DomainDetails { state: state(&domain)?, live: describe(&domain)? })
}

fn describe(domain: &Domain) -> Outcome<LiveDomain> {
    let xml = domain.xml_desc(0)?;
    LiveDomain::parse(&xml).map_err(|error| Fault::Answer(error.to_string()))
}

pub(super) fn agent_ping(connect: &Connect, uuid: Uuid) -> Outcome<bool> {
    match agent_command(connect, uuid, r#"{"execute":"guest-ping"}"#) {
        Ok(_) => Ok(true),
        Err(fault)
            if [
                ErrorNumber::AgentUnresponsive,
                ErrorNumber::AgentUnsynced,
                ErrorNumber::OperationInvalid,
                ErrorNumber::ArgumentUnsupported,
                ErrorNumber::NoSupport,
            ]
            .into_iter()
            .any(|number| fault.is(number)) =>
        {
            Ok(false)
        }
        Err(fault) => Err(fault),
    }
}

pub(super) fn agent_command(connect: &Connect, uuid: Uuid, command: &str) -> Outcome<String> {
    Ok(connect.lookup_domain_by_uuid(uuid)?.qemu_agent_command(command, AGENT_SECONDS, 0)?)
}

#[expect(unsafe_code, reason = "the virt crate gives a descriptor as a number")]
pub(super) fn open_screen(connect: &Connect, uuid: Uuid) -> Outcome<OwnedFd> {
    let domain = connect.lookup_domain_by_uuid(uuid)?;
    let screen = describe(&domain)?.graphics.iter().position(|endpoint| endpoint.kind == "vnc");
    let number = screen.and_then(|screen| u32::try_from(screen).ok());
    let number = number.ok_or_else(|| Fault::Answer("the domain has no VNC screen".to_owned()))?;
    let answer = domain.open_graphics_fd(number, sys::VIR_DOMAIN_OPEN_GRAPHICS_SKIPAUTH)?;
    let descriptor =
        i32::try_from(answer).map_err(|_| Fault::Answer(format!("{answer} is no descriptor")))?;
    // SAFETY: libvirt has just made the descriptor for the caller, who alone knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

pub(super) fn screenshot(connect: &Connect, uuid: Uuid) -> Outcome<Screenshot> {
    let domain = connect.lookup_domain_by_uuid(uuid)?;
    let stream = Stream::new(connect, 0)?;
    let mime = domain.screenshot(&stream, 0, 0)?;
    let mut bytes = Vec::new();
    let mut piece = vec![0; 256 << 10];
    loop {
        let received = usize::try_from(stream.recv(&mut piece)?)
            .map_err(|_| Fault::Answer("the picture stopped half way".to_owned()))?;
        if received == 0 {
            break;
        }
        bytes.extend_from_slice(piece.get(..received).unwrap_or_default());
        if bytes.len() > PICTURE_LIMIT {
            stream.abort()?;
            return Err(Fault::Answer(format!("the picture has more than {PICTURE_LIMIT} bytes")));
        }
    }
    stream.finish()?;
    Ok(Screenshot { mime, bytes })
}

pub(super) fn versions(connect: &Connect) -> Outcome<Versions> {
    Ok(Versions {
        library: Version(Connect::version()?),
        daemon: Version(connect.lib_version()?),
        hypervisor_name: connect.driver_type()?,
        hypervisor: Version(connect.hyp_version()?),
    })
}

pub(super) fn qemu_user(connect: &Connect) -> Outcome<Option<u32>> {
    let xml = connect.capabilities()?;
    let host = HostCapabilities::parse(&xml).map_err(|error| Fault::Answer(error.to_string()))?;
    Ok(host.qemu_user)
}

pub(super) fn networks(connect: &Connect) -> Outcome<Vec<NetworkSummary>> {
    let networks = connect.list_all_networks(0)?;
    networks
        .iter()
        .map(|network| Ok(NetworkSummary { name: network.name()?, active: network.is_active()? }))
        .collect()
}

pub(super) fn capabilities(connect: &Connect) -> Outcome<Capabilities> {
    // The test driver says yes to any kind it is asked about.
    if connect.driver_type()? != "QEMU" {
        return Ok(Capabilities { kvm: false, emulator: None, cpu_models: vec![] });
    }
    let of = |kind| connect.domain_capabilities(None, Some("x86_64"), None, Some(kind), 0);
    let answer = |kind| match of(kind) {
        Ok(xml) => {
            let found = DomainCapabilities::parse(&xml).map_err(|error| Fault::Answer(error.to_string()))?;
            Ok((found.kind == kind).then_some(found))
        }
        Err(error) if unsupported(&error) => Ok(None),
        Err(error) => Err(Fault::from(error)),
    };
    let kvm = answer("kvm")?;
    let has_kvm = kvm.is_some();
    let found = match kvm {
        Some(found) => Some(found),
        None => answer("qemu")?,
    };
    let DomainCapabilities { emulator, cpu_models, kind: _ } = found.unwrap_or_default();
    Ok(Capabilities { kvm: has_kvm, emulator, cpu_models })
}
