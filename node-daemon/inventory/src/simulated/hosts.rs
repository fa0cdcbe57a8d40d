//! From host files to nodes, as their daemons would show them. Pure.

use gpudesk_crds::{GpuNode, GpuNodeSpec, gpu_node_status::Acceleration};

use super::{HostFile, HostFileError};
use crate::{
    status::{self, Findings, GuestNetworkView, HypervisorView},
    topology::HostFacts,
};

/// The most machines of one kind.
pub const MOST: u32 = 10_000;

/// A machine that a host file describes.
#[derive(Clone, Debug)]
pub struct PlannedHost {
    /// Name of the node.
    pub name: String,
    /// What it has.
    pub facts: HostFacts,
}

/// Splits `FILE=COUNT`. A text without a whole number behind its last `=` is a file altogether.
pub fn file_and_count(text: &str) -> (&str, Option<u32>) {
    match text.rsplit_once('=') {
        Some((file, count)) if !count.is_empty() && count.bytes().all(|b| b.is_ascii_digit()) => {
            (file, Some(count.parse().unwrap_or(u32::MAX)))
        }
        _ => (text, None),
    }
}

/// Name of the nodes of a file: that of the file, without folder and ending.
pub fn stem(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    let stem = [".yaml", ".yml", ".json"].iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name);
    stem.to_lowercase().replace('_', "-")
}

/// The machines of a host file: one of the file's name, or `NAME-1` to `NAME-count`.
///
/// # Errors
/// What is wrong with the file, naming field and value.
pub fn hosts(stem: &str, text: &str, count: Option<u32>) -> Result<Vec<PlannedHost>, HostFileError> {
    let file = HostFile::parse(text)?;
    let names: Vec<String> = match count {
        None => vec![stem.to_owned()],
        Some(count) => (1..=count).map(|number| format!("{stem}-{number}")).collect(),
    };
    let several = count.is_some();
    names
        .into_iter()
        .map(|name| {
            // Cards of two machines are two cards, also where the file names the machine.
            let file = HostFile { name: if several { None } else { file.name.clone() }, ..file.clone() };
            let facts = file.host(&name)?.facts;
            Ok(PlannedHost { name, facts })
        })
        .collect()
}

/// The node of a machine with what its owner allows. It counts as a machine that is there.
pub fn node(host: &PlannedHost, owner: Option<&GpuNode>) -> GpuNode {
    let mut node = owner.cloned().unwrap_or_else(|| GpuNode::new(&host.name, GpuNodeSpec::default()));
    let labels = node.metadata.labels.get_or_insert_default();
    labels.entry("gpudesk.dev/simulated".into()).or_insert_with(|| "false".into());
    node.status = Some(status::status(&Findings {
        simulated: true,
        hypervisor: &HypervisorView::Answers {
            versions: None,
            acceleration: Acceleration::Simulated,
            why_not_kvm: None,
        },
        guest_network: &GuestNetworkView::NoGuests,
        spec: &node.spec,
        ..Findings::of(&host.facts)
    }));
    node
}

#[cfg(test)]
mod tests {
    use gpudesk_crds::conditions::{self, ConditionType};

    use super::*;

    const L40S: &str = "coresPerSocket: 8\nmemoryMiB: 65536\ncards: [{model: L40S, count: 2}]\n";

    #[test]
    fn a_count_is_a_whole_number_behind_the_last_equals_sign() {
        assert_eq!(file_and_count("hosts/a.yaml"), ("hosts/a.yaml", None));
        assert_eq!(file_and_count("hosts/a.yaml=12"), ("hosts/a.yaml", Some(12)));
        assert_eq!(file_and_count("a=b/c.yaml=3"), ("a=b/c.yaml", Some(3)));
        assert_eq!(file_and_count("a=b.yaml"), ("a=b.yaml", None));
        assert_eq!(file_and_count("a.yaml=99999999999"), ("a.yaml", Some(u32::MAX)));
        assert_eq!(stem("hosts/RTX_6000.yaml"), "rtx-6000");
    }

    #[test]
    fn what_has_no_fields_is_no_host_file_and_is_not_poured_out() {
        for text in ["", "# nothing\n", "- a\n", "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1\n"] {
            let said = hosts("gpu", text, None).unwrap_err().to_string();
            assert!(said.starts_with("there are no fields in it; "), "{text:?}: {said}");
        }
    }

    #[test]
    fn several_machines_of_one_file_have_cards_of_their_own() {
        let both = hosts("gpu", &format!("name: here\n{L40S}"), Some(2)).unwrap();
        let uuids: Vec<_> = both.iter().map(|host| host.facts.cards[0].uuid.clone()).collect();
        assert_eq!(both.iter().map(|host| host.name.as_str()).collect::<Vec<_>>(), ["gpu-1", "gpu-2"]);
        assert_ne!(uuids[0], uuids[1]);
    }

    #[test]
    fn the_node_of_a_machine_is_ready_and_keeps_what_its_owner_says() {
        let host = hosts("gpu", L40S, None).unwrap().remove(0);
        let mut owner = GpuNode::new("gpu", GpuNodeSpec { cordoned: true, ..GpuNodeSpec::default() });
        owner.metadata.labels = Some([("room".to_owned(), "a".to_owned())].into());
        let node = node(&host, Some(&owner));
        assert!(node.spec.cordoned);
        assert_eq!(
            node.metadata.labels.as_ref().and_then(|labels| labels.get("room")),
            Some(&"a".to_owned())
        );
        let status = node.status.unwrap();
        assert!(conditions::is_true(&status.conditions, ConditionType::Ready), "{:?}", status.conditions);
        assert_eq!(status.summary.unwrap().gpus, 2);
    }
}
