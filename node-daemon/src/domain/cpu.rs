//! CPU model, topology and pinning: `<vcpu>`, `<iothreads>`, `<cputune>`, `<cpu>`.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use super::xml::Xml;
use super::{CpuSet, DomainError, Kind, Memory};

/// The guest's processors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cpu {
    /// Which processor the guest sees.
    pub model: CpuModel,
    /// How many, and how they are arranged.
    pub topology: Topology,
    /// Where on the host they run.
    pub pinning: Pinning,
}

/// Which processor the guest sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpuModel {
    /// All the host has. Not migratable; needs KVM.
    HostPassthrough,
    /// The nearest model that libvirt knows. Needs KVM.
    HostModel,
    /// A model by QEMU's name.
    Named(String),
}

impl CpuModel {
    /// What is really used: the host's own processor exists under KVM only, and under emulation
    /// `Nehalem` is the fastest of QEMU's models that current guests still run on.
    #[must_use]
    pub fn effective(&self, kind: Kind) -> Self {
        match (self, kind) {
            (Self::Named(_), _) | (Self::HostPassthrough | Self::HostModel, Kind::Kvm) => self.clone(),
            (Self::HostPassthrough | Self::HostModel, Kind::Qemu | Kind::Test) => {
                Self::Named("Nehalem".to_owned())
            }
        }
    }
}

/// `cores` x `threads` in one socket, or in two where the guest sees two cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Cores in all: client editions of Windows use two sockets at most.
    pub cores: NonZeroU32,
    /// Threads of each core. Above 1 only where the host's siblings are pinned in pairs.
    pub threads: NonZeroU32,
}

impl Topology {
    /// The number of vCPUs.
    #[must_use]
    pub fn vcpus(self) -> u32 {
        self.cores.get().saturating_mul(self.threads.get())
    }

    /// Two where two guest cells divide the cores evenly and in order, each cell a socket; else one.
    ///
    /// QEMU shows one last-level cache for each socket, and Linux complains of a cache over several
    /// cells. Dies would do for any number of cells, but with some CPU models QEMU 10.0 aborts on them.
    fn sockets(self, memory: &Memory) -> u32 {
        let cells = memory.guest_cells();
        let half = self.vcpus() / 2;
        let even = cells.len() == 2
            && self.cores.get().is_multiple_of(2)
            && (0..2)
                .zip(cells)
                .all(|(socket, cell)| cell.vcpus.iter().eq(socket * half..(socket + 1) * half));
        if even { 2 } else { 1 }
    }
}

/// Where the threads of a domain run. Empty: wherever the host's scheduler puts them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pinning {
    /// The host CPUs of some vCPUs, each vCPU at most once.
    pub vcpus: Vec<(u32, CpuSet)>,
    /// The host CPUs of QEMU's other threads.
    pub emulator: Option<CpuSet>,
    /// One I/O thread for each entry, pinned or not; disks are spread over them in turn.
    pub io_threads: Vec<Option<CpuSet>>,
}

impl Cpu {
    pub(super) fn check(&self) -> Result<(), DomainError> {
        let vcpus = self.topology.vcpus();
        let mut seen = BTreeSet::new();
        for (vcpu, _) in &self.pinning.vcpus {
            if *vcpu >= vcpus {
                return Err(DomainError::NoSuchVcpu { vcpu: *vcpu, vcpus });
            }
            if !seen.insert(*vcpu) {
                return Err(DomainError::PinnedTwice { vcpu: *vcpu });
            }
        }
        Ok(())
    }

    pub(super) fn write_tuning(&self, xml: &mut Xml) {
        let Pinning { vcpus, emulator, io_threads } = &self.pinning;
        xml.text("vcpu", &[("placement", &"static")], self.topology.vcpus());
        if !io_threads.is_empty() {
            xml.text("iothreads", &[], io_threads.len());
        }
        if vcpus.is_empty() && emulator.is_none() && io_threads.iter().all(Option::is_none) {
            return;
        }
        xml.nest("cputune", &[], |xml| {
            for (vcpu, cpus) in vcpus {
                xml.empty("vcpupin", &[("vcpu", vcpu), ("cpuset", cpus)]);
            }
            if let Some(cpus) = emulator {
                xml.empty("emulatorpin", &[("cpuset", cpus)]);
            }
            for (id, cpus) in (1_u32..).zip(io_threads) {
                if let Some(cpus) = cpus {
                    xml.empty("iothreadpin", &[("iothread", &id), ("cpuset", cpus)]);
                }
            }
        });
    }

    pub(super) fn write_model(&self, xml: &mut Xml, kind: Kind, memory: &Memory) {
        let inside = |xml: &mut Xml| {
            let Topology { cores, threads } = self.topology;
            let sockets = self.topology.sockets(memory);
            let cores = cores.get() / sockets;
            xml.empty(
                "topology",
                &[("sockets", &sockets), ("dies", &1), ("cores", &cores), ("threads", &threads)],
            );
        };
        match self.model.effective(kind) {
            CpuModel::HostPassthrough => {
                let attributes: &[(&'static str, &dyn std::fmt::Display)] =
                    &[("mode", &"host-passthrough"), ("check", &"none"), ("migratable", &"off")];
                xml.nest("cpu", attributes, |xml| {
                    inside(xml);
                    // Without it QEMU aborts on hosts that do not let the MSR be written.
                    xml.empty("feature", &[("policy", &"disable"), ("name", &"arch-capabilities")]);
                    memory.write_guest_cells(xml);
                });
            }
            CpuModel::HostModel => {
                xml.nest("cpu", &[("mode", &"host-model"), ("check", &"partial")], |xml| {
                    inside(xml);
                    memory.write_guest_cells(xml);
                });
            }
            CpuModel::Named(name) => {
                xml.nest("cpu", &[("mode", &"custom"), ("match", &"exact")], |xml| {
                    xml.text("model", &[("fallback", &"forbid")], &name);
                    inside(xml);
                    memory.write_guest_cells(xml);
                });
            }
        }
    }
}
