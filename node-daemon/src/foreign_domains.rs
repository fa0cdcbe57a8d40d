//! Which devices of the host domains have that are not of gpudesk.

use std::collections::BTreeMap;

use crate::{
    domain::metadata,
    host::hypervisor::{Hypervisor, HypervisorError},
};

/// Running domains that are not of gpudesk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignDomains {
    /// Their names by the devices that they have: a PCI address, or the UUID of a mediated device.
    pub by_device: BTreeMap<String, String>,
    /// Why libvirt does not tell of each domain, where it does not: then nobody can say which devices are free.
    pub unseen: Option<String>,
}

/// Asks libvirt for them. Domains of gpudesk, also those whose metadata cannot be read, are never among them: their names
/// are those of tenants.
pub async fn foreign_domains(hypervisor: Option<&dyn Hypervisor>) -> ForeignDomains {
    let unseen = |why: String| ForeignDomains { unseen: Some(why), ..ForeignDomains::default() };
    let Some(hypervisor) = hypervisor else { return unseen("there is no connection".into()) };
    let domains = match hypervisor.list().await {
        Ok(domains) => domains,
        Err(error) => return unseen(error.to_string()),
    };
    let mut found = ForeignDomains::default();
    for domain in domains {
        let is_foreign = matches!(domain.metadata.as_deref().map(metadata::parse), None | Some(Ok(None)));
        if !is_foreign || !domain.state.is_active() {
            continue;
        }
        match hypervisor.details(domain.uuid).await {
            Ok(details) => {
                let of_one = details.live.hostdevs.into_iter();
                found.by_device.extend(of_one.map(|device| (device, domain.name.clone())));
            }
            // It ended meanwhile.
            Err(HypervisorError::NotFound { .. }) => {}
            Err(error) => found.unseen = Some(error.to_string()),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_libvirt_that_does_not_answer_is_not_one_without_domains() {
        let seen = foreign_domains(None).await;
        assert_eq!(seen.unseen.as_deref(), Some("there is no connection"));
    }
}
