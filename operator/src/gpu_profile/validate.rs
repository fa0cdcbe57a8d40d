//! Whether a profile says something that can be, and in the words of placement.

use gpudesk_crds::{
    GpuProfile, GpuProfileSpec,
    conditions::Reason,
    gpu_profile::{Alternative, DeviceRequirements, MigShare, Spreading, VgpuShare},
    types::VgpuSeries,
};

use crate::{
    invalid::Invalid,
    placement::request::{CardRequirements, Share, ShareRequest, VgpuWish, Way},
};

/// One share as the profile describes it.
///
/// # Errors
/// What the profile asks for and cannot have.
pub fn validate(profile: &GpuProfile) -> Result<ShareRequest, Invalid> {
    let name = profile.metadata.name.clone().unwrap_or_default();
    let GpuProfileSpec { alternatives, devices, minimum_isolation, placement, vgpu_scheduler, display } =
        &profile.spec;
    let of = format!("GpuProfile {name}");
    if let Some(invalid) = Invalid::unless_understood(&of, profile) {
        return Err(invalid);
    }
    let mut unsupported = vec![];
    if vgpu_scheduler.is_some() {
        unsupported.push("spec.vgpuScheduler".to_owned());
    }
    if display.is_some() {
        unsupported.push("spec.display".to_owned());
    }
    if let Some(invalid) = Invalid::unsupported(&of, &unsupported) {
        return Err(invalid);
    }
    let mut ways = vec![];
    for (index, alternative) in alternatives.iter().enumerate() {
        let share = share(alternative).ok_or_else(|| {
            Invalid::new(
                Reason::InvalidSpec,
                format!("{of}: spec.alternatives[{index}] must be exactly one of passthrough, vgpu, mig and virtualFunction"),
            )
        })?;
        if share.isolation() >= *minimum_isolation {
            ways.push(Way { index, share });
        }
    }
    if ways.is_empty() {
        return Err(Invalid::new(
            Reason::InvalidSpec,
            format!(
                "{of}: no entry of spec.alternatives reaches spec.minimumIsolation {minimum_isolation:?}"
            ),
        ));
    }
    Ok(ShareRequest {
        name: name.clone(),
        profile: name,
        ways,
        cards: requirements(devices.as_ref()),
        spread: *placement == Spreading::Spread,
    })
}

fn requirements(devices: Option<&DeviceRequirements>) -> CardRequirements {
    let Some(devices) = devices else { return CardRequirements::default() };
    let DeviceRequirements { vendor, pci_ids, products, minimum_memory_mib, capabilities } = devices.clone();
    CardRequirements { vendor, pci_ids, products, minimum_memory_mib, capabilities }
}

fn share(alternative: &Alternative) -> Option<Share> {
    alternative.mode()?;
    let Alternative { passthrough, vgpu, mig, virtual_function } = alternative;
    let whole = passthrough.as_ref().map(|_| Share::Passthrough);
    let function =
        virtual_function.as_ref().map(|f| Share::VirtualFunction { framebuffer_mib: f.framebuffer_mib });
    whole.or(function).or_else(|| vgpu.as_ref().and_then(vgpu_share)).or_else(|| mig.as_ref().map(mig_share))
}

fn vgpu_share(share: &VgpuShare) -> Option<Share> {
    let VgpuShare { type_name, series, framebuffer_mib, framebuffer_range_mib } = share;
    let series = series.unwrap_or(VgpuSeries::Q);
    let wish = match (type_name, framebuffer_mib, framebuffer_range_mib) {
        (Some(name), None, None) => VgpuWish::Type(name.clone()),
        (None, Some(size), None) => VgpuWish::Size { series, min: *size, max: *size },
        (None, None, Some(range)) => VgpuWish::Size { series, min: range.min, max: range.max },
        _ => return None,
    };
    Some(Share::Vgpu(wish))
}

fn mig_share(MigShare { profile, series, graphics, framebuffer_mib }: &MigShare) -> Share {
    let default = if *graphics { VgpuSeries::Q } else { VgpuSeries::C };
    Share::Mig {
        profile: if *graphics { format!("{profile}+gfx") } else { profile.clone() },
        series: series.unwrap_or(default),
        framebuffer_mib: *framebuffer_mib,
    }
}

#[cfg(test)]
mod tests {
    use gpudesk_crds::types::Isolation;

    use super::*;
    use crate::{gpu_profile::status::status, world::Supply};

    fn profile(spec: &str) -> GpuProfile {
        GpuProfile::new("p", serde_yaml::from_str(spec).unwrap())
    }

    #[test]
    fn a_vgpu_that_shares_its_gpu_instance_is_time_sliced() {
        let of = |mig: &str| validate(&profile(&format!("alternatives: [{{mig: {mig}}}]"))).unwrap();
        let shared = of("{profile: 1g.24gb, graphics: true, framebufferMiB: 2048}");
        let expected =
            Share::Mig { profile: "1g.24gb+gfx".into(), series: VgpuSeries::Q, framebuffer_mib: Some(2048) };
        assert_eq!(shared.ways[0].share, expected);
        assert_eq!(shared.ways[0].share.isolation(), Isolation::TimeSliced);
        assert_eq!(of("{profile: 1g.24gb}").ways[0].share.isolation(), Isolation::HardwarePartition);
        let summary = |share: &ShareRequest| {
            let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH);
            let said = status(&GpuProfile::default(), share, &Supply::default(), &now).summary.unwrap();
            (said.share, said.memory, said.isolation)
        };
        assert_eq!(summary(&shared), ("MIG 1g.24gb".into(), "2 GiB".into(), "TimeSliced".into()));
    }

    #[test]
    fn a_profile_that_wants_hardware_of_its_own_never_shares_a_gpu_instance() {
        let both = "[{mig: {profile: 1g.24gb, framebufferMiB: 2048}}, {mig: {profile: 1g.24gb}}]";
        let ways = |alternatives: &str| {
            let spec = format!("{{alternatives: {alternatives}, minimumIsolation: HardwarePartition}}");
            validate(&profile(&spec))
                .map(|share| share.ways.into_iter().map(|way| way.index).collect::<Vec<_>>())
        };
        assert_eq!(ways(both).unwrap(), [1]);
        let why = ways("[{mig: {profile: 1g.24gb, framebufferMiB: 2048}}]").unwrap_err();
        assert!(why.message.contains("spec.minimumIsolation HardwarePartition"), "{}", why.message);
    }
}
