//! Device plugins of the kubelet.

use crate::{
    topology::device_plugins::{Counted, DevicePlugins, counted, without_pods},
    tree::{LARGE, Tree},
};

/// Where they are, on every node.
const FOLDER: &str = "var/lib/kubelet/device-plugins";
/// The kubelet's own socket there.
const KUBELET: &str = "kubelet.sock";
/// What it counts.
const CHECKPOINT: &str = "kubelet_internal_checkpoint";
/// Most files there that are looked at.
const SOCKETS: usize = 256;

/// What the kubelet's folder tells; `None` where it is not seen, or no kubelet has ever used it.
pub(super) fn read(tree: &Tree) -> Option<DevicePlugins> {
    let checkpoint = format!("{FOLDER}/{CHECKPOINT}");
    let (is_kubelets, counts) = (tree.exists(&format!("{FOLDER}/{KUBELET}")), tree.exists(&checkpoint));
    if !is_kubelets && !counts {
        return None;
    }
    let mut sockets = tree.names(FOLDER, |name| name != KUBELET && name != CHECKPOINT);
    sockets.truncate(SOCKETS);
    let counted = if counts {
        let file = tree.distilled(&checkpoint, LARGE, without_pods);
        file.and_then(|file| counted(&file)).map_or(Counted::Unread, Counted::Devices)
    } else {
        Counted::Never
    };
    Some(DevicePlugins { sockets, counted })
}
