//! The harness of the end-to-end tests and of the demo: everything real starts here.
//!
//! ```text
//! trials ── one test program: shared environment up, trials, environment down, logs kept on failure
//!   cluster ── helm chart and CRDs on a control plane, operator and daemons with tokens of their own
//!     control_plane ── etcd, kube-apiserver, kube-controller-manager, built from their modules
//!     programs ── the operator and daemon binaries, started with service-account kubeconfigs
//!   pods ── the chart's own pods on nodes of the harness, instead of programs beside a control plane
//!     node ── kubelet, containerd, kube-proxy and libvirt in private namespaces; node::vm: those in a VM
//!   libvirt_host ── a libvirtd in a mount namespace of its own; accelerator: KVM or emulation
//!   guest_network ── what listens on its host and outside, and what a guest gets to hear of it
//!   gpu_node ── a GPU host in a VM: IOMMU, SR-IOV, mdevs, vendor-specific VFIO, its own libvirt
//!       processes, ports, state ── what all of them stand on
//! ```

#![allow(clippy::disallowed_methods, reason = "a harness does nothing but touch the machine")]

pub mod accelerator;
pub mod cluster;
pub mod control_plane;
pub mod demo;
pub mod etcd;
pub mod gpu_node;
pub mod guest_network;
pub mod held_proxy;
pub mod identity;
pub mod kubeconfig;
pub mod libvirt_host;
pub mod node;
pub mod objects;
mod pki;
pub mod pods;
pub mod ports;
pub mod processes;
pub mod programs;
pub mod real_host;
pub mod requests;
pub mod screen;
pub mod state;
pub mod trials;
pub mod waiting;
