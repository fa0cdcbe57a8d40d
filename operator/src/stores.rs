//! All objects, as the watches keep them. Looking costs no request.

use std::collections::BTreeMap;
use std::sync::Arc;

use gpudesk_crds::{Desktop, DesktopTemplate, GpuNode, GpuProfile};
use kube::{
    ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};

use crate::desktop::validate::profile_names;

/// All objects, trimmed.
#[derive(Clone)]
pub struct Stores {
    /// Desktops.
    pub desktops: Store<Desktop>,
    /// Templates.
    pub templates: Store<DesktopTemplate>,
    /// Profiles.
    pub profiles: Store<GpuProfile>,
    /// Nodes.
    pub nodes: Store<GpuNode>,
}

impl Stores {
    /// The template that a desktop names.
    pub fn template_of(&self, desktop: &Desktop) -> Option<Arc<DesktopTemplate>> {
        let namespace = desktop.namespace().unwrap_or_default();
        self.templates.get(&ObjectRef::new(&desktop.spec.template_ref.name).within(&namespace))
    }

    /// The profiles that a desktop asks for, as far as they exist.
    pub fn profiles_of(
        &self,
        desktop: &Desktop,
        template: &DesktopTemplate,
    ) -> BTreeMap<String, Arc<GpuProfile>> {
        let names = profile_names(desktop, template).into_iter();
        names.filter_map(|name| Some((name.clone(), self.profile_named(&name)?))).collect()
    }

    /// A profile by name.
    pub fn profile_named(&self, name: &str) -> Option<Arc<GpuProfile>> {
        self.profiles.get(&ObjectRef::new(name))
    }
}
