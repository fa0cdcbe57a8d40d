//! Device plugins of the kubelet.

use crate::{
    topology::device_plugins::{self, Counted, DevicePlugins, without_pods},
    tree::Tree,
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
    let (is_kubelets, is_there) = (tree.exists(&format!("{FOLDER}/{KUBELET}")), tree.exists(&checkpoint));
    if !is_kubelets && !is_there {
        return None;
    }
    let mut sockets = tree.names(FOLDER, |_| true);
    // A link to nothing is there too.
    let is_there = is_there || sockets.iter().any(|name| name == CHECKPOINT);
    sockets.retain(|name| name != KUBELET && name != CHECKPOINT);
    let counted = if is_there {
        let read =
            tree.distilled(&checkpoint, device_plugins::CHECKPOINT, device_plugins::counted, without_pods);
        read.map_or_else(Counted::Unread, Counted::Devices)
    } else if sockets.len() > SOCKETS {
        Counted::Unread(format!("it is not seen, and more than {SOCKETS} other files are in its folder"))
    } else {
        Counted::Never
    };
    sockets.truncate(SOCKETS);
    Some(DevicePlugins { sockets, counted })
}
