//! What programs that keep every object in memory do not keep of it.

use kube::{Resource, ResourceExt};

/// Takes out what would fill memory and no program of gpudesk reads: who owns which field, annotations of others,
/// `kubectl apply`'s copy of the object among them, and labels of kinds that are never chosen by theirs.
pub(super) fn trim<K>(object: &mut K)
where
    K: Resource,
    K::DynamicType: Default,
{
    object.managed_fields_mut().clear();
    object.annotations_mut().retain(|name, _| name.starts_with("gpudesk.dev/"));
    let of = K::DynamicType::default();
    let kind = K::kind(&of);
    if !matches!(&*kind, "Desktop" | "GpuNode") {
        object.labels_mut().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpudesk_crds::{Desktop, DesktopTemplate};

    fn filled<K: serde::de::DeserializeOwned>() -> K {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a", "labels": {"exam": "a"}, "managedFields": [{"manager": "x"}], "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": "{}", "team": "x", "gpudesk.dev/restartedAt": "1",
            }},
            "spec": {"templateRef": {"name": "t"}, "memory": {"sizeMiB": 1}, "disks": []},
        }))
        .unwrap()
    }

    #[test]
    fn what_nobody_reads_is_not_kept() {
        let (mut desktop, mut template) = (filled::<Desktop>(), filled::<DesktopTemplate>());
        trim(&mut desktop);
        trim(&mut template);
        for metadata in [&desktop.metadata, &template.metadata] {
            assert!(metadata.managed_fields.as_ref().is_none_or(Vec::is_empty));
            let annotations: Vec<_> =
                metadata.annotations.iter().flatten().map(|(name, _)| name.as_str()).collect();
            assert_eq!(annotations, ["gpudesk.dev/restartedAt"]);
        }
        assert_eq!(
            (desktop.labels().len(), template.labels().len()),
            (1, 0),
            "affinity goes by labels of desktops"
        );
    }
}
