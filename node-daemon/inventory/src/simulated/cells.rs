//! CPUs and NUMA cells of a simulated host.

use gpudesk_crds::{
    gpu_node_status::{CacheDomain, HostCpus, Hugepages, NumaCell},
    types::{CpuSet, PageSize},
};

use super::host_file::HostFile;

impl HostFile {
    pub(super) fn host_cpus(&self) -> HostCpus {
        HostCpus {
            online: (0..self.cpus()).filter_map(|cpu| u32::try_from(cpu).ok()).collect(),
            offline: CpuSet::default(),
            isolated: self.isolated_cpus.clone(),
            kubelet_reserved: self.reserved_cpus.clone(),
        }
    }

    /// The threads of a core of a socket: the second threads are numbered after all first ones.
    fn core(&self, socket: i32, core: i32) -> CpuSet {
        let all_cores = self.sockets * self.cores_per_socket;
        let first = socket * self.cores_per_socket + core;
        (0..self.threads_per_core)
            .filter_map(|thread| u32::try_from(first + thread * all_cores).ok())
            .collect()
    }

    pub(super) fn numa_cell(&self, socket: i32) -> NumaCell {
        NumaCell {
            id: socket,
            cores: (0..self.cores_per_socket).map(|core| self.core(socket, core)).collect(),
            memory_mib: self.memory_mib / i64::from(self.sockets),
            hugepages: (self.hugepages.iter())
                .filter(|(size, _)| **size != PageSize::None)
                .map(|(size, total)| Hugepages { size: *size, total: *total, free: None, surplus: None })
                .collect(),
            distances: (0..self.sockets).map(|other| if other == socket { 10 } else { 21 }).collect(),
            sockets: vec![socket],
            caches: self.caches(socket),
            ..NumaCell::default()
        }
    }

    /// The cores of the socket, divided between its caches as evenly as they can be.
    fn caches(&self, socket: i32) -> Vec<CacheDomain> {
        let (caches, cores) = (self.last_level_caches.per_socket, self.cores_per_socket);
        let cache = |number: i32| {
            let own = number * cores / caches..(number + 1) * cores / caches;
            CacheDomain {
                level: 3,
                cpus: own.flat_map(|core| self.core(socket, core).iter().collect::<Vec<_>>()).collect(),
                size_kib: self.last_level_caches.size_kib,
            }
        };
        (0..caches).map(cache).collect()
    }
}
