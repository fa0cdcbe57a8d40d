//! Which devices of the host domains have that are not of gpudesk.

use std::collections::BTreeMap;

use crate::{
    domain::metadata,
    host::hypervisor::{Hypervisor, HypervisorError},
};

/// Stands for a device where libvirt does not tell of each domain, with why: then nobody can say which devices are free.
pub const UNSEEN: &str = "";

/// The names of running domains that are not of gpudesk, by the devices that they have. Domains of gpudesk, also those
/// whose metadata cannot be read, are never among them: their names are those of tenants.
pub async fn foreign_domains(hypervisor: Option<&dyn Hypervisor>) -> BTreeMap<String, String> {
    let unseen = |why: String| BTreeMap::from([(UNSEEN.to_owned(), why)]);
    let Some(hypervisor) = hypervisor else { return unseen("there is no connection".into()) };
    let domains = match hypervisor.list().await {
        Ok(domains) => domains,
        Err(error) => return unseen(error.to_string()),
    };
    let mut devices = BTreeMap::new();
    for domain in domains {
        let is_foreign = matches!(domain.metadata.as_deref().map(metadata::parse), None | Some(Ok(None)));
        if !is_foreign || !domain.state.is_active() {
            continue;
        }
        match hypervisor.details(domain.uuid).await {
            Ok(details) => {
                let of_one = details.live.hostdevs.into_iter();
                devices.extend(of_one.map(|device| (device, domain.name.clone())));
            }
            // It ended meanwhile.
            Err(HypervisorError::NotFound { .. }) => {}
            Err(error) => _ = devices.insert(UNSEEN.into(), error.to_string()),
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_libvirt_that_does_not_answer_is_not_one_without_domains() {
        let seen = foreign_domains(None).await;
        assert_eq!(seen, BTreeMap::from([(UNSEEN.to_owned(), "there is no connection".to_owned())]));
    }
}
