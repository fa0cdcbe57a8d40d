//! Memory, its pages and its place: `<memory>`, `<memoryBacking>`, `<numatune>` and the guest's cells.

use std::collections::BTreeSet;
use std::num::NonZeroU64;

use super::xml::Xml;
use super::{CpuSet, DomainError};

/// The guest's memory.
///
/// The total is computed from the layout, never given beside it: a guest cell that does not agree with
/// the total makes libvirt change the total without a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// How much, and how the guest sees it.
    pub layout: MemoryLayout,
    /// Which pages of the host hold it.
    pub pages: PageSize,
}

/// How much memory, and how the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemoryLayout {
    /// One piece.
    Flat {
        /// MiB.
        mib: NonZeroU64,
        /// Where on the host; `None`: anywhere.
        place: Option<HostCells>,
    },
    /// Guest NUMA cells, numbered in this order.
    Cells(Vec<GuestCell>),
}

/// One NUMA cell that the guest sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestCell {
    /// Its vCPUs.
    pub vcpus: CpuSet,
    /// MiB.
    pub mib: NonZeroU64,
    /// Where on the host; `None`: anywhere.
    pub place: Option<HostCells>,
}

/// The host's NUMA cells that memory comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostCells {
    /// From these or not at all.
    Strict(CpuSet),
    /// From this one while it has any: the kernel knows a preference for a single cell only.
    Preferred(u32),
}

/// Which pages of the host hold the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageSize {
    /// The host's normal pages.
    Normal,
    /// Reserved pages of 2 MiB.
    Mib2,
    /// Reserved pages of 1 GiB.
    Gib1,
}

impl PageSize {
    /// MiB of a reserved page.
    fn mib(self) -> Option<u64> {
        match self {
            Self::Normal => None,
            Self::Mib2 => Some(2),
            Self::Gib1 => Some(1024),
        }
    }
}

impl HostCells {
    fn mode(&self) -> &'static str {
        match self {
            Self::Strict(_) => "strict",
            Self::Preferred(_) => "preferred",
        }
    }

    fn nodes(&self) -> String {
        match self {
            Self::Strict(cells) => cells.to_string(),
            Self::Preferred(cell) => cell.to_string(),
        }
    }
}

impl Memory {
    /// MiB in all.
    #[must_use]
    pub fn mib(&self) -> u64 {
        match &self.layout {
            MemoryLayout::Flat { mib, .. } => mib.get(),
            MemoryLayout::Cells(cells) => {
                cells.iter().fold(0, |sum, cell| sum.saturating_add(cell.mib.get()))
            }
        }
    }

    /// The cells that the guest sees; none when it sees one piece.
    pub(super) fn guest_cells(&self) -> &[GuestCell] {
        match &self.layout {
            MemoryLayout::Flat { .. } => &[],
            MemoryLayout::Cells(cells) => cells,
        }
    }

    pub(super) fn check(&self, vcpus: u32) -> Result<(), DomainError> {
        let parts: Vec<u64> = match &self.layout {
            MemoryLayout::Flat { mib, .. } => vec![mib.get()],
            MemoryLayout::Cells(cells) => cells.iter().map(|cell| cell.mib.get()).collect(),
        };
        if let Some(page) = self.pages.mib()
            && let Some(mib) = parts.into_iter().find(|mib| mib % page != 0)
        {
            return Err(DomainError::BrokenPages { mib, page });
        }
        if let MemoryLayout::Cells(cells) = &self.layout {
            let listed: Vec<u32> = cells.iter().flat_map(|cell| cell.vcpus.iter()).collect();
            let distinct: BTreeSet<u32> = listed.iter().copied().collect();
            if distinct.len() != listed.len() || !distinct.into_iter().eq(0..vcpus) {
                return Err(DomainError::CellsAndVcpus { vcpus });
            }
        }
        Ok(())
    }

    pub(super) fn write_size(&self, xml: &mut Xml) {
        xml.text("memory", &[("unit", &"MiB")], self.mib());
    }

    /// `shared`: another process maps the memory too, as virtiofsd does.
    pub(super) fn write_backing(&self, xml: &mut Xml, shared: bool) {
        if self.pages == PageSize::Normal && !shared {
            return;
        }
        xml.nest("memoryBacking", &[], |xml| {
            if let Some(mib) = self.pages.mib() {
                xml.nest("hugepages", &[], |xml| {
                    xml.empty("page", &[("size", &mib), ("unit", &"MiB")]);
                });
            }
            if shared {
                xml.empty("source", &[("type", &"memfd")]);
                xml.empty("access", &[("mode", &"shared")]);
            }
        });
    }

    pub(super) fn write_place(&self, xml: &mut Xml) {
        match &self.layout {
            MemoryLayout::Flat { place: None, .. } => {}
            MemoryLayout::Flat { place: Some(place), .. } => xml.nest("numatune", &[], |xml| {
                xml.empty("memory", &[("mode", &place.mode()), ("nodeset", &place.nodes())]);
            }),
            MemoryLayout::Cells(cells) if cells.iter().all(|cell| cell.place.is_none()) => {}
            MemoryLayout::Cells(cells) => xml.nest("numatune", &[], |xml| {
                for (id, cell) in cells.iter().enumerate() {
                    if let Some(place) = &cell.place {
                        xml.empty(
                            "memnode",
                            &[("cellid", &id), ("mode", &place.mode()), ("nodeset", &place.nodes())],
                        );
                    }
                }
            }),
        }
    }

    /// The `<numa>` part of `<cpu>`.
    pub(super) fn write_guest_cells(&self, xml: &mut Xml) {
        if self.guest_cells().is_empty() {
            return;
        }
        xml.nest("numa", &[], |xml| {
            for (id, cell) in self.guest_cells().iter().enumerate() {
                xml.empty(
                    "cell",
                    &[("id", &id), ("cpus", &cell.vcpus), ("memory", &cell.mib), ("unit", &"MiB")],
                );
            }
        });
    }
}
