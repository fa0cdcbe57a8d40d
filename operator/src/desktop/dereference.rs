//! What a desktop names, from the stores. Asks the API server for nothing.

use gpudesk_crds::Desktop;

use super::validate::Referenced;
use crate::world::World;

/// The template and the profiles of a desktop, as far as they exist.
pub fn dereference(world: &World, desktop: &Desktop) -> Referenced {
    let template = world.stores.template_of(desktop);
    let profiles =
        template.as_ref().map(|template| world.stores.profiles_of(desktop, template)).unwrap_or_default();
    Referenced { template, profiles }
}
