//! libvirt's errors, sorted by what a caller can do about them.

use virt::error::{Error, ErrorNumber, ErrorNumberEnum};

use crate::host::hypervisor::HypervisorError;

/// Why a blocking call failed.
pub(super) enum Fault {
    /// libvirt said so.
    Libvirt(Error),
    /// libvirt answered what we cannot read.
    Answer(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Libvirt(error)
    }
}

impl Fault {
    pub(super) fn is(&self, number: ErrorNumber) -> bool {
        matches!(self, Self::Libvirt(error) if error.code().is(number))
    }

    /// `alive`: whether the connection still is; an error of a lost one is never the domain's.
    pub(super) fn into_error(self, doing: String, alive: bool) -> HypervisorError {
        match self {
            Self::Answer(message) => HypervisorError::Refused { doing, message },
            Self::Libvirt(error) if !alive => {
                tracing::debug!(doing, %error, "on a connection that is lost");
                HypervisorError::Away { doing }
            }
            Self::Libvirt(error) => sort(doing, &error),
        }
    }
}

fn sort(doing: String, error: &Error) -> HypervisorError {
    use ErrorNumber as N;
    let message = error.message().to_owned();
    let ErrorNumberEnum::Known(number) = error.code() else {
        return HypervisorError::Refused { doing, message };
    };
    match number {
        N::NoDomain => HypervisorError::NotFound { doing },
        N::AccessDenied | N::OperationDenied | N::AuthFailed | N::AuthCancelled | N::AuthUnavailable => {
            HypervisorError::Denied { doing, message }
        }
        N::NoConnect
        | N::InvalidConn
        | N::Rpc
        | N::NoMemory
        | N::OperationTimeout
        | N::OperationAborted
        | N::ResourceBusy
        | N::AgentUnresponsive
        | N::AgentUnsynced => HypervisorError::Transient { doing, message },
        _ => HypervisorError::Refused { doing, message },
    }
}

/// Why a connection could not be opened: not allowed to, or not now.
pub(super) fn of_open(uri: &str, error: &Error) -> HypervisorError {
    let doing = format!("open libvirt at {uri}");
    match sort(doing.clone(), error) {
        denied @ HypervisorError::Denied { .. } => denied,
        HypervisorError::NotFound { .. }
        | HypervisorError::Away { .. }
        | HypervisorError::Transient { .. }
        | HypervisorError::Refused { .. } => {
            HypervisorError::Transient { doing, message: error.message().to_owned() }
        }
    }
}
