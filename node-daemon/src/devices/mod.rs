//! Cards of this machine given to desktops: made, proven and unmade, whatever fails in between.
//!
//! ```text
//!   what desktops have (journal) ─┐
//!   what is there now (observe) ──┼─▶ plan ─▶ first step ─▶ note it ─▶ do it ─▶ again, until nothing is left
//!   what is asked for (engine) ───┘
//! ```
//!
//! Nothing is remembered between two steps but in the journal and in the kernel: a daemon that is killed after any of
//! them looks, plans, and goes on. What the journal does not know is somebody else's: it is counted as taken and never
//! touched, unless its admin hands it over. `live`, `journal`, `handed`, `notices`, `foreign`, `step`, `refusal`, `rehearse` and
//! `plan` are pure; `observe` and `perform` reach the machine through `kernel` and `control` alone.

mod adopt;
pub mod control;
mod engine;
pub mod fabric;
mod foreign;
pub mod handed;
pub mod host_devices;
pub mod journal;
mod journal_ends;
pub mod kernel;
pub mod live;
pub mod network;
mod noted;
pub mod notices;
mod observe;
mod perform;
pub mod plan;
pub mod refusal;
mod registers;
pub mod rehearse;
mod slots;
pub mod step;
mod step_words;
mod store;
mod told;
mod upkeep;

#[cfg(test)]
mod adopt_tests;
#[cfg(test)]
mod drive_tests;
#[cfg(test)]
mod fabric_tests;
#[cfg(test)]
mod fake_attributes;
#[cfg(test)]
mod fake_control;
#[cfg(test)]
mod fake_files;
#[cfg(test)]
mod fake_kernel;
#[cfg(test)]
mod fewest;
#[cfg(test)]
mod fewest_tests;
#[cfg(test)]
mod kill_tests;
#[cfg(test)]
mod network_tests;
#[cfg(test)]
mod owner_tests;
#[cfg(test)]
mod plan_tests;
#[cfg(test)]
mod refusal_tests;
#[cfg(test)]
mod registers_tests;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod settings_tests;
#[cfg(test)]
mod setup_tests;
#[cfg(test)]
mod tests;

pub use self::{control::DriverControl, engine::Devices, kernel::Kernel, refusal::Refusal};

/// The driver that gives functions to guests.
pub const VFIO: &str = "vfio-pci";
