//! The GPU driver of a simulated host: keeps a list where a real driver would make devices, and is
//! as strict as the real ones.
#![expect(clippy::disallowed_methods, reason = "adapter: keeps its list in a file")]

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use gpudesk_crds::{
    gpu_node_status::{Device, HostDevice},
    types::{PciAddress, ShareMode},
};

use super::gpu_driver::{GpuDriver, GpuError, GpuInstance, Handle, InstanceKey, WantedInstance, is_mdev};
use gpudesk_inventory::simulated::{SimulatedHost, uuid};

use crate::partition::{self, Share};

/// Virtual functions of one card, as many as its bus holds behind the card itself.
const FUNCTIONS: u8 = 64;

/// The driver of a simulated host.
///
/// Its list is a file, so that a daemon that is started again finds what the one before it made, as
/// it would on a real host. [`SimulatedDriver::reboot`] forgets all of it, as a real reboot does.
#[derive(Debug)]
pub struct SimulatedDriver {
    cards: Vec<Device>,
    /// Network cards and drives.
    host_devices: Vec<HostDevice>,
    file: PathBuf,
    /// One change at a time.
    changing: Mutex<()>,
}

impl SimulatedDriver {
    /// The driver of `host`, with its list in `file`.
    pub fn new(host: &SimulatedHost, file: PathBuf) -> Self {
        let (cards, host_devices) = (host.facts.cards.clone(), host.facts.host_devices.clone());
        Self { cards, host_devices, file, changing: Mutex::new(()) }
    }

    /// Forgets every share, as a host does that starts anew.
    ///
    /// # Errors
    /// [`GpuError::State`]; then everything is still there.
    pub fn reboot(&self) -> Result<(), GpuError> {
        let _changing = self.lock();
        self.write(&[])
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> Result<Vec<GpuInstance>, GpuError> {
        let state = |source| GpuError::State { what: format!("reading {}", self.file.display()), source };
        match fs::read(&self.file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| state(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
            Err(error) => Err(state(error)),
        }
    }

    fn write(&self, instances: &[GpuInstance]) -> Result<(), GpuError> {
        let written = || {
            let bytes = serde_json::to_vec_pretty(instances)?;
            let new = self.file.with_extension("new");
            fs::write(&new, bytes)?;
            fs::rename(&new, &self.file)
        };
        written()
            .map_err(|source| GpuError::State { what: format!("writing {}", self.file.display()), source })
    }

    /// A drive or a function of a network card, which is one desktop's.
    fn whole(&self, wanted: &WantedInstance, existing: &[GpuInstance]) -> Result<GpuInstance, GpuError> {
        let card = wanted.card;
        let functions = self.host_devices.iter().flat_map(|device| &device.virtual_functions);
        let functions = functions.map(|function| function.pci_address);
        let drives = self.host_devices.iter().map(|device| device.pci_address);
        if !functions.chain(drives).any(|address| address == card) {
            return Err(GpuError::NoSuchCard(card));
        }
        if existing.iter().any(|instance| instance.card == card) {
            let source = crate::devices::Refusal::InUse(card.to_string());
            return Err(GpuError::Unfit { card, source });
        }
        Ok(GpuInstance {
            key: wanted.key.clone(),
            owner: wanted.owner.clone(),
            card,
            mode: wanted.share.mode,
            type_name: wanted.share.type_name.clone(),
            vgpu_type: None,
            start: None,
            bar_mib: None,
            mig_uuid: None,
            gpu_instance: None,
            handle: Handle::Function(card),
            companions: vec![],
            pending: false,
        })
    }

    fn make(&self, wanted: &WantedInstance, existing: &[GpuInstance]) -> Result<GpuInstance, GpuError> {
        if !wanted.what.is_card() {
            return self.whole(wanted, existing);
        }
        let card = (self.cards.iter())
            .find(|card| card.pci_address == wanted.card)
            .ok_or(GpuError::NoSuchCard(wanted.card))?;
        let here: Vec<&GpuInstance> = existing.iter().filter(|i| i.card == wanted.card).collect();
        let shares: Vec<Share> = here.iter().map(|instance| instance.share()).collect();
        partition::admit(card, &shares, &wanted.share)
            .map_err(|source| GpuError::Refused { card: wanted.card, source })?;
        let InstanceKey { desktop_uid, request } = &wanted.key;
        let handle = match wanted.share.mode {
            ShareMode::Passthrough => Handle::Function(wanted.card),
            ShareMode::Vgpu | ShareMode::Mig if is_mdev(card.framework) => {
                Handle::Mdev(uuid(&["mdev", desktop_uid, request]).to_string())
            }
            ShareMode::Vgpu | ShareMode::Mig | ShareMode::VirtualFunctions => {
                Handle::Function(free_function(wanted.card, &here)?)
            }
        };
        let (mig_uuid, gpu_instance) = match wanted.share.mode {
            ShareMode::Mig => under(card, &here, &wanted.share),
            ShareMode::Passthrough | ShareMode::Vgpu | ShareMode::VirtualFunctions => (None, None),
        };
        Ok(GpuInstance {
            key: wanted.key.clone(),
            owner: wanted.owner.clone(),
            card: wanted.card,
            mode: wanted.share.mode,
            type_name: wanted.share.type_name.clone(),
            vgpu_type: wanted.share.vgpu_type.clone(),
            start: wanted.share.start,
            mig_uuid,
            gpu_instance,
            bar_mib: None,
            handle,
            companions: match wanted.share.mode {
                ShareMode::Passthrough => companions(card),
                ShareMode::Vgpu | ShareMode::Mig | ShareMode::VirtualFunctions => vec![],
            },
            pending: false,
        })
    }
}

/// UUID and number of the GPU instance on which a share will be: the one that is at its place, or a
/// new one with the lowest number that is free, from 1 because 0 is that of a whole card's on most.
fn under(card: &Device, here: &[&GpuInstance], wanted: &Share) -> (Option<String>, Option<i32>) {
    if let Some(there) = here.iter().find(|other| other.share().is_on_one_instance(wanted)) {
        return (there.mig_uuid.clone(), there.gpu_instance);
    }
    let number = (1..=i32::from(FUNCTIONS))
        .find(|number| here.iter().all(|other| other.gpu_instance != Some(*number)));
    let address = card.pci_address.to_string();
    let start = wanted.start.unwrap_or_default().to_string();
    let of_card = card.uuid.as_deref().unwrap_or(&address);
    let uuid = uuid(&["mig", of_card, &wanted.type_name, &start]);
    (Some(format!("MIG-{uuid}")), number)
}

/// What is in a card's group, such as its sound, which can only be given away with it. A bridge stays with the host.
fn companions(card: &Device) -> Vec<PciAddress> {
    let members = card.iommu_group.iter().flat_map(|group| &group.members);
    let endpoints =
        members.filter(|member| member.class.as_ref().is_none_or(|class| !class.starts_with("06")));
    endpoints.map(|member| member.pci_address).collect()
}

/// The lowest virtual function of `card` that nobody has. The first is function 4, as on real cards.
fn free_function(card: PciAddress, here: &[&GpuInstance]) -> Result<PciAddress, GpuError> {
    (4..4 + FUNCTIONS)
        .map(|number| PciAddress { device: card.device + number / 8, function: number % 8, ..card })
        .find(|function| !here.iter().any(|i| i.handle == Handle::Function(*function)))
        .ok_or(GpuError::NoFunctionLeft(card))
}

impl GpuDriver for SimulatedDriver {
    fn version(&self) -> Option<String> {
        (!self.cards.is_empty()).then(|| "simulated".into())
    }

    fn instances(&self) -> Result<Vec<GpuInstance>, GpuError> {
        let _changing = self.lock();
        self.read()
    }

    fn create(&self, wanted: &WantedInstance) -> Result<GpuInstance, GpuError> {
        let _changing = self.lock();
        let mut instances = self.read()?;
        if let Some(existing) = instances.iter().find(|instance| instance.key == wanted.key) {
            if existing.card == wanted.card && existing.share() == wanted.share {
                return Ok(existing.clone());
            }
            return Err(GpuError::Differs {
                key: wanted.key.clone(),
                existing: format!("{} on {}", existing.type_name, existing.card),
            });
        }
        let made = self.make(wanted, &instances)?;
        instances.push(made.clone());
        self.write(&instances)?;
        Ok(made)
    }

    fn destroy(&self, key: &InstanceKey) -> Result<(), GpuError> {
        let _changing = self.lock();
        let mut instances = self.read()?;
        let before = instances.len();
        instances.retain(|instance| instance.key != *key);
        if instances.len() == before { Ok(()) } else { self.write(&instances) }
    }
}

/// Where the list of a simulated host is, below the state folder.
pub fn list_file(state_dir: &Path) -> PathBuf {
    state_dir.join("simulated-gpu-instances.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{host::gpu_driver::What, partition::Refusal};
    use gpudesk_inventory::simulated::HostFile;

    struct Fixture {
        dir: tempfile::TempDir,
        host: SimulatedHost,
    }

    impl Fixture {
        fn new(model: &str) -> Self {
            let text =
                format!("{{coresPerSocket: 4, memoryMiB: 8192, cards: [{{model: {model}, count: 1}}]}}");
            let host = HostFile::parse(&text).unwrap().host("sim").unwrap();
            Self { dir: tempfile::tempdir().unwrap(), host }
        }

        fn driver(&self) -> SimulatedDriver {
            SimulatedDriver::new(&self.host, list_file(self.dir.path()))
        }

        fn wanted(&self, uid: &str, mode: ShareMode, type_name: &str, start: Option<i32>) -> WantedInstance {
            WantedInstance {
                key: InstanceKey { desktop_uid: uid.into(), request: "screen".into() },
                owner: format!("school/{uid}"),
                allocation: None,
                card: self.host.facts.cards[0].pci_address,
                share: Share { mode, type_name: type_name.into(), vgpu_type: None, start },
                setup: crate::host::gpu_driver::Setup::default(),
                partition: None,
                what: What::Card,
            }
        }

        fn mig(&self, uid: &str, profile: &str, vgpu: &str, start: i32) -> WantedInstance {
            let mut wanted = self.wanted(uid, ShareMode::Mig, profile, Some(start));
            wanted.share.vgpu_type = Some(vgpu.into());
            wanted
        }
    }

    fn refusal(result: Result<GpuInstance, GpuError>) -> Refusal {
        match result.unwrap_err() {
            GpuError::Refused { source, .. } => source,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn making_the_same_share_twice_gives_the_first_back() {
        let f = Fixture::new("L40S");
        let wanted = f.wanted("a", ShareMode::Vgpu, "L40S-8Q", None);
        let first = f.driver().create(&wanted).unwrap();
        assert_eq!(f.driver().create(&wanted).unwrap(), first);
        assert_eq!(f.driver().instances().unwrap(), [first]);
        let other = f.wanted("a", ShareMode::Vgpu, "L40S-4Q", None);
        assert!(matches!(f.driver().create(&other), Err(GpuError::Differs { .. })));
    }

    #[test]
    fn a_daemon_that_starts_again_finds_what_was_made_and_a_reboot_forgets_it() {
        let f = Fixture::new("T4");
        let made = f.driver().create(&f.wanted("a", ShareMode::Vgpu, "T4-8Q", None)).unwrap();
        assert!(matches!(made.handle, Handle::Mdev(_)));
        assert_eq!(f.driver().instances().unwrap().len(), 1);
        f.driver().reboot().unwrap();
        assert_eq!(f.driver().instances().unwrap(), []);
    }

    #[test]
    fn equal_size_means_one_size_and_no_more_than_fit() {
        let f = Fixture::new("L40S");
        for n in 0..3 {
            f.driver().create(&f.wanted(&n.to_string(), ShareMode::Vgpu, "L40S-16Q", None)).unwrap();
        }
        let full = f.driver().create(&f.wanted("d", ShareMode::Vgpu, "L40S-16Q", None));
        assert!(matches!(refusal(full), Refusal::Full { max: 3, .. }));
        let other = f.driver().create(&f.wanted("d", ShareMode::Vgpu, "L40S-8Q", None));
        assert!(matches!(refusal(other), Refusal::OtherSize { .. }));
        let mixed = f.driver().create(&f.wanted("d", ShareMode::Vgpu, "L40S-8Q", Some(0)));
        assert!(matches!(refusal(mixed), Refusal::MixedWithEqual { .. }));
        let whole = f.driver().create(&f.wanted("d", ShareMode::Passthrough, "Passthrough", None));
        assert!(matches!(refusal(whole), Refusal::ModeInUse { .. }));
    }

    #[test]
    fn mixed_sizes_obey_the_published_positions() {
        let f = Fixture::new("L40S");
        let vgpu =
            |uid: &str, t: &str, start| f.driver().create(&f.wanted(uid, ShareMode::Vgpu, t, Some(start)));
        vgpu("a", "L40S-16Q", 0).unwrap();
        vgpu("b", "L40S-8Q", 16).unwrap();
        assert!(matches!(refusal(vgpu("c", "L40S-16Q", 16)), Refusal::IllegalStart { .. }));
        assert!(matches!(refusal(vgpu("c", "L40S-12Q", 12)), Refusal::Overlap { .. }));
        vgpu("c", "L40S-12Q", 24).unwrap();
        vgpu("d", "L40S-12Q", 36).unwrap();
        assert!(matches!(refusal(vgpu("e", "L40S-1Q", 47)), Refusal::Overlap { .. }));
    }

    #[test]
    fn mig_needs_a_vgpu_on_it_a_legal_start_and_free_slices() {
        let f = Fixture::new("H100 80GB");
        let bare = f.wanted("a", ShareMode::Mig, "3g.40gb", Some(0));
        assert!(matches!(refusal(f.driver().create(&bare)), Refusal::VgpuType { .. }));
        f.driver().create(&f.mig("a", "3g.40gb", "H100-3-40C", 4)).unwrap();
        let illegal = f.driver().create(&f.mig("b", "2g.20gb", "H100-2-20C", 1));
        assert!(matches!(refusal(illegal), Refusal::IllegalStart { .. }));
        let overlap = f.driver().create(&f.mig("b", "2g.20gb", "H100-2-20C", 4));
        assert!(matches!(refusal(overlap), Refusal::Overlap { .. }));
        f.driver().create(&f.mig("b", "3g.40gb", "H100-3-40C", 0)).unwrap();
        // One compute slice is left, but no memory: nothing fits any more.
        for start in 0..7 {
            assert!(f.driver().create(&f.mig("c", "1g.10gb", "H100-1-10C", start)).is_err());
        }
    }

    #[test]
    fn only_gfx_instances_of_an_rtx_pro_6000_hold_vgpus() {
        let f = Fixture::new("RTX PRO 6000 Blackwell Server Edition");
        f.driver().create(&f.mig("a", "2g.48gb+gfx", "DC-2-48Q", 0)).unwrap();
        f.driver().create(&f.mig("b", "1g.24gb+gfx", "DC-1-24Q", 6)).unwrap();
        f.driver().create(&f.mig("c", "1g.24gb+gfx", "DC-1-24Q", 9)).unwrap();
        assert_eq!(f.driver().instances().unwrap().len(), 3);
        let no_vgpu = f.driver().create(&f.mig("d", "1g.24gb", "DC-1-24Q", 0));
        assert!(matches!(refusal(no_vgpu), Refusal::VgpuType { .. }));
    }

    #[test]
    fn a_gpu_instance_is_there_as_long_as_one_of_its_vgpus() {
        let f = Fixture::new("RTX PRO 6000 Blackwell Server Edition");
        let small = |uid: &str, start| f.driver().create(&f.mig(uid, "1g.24gb+gfx", "DC-1-2Q", start));
        let (a, b, elsewhere) = (small("a", 3).unwrap(), small("b", 3).unwrap(), small("c", 0).unwrap());
        assert_eq!((&a.mig_uuid, a.gpu_instance), (&b.mig_uuid, b.gpu_instance));
        assert_ne!((&a.mig_uuid, a.gpu_instance), (&elsewhere.mig_uuid, elsewhere.gpu_instance));
        assert_eq!(small("a", 3).unwrap(), a, "the same again");
        let shown = [a.api(), b.api()];
        assert_ne!(shown[0].id, shown[1].id);
        for (one, owner) in shown.iter().zip(["school/a", "school/b"]) {
            assert_eq!((one.type_name.as_str(), one.vgpu_type.as_deref()), ("1g.24gb+gfx", Some("DC-1-2Q")));
            assert_eq!((one.start, one.gpu_instance, one.owner.as_deref()), (Some(3), Some(1), Some(owner)));
        }
        let larger = || f.driver().create(&f.mig("d", "1g.24gb+gfx", "DC-1-4Q", 3));
        let half = || f.driver().create(&f.mig("d", "2g.48gb+gfx", "DC-2-48Q", 0));
        f.driver().destroy(&a.key).unwrap();
        f.driver().destroy(&elsewhere.key).unwrap();
        assert!(matches!(refusal(larger()), Refusal::OtherSizeOnInstance { .. }), "b is still on it");
        assert!(matches!(refusal(half()), Refusal::Overlap { .. }), "and so the instance is there");
        f.driver().destroy(&b.key).unwrap();
        let alone = half().unwrap();
        assert_eq!(alone.gpu_instance, Some(1), "numbers are used again");
    }

    #[test]
    fn forty_eight_desktops_share_the_four_gpu_instances_of_a_card() {
        let f = Fixture::new("RTX PRO 6000 Blackwell Server Edition");
        let small =
            |n: i32, start| f.driver().create(&f.mig(&n.to_string(), "1g.24gb+gfx", "DC-1-2Q", start));
        for n in 0..48 {
            small(n, n / 12 * 3).unwrap();
        }
        for start in [0, 3, 6, 9] {
            assert!(matches!(refusal(small(48, start)), Refusal::InstanceFull { max: 12, .. }));
        }
        let made = f.driver().instances().unwrap();
        let distinct = |of: &dyn Fn(&GpuInstance) -> String| {
            made.iter().map(of).collect::<std::collections::BTreeSet<_>>().len()
        };
        assert_eq!(distinct(&|one| one.api().id), 48);
        assert_eq!(distinct(&|one| format!("{:?}", one.handle)), 48);
        assert_eq!(distinct(&|one| one.mig_uuid.clone().unwrap()), 4);
        assert_eq!(distinct(&|one| one.gpu_instance.unwrap().to_string()), 4);
    }

    #[test]
    fn virtual_functions_are_all_of_one_size() {
        let f = Fixture::new("Instinct MI300X");
        let vf = |uid: &str, t: &str| f.driver().create(&f.wanted(uid, ShareMode::VirtualFunctions, t, None));
        let (a, b) = (vf("a", "MI300X-8VF").unwrap(), vf("b", "MI300X-8VF").unwrap());
        assert_ne!(a.handle, b.handle);
        assert!(matches!(refusal(vf("c", "MI300X-1VF")), Refusal::OtherSize { .. }));
        f.driver().destroy(&a.key).unwrap();
        assert_eq!(vf("c", "MI300X-8VF").unwrap().handle, a.handle, "functions are used again");
    }

    #[test]
    fn unmaking_twice_is_no_error() {
        let f = Fixture::new("T4");
        let made = f.driver().create(&f.wanted("a", ShareMode::Vgpu, "T4-8Q", None)).unwrap();
        f.driver().destroy(&made.key).unwrap();
        f.driver().destroy(&made.key).unwrap();
    }

    #[test]
    fn a_list_that_cannot_be_read_is_not_an_empty_one() {
        let f = Fixture::new("T4");
        fs::write(list_file(f.dir.path()), "not json").unwrap();
        assert!(matches!(f.driver().instances(), Err(GpuError::State { .. })));
        assert!(f.driver().create(&f.wanted("a", ShareMode::Vgpu, "T4-8Q", None)).is_err());
    }
}
