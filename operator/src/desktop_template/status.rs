//! What the operator says of a template. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpudesk_crds::{
    DesktopTemplate, DesktopTemplateStatus, GpuProfile,
    conditions::{self, ConditionType, Reason},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::validate;
use crate::{gpu_profile::validate as profile_validate, invalid::Invalid};

/// How many users are named.
pub const NAMED_USERS: usize = 10;

/// The status of a template with `desktops` users, of which `users` are the first.
pub fn status(
    template: &DesktopTemplate,
    profiles: &BTreeMap<String, Arc<GpuProfile>>,
    desktops: usize,
    users: Vec<String>,
    now: &Time,
) -> DesktopTemplateStatus {
    let old = template.status.clone().unwrap_or_default();
    let mut conditions = old.conditions;
    conditions.retain(|condition| condition.type_ == ConditionType::Valid.as_str());
    let generation = template.metadata.generation;
    let (valid, reason, message) = match problem(template, profiles) {
        None => (true, Reason::AsExpected, String::new()),
        Some(Invalid { reason, message }) => (false, reason, message),
    };
    conditions::set(&mut conditions, ConditionType::Valid, valid, reason, message, generation, now);
    let desktops = i32::try_from(desktops).unwrap_or(i32::MAX);
    DesktopTemplateStatus { desktops, users, conditions, operator_term: None }
}

fn problem(template: &DesktopTemplate, profiles: &BTreeMap<String, Arc<GpuProfile>>) -> Option<Invalid> {
    if let Some(invalid) = Invalid::unsupported("DesktopTemplate", &validate::unsupported(&template.spec)) {
        return Some(invalid);
    }
    template.spec.gpus.iter().find_map(|gpu| {
        let name = &gpu.profile_ref.name;
        match profiles.get(name) {
            None => Some(Invalid::new(Reason::ProfileNotFound, format!("GpuProfile {name} does not exist"))),
            Some(profile) => profile_validate::validate(profile).err().map(|invalid| match invalid.reason {
                Reason::NotYetSupported => invalid,
                _ => Invalid { reason: Reason::ProfileInvalid, ..invalid },
            }),
        }
    })
}
