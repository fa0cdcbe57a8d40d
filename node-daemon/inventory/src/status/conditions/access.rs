//! What the daemon may read, and what the admin's hook says: `AccessGranted`, `DiscoveryHookReady`.

use gpudesk_crds::conditions::Reason;

use super::{Findings, Say, message};
use crate::hook::HookView;

/// Nothing on the host denies the daemon what it must read.
pub(super) fn granted(findings: &Findings<'_>) -> Say {
    let denied = &findings.facts.denied;
    if denied.is_empty() {
        return Say::expected();
    }
    let state = &findings.facts.kernel_state;
    let active = |module: &str| {
        let modules = state.security_modules.as_deref().unwrap_or_default();
        modules.split(',').any(|name| name.trim() == module)
    };
    let fix = if state.selinux_enforcing == Some(true) {
        "SELinux enforces on this host, so see what ausearch -m avc says and allow it, or give the daemon the type spc_t"
    } else if active("apparmor") {
        "AppArmor is active on this host, so see the lines with DENIED in the kernel's log and run the daemon unconfined"
    } else {
        "no security module that denies files is active, so run the daemon as root"
    };
    Say::no(Reason::AccessDenied, format!("the daemon may not read {}: {fix}", message::listed(denied)))
}

/// The admin's discovery hook gave a usable answer, where there is one.
pub(super) fn hook_ready(hook: &HookView) -> Say {
    match hook {
        HookView::NotConfigured => Say::not_needed("no discovery hook is set"),
        HookView::Good => Say::expected(),
        HookView::Failed { why, answered } => {
            let why = message::clip(why.trim(), 400);
            let stands =
                if *answered { "its last good answer stands" } else { "has given no good answer yet" };
            Say::no(
                Reason::HookFailed,
                format!("the discovery hook failed and {stands}, mend or remove it: {why}"),
            )
        }
    }
}
