//! What a description asks of this host and the host does not have, said by its field: libvirt's own
//! words name none.

use std::path::Path;

use gpudesk_crds::{
    DesktopTemplate,
    desktop_template::Cpu,
    desktop_template_devices::{NamedNetwork, Network},
};
use rustix::{fs::CWD, io::Errno};

use super::{Desktops, problem::Problem};
use crate::{domain::Kind, host::hypervisor::NetworkSummary};

/// Names that a message lists at most.
const MOST_NAMES: usize = 60;

impl Desktops {
    /// Whether the host has the CPU model and the networks that a machine names. What cannot be told is
    /// left to libvirt.
    ///
    /// # Errors
    /// [`Problem::Invalid`], naming field, value and what there is.
    pub(super) async fn check_host(&self, cpu: &Cpu, template: &DesktopTemplate) -> Result<(), Problem> {
        if self.node.kind == Kind::Test {
            return Ok(());
        }
        let node = &self.node.name;
        let named = !["host-passthrough", "host-model"].contains(&cpu.model.as_str());
        if named && let Ok(capabilities) = self.node.hypervisor.capabilities().await {
            let own = !std::ptr::eq(cpu, &raw const template.spec.cpu);
            let field = if own { "overrides.cpu.model" } else { "cpu.model" };
            check_model(field, &cpu.model, &capabilities.cpu_models, node)?;
        }
        let networks = &template.spec.networks;
        if networks.iter().any(|network| network.libvirt_network.is_some())
            && let Ok(known) = self.node.hypervisor.networks().await
        {
            check_libvirt_networks(networks, &known, node)?;
        }
        if let Some(folder) = self.node.network_devices.clone()
            && networks.iter().any(|network| network.bridge.is_some())
        {
            let (networks, node) = (networks.clone(), node.clone());
            self.blocking(move || check_bridges(&networks, &folder, &node)).await??;
        }
        Ok(())
    }
}

fn check_model(field: &str, model: &str, known: &[String], node: &str) -> Result<(), Problem> {
    if known.is_empty() || known.iter().any(|name| name == model) {
        return Ok(());
    }
    Err(Problem::Invalid(format!(
        "{field}: {model:?} is no CPU model that libvirt on node {node} knows; write host-passthrough, host-model or one of {}",
        listed(known.iter().map(String::as_str))
    )))
}

fn check_libvirt_networks(networks: &[Network], known: &[NetworkSummary], node: &str) -> Result<(), Problem> {
    for (index, name) in named(networks, |network| network.libvirt_network.as_ref()) {
        let field = format!("networks[{index}].libvirtNetwork.name: {name:?}");
        match known.iter().find(|network| network.name == name) {
            Some(network) if network.active => {}
            Some(_) => {
                return Err(Problem::Invalid(format!(
                    "{field} is a network of libvirt on node {node} that is not started: virsh net-start {name}"
                )));
            }
            None => {
                return Err(Problem::Invalid(format!(
                    "{field} is no network of libvirt on node {node}; there are: {}",
                    listed(known.iter().map(|network| network.name.as_str()))
                )));
            }
        }
    }
    Ok(())
}

/// `folder` is where the kernel lists network devices. Blocks.
fn check_bridges(networks: &[Network], folder: &Path, node: &str) -> Result<(), Problem> {
    let there = |path: &Path| match rustix::fs::statat(CWD, path, rustix::fs::AtFlags::empty()) {
        Ok(_) => Some(true),
        Err(Errno::NOENT | Errno::NOTDIR) => Some(false),
        Err(_) => None,
    };
    if there(folder) != Some(true) {
        return Ok(());
    }
    for (index, name) in named(networks, |network| network.bridge.as_ref()) {
        let field = format!("networks[{index}].bridge.name: {name:?}");
        let device = folder.join(name);
        if name.contains('/') || name.starts_with('.') || there(&device) == Some(false) {
            return Err(Problem::Invalid(format!("{field} does not exist on node {node}")));
        }
        if there(&device.join("bridge")) == Some(false) {
            return Err(Problem::Invalid(format!(
                "{field} is a network device of node {node} and no bridge"
            )));
        }
    }
    Ok(())
}

fn named<'a>(
    networks: &'a [Network],
    of: impl Fn(&'a Network) -> Option<&'a NamedNetwork>,
) -> impl Iterator<Item = (usize, &'a str)> {
    networks.iter().enumerate().filter_map(move |(index, network)| Some((index, of(network)?.name.as_str())))
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.collect();
    let more = names.len().saturating_sub(MOST_NAMES);
    names.truncate(MOST_NAMES);
    match (names.is_empty(), more) {
        (true, _) => "none".into(),
        (false, 0) => names.join(", "),
        (false, more) => format!("{} and {more} more", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(yaml: &str) -> Vec<Network> {
        serde_yaml::from_str(yaml).unwrap()
    }

    fn said(result: Result<(), Problem>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_cpu_model_is_named_with_its_field_and_those_that_are_known() {
        let known = ["EPYC-Milan".to_owned(), "Nehalem".to_owned()];
        check_model("cpu.model", "Nehalem", &known, "gpu-1").unwrap();
        check_model("cpu.model", "Foo", &[], "gpu-1").unwrap();
        let words = said(check_model("cpu.model", "Foo", &known, "gpu-1"));
        for part in ["cpu.model: \"Foo\"", "node gpu-1", "EPYC-Milan, Nehalem"] {
            assert!(words.contains(part), "{words}");
        }
        let many: Vec<String> = (0..200).map(|n| format!("model-{n}")).collect();
        let words = said(check_model("cpu.model", "Foo", &many, "gpu-1"));
        assert!(words.contains("and 140 more") && words.len() < 2000, "{words}");
    }

    #[test]
    fn a_bridge_that_is_none_is_named_with_its_field() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("br0/bridge")).unwrap();
        std::fs::create_dir_all(folder.path().join("eth0")).unwrap();
        let check = |yaml: &str| check_bridges(&networks(yaml), folder.path(), "gpu-1");
        check("[{name: a, user: {}}, {name: b, bridge: {name: br0}}]").unwrap();
        let words = said(check("[{name: a, user: {}}, {name: b, bridge: {name: br9}}]"));
        assert_eq!(words, "networks[1].bridge.name: \"br9\" does not exist on node gpu-1");
        let words = said(check("[{name: a, bridge: {name: eth0}}]"));
        assert!(
            words.contains("networks[0].bridge.name: \"eth0\"") && words.contains("no bridge"),
            "{words}"
        );
        assert!(said(check("[{name: a, bridge: {name: ../eth0}}]")).contains("does not exist"));
        // Where the kernel's list cannot be seen, libvirt has the word.
        let nowhere = folder.path().join("nowhere");
        check_bridges(&networks("[{name: a, bridge: {name: br9}}]"), &nowhere, "gpu-1").unwrap();
    }

    #[test]
    fn a_network_of_libvirt_must_be_there_and_started() {
        let known = [("default", true), ("lab", false)]
            .map(|(name, active)| NetworkSummary { name: name.into(), active });
        let check = |name: &str| {
            let yaml = format!("[{{name: a, libvirtNetwork: {{name: {name}}}}}]");
            check_libvirt_networks(&networks(&yaml), &known, "gpu-1")
        };
        check("default").unwrap();
        assert!(said(check("lab")).contains("virsh net-start lab"));
        let words = said(check("other"));
        assert!(
            words.contains("networks[0].libvirtNetwork.name: \"other\"") && words.contains("default, lab")
        );
    }
}
