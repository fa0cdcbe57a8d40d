//! What programs that keep every object in memory do not keep of it.

use gpudesk_crds::{ABANDON_DISKS_ANNOTATION, RESTARTED_AT_ANNOTATION, relay::VIEW_TICKET_ANNOTATION};
use kube::{Resource, ResourceExt};

use crate::understood;

/// Annotations that are read, and how much of one is: more is no value of it.
const READ: [&str; 3] = [RESTARTED_AT_ANNOTATION, ABANDON_DISKS_ANNOTATION, VIEW_TICKET_ANNOTATION];
const LONGEST: usize = 1024;
/// What was noted just now of an object that is not understood.
const OURS: [&str; 3] = [understood::ODD, understood::NODE, understood::RELEASED];

/// Whether an annotation that the API has is one that is read.
pub(super) fn is_read(annotation: &str) -> bool {
    READ.contains(&annotation)
}

/// Takes out what would fill memory and no program of gpudesk reads: who owns which field or the object, annotations
/// of others, `kubectl apply`'s copy of the object among them, and labels of kinds that are never chosen by theirs.
pub(super) fn trim<K>(object: &mut K)
where
    K: Resource,
    K::DynamicType: Default,
{
    object.managed_fields_mut().clear();
    object.owner_references_mut().clear();
    object.annotations_mut().retain(|name, value| {
        // It is still there, and no value that anything would act on.
        if value.len() > LONGEST && !OURS.contains(&name.as_str()) {
            value.truncate(value.floor_char_boundary(LONGEST));
        }
        is_read(name) || OURS.contains(&name.as_str())
    });
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
            "metadata": {"name": "a", "ownerReferences": [{"apiVersion": "v1", "kind": "Nope", "name": "n", "uid": "u"}], "labels": {"exam": "a"}, "managedFields": [{"manager": "x"}], "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": "{}", "team": "x", "gpudesk.dev/restartedAt": "ß".repeat(2000),
                "gpudesk.dev/other": "x",
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
            assert_eq!(metadata.annotations.as_ref().unwrap()["gpudesk.dev/restartedAt"].len(), LONGEST);
            assert!(metadata.owner_references.as_ref().is_none_or(Vec::is_empty));
        }
        assert_eq!(
            (desktop.labels().len(), template.labels().len()),
            (1, 0),
            "affinity goes by labels of desktops"
        );
    }
}
