//! The writes for a desktop.

use gpudesk_crds::{Desktop, DesktopStatus};

use super::status;
use crate::writer::{WriteError, Writer};

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
