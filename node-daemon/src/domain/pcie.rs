//! The guest's PCI Express buses.
//!
//! ```text
//!   pcie-root ─┬─ root port ─ device
//!              ├─ root port ─ (empty)
//!              ├─ expander, guest cell 0 ─ root port ─ host device
//!              └─ expander, guest cell 1 ─ root port ─ host device
//! ```
//!
//! A guest learns the cell of a device from the host bridge above it, and only an expander can be of
//! a cell: so each guest cell with host devices has one.

use std::collections::BTreeMap;

use super::hostdev::Given;
use super::xml::Xml;
use super::{DomainError, Hostdev};

/// Empty ports kept for devices that are plugged in later.
const SPARE_PORTS: usize = 4;
/// Bus numbers of a PCI domain.
const BUS_NUMBERS: usize = 256;

/// The buses of one machine, with the ports that its host devices take.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Buses {
    /// Ports at the root.
    root_ports: usize,
    /// By guest cell.
    expanders: Vec<Expander>,
}

/// The host bridge of a guest cell.
#[derive(Debug, PartialEq, Eq)]
struct Expander {
    /// The guest cell.
    cell: u32,
    /// Its number among the controllers; its ports have the numbers after it.
    index: usize,
    /// The host devices below it, by their position in the list; one port for each.
    devices: Vec<usize>,
    /// The bus number at which it begins, high enough for its ports.
    first_bus: usize,
}

impl Buses {
    /// The buses for `others` devices of the machine itself and the host devices of `given`.
    pub(super) fn plan(others: usize, given: &[Given]) -> Self {
        let mut of_cell: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        let mut at_root = 0;
        for (position, Given { device: _, guest_cell }) in given.iter().enumerate() {
            match guest_cell {
                Some(cell) => of_cell.entry(*cell).or_default().push(position),
                None => at_root += 1,
            }
        }
        let root_ports = others + at_root + SPARE_PORTS;
        let mut index = root_ports + 1;
        let mut expanders = vec![];
        for (cell, devices) in of_cell {
            let next = index + 1 + devices.len();
            expanders.push(Expander { cell, index, devices, first_bus: 0 });
            index = next;
        }
        // From the top down: the numbers below are the root's. libvirt itself would leave room for a
        // single port.
        let mut end = BUS_NUMBERS;
        for expander in expanders.iter_mut().rev() {
            end = end.saturating_sub(1 + expander.devices.len());
            expander.first_bus = end;
        }
        Self { root_ports, expanders }
    }

    /// How many buses there are.
    fn count(&self) -> usize {
        let below = self.expanders.iter().map(|expander| 1 + expander.devices.len());
        1 + self.root_ports + below.sum::<usize>()
    }

    pub(super) fn check(&self, guest_cells: usize) -> Result<(), DomainError> {
        for Expander { cell, .. } in &self.expanders {
            if usize::try_from(*cell).is_ok_and(|cell| cell >= guest_cells) {
                return Err(DomainError::NoSuchCell { cell: *cell, cells: guest_cells });
            }
        }
        match self.count() {
            count if count > BUS_NUMBERS => Err(DomainError::TooManyBuses { count }),
            _ => Ok(()),
        }
    }

    /// The controllers.
    ///
    /// libvirt fills ports in order and adds what is missing, so only a count above the devices'
    /// own leaves ports empty.
    pub(super) fn write(&self, xml: &mut Xml) {
        xml.empty("controller", &[("type", &"pci"), ("index", &0), ("model", &"pcie-root")]);
        for index in 1..=self.root_ports {
            xml.empty("controller", &[("type", &"pci"), ("index", &index), ("model", &"pcie-root-port")]);
        }
        for Expander { cell, index, devices, first_bus } in &self.expanders {
            xml.nest(
                "controller",
                &[("type", &"pci"), ("index", index), ("model", &"pcie-expander-bus")],
                |xml| xml.nest("target", &[("busNr", first_bus)], |xml| xml.text("node", &[], cell)),
            );
            for slot in 0..devices.len() {
                xml.nest(
                    "controller",
                    &[("type", &"pci"), ("index", &(index + 1 + slot)), ("model", &"pcie-root-port")],
                    |xml| write_address(xml, *index, slot),
                );
            }
        }
    }

    /// A host device, at its port where it has one of its own.
    pub(super) fn write_hostdev(&self, xml: &mut Xml, position: usize, device: &Hostdev) {
        let port = self.expanders.iter().find_map(|expander| {
            let slot = expander.devices.iter().position(|device| *device == position)?;
            Some(expander.index + 1 + slot)
        });
        device.write(xml, position, |xml| {
            if let Some(port) = port {
                write_address(xml, port, 0);
            }
        });
    }
}

/// An address on the bus that the controller `bus` makes.
fn write_address(xml: &mut Xml, bus: usize, slot: usize) {
    xml.empty(
        "address",
        &[
            ("type", &"pci"),
            ("domain", &"0x0000"),
            ("bus", &format_args!("{bus:#04x}")),
            ("slot", &format_args!("{slot:#04x}")),
            ("function", &"0x0"),
        ],
    );
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::domain::MdevDisplay;

    fn given(cells: &[Option<u32>]) -> Vec<Given> {
        let device = |number: usize| Hostdev::Mdev {
            uuid: Uuid::from_u128(number as u128),
            display: MdevDisplay::Off,
        };
        (0..).zip(cells).map(|(number, cell)| Given { device: device(number), guest_cell: *cell }).collect()
    }

    #[test]
    fn without_cells_every_device_is_at_the_root() {
        let buses = Buses::plan(5, &given(&[None, None]));
        assert_eq!(buses, Buses { root_ports: 5 + 2 + SPARE_PORTS, expanders: vec![] });
        assert_eq!(buses.check(0), Ok(()));
    }

    #[test]
    fn too_many_are_refused() {
        let cells = vec![Some(0); 250];
        let error = Buses::plan(5, &given(&cells)).check(2).unwrap_err();
        assert_eq!(error, DomainError::TooManyBuses { count: 261 });
    }

    proptest! {
        #[test]
        fn no_two_share_a_controller_or_a_bus_number(
            others in 0_usize..30,
            cells in proptest::collection::vec(proptest::option::of(0_u32..8), 0..40),
        ) {
            let buses = Buses::plan(others, &given(&cells));
            prop_assert_eq!(buses.check(8), Ok(()));
            let mut index = buses.root_ports + 1;
            let mut first_free = buses.root_ports + 1;
            for expander in &buses.expanders {
                prop_assert_eq!(expander.index, index);
                prop_assert!(expander.first_bus >= first_free);
                index += 1 + expander.devices.len();
                first_free = expander.first_bus + 1 + expander.devices.len();
                for device in &expander.devices {
                    prop_assert_eq!(cells[*device], Some(expander.cell));
                }
            }
            prop_assert!(first_free <= BUS_NUMBERS);
            let behind: usize = buses.expanders.iter().map(|expander| expander.devices.len()).sum();
            prop_assert_eq!(behind, cells.iter().flatten().count());
        }
    }
}
