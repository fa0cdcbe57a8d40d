//! Desktops and templates for tests: the smallest YAML through the real types.

use std::sync::Arc;

use gpudesk_crds::{Desktop, DesktopTemplate};

pub(crate) const UID: &str = "7f1c2a58-3c1e-4f0e-9a53-0d4f6f5b9a01";

/// A template whose spec is `spec`.
pub(crate) fn template(spec: &str) -> Arc<DesktopTemplate> {
    let text = format!(
        "apiVersion: gpudesk.dev/v1alpha1\nkind: DesktopTemplate\n\
         metadata: {{name: office, namespace: school, generation: 3}}\nspec: {spec}\n"
    );
    Arc::new(serde_yaml::from_str(&text).unwrap())
}

/// The desktop `school/anna`, with CPUs and memory on `node-a`. `spec` and `status` are added to it.
pub(crate) fn desktop(spec: &str, compute: &str, gpus: &str) -> Desktop {
    let text = format!(
        "apiVersion: gpudesk.dev/v1alpha1\nkind: Desktop\n\
         metadata: {{name: anna, namespace: school, uid: {UID}, generation: 7, resourceVersion: '70'}}\n\
         spec: {{templateRef: {{name: office}}{spec}}}\n\
         status:\n  allocation:\n    node: node-a\n    id: 1-00000001\n    desktopGeneration: 7\n    templateGeneration: 3\n\
         \x20   decidedAt: 2026-01-05T08:00:00Z\n    compute: {compute}\n    gpus: {gpus}\n"
    );
    serde_yaml::from_str(&text).unwrap()
}

/// Two cores that float.
pub(crate) const SMALL: &str = "{cores: 2, threadsPerCore: 1, memoryMiB: 1024}";
