//! What is on this host of each desktop, and how it stands to what the API says.

use std::collections::{BTreeSet, HashMap};

use gpudesk_crds::{
    Desktop,
    gpu_node_status::{self, StrayStanding},
    handover::Standing as Made,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject},
    runtime::reflector::ObjectRef,
};
use uuid::Uuid;

use super::{Looking, OrphanError, PATIENCE};
use crate::{
    desktop::{
        decision,
        problem::{Problem, Whose},
        standing::{MadeFor, Verdict, verdict},
        stray::Trace,
    },
    domain::metadata,
    host::{
        folder::{FolderError, Owner},
        hypervisor::{DomainState, DomainSummary, HypervisorError},
    },
};

/// What is here of one desktop.
#[derive(Clone)]
pub(super) struct Here {
    pub(super) owner: Owner,
    /// Its domain, if it says that it is ours.
    pub(super) domain: Option<DomainSummary>,
    pub(super) made_for: MadeFor,
}

impl Here {
    pub(super) fn is_active(&self) -> bool {
        self.domain.as_ref().is_some_and(|domain| domain.state.is_active())
    }

    /// Its memory was saved on the host: it holds what it held, and no round goes on with it.
    pub(super) fn is_saved(&self) -> bool {
        self.domain.as_ref().is_some_and(|domain| domain.state == DomainState::Saved)
    }

    /// It does not run, and may be started on the host at any time.
    fn is_off(&self) -> bool {
        self.domain.is_some() && !self.is_active() && !self.is_saved()
    }

    /// Whether it is listed: what runs, and what is saved or only defined and of no Desktop whose rounds see to it.
    pub(super) fn is_listed(&self, verdict: Option<&Verdict>) -> bool {
        let own =
            matches!(verdict, Some(Verdict::Current | Verdict::OlderHere | Verdict::Newer { here: true }));
        // That is taken down in this same look.
        let leaves = matches!(verdict, Some(Verdict::MovedOn(_)));
        self.is_active() || self.is_saved() && !own || self.is_off() && !own && !leaves
    }

    /// What is to be said of it beside what it stands for.
    pub(super) fn remark(&self) -> Option<String> {
        let domain = self.domain.as_ref()?;
        let Owner { namespace, name, uid } = &self.owner;
        if self.is_saved() {
            return Some(format!(
                "the memory of {namespace}/{name} ({uid}) was saved on the host: `virsh start` there goes on with it, action \
                 PowerOff gives it up"
            ));
        }
        let of = match metadata::parse(domain.metadata.as_deref()?) {
            Ok(Some(of)) if of.desktop_uid != domain.uuid => {
                format!("is a copy of the machine of {}/{} ({})", of.namespace, of.name, of.desktop_uid)
            }
            Err(error) => format!("has metadata that cannot be read ({error})"),
            Ok(_) => return None,
        };
        let (domain, metadata) = (&domain.name, metadata::NAMESPACE);
        Some(format!(
            "the domain {domain} ({uid}) {of}, and the node takes no more desktops beside it: end it by its uid, or, if it \
             is none of gpudesk's, take its metadata away on the host (`virsh metadata {domain} {metadata} --remove --config`, \
             and --live where it runs)"
        ))
    }

    pub(super) fn trace(&self) -> Trace {
        let (active, saved) = (self.is_active(), self.is_saved());
        let is_ours = |domain: &DomainSummary| {
            let of = domain.metadata.as_deref().map(metadata::parse);
            matches!(of, Some(Ok(Some(of))) if of.desktop_uid == domain.uuid)
        };
        let foreign = self.domain.as_ref().is_some_and(|domain| !is_ours(domain));
        Trace { domain: self.domain.is_some(), active, saved, foreign, made_for: self.made_for.id() }
    }

    pub(super) fn stray(&self, standing: StrayStanding, now: Timestamp) -> gpu_node_status::Stray {
        let allocation = match &self.made_for {
            MadeFor::Allocation(allocation) => Some(Box::new(allocation.held())),
            _ => None,
        };
        gpu_node_status::Stray {
            uid: self.owner.uid.to_string(),
            namespace: self.owner.namespace.clone(),
            name: self.owner.name.clone(),
            standing: if self.is_off() { StrayStanding::Inactive } else { standing },
            allocation,
            since: Time(Timestamp::from_second(now.as_second()).unwrap_or(now)),
        }
    }
}

impl Looking {
    /// How what is here of a desktop stands to what the API says.
    pub(super) async fn judge(&self, here: &Here) -> Result<Verdict, OrphanError> {
        let uid = here.owner.uid;
        let known = self.stores.desktops.get(&ObjectRef::new(&here.owner.name).within(&here.owner.namespace));
        let watched = known.filter(|desktop| desktop.uid() == Some(uid.to_string()));
        if let Some(desktop) = watched
            && let Some(holds) = desktop.status.as_ref().and_then(|status| status.allocation.as_ref())
        {
            let is_current = match &here.made_for {
                MadeFor::Allocation(made_for) => decision::compare(made_for, holds) == Made::Current,
                _ => false,
            };
            // What is off is the rounds' own.
            if is_current || !here.is_active() {
                return Ok(Verdict::Current);
            }
        }
        let (again, verdict, _) = self.look_at(&here.owner).await?;
        // A round that worked on it meanwhile would show as a decision that does not hold.
        let look =
            |here: &Here| (here.is_active(), here.domain.as_ref().and_then(|domain| domain.metadata.clone()));
        if look(here) != look(&again) {
            return Err(OrphanError::Changing);
        }
        Ok(verdict)
    }

    /// Looks at one desktop anew: in the API first.
    pub(super) async fn look_at(
        &self,
        owner: &Owner,
    ) -> Result<(Here, Verdict, Option<DynamicObject>), OrphanError> {
        let node = self.this.desktops.node();
        let live = self.read(owner).await?;
        let domain = match node.hypervisor.get(owner.uid).await {
            Ok(domain) => Some(domain),
            Err(HypervisorError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let made_for = match &domain {
            Some(domain) => {
                let ours = made_for(domain).map(|(made_for, _)| made_for);
                let (name, uuid) = (domain.name.clone(), owner.uid.to_string());
                ours.ok_or(Problem::ForeignDomain { name, uuid, whose: Whose::of(domain) })?
            }
            None => self.this.desktops.noted(owner).await?.map_or(MadeFor::Unsaid, MadeFor::Decision),
        };
        let verdict = verdict(&node.name, owner.uid, live.as_ref(), &made_for);
        Ok((Here { owner: owner.clone(), domain, made_for }, verdict, live))
    }

    pub(super) async fn read(&self, owner: &Owner) -> Result<Option<DynamicObject>, OrphanError> {
        let kind = ApiResource::erase::<Desktop>(&());
        let desktops: Api<DynamicObject> =
            Api::namespaced_with(self.this.client.clone(), &owner.namespace, &kind);
        let answer = tokio::time::timeout(PATIENCE, desktops.get_opt(&owner.name)).await;
        Ok(answer.map_err(|_| OrphanError::Silent)??)
    }

    /// Everything on this host that says whose it is, and every machine that says that it is ours. Folders of which
    /// nothing tells whose they are become `odd`.
    pub(super) async fn here(&self, odd: &mut BTreeSet<String>) -> Result<Vec<Here>, OrphanError> {
        let desktops = &self.this.desktops;
        let mut all: HashMap<Uuid, Here> = HashMap::new();
        let nothing_else = |owner| Here { owner, domain: None, made_for: MadeFor::Unsaid };
        let mut unowned = HashMap::new();
        for (uid, owner) in desktops.node().folders.list().await.map_err(Problem::from)? {
            match owner {
                Ok(owner) => _ = all.insert(uid, nothing_else(owner)),
                Err(error) => _ = unowned.insert(uid, error),
            }
        }
        // What tells of disks whose folder is lost.
        for owner in desktops.node().folders.list_used().await.map_err(Problem::from)? {
            all.entry(owner.uid).or_insert_with(|| nothing_else(owner));
        }
        for instance in desktops.all_instances().await? {
            if let (Ok(uid), Some((namespace, name))) =
                (instance.key.desktop_uid.parse(), instance.owner.split_once('/'))
            {
                let owner = Owner { namespace: namespace.into(), name: name.into(), uid };
                all.insert(uid, nothing_else(owner));
            }
        }
        for domain in desktops.node().hypervisor.list().await? {
            let Some((made_for, owner)) = made_for(&domain) else { continue };
            if let (Some(owner), Some(error)) = (&owner, unowned.remove(&domain.uuid)) {
                self.owned_anew(owner, error, odd).await;
            }
            let known = all.remove(&domain.uuid).map(|here| here.owner);
            let owner = owner.or(known).unwrap_or_else(|| named(&domain));
            all.insert(domain.uuid, Here { owner, domain: Some(domain), made_for });
        }
        for desktop in self.stores.desktops.state() {
            let uid = desktop.uid().and_then(|uid| uid.parse().ok()).unwrap_or_default();
            if let Some(error) = unowned.remove(&uid) {
                let (namespace, name) = (desktop.namespace().unwrap_or_default(), desktop.name_any());
                self.owned_anew(&Owner { namespace, name, uid }, error, odd).await;
            }
        }
        odd.extend(unowned.into_values().map(|error| error.to_string()));
        Ok(all.into_values().collect())
    }

    /// Notes anew whose a folder is, where its record cannot be understood and something else tells it.
    async fn owned_anew(&self, owner: &Owner, error: FolderError, odd: &mut BTreeSet<String>) {
        let folder = self.this.desktops.node().folders.of(owner.uid);
        let whose = owner.clone();
        // Not beside a round that is just making or removing it.
        let noted = self.this.desktops.alone(owner.uid, async move {
            let known = folder.read_json::<Owner>("owner.json").await;
            match error {
                FolderError::Odd { .. } if matches!(known, Ok(Some(_))) || !folder.exists().await? => {
                    Ok(false)
                }
                FolderError::Odd { .. } => folder.create(&whose).await.map(|()| true),
                error => Err(error),
            }
        });
        match noted.await.unwrap_or(Ok(false)) {
            Ok(false) => {}
            Ok(true) => {
                tracing::warn!(desktop = format!("{}/{}", owner.namespace, owner.name), uid = %owner.uid, "whose its folder is is noted anew");
            }
            Err(error) => _ = odd.insert(error.to_string()),
        }
    }
}

/// For which decision a domain was made, and whose it says that it is; `None` for one that is not ours.
fn made_for(domain: &DomainSummary) -> Option<(MadeFor, Option<Owner>)> {
    Some(match metadata::parse(domain.metadata.as_deref()?) {
        Ok(None) => return None,
        Ok(Some(ours)) if ours.desktop_uid == domain.uuid => {
            let allocation = serde_json::from_str(&ours.allocation).map(Box::new);
            let owner = Owner { namespace: ours.namespace, name: ours.name, uid: domain.uuid };
            (allocation.map_or(MadeFor::Unreadable, MadeFor::Allocation), Some(owner))
        }
        Ok(Some(_)) | Err(_) => (MadeFor::Unreadable, None),
    })
}

/// Whose a domain is by its own name alone, as far as the API takes such names.
fn named(domain: &DomainSummary) -> Owner {
    let legal = |text: &str, most: usize| {
        let text: String = text.to_ascii_lowercase().chars().take(most).collect();
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        Some(text).filter(|text| !text.is_empty() && text.chars().all(fine))
    };
    let (namespace, name) = domain.name.split_once('.').unwrap_or(("", &domain.name));
    let unknown = || "unknown".to_owned();
    Owner {
        namespace: legal(namespace, 63).unwrap_or_else(unknown),
        name: legal(name, 253).unwrap_or_else(unknown),
        uid: domain.uuid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desktop::stray::standing_of;

    #[test]
    fn a_copy_and_a_machine_that_cannot_be_read_are_told_with_what_to_do() {
        let uuid = Uuid::from_u128(7);
        let of = |uid: &str| {
            format!(
                "<g:desktop xmlns:g='{}' uid='{uid}' namespace='school' name='anna'><g:daemon version='1'/>\
                 <g:template generation='1'/><g:allocation>{{}}</g:allocation></g:desktop>",
                metadata::NAMESPACE
            )
        };
        let remark = |metadata: String| {
            let owner = Owner { namespace: "unknown".into(), name: "anna-clone".into(), uid: uuid };
            let (name, state) = ("anna-clone".to_owned(), DomainState::Running);
            let domain = DomainSummary { uuid, name, state, metadata: Some(metadata) };
            Here { owner, domain: Some(domain), made_for: MadeFor::Unreadable }.remark()
        };
        assert_eq!(remark(of(&uuid.to_string())), None, "it is its own");
        let other = Uuid::from_u128(8).to_string();
        for (metadata, what) in [(of(&other), other.as_str()), (of("?"), "cannot be read")] {
            let said = remark(metadata).unwrap();
            for part in
                ["anna-clone", &uuid.to_string(), what, "end it by its uid", "virsh metadata anna-clone"]
            {
                assert!(said.contains(part), "{part}: {said}");
            }
        }
    }

    #[test]
    fn what_is_saved_is_listed_where_no_desktop_tells_of_it() {
        let here = |state| {
            let uuid = Uuid::from_u128(7);
            let owner = Owner { namespace: "school".into(), name: "anna".into(), uid: uuid };
            let domain = DomainSummary { uuid, name: "school.anna".into(), state, metadata: None };
            Here { owner, domain: Some(domain), made_for: MadeFor::Unreadable }
        };
        let (saved, off) = (here(DomainState::Saved), here(DomainState::Off));
        for verdict in [Verdict::NoDesktop, Verdict::Unallocated, Verdict::Newer { here: false }] {
            assert!(saved.is_listed(Some(&verdict)) && off.is_listed(Some(&verdict)), "{verdict:?}");
            let standing = standing_of(&verdict).unwrap();
            assert_eq!(saved.stray(standing, Timestamp::UNIX_EPOCH).standing, standing);
            assert_eq!(off.stray(standing, Timestamp::UNIX_EPOCH).standing, StrayStanding::Inactive);
        }
        let moved = Verdict::MovedOn("node-b".into());
        assert!(saved.is_listed(Some(&moved)) && !off.is_listed(Some(&moved)), "it is taken down at once");
        let nothing = Here { domain: None, ..off.clone() };
        assert!(!nothing.is_listed(Some(&Verdict::NoDesktop)), "a folder is no machine");
        for verdict in [Verdict::Current, Verdict::OlderHere, Verdict::Newer { here: true }] {
            assert!(
                !saved.is_listed(Some(&verdict)) && !off.is_listed(Some(&verdict)),
                "its rounds see to it"
            );
        }
        // Where it is not known whose they are they are told: not seen is not free.
        assert!(saved.is_listed(None) && off.is_listed(None));
        assert!(
            here(DomainState::Running).is_listed(Some(&Verdict::Current)),
            "what it stands for is asked later"
        );
    }
}
