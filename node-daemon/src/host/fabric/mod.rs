//! The seam to the manager of an NVLink fabric (NVIDIA's Fabric Manager), which joins sets of cards for one machine each.
//!
//! Only sets that it lists exist. Calls block, never longer than a deadline.

pub mod library;

use thiserror::Error;

/// A card as the manager knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its number on the board. On some boards it is another than the module number that NVML tells.
    pub physical_id: u32,
    /// UUID; empty where the manager does not know it.
    pub uuid: String,
    /// PCI address as the manager writes it; `None` where it does not know it.
    pub pci: Option<String>,
}

/// A set of cards that can be joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number.
    pub id: u32,
    /// Whether it is active.
    pub active: bool,
    /// Its cards.
    pub members: Vec<Member>,
}

/// Why the manager did not do it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum FabricError {
    /// There is nobody to ask.
    #[error("{0}")]
    Absent(String),
    /// It began anew and waits to be told what was active before, or is not yet ready.
    #[error(
        "the fabric manager began anew and waits to be told which partitions were active (or is not ready yet)"
    )]
    NotConfigured,
    /// It refuses.
    #[error("the fabric manager refuses: {0}")]
    Refused(String),
    /// It does not answer.
    #[error("the fabric manager has not answered for {0} s")]
    NoAnswer(u64),
}

/// The manager.
pub trait FabricManager: Send + Sync {
    /// Every set that it can join, with those that are active, whoever activated them.
    ///
    /// # Errors
    /// [`FabricError`].
    fn partitions(&self) -> Result<Vec<Partition>, FabricError>;

    /// Joins a set.
    ///
    /// # Errors
    /// [`FabricError`]; also of one that is active.
    fn activate(&self, id: u32) -> Result<(), FabricError>;

    /// Parts a set.
    ///
    /// # Errors
    /// [`FabricError`]; also of one that is not active.
    fn deactivate(&self, id: u32) -> Result<(), FabricError>;

    /// Tells a manager that began anew which sets were active, all of them.
    ///
    /// # Errors
    /// [`FabricError`].
    fn restore(&self, active: &[u32]) -> Result<(), FabricError>;
}

/// Where nobody is asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFabric;

impl NoFabric {
    fn absent<T>() -> Result<T, FabricError> {
        Err(FabricError::Absent("this host has no fabric manager that could be asked".into()))
    }
}

impl FabricManager for NoFabric {
    fn partitions(&self) -> Result<Vec<Partition>, FabricError> {
        Self::absent()
    }
    fn activate(&self, _: u32) -> Result<(), FabricError> {
        Self::absent()
    }
    fn deactivate(&self, _: u32) -> Result<(), FabricError> {
        Self::absent()
    }
    fn restore(&self, _: &[u32]) -> Result<(), FabricError> {
        Self::absent()
    }
}
