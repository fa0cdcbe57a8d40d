//! One card, changed through NVIDIA's management library.
//!
//! ```text
//!   what there is ─▶ layout ─▶ Change, Change ... ─▶ Control::change ─▶ the driver
//!                   (pure)                              └─▶ ChangeLog
//! ```
//!
//! Everything that changes something is a [`Change`], and goes through [`Control::change`] alone: it can be
//! written down before, compared after, and done again by who reads what there is first.
//!
//! Calls block, as long as the driver does. Do them on a thread that may be left behind.

mod change;
mod fault;
mod instances;
pub mod layout;
mod settings;
mod vgpu;

use std::{cell::Cell, sync::Arc};

use gpudesk_crds::types::PciAddress;
use nvml_wrapper_sys::bindings::{NvmlLib, nvmlDevice_t};

pub use self::{
    change::{Activation, Change, Done, Scheduling, Waiting},
    fault::NvmlFault,
    settings::{HoldingProcess, PowerLimits},
    vgpu::Starts,
};
use super::{
    card,
    gate::Gate,
    library::{CallError, Library, Session},
};

/// Hears of every change of a card, before it is tried and when it ended.
pub trait ChangeLog {
    /// It is about to be tried.
    fn begins(&self, card: PciAddress, change: &Change);
    /// It ended. A thread that is left behind never says so.
    fn ended(&self, card: PciAddress, change: &Change, outcome: Result<&Done, &NvmlFault>);
}

/// Nobody listens.
impl ChangeLog for () {
    fn begins(&self, _: PciAddress, _: &Change) {}
    fn ended(&self, _: PciAddress, _: &Change, _: Result<&Done, &NvmlFault>) {}
}

/// A card of NVIDIA's driver. It is held open until this is dropped: do that before it is given to another
/// driver.
pub struct Control {
    session: Session,
    card: PciAddress,
    /// Another one after the mode of MIG changed.
    device: Cell<nvmlDevice_t>,
    log: Arc<dyn ChangeLog>,
}

impl Control {
    pub(super) fn open(
        library: Arc<Library>,
        gate: &Gate,
        card: PciAddress,
        log: Arc<dyn ChangeLog>,
    ) -> Result<Self, NvmlFault> {
        let session = Session::begin(library, gate).map_err(|error| NvmlFault::Driver { card, error })?;
        let device = card::device(session.functions(), card);
        let device = Cell::new(device.map_err(|error| NvmlFault::new(card, error))?);
        Ok(Self { session, card, device, log })
    }

    /// Its address.
    pub fn card(&self) -> PciAddress {
        self.card
    }

    /// Changes the card.
    ///
    /// # Errors
    /// When the driver refuses; [`NvmlFault::is_in_use`] may be tried again.
    pub fn change(&self, change: &Change) -> Result<Done, NvmlFault> {
        self.log.begins(self.card, change);
        let outcome = self.apply(change);
        self.log.ended(self.card, change, outcome.as_ref());
        outcome
    }

    fn apply(&self, change: &Change) -> Result<Done, NvmlFault> {
        let done = match change {
            Change::MigMode(on) => return self.set_mig_mode(*on).map(Done::Activation),
            Change::CreateGpuInstance(at) => return self.create_gpu_instance(at),
            Change::CreateComputeInstance { on, profile } => {
                return self.create_compute_instance(on, *profile);
            }
            Change::DestroyComputeInstance { on, id, uuid } => {
                self.destroy_compute_instance(on, *id, uuid.as_deref())
            }
            Change::DestroyGpuInstance(at) => self.destroy_gpu_instance(at),
            Change::MixedSize(mixed) => self.set_mixed_size(*mixed),
            Change::MixedSizeOn { on, mixed } => self.set_mixed_size_on(on, *mixed),
            Change::Scheduler(wanted) => self.set_scheduler(*wanted),
            Change::SchedulerOn { on, wanted } => self.set_scheduler_on(on, *wanted),
            Change::VgpuCapability { number, on } => self.set_vgpu_capability(*number, *on),
            Change::Persistence(on) => self.set_persistence(*on),
            Change::PowerLimit { milliwatts } => self.set_power_limit(*milliwatts),
            Change::LockClocks { least_mhz, most_mhz } => self.lock_clocks(*least_mhz, *most_mhz),
            Change::ResetClocks => self.reset_clocks(),
        };
        done.map(|()| Done::Plainly)
    }

    fn nvml(&self) -> &NvmlLib {
        self.session.functions()
    }

    /// An answer that names the card when it is none.
    fn told<T>(&self, answer: Result<T, CallError>) -> Result<T, NvmlFault> {
        answer.map_err(|error| NvmlFault::new(self.card, error))
    }
}
