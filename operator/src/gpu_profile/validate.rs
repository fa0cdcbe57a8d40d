//! Whether a profile says something that can be, and in the words of placement.

use std::collections::BTreeMap;

use gpudesk_crds::{
    GpuProfile, GpuProfileSpec,
    conditions::Reason,
    gpu_profile::{
        Alternative, DeviceRequirements, Display, MigShare, PLACEMENT_PARAM, Spreading, VgpuShare,
        is_vgpu_param,
    },
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
    let heads = display.as_ref().and_then(|Display { heads }| *heads);
    let of_vgpus = |field: &str, kinds: &str| {
        let message = format!(
            "{of}: {field} is about vGPUs, and no entry of spec.alternatives is one of them: add {kinds}, or remove \
             {field}"
        );
        Err(Invalid::new(Reason::InvalidSpec, message))
    };
    if vgpu_scheduler.is_some() && alternatives.iter().all(|one| one.vgpu.is_none() && one.mig.is_none()) {
        return of_vgpus("spec.vgpuScheduler", "vgpu or mig");
    }
    if heads.is_some() && alternatives.iter().all(|one| one.vgpu.is_none()) {
        return of_vgpus("spec.display.heads", "vgpu");
    }
    for (index, vgpu) in (0..).zip(alternatives).filter_map(|(n, one)| Some((n, one.vgpu.as_ref()?))) {
        let field = format!("spec.alternatives[{index}].vgpu.params");
        check_params(&of, &field, &vgpu.params)?;
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
        cards: CardRequirements { scheduler: *vgpu_scheduler, heads, ..requirements(devices.as_ref()) },
        spread: *placement == Spreading::Spread,
    })
}

fn requirements(devices: Option<&DeviceRequirements>) -> CardRequirements {
    let Some(devices) = devices else { return CardRequirements::default() };
    let DeviceRequirements { vendor, pci_ids, products, minimum_memory_mib, capabilities } = devices.clone();
    CardRequirements {
        vendor,
        pci_ids,
        products,
        minimum_memory_mib,
        capabilities,
        scheduler: None,
        heads: None,
    }
}

/// Parameters are words that mean nothing to what they are written into, whatever schema let them in.
fn check_params(of: &str, field: &str, params: &BTreeMap<String, String>) -> Result<(), Invalid> {
    let odd = |(key, value): &(&String, &String)| {
        !is_vgpu_param(key) || !is_vgpu_param(value) || *key == PLACEMENT_PARAM
    };
    let Some((key, value)) = params.iter().find(odd) else { return Ok(()) };
    Err(Invalid::new(
        Reason::InvalidSpec,
        format!(
            "{of}: {field} has {key:?}: {value:?}, and keys and values are 1 to 64 letters, digits and . _ - ({PLACEMENT_PARAM} \
             is gpudesk's)"
        ),
    ))
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
    let VgpuShare { type_name, series, framebuffer_mib, framebuffer_range_mib, params } = share;
    let series = series.unwrap_or(VgpuSeries::Q);
    let wish = match (type_name, framebuffer_mib, framebuffer_range_mib) {
        (Some(name), None, None) => VgpuWish::Type(name.clone()),
        (None, Some(size), None) => VgpuWish::Size { series, min: *size, max: *size },
        (None, None, Some(range)) => VgpuWish::Size { series, min: range.min, max: range.max },
        _ => return None,
    };
    Some(Share::Vgpu(wish, params.clone()))
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
    use gpudesk_crds::{gpu_node::VgpuScheduler, types::Isolation};

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
    fn what_is_of_vgpus_alone_is_refused_of_a_profile_without_any_and_params_are_plain_words() {
        let of = |spec: &str| validate(&profile(spec));
        for (field, spec) in [
            ("spec.vgpuScheduler", "{alternatives: [{passthrough: {}}], vgpuScheduler: EqualShare}"),
            ("spec.display.heads", "{alternatives: [{mig: {profile: 1g.24gb}}], display: {heads: 2}}"),
            (
                "alternatives[0].vgpu.params",
                "{alternatives: [{vgpu: {type: L40S-8Q, params: {a: 'b,c=d'}}}]}",
            ),
            ("alternatives[0].vgpu.params", "{alternatives: [{vgpu: {type: L40S-8Q, params: {'a b': c}}}]}"),
            (
                "alternatives[1].vgpu.params",
                "{alternatives: [{passthrough: {}}, {vgpu: {type: L40S-8Q, params: {vgpu-placement-id: '3'}}}]}",
            ),
        ] {
            let why = of(spec).unwrap_err().message;
            assert!(why.contains(field), "{why}");
        }
        let wish = of(
            "{alternatives: [{vgpu: {type: L40S-8Q, params: {frame_rate_limiter: '0'}}}, {passthrough: {}}], \
                       vgpuScheduler: FixedShare, display: {heads: 4}}",
        )
        .unwrap();
        assert_eq!((wish.cards.scheduler, wish.cards.heads), (Some(VgpuScheduler::FixedShare), Some(4)));
        let params = BTreeMap::from([("frame_rate_limiter".to_owned(), "0".to_owned())]);
        assert_eq!(wish.ways[0].share, Share::Vgpu(VgpuWish::Type("L40S-8Q".into()), params));
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
