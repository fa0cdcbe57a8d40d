//! The writes for a desktop.

use gpudesk_crds::{Desktop, DesktopStatus, conditions::ConditionType};

use super::status;
use crate::writer::{Own, WriteError, Writer};

/// What of a desktop's status goes when the operator does not say it.
const OWN: Own = Own {
    fields: &["allocation", "lastPlacement", "waitingSince", "gpuSummary"],
    conditions: &[ConditionType::Allocated, ConditionType::RestartRequired],
};

/// Applies the operator's part of the status, if that changes anything.
///
/// # Errors
/// Those of the write.
pub async fn write_status(
    writer: &Writer,
    desktop: &Desktop,
    wanted: &DesktopStatus,
) -> Result<(), WriteError> {
    if status::differs(desktop.status.as_ref(), wanted) { put(writer, desktop, wanted).await } else { Ok(()) }
}

/// Makes the operator's part of the status what is wanted.
///
/// # Errors
/// Those of the write.
pub async fn put(writer: &Writer, desktop: &Desktop, wanted: &DesktopStatus) -> Result<(), WriteError> {
    writer.status(desktop, wanted, OWN).await
}
