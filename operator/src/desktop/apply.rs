//! The writes for a desktop.

use gpudesk_crds::{Desktop, DesktopStatus, OPERATOR_FIELD_MANAGER, RELEASE_FINALIZER};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::status;
use crate::writer::{WriteError, Writer};

/// Puts the finalizer on or takes it off, if the desktop is still the version that was read; so no
/// finalizer of somebody else is lost.
///
/// # Errors
/// Those of the write.
pub async fn set_finalizer(writer: &Writer, desktop: &Desktop, on: bool) -> Result<(), WriteError> {
    let mut finalizers: Vec<String> = desktop.finalizers().to_vec();
    finalizers.retain(|finalizer| finalizer != RELEASE_FINALIZER);
    if on {
        finalizers.push(RELEASE_FINALIZER.into());
    }
    let patch = json!({
        "metadata": {
            "resourceVersion": desktop.resource_version(),
            "uid": desktop.uid(),
            "finalizers": finalizers,
        },
    });
    let params = PatchParams { field_manager: Some(OPERATOR_FIELD_MANAGER.into()), ..PatchParams::default() };
    let api = Api::<Desktop>::namespaced(writer.client(), &desktop.namespace().unwrap_or_default());
    let result = api.patch_metadata(&desktop.name_any(), &params, &Patch::Merge(&patch)).await;
    writer.counted("Desktop", result).map(|_| ())
}

/// Applies the operator's part of the status, if that changes anything.
///
/// # Errors
/// Those of the write.
pub async fn write_status(
    writer: &Writer,
    desktop: &Desktop,
    wanted: &DesktopStatus,
) -> Result<(), WriteError> {
    if status::differs(desktop.status.as_ref(), wanted) {
        writer.status(desktop, wanted).await
    } else {
        Ok(())
    }
}
