//! Cards of a simulated host: where they sit, and all that their drivers say of them.

use gpudesk_crds::{
    gpu_node_status::{
        Bar, CardUnits, Companion, Device, Framework, GroupMember, Health, HealthState, MigMode, PcieLink,
        RecoveryAction, Sriov, VirtualFunction,
    },
    types::PciAddress,
};

use super::{
    catalogue::{CardModel, Catalogue, CatalogueError, Link},
    serial, uuid,
};
use crate::topology::iommu;

/// Buses that each board takes, so that a switch and the GPUs below it have room.
pub(super) const BUSES_PER_BOARD: i32 = 8;
/// Number of the IOMMU group of the first card; companions share it, virtual functions do not.
const FIRST_GROUP: i32 = 20;
/// Number of the IOMMU group of the first virtual function of the first card.
const FIRST_FUNCTION_GROUP: i32 = 1000;
/// Groups kept for the virtual functions of one card.
const GROUPS_PER_CARD: i32 = 256;
/// The first virtual function of NVIDIA's cards: four functions after the card.
const FIRST_FUNCTION: i32 = 4;
/// Degrees of an idle card.
const IDLE_CELSIUS: i32 = 35;

/// Where a GPU sits.
pub(super) struct Seat<'a> {
    pub(super) name: &'a str,
    pub(super) index: i32,
    pub(super) cell: i32,
    /// Which board on its NUMA cell.
    pub(super) board: i32,
    /// Which GPU on its board.
    pub(super) gpu: i32,
    pub(super) sockets: i32,
    pub(super) iommu: bool,
}

/// The first bus of a NUMA cell.
pub(super) fn root_bus(cell: i32, sockets: i32) -> i32 {
    cell * (256 / sockets)
}

/// The host bridge at a root bus.
pub(super) fn root_complex(bus: i32) -> String {
    format!("pci0000:{bus:02x}")
}

pub(super) fn address(bus: i32, device: i32, function: u8) -> PciAddress {
    PciAddress {
        domain: 0,
        bus: u8::try_from(bus).unwrap_or(u8::MAX),
        device: u8::try_from(device).unwrap_or(31),
        function,
    }
}

/// A link that is used as far as it goes.
pub(super) fn full_link(link: Link) -> PcieLink {
    let (lanes, speed) = (Some(link.lanes), Some(link.speed_mtps()));
    PcieLink { width: lanes, max_width: lanes, speed_mtps: speed, max_speed_mtps: speed }
}

impl Seat<'_> {
    /// The GPU on this seat, with everything but its place in a fabric.
    ///
    /// # Errors
    /// [`CatalogueError::UnknownTable`], which a test excludes.
    pub(super) fn device(
        &self,
        catalogue: &Catalogue,
        model: &CardModel,
        framework: Option<Framework>,
    ) -> Result<Device, CatalogueError> {
        let root_bus = root_bus(self.cell, self.sockets);
        let bus = root_bus + (self.board + 1) * BUSES_PER_BOARD;
        let root_port = address(root_bus, self.board % 31 + 1, 0);
        let (pci_address, pcie_path) = if model.gpus_per_board > 1 {
            let downstream = address(bus + 1, self.gpu, 0);
            (address(bus + 2 + self.gpu, 0, 0), vec![root_port, address(bus, 0, 0), downstream])
        } else {
            (address(bus, 0, 0), vec![root_port])
        };
        let (vendor_id, device_id) = model.ids();
        let mut device = Device::new(pci_address, vendor_id, device_id);
        device.product.clone_from(&model.model);
        device.class.clone_from(&model.class);
        device.subsystem.clone_from(&model.subsystem);
        device.boot_vga = model.boot_vga;
        device.uuid = Some(format!("GPU-{}", uuid(&[self.name, "gpu", &self.index.to_string()])));
        device.serial = Some(serial(self.name, self.index));
        device.numa_cell = Some(self.cell);
        device.root_complex = Some(root_complex(root_bus));
        device.pcie_path = pcie_path;
        device.link = model.link.map(full_link);
        device.companions = companions(pci_address, model);
        device.driver = Some(model.driver.clone());
        device.bars = model
            .bars
            .iter()
            .map(|(index, mib)| Bar { index: *index, size_bytes: mib << 20, unassigned: false })
            .collect();
        device.reset_methods.clone_from(&model.reset_methods);
        device.memory_mib = (model.memory_mib > 0).then_some(model.memory_mib);
        device.health = Health { state: HealthState::Healthy, ..Health::default() };
        if model.driver == "nvidia" {
            device.health.recovery_action = Some(RecoveryAction::None);
            device.temperature_celsius = Some(IDLE_CELSIUS);
        }
        device.temperature_thresholds = model.temperature_thresholds();
        device.framework = framework;
        device.placements = catalogue.placements(model, framework)?;
        device.units = Some(CardUnits::of(&device.placements));
        device.mig = model.has_mig().then(MigMode::default);
        device.vgpu = model.vgpu_state(&device.placements);
        self.functions(&mut device, model);
        if self.iommu {
            let member = |companion: &Companion| GroupMember {
                pci_address: companion.pci_address,
                class: Some(companion.class.clone()),
                driver: companion.driver.clone(),
            };
            let members = device.companions.iter().map(member).collect();
            device.iommu_group =
                Some(iommu::judge(FIRST_GROUP + self.index, pci_address, members, |address| {
                    address == pci_address
                }));
        }
        Ok(device)
    }

    /// The virtual functions: on where vGPUs are made on them.
    fn functions(&self, device: &mut Device, model: &CardModel) {
        let Some(total_vfs) = model.total_virtual_functions(&device.placements) else { return };
        let carry_vgpus = match device.framework {
            Some(Framework::Mdev | Framework::VendorVfio) => !model.types_on_card,
            Some(Framework::Sriov) | None => false,
        };
        let num_vfs = if carry_vgpus { total_vfs } else { 0 };
        device.sriov = Some(Sriov { total_vfs, num_vfs });
        let bus = i32::from(device.pci_address.bus);
        let function = |index: i32| {
            let number = FIRST_FUNCTION + index;
            VirtualFunction {
                pci_address: address(bus, number / 8, u8::try_from(number % 8).unwrap_or_default()),
                index,
                device_id: None,
                driver: device.driver.clone(),
                iommu_group: self
                    .iommu
                    .then_some(FIRST_FUNCTION_GROUP + self.index * GROUPS_PER_CARD + index),
                unavailable: None,
            }
        };
        device.virtual_functions = (0..num_vfs).map(function).collect();
    }
}

fn companions(pci_address: PciAddress, model: &CardModel) -> Vec<Companion> {
    let companion = |(companion, function): (&super::catalogue::CompanionModel, u8)| Companion {
        pci_address: PciAddress { function, ..pci_address },
        class: companion.class.clone(),
        vendor_id: model.ids().0.into(),
        device_id: companion.device_id.clone(),
        driver: Some(companion.driver.clone()),
    };
    model.companions.iter().zip(1..8).map(companion).collect()
}
