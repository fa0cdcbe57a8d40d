//! Memory of a machine, and the NUMA cells that its guest sees. Pure.

use std::num::NonZeroU64;

use gpudesk_crds::{
    Compute, GuestCell as ApiGuestCell, desktop_template::MachineType, gpu_node_status::Device,
    types::PageSize as ApiPageSize,
};

use super::problem::Problem;
use crate::domain::{CpuSet, GuestCell, HostCells, Memory, MemoryLayout, PageSize};

/// The cells that the guest is shown, in the order of their numbers; none where it sees one piece.
///
/// A microvm is shown none: its firmware could not tell it. Its memory comes from the same cells of
/// the host all the same.
///
/// # Errors
/// Numbers with gaps, and cells that do not add up to the memory.
pub fn shown(compute: &Compute, machine: MachineType) -> Result<Vec<&ApiGuestCell>, Problem> {
    let mut cells: Vec<&ApiGuestCell> = match machine {
        MachineType::Q35 => compute.guest_cells.iter().collect(),
        MachineType::Microvm => vec![],
    };
    cells.sort_by_key(|cell| cell.id);
    if !(0..).zip(&cells).all(|(id, cell)| cell.id == id) {
        let ids: Vec<i32> = cells.iter().map(|cell| cell.id).collect();
        return Err(Problem::Invalid(format!(
            "allocation.compute.guestCells have the ids {ids:?}; they must count from 0"
        )));
    }
    let mib = cells.iter().fold(0_i64, |sum, cell| sum.saturating_add(cell.memory_mib));
    if !cells.is_empty() && mib != compute.memory_mib {
        return Err(Problem::Invalid(format!(
            "allocation.compute.guestCells hold {mib} MiB; memoryMiB is {}",
            compute.memory_mib
        )));
    }
    Ok(cells)
}

/// The guest's cell that a card belongs to. None with fewer than two cells, where it tells the guest
/// nothing, and for a card whose own cell is not known or not among those of the desktop.
pub fn of_card(card: Option<&Device>, cells: &[&ApiGuestCell]) -> Option<u32> {
    of_host(card?.numa_cell, cells)
}

/// The same, of a device that is of this cell of the host.
pub fn of_host(numa_cell: Option<i32>, cells: &[&ApiGuestCell]) -> Option<u32> {
    let host_cell = numa_cell.filter(|_| cells.len() > 1)?;
    cells.iter().find(|cell| cell.host_cell == host_cell).and_then(|cell| u32::try_from(cell.id).ok())
}

/// The memory, with its cells.
///
/// # Errors
/// [`Problem::Invalid`] for figures that cannot be.
pub fn memory(compute: &Compute, cells: &[&ApiGuestCell]) -> Result<Memory, Problem> {
    let pages = match compute.page_size {
        ApiPageSize::None => PageSize::Normal,
        ApiPageSize::Mi2 => PageSize::Mib2,
        ApiPageSize::Gi1 => PageSize::Gib1,
    };
    if cells.is_empty() {
        let mib = mib("memoryMiB", compute.memory_mib)?;
        return Ok(Memory { layout: MemoryLayout::Flat { mib, place: place(compute) }, pages });
    }
    let cells = cells.iter().map(|cell| {
        let host = u32::try_from(cell.host_cell)
            .map_err(|_| out_of_range("guestCells[].hostCell", cell.host_cell))?;
        Ok(GuestCell {
            vcpus: CpuSet::new(cell.vcpus.iter())
                .ok_or_else(|| out_of_range("guestCells[].vcpus", "empty"))?,
            mib: mib("guestCells[].memoryMiB", cell.memory_mib)?,
            place: Some(if compute.numa_strict {
                HostCells::Strict(CpuSet::only(host))
            } else {
                HostCells::Preferred(host)
            }),
        })
    });
    Ok(Memory { layout: MemoryLayout::Cells(cells.collect::<Result<_, Problem>>()?), pages })
}

fn mib(field: &str, value: i64) -> Result<NonZeroU64, Problem> {
    u64::try_from(value).ok().and_then(NonZeroU64::new).ok_or_else(|| out_of_range(field, value))
}

/// Where one piece of memory comes from.
fn place(compute: &Compute) -> Option<HostCells> {
    let cells: Vec<u32> = compute.numa_cells.iter().filter_map(|cell| u32::try_from(*cell).ok()).collect();
    match cells.as_slice() {
        [] => None,
        _ if compute.numa_strict => CpuSet::new(cells).map(HostCells::Strict),
        [cell] => Some(HostCells::Preferred(*cell)),
        // A preference for several cells is more than the kernel takes by way of libvirt.
        _ => None,
    }
}

/// A figure of the allocation that cannot be.
pub fn out_of_range(field: &str, value: impl std::fmt::Display) -> Problem {
    Problem::Invalid(format!("allocation.compute.{field} is {value}, which cannot be"))
}
