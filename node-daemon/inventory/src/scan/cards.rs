//! Cards: display controllers and accelerators.

use gpudesk_crds::{
    gpu_node_status::{Bar, Companion, Device, ResizableBar, VirtualFunction},
    types::PciAddress,
};

use super::{Scanner, functions::Function};
use crate::{
    topology::{nvidia, pci},
    tree::Dir,
};

impl Scanner {
    /// A card, without its name; `None` when it cannot be read.
    pub(super) fn card(&mut self, address: PciAddress) -> Option<Device> {
        let mut card = self.card_itself(address, None)?;
        self.shares(&mut card);
        Some(card)
    }

    /// A card of which virtual functions and their number are known. Gives the functions back when it
    /// is gone, or has another number of them.
    pub(super) fn card_with(
        &mut self,
        address: PciAddress,
        (functions, count): (Vec<VirtualFunction>, Option<i32>),
    ) -> Result<Device, Vec<VirtualFunction>> {
        let Some(mut card) = self.card_itself(address, Some(vec![])) else { return Err(functions) };
        if card.sriov.map(|sriov| sriov.num_vfs) != count {
            return Err(functions);
        }
        card.virtual_functions = functions;
        if card.virtual_functions.is_empty() {
            self.shares(&mut card);
        }
        Ok(card)
    }

    fn card_itself(&self, address: PciAddress, functions: Option<Vec<VirtualFunction>>) -> Option<Device> {
        let function = self.function(address)?;
        let mut card = Device::new(address, &*function.vendor_id, &*function.device_id);
        card.iommu_group = self.iommu_group(&function, address);
        card.companions = self.companions(address);
        card.virtual_functions = functions.unwrap_or_else(|| self.virtual_functions(&function, address));
        card.boot_vga = function.dir.line("boot_vga").as_deref() == Some("1");
        card.memory_mib = self.memory_mib(&function);
        self.as_driver_says(&function, &mut card);
        card.bars = self.bars(&function.dir, address);
        card.resizable_bar = self.resizable_bar(&function.dir, address);
        card.kind = pci::card_kind(&function.class, &function.vendor_id, &function.device_id);
        let Function {
            dir: _,
            class,
            vendor_id: _,
            device_id: _,
            subsystem,
            numa_cell,
            driver,
            root_complex,
            pcie_path,
            link,
            reset_methods,
            sriov,
        } = function;
        Some(Device {
            class,
            subsystem,
            numa_cell,
            driver,
            root_complex,
            pcie_path,
            link,
            reset_methods,
            sriov,
            ..card
        })
    }

    /// The memory region that can be resized. To read which sizes it can have wakes a card that sleeps, and they do not
    /// change: once for each card.
    fn resizable_bar(&self, dir: &Dir<'_>, address: PciAddress) -> Option<ResizableBar> {
        let known = self.resizable.borrow().get(&address).cloned();
        known.unwrap_or_else(|| {
            let sizes = |index: i32| {
                let text = dir.text(&format!("resource{index}_resize"))?;
                Some((index, pci::resizable_sizes(&text)))
            };
            let found = pci::resizable_bar((0..6).filter_map(sizes));
            self.resizable.borrow_mut().insert(address, found.clone());
            found
        })
    }

    /// The memory regions of a card, with those that have no address.
    fn bars(&self, dir: &Dir<'_>, address: PciAddress) -> Vec<Bar> {
        let Some(resource) = dir.text("resource") else { return vec![] };
        let mut bars = pci::bars(&resource);
        if !pci::may_lack_a_region(&resource) {
            return bars;
        }
        // To read the configuration wakes a card that sleeps: once for each set of regions.
        let known = self.regions.borrow().get(&address).filter(|(of, _)| *of == resource).cloned();
        if let Some((_, bars)) = known {
            return bars;
        }
        if let Some(header) = dir.bytes("config", pci::HEADER) {
            pci::add_given_up(&mut bars, &resource, &header);
        }
        self.regions.borrow_mut().insert(address, (resource, bars.clone()));
        bars
    }

    /// Name, UUID and serial number as the kernel driver tells them in files. NVML tells more, where it is.
    fn as_driver_says(&self, function: &Function<'_>, card: &mut Device) {
        match function.driver.as_deref() {
            Some("nvidia") => {
                let path = format!("proc/driver/nvidia/gpus/{}/information", card.pci_address);
                let Some(text) = self.tree.text(&path) else { return };
                let found = nvidia::information(&text);
                card.uuid = found.uuid;
                if let Some(model) = found.model {
                    card.product = model;
                }
            }
            Some("amdgpu") => {
                let line = |file: &str| function.dir.line(file).filter(|line| line != "0" && line != "N/A");
                card.serial = line("serial_number").map(|serial| serial.chars().take(64).collect());
                if let Some(product) = line("product_name") {
                    card.product = product;
                }
            }
            _ => {}
        }
    }

    /// The other functions of the same card.
    fn companions(&self, address: PciAddress) -> Vec<Companion> {
        let companion = |function: u8| {
            let address = PciAddress { function, ..address };
            let class = self.classes.get(&address)?.clone();
            // A bridge beside a card is no part of it, and a second card goes its own way.
            if class.starts_with("06") || pci::kind(&class) != pci::FunctionKind::Other {
                return None;
            }
            let dir = self.tree.dir(&self.folder(address))?;
            let id = |file: &str| pci::id(&dir.text(file)?);
            Some(Companion {
                pci_address: address,
                class,
                vendor_id: id("vendor")?,
                device_id: id("device")?,
                driver: self.driver(dir.path()),
            })
        };
        (0..8).filter(|function| *function != address.function).filter_map(companion).collect()
    }

    /// The card's memory as its kernel driver tells it, in MiB: amdgpu, xe, and Intel's own i915, which
    /// tells it beside the card's device node. NVIDIA's driver tells it by NVML.
    fn memory_mib(&self, function: &Function<'_>) -> Option<i64> {
        let line = match function.driver.as_deref()? {
            "amdgpu" => function.dir.line("mem_info_vram_total"),
            "i915" => self.tree.line(&format!("{}/lmem_total_bytes", self.drm_card(function.dir.path())?)),
            "xe" => function.dir.line("tile0/physical_vram_size_bytes"),
            _ => None,
        }?;
        let bytes = match line.strip_prefix("0x") {
            Some(digits) => i64::from_str_radix(digits, 16).ok()?,
            None => line.parse().ok()?,
        };
        (bytes > 0).then_some(bytes >> 20)
    }

    /// Where a function's graphics driver tells more: `drm/card1` below the function.
    pub(super) fn drm_card(&self, folder: &str) -> Option<String> {
        let is_card = |name: &str| {
            let number = name.strip_prefix("card");
            number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
        };
        let cards = self.tree.names(&format!("{folder}/drm"), is_card);
        cards.first().map(|card| format!("{folder}/drm/{card}"))
    }
}
