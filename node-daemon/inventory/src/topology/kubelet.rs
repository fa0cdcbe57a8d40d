//! Which CPUs the kubelet keeps for the system: what its configuration and its command line say.
//!
//! A flag is stronger than any file, and a drop-in file than the main one and the drop-ins before it, in
//! the order of their names. Source: the kubelet's documentation, "Kubelet Configuration Directory
//! Merging" and "Set Kubelet Parameters Via A Configuration File".

use gpudesk_crds::types::CpuSet;

use super::cpu;

/// What the command line of a running kubelet says. Paths are those of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--config`.
    pub config: Option<String>,
    /// `--config-dir`.
    pub config_dir: Option<String>,
    /// `--reserved-cpus`.
    pub reserved_cpus: Option<String>,
}

/// `reservedSystemCPUs` of one file; `None` when it says nothing of it, which leaves what was said before.
///
/// # Errors
/// What is wrong with the file.
pub fn reserved(config: &str) -> Result<Option<CpuSet>, String> {
    let value: serde_yaml::Value = serde_yaml::from_str(config).map_err(|error| error.to_string())?;
    let Some(said) = value.get("reservedSystemCPUs").filter(|said| !said.is_null()) else { return Ok(None) };
    let text = said.as_str().map(Into::into).or_else(|| said.as_u64().map(|cpu| cpu.to_string()));
    text.as_deref().and_then(cpu::list).map(Some).ok_or_else(|| {
        let said = serde_yaml::to_string(said).unwrap_or_default();
        let said: String = said.trim().chars().take(40).collect();
        format!("reservedSystemCPUs is {said}, which is no list of CPUs like 0-1,8")
    })
}

/// Reads `/proc/PID/cmdline`: words that end with a NUL.
pub fn flags(command_line: &[u8]) -> Flags {
    let text = String::from_utf8_lossy(command_line);
    let mut words = text.split('\0').skip(1).peekable();
    let mut flags = Flags::default();
    while let Some(word) = words.next() {
        let Some(word) = word.strip_prefix("--") else { continue };
        let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
        let field = match name {
            "config" => &mut flags.config,
            "config-dir" => &mut flags.config_dir,
            "reserved-cpus" => &mut flags.reserved_cpus,
            _ => continue,
        };
        let value = value.or_else(|| words.next_if(|next| !next.starts_with("--"))).unwrap_or_default();
        *field = Some(value.into());
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    #[test]
    fn a_kubelet_says_which_cpus_it_keeps() {
        let config = "kind: KubeletConfiguration\nreservedSystemCPUs: 0-1,64-65\n";
        assert_eq!(reserved(config), Ok(Some(set("0-1,64-65"))));
        assert_eq!(reserved("reservedSystemCPUs: 3\n"), Ok(Some(set("3"))));
        assert_eq!(reserved("reservedSystemCPUs: ''\n"), Ok(Some(CpuSet::default())));
        assert_eq!(reserved("{\"reservedSystemCPUs\": \"0,8\"}"), Ok(Some(set("0,8"))));
        for silent in ["kind: KubeletConfiguration\n", "", "reservedSystemCPUs:\n", "[1, 2]"] {
            assert_eq!(reserved(silent), Ok(None), "{silent}");
        }
        assert!(reserved("reservedSystemCPUs: banana\n").unwrap_err().contains("banana"));
        assert!(reserved("a: [").is_err());
    }

    #[test]
    fn flags_are_read_in_both_forms() {
        let line =
            b"/usr/bin/kubelet\0--config=/etc/k/c.yaml\0--v\0--config-dir\0/etc/k/d\0--reserved-cpus=0,8\0";
        let expected = Flags {
            config: Some("/etc/k/c.yaml".into()),
            config_dir: Some("/etc/k/d".into()),
            reserved_cpus: Some("0,8".into()),
        };
        assert_eq!(flags(line), expected);
        assert_eq!(flags(b"kubelet\0--config\0--config-dir=x\0").config.as_deref(), Some(""));
        assert_eq!(flags(b""), Flags::default());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,200}|reservedSystemCPUs: \\PC{0,20}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = reserved(&text);
            let _ = flags(&bytes);
        }
    }
}
