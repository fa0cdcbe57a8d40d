//! Fragments of each kind that are fine, and those that are not.

/// Fragment, and what the refusal says; nothing for a fragment that is fine.
pub(crate) type Case = (&'static str, Option<&'static str>);

pub(crate) const DESKTOPS: &[Case] = &[
    ("{}", None),
    ("{metadata: {name: desk-1}}", None),
    ("{metadata: {name: desk.one}}", Some("must be a DNS label of at most 63 characters")),
    ("{spec: {overrides: {cpu: {cores: 256, threadsPerCore: 2}}}}", None),
    (
        "{spec: {overrides: {cpu: {cores: 257, threadsPerCore: 2}}}}",
        Some("cores x threadsPerCore must be at most 512"),
    ),
    ("{spec: {overrides: {cpu: {model: EPYC-Milan}}}}", None),
    (
        "{spec: {overrides: {cpu: {model: 'host passthrough'}}}}",
        Some("write host-passthrough or a CPU model"),
    ),
    (
        "{spec: {overrides: {gpus: [{name: GPU, profileRef: {name: p}}]}}}",
        Some("write lower-case letters, digits and hyphens"),
    ),
    ("{spec: {overrides: {cloudInit: {secretRef: {name: seed}}}}}", None),
    ("{spec: {overrides: {cloudInit: {secretRef: {name: Seed}}}}}", Some("write the name of a Secret")),
    ("{spec: {overrides: {cloudInit: {}}}}", Some("exactly one of inline and secretRef")),
    (
        "{spec: {overrides: {cloudInit: {inline: {userData: '#cloud-config'}, secretRef: {name: seed}}}}}",
        Some("exactly one of inline and secretRef"),
    ),
    ("{spec: {tolerations: [{key: gpu}, {key: example.org/gpu, value: big}]}}", None),
    ("{spec: {tolerations: [{key: gpu*}]}}", Some("key must be written like the key of a label")),
    ("{spec: {affinity: [{name: a, relation: Apart, matchLabels: {team: red}, required: true}]}}", None),
    (
        "{spec: {affinity: [{name: a, relation: Together, topologyKey: topology.kubernetes.io/zone, matchLabels: {a: b}}]}}",
        None,
    ),
    (
        "{spec: {affinity: [{name: Apart, relation: Apart, matchLabels: {a: b}}]}}",
        Some("write lower-case letters, digits and hyphens"),
    ),
    (
        "{spec: {affinity: [{name: a, relation: Apart, topologyKey: 'rack one', matchLabels: {a: b}}]}}",
        Some("topologyKey must be the key of a label"),
    ),
    (
        "{spec: {affinity: [{name: a, relation: Apart, matchLabels: {}}]}}",
        Some("matchLabels must name at least one label of the other desktops"),
    ),
];

pub(crate) const TEMPLATES: &[Case] = &[
    ("{}", None),
    ("{spec: {cpu: {cores: 512}}}", None),
    ("{spec: {cpu: {cores: 512, threadsPerCore: 2}}}", Some("cores x threadsPerCore must be at most 512")),
    ("{spec: {cpu: {model: ''}}}", Some("write host-passthrough or a CPU model")),
    ("{spec: {memory: {sizeMiB: 2048, hugepages: 1Gi}}}", None),
    (
        "{spec: {memory: {sizeMiB: 1536, hugepages: 1Gi}}}",
        Some("must be a multiple of 1024 with memory.hugepages 1Gi"),
    ),
    ("{spec: {memory: {sizeMiB: 1536, hugepages: 2Mi}}}", None),
    ("{spec: {memory: {sizeMiB: 1537, hugepages: 2Mi}}}", Some("must be even with memory.hugepages 2Mi")),
    ("{spec: {disks: []}}", Some("a disk must hold a system")),
    ("{spec: {disks: null}}", Some("a disk must hold a system")),
    ("{spec: {disks: [{name: data, blank: {sizeGiB: 1}}]}}", Some("a disk must hold a system")),
    ("{spec: {disks: [{name: a, hostFile: {path: /srv/a.raw}}]}}", None),
    ("{spec: {disks: [{name: a, nfs: {server: s, path: /a}}]}}", None),
    ("{spec: {disks: [{name: a, nvme: {minimumSizeGiB: 100}}]}}", None),
    ("{spec: {disks: [], machine: {firmware: DirectKernel, directKernel: {kernel: vmlinuz}}}}", None),
    (
        "{spec: {machine: {firmware: DirectKernel}}}",
        Some("firmware DirectKernel and directKernel come together"),
    ),
    (
        "{spec: {machine: {directKernel: {kernel: vmlinuz}}}}",
        Some("firmware DirectKernel and directKernel come together"),
    ),
    (
        "{spec: {machine: {firmware: DirectKernel, tpm: true, directKernel: {kernel: vmlinuz}}}}",
        Some("a TPM needs firmware Uefi, UefiSecureBoot or Bios"),
    ),
    ("{spec: {machine: {type: microvm, firmware: DirectKernel, directKernel: {kernel: vmlinuz}}}}", None),
    ("{spec: {machine: {type: microvm}}}", Some("a microvm boots by machine.firmware DirectKernel only")),
    (
        "{spec: {gpus: [{name: a, profileRef: {name: p}}], machine: {type: microvm, firmware: DirectKernel, directKernel: {kernel: k}}}}",
        Some("a microvm has no PCI bus"),
    ),
    (
        "{spec: {machine: {firmware: DirectKernel, directKernel: {kernel: ../vmlinuz}}}}",
        Some("write a file name, not a path"),
    ),
    (
        "{spec: {machine: {firmware: DirectKernel, directKernel: {kernel: k, initrd: boot/initrd}}}}",
        Some("write a file name, not a path"),
    ),
    (
        "{spec: {machine: {firmware: DirectKernel, directKernel: {kernel: k, commandLine: \"a\\nb\"}}}}",
        Some("write printable ASCII characters only"),
    ),
    (
        "{spec: {disks: [{name: System, image: {name: a}}]}}",
        Some("write lower-case letters, digits and hyphens"),
    ),
    ("{spec: {disks: [{name: a}]}}", Some("exactly one of image, blank, hostFile, nfs, scratch and nvme")),
    (
        "{spec: {disks: [{name: a, image: {name: a}, scratch: {sizeGiB: 1}}]}}",
        Some("exactly one of image, blank, hostFile, nfs, scratch and nvme"),
    ),
    ("{spec: {disks: [{name: a, image: {name: ../etc/shadow}}]}}", Some("write a file name, not a path")),
    ("{spec: {disks: [{name: a, image: {}}]}}", Some("an image has exactly one of name and url")),
    ("{spec: {disks: [{name: a, image: {name: a, sha256: x}}]}}", Some("an image url comes with its sha256")),
    ("{spec: {disks: [{name: a, image: {url: 'https://a/b'}}]}}", Some("an image url comes with its sha256")),
    (
        "{spec: {disks: [{name: a, image: {url: 'ftp://a/b', sha256: x}}]}}",
        Some("begins with http:// or https://"),
    ),
    (
        "{spec: {disks: [{name: a, image: {url: 'https://a/b', sha256: ABC}}]}}",
        Some("write 64 lower-case hexadecimal digits"),
    ),
    ("{spec: {disks: [{name: a, hostFile: {path: srv/a.raw}}]}}", Some("write an absolute path")),
    ("{spec: {disks: [{name: a, hostFile: {path: /srv/../etc/shadow}}]}}", Some("path must not contain ..")),
    ("{spec: {disks: [{name: a, hostFile: {path: /srv/a..b}}]}}", None),
    ("{spec: {disks: [{name: a, nfs: {server: s, path: export}}]}}", Some("write an absolute path")),
    ("{spec: {filesystems: [{tag: home, source: /srv/home}]}}", None),
    ("{spec: {filesystems: [{tag: a b, source: /srv}]}}", Some("write letters, digits and . _ - only")),
    ("{spec: {filesystems: [{tag: a, source: home}]}}", Some("write an absolute path")),
    ("{spec: {filesystems: [{tag: a, source: /srv/..}]}}", Some("source must not contain ..")),
    ("{spec: {networks: []}}", None),
    ("{spec: {networks: [{name: lan, bridge: {name: br0}}]}}", None),
    ("{spec: {networks: [{name: lan}]}}", Some("exactly one of user, bridge, libvirtNetwork, ovs and sriov")),
    (
        "{spec: {networks: [{name: lan, user: {}, bridge: {name: br0}}]}}",
        Some("exactly one of user, bridge, libvirtNetwork, ovs and sriov"),
    ),
    (
        "{spec: {networks: [{name: lan, bridge: {name: 'br0;reboot'}}]}}",
        Some("write letters, digits and . _ - only"),
    ),
    ("{spec: {networks: [{name: lan, sriov: {physicalNetwork: lab, vlan: 7}}]}}", None),
    (
        "{spec: {networks: [{name: lan, sriov: {physicalNetwork: the lab}}]}}",
        Some("write letters, digits and . _ - only"),
    ),
    ("{spec: {cpu: {pinning: DedicatedThreads}}}", None),
    ("{spec: {affinity: [{name: a, relation: Apart, matchLabels: {team: red}, required: true}]}}", None),
    (
        "{spec: {affinity: [{name: a, relation: Together, topologyKey: topology.kubernetes.io/zone, matchLabels: {a: b}}]}}",
        None,
    ),
    (
        "{spec: {affinity: [{name: Apart, relation: Apart, matchLabels: {a: b}}]}}",
        Some("write lower-case letters, digits and hyphens"),
    ),
    (
        "{spec: {affinity: [{name: a, relation: Apart, topologyKey: 'rack one', matchLabels: {a: b}}]}}",
        Some("topologyKey must be the key of a label"),
    ),
    (
        "{spec: {affinity: [{name: a, relation: Apart, matchLabels: {}}]}}",
        Some("matchLabels must name at least one label of the other desktops"),
    ),
    ("{spec: {networks: [{name: -lan, user: {}}]}}", Some("write lower-case letters, digits and hyphens")),
    (
        "{spec: {gpus: [{name: a_b, profileRef: {name: p}}]}}",
        Some("write lower-case letters, digits and hyphens"),
    ),
    ("{spec: {cloudInit: {}}}", Some("exactly one of inline and secretRef")),
    ("{spec: {consoles: {vnc: {passwordSecretRef: {name: a/b}}}}}", Some("write the name of a Secret")),
];

pub(crate) const NODES: &[Case] = &[
    ("{}", None),
    ("{metadata: {name: daemon}}", Some("metadata.name must not be daemon")),
    ("{spec: {devices: [{name: a, selector: {pciAddress: '41:00.0'}}]}}", None),
    (
        "{spec: {devices: [{name: a, selector: {pciAddress: '41:00'}}]}}",
        Some("write domain:bus:device.function"),
    ),
    (
        "{spec: {devices: [{name: A, selector: {uuid: GPU-1}}]}}",
        Some("write lower-case letters, digits and hyphens"),
    ),
    ("{spec: {devices: [{name: a, selector: {}}]}}", Some("exactly one of uuid, serial and pciAddress")),
    (
        "{spec: {devices: [{name: a, selector: {uuid: GPU-1, serial: '1'}}]}}",
        Some("exactly one of uuid, serial and pciAddress"),
    ),
    (
        "{spec: {devices: [{name: a, selector: {uuid: u}, vgpuPlacement: MixedSize, vgpuScheduler: FixedShare}]}}",
        Some("vgpuScheduler FixedShare does not work with vgpuPlacement MixedSize"),
    ),
    (
        "{spec: {devices: [{name: a, selector: {uuid: u}, vgpuPlacement: MixedSize, vgpuScheduler: EqualShare}]}}",
        None,
    ),
    ("{spec: {devices: [{name: a, selector: {uuid: u}, vgpuScheduler: FixedShare}]}}", None),
    (
        "{spec: {devices: [{name: a, selector: {uuid: u}, vgpuParams: [frame_rate_limiter, disable_vnc=1]}]}}",
        None,
    ),
    (
        "{spec: {devices: [{name: a, selector: {uuid: u}, vgpuParams: ['frame_rate_limiter=0,a=1']}]}}",
        Some("write vgpuParams as key or key=value"),
    ),
    (
        "{spec: {devices: [{name: a, selector: {uuid: u}, vgpuParams: ['a b']}]}}",
        Some("write vgpuParams as key or key=value"),
    ),
    (
        "{spec: {devices: [{name: a, selector: {uuid: u}, vgpuParams: [vgpu-placement-id=3]}]}}",
        Some("vgpuParams cannot have vgpu-placement-id"),
    ),
    ("{spec: {devices: [{name: a, selector: {uuid: u}, lockClocksMHz: {min: 600, max: 600}}]}}", None),
    (
        "{spec: {devices: [{name: a, selector: {uuid: u}, lockClocksMHz: {min: 601, max: 600}}]}}",
        Some("lockClocksMHz.min must not be above lockClocksMHz.max"),
    ),
    ("{spec: {devices: [{name: a, selector: {uuid: u}, mode: Mig, layout: {mig: [1g.24gb]}}]}}", None),
    ("{spec: {devices: [{name: a, selector: {uuid: u}, mode: Vgpu, layout: {vgpu: [L40S-8Q]}}]}}", None),
    (
        "{spec: {devices: [{name: a, selector: {uuid: u}, layout: {mig: [1g.24gb]}}]}}",
        Some("a layout needs the mode it is for"),
    ),
    (
        "{spec: {devices: [{name: a, selector: {uuid: u}, mode: Mig, layout: {vgpu: [L40S-8Q]}}]}}",
        Some("a layout needs the mode it is for"),
    ),
    (
        "{spec: {devices: [{name: a, selector: {uuid: u}, mode: Mig, layout: {mig: [' 3g.40gb']}}]}}",
        Some("write layout.mig as the driver prints it"),
    ),
    (
        "{spec: {devices: [{name: a, selector: {uuid: u}, mode: Vgpu, layout: {vgpu: ['L40S\\t8Q']}}]}}",
        Some("write layout.vgpu as the driver prints it"),
    ),
    (
        "{spec: {devices: [{name: a, selector: {uuid: u}, mode: Mig, layout: {}}]}}",
        Some("a layout has exactly one of mig and vgpu"),
    ),
    ("{spec: {taints: [{key: gpu}, {key: example.org/reserved-for, value: exams}]}}", None),
    ("{spec: {taints: [{key: -gpu}]}}", Some("key must be written like the key of a label")),
    ("{spec: {physicalNetworks: [{name: lab, devices: ['0000:81:00.0', '82:00.1']}]}}", None),
    ("{spec: {nvmeDrives: [{name: a, selector: {serial: S1}, erase: Format}]}}", None),
    (
        "{spec: {nvmeDrives: [{name: a, selector: {serial: S1, pciAddress: '64:00.0'}, erase: Format}]}}",
        Some("a drive selector names exactly one of serial and pciAddress"),
    ),
    ("{spec: {physicalNetworks: [{name: lab, devices: [eth0]}]}}", Some("write domain:bus:device.function")),
    (
        "{spec: {physicalNetworks: [{name: the lab, devices: ['81:00.0']}]}}",
        Some("write letters, digits and . _ - only"),
    ),
    ("{spec: {adoptFromCluster: 8d4bd8a5-7d1b-4c40-a0e5-2a9a3f0c1e77}}", None),
    (
        "{spec: {adoptFromCluster: the old one}}",
        Some("write the UID of kube-system that the condition Ready names"),
    ),
    ("{spec: {strays: [{uid: 8d4bd8a5-7d1b-4c40-a0e5-2a9a3f0c1e77, action: PowerOff}]}}", None),
    (
        "{spec: {strays: [{uid: 8D4BD8A5-7D1B-4C40-A0E5-2A9A3F0C1E77, action: PowerOff}]}}",
        Some("write the uid of an entry of status.strays, in lower case"),
    ),
    (
        "{spec: {strays: [{uid: 8d4bd8a5-7d1b-4c40-a0e5-2a9a3f0c1e77, allocationId: 3-9f1c02ab, action: ShutDown}]}}",
        None,
    ),
    (
        "{spec: {strays: [{uid: 8d4bd8a5-7d1b-4c40-a0e5-2a9a3f0c1e77, allocationId: '3', action: ShutDown}]}}",
        Some("write the allocation.id of an entry of status.strays, like 3-9f1c02ab"),
    ),
    ("{spec: {leftovers: [{name: a.1, action: Erase}]}}", None),
    ("{spec: {leftovers: [{name: a.1, attachTo: {namespace: school, name: anna}}]}}", None),
    (
        "{spec: {leftovers: [{name: ../a, action: Erase}]}}",
        Some("write the name of an entry of status.leftovers"),
    ),
    ("{spec: {leftovers: [{name: a.1}]}}", Some("write exactly one of action and attachTo")),
    (
        "{spec: {leftovers: [{name: a.1, action: Erase, attachTo: {namespace: school, name: anna}}]}}",
        Some("write exactly one of action and attachTo"),
    ),
];

pub(crate) const PROFILES: &[Case] = &[
    ("{}", None),
    ("{spec: {alternatives: [{}]}}", Some("exactly one of passthrough, vgpu, mig and virtualFunction")),
    (
        "{spec: {alternatives: [{passthrough: {}, mig: {profile: 1g.24gb}}]}}",
        Some("exactly one of passthrough, vgpu, mig and virtualFunction"),
    ),
    ("{spec: {alternatives: [{vgpu: {framebufferMiB: 8192, series: B}}]}}", None),
    ("{spec: {alternatives: [{vgpu: {framebufferRangeMiB: {min: 4096, max: 4096}}}]}}", None),
    (
        "{spec: {alternatives: [{vgpu: {framebufferRangeMiB: {min: 8192, max: 4096}}}]}}",
        Some("min must not be above max"),
    ),
    (
        "{spec: {alternatives: [{vgpu: {}}]}}",
        Some("exactly one of type, framebufferMiB and framebufferRangeMiB"),
    ),
    (
        "{spec: {alternatives: [{vgpu: {type: L40S-8Q, framebufferMiB: 8192}}]}}",
        Some("exactly one of type, framebufferMiB and framebufferRangeMiB"),
    ),
    (
        "{spec: {alternatives: [{vgpu: {type: L40S-8Q, params: {frame_rate_limiter: '0', disable_vnc: '1'}}}]}}",
        None,
    ),
    (
        "{spec: {alternatives: [{vgpu: {type: L40S-8Q, params: {frame_rate_limiter: '0,a=1'}}}]}}",
        Some("write keys and values of params with letters, digits"),
    ),
    (
        "{spec: {alternatives: [{vgpu: {type: L40S-8Q, params: {'a b': '1'}}}]}}",
        Some("write keys and values of params with letters, digits"),
    ),
    (
        "{spec: {alternatives: [{vgpu: {type: L40S-8Q, params: {vgpu-placement-id: '3'}}}]}}",
        Some("params cannot have vgpu-placement-id"),
    ),
    ("{spec: {alternatives: [{vgpu: {type: L40S-8Q, series: Q}}]}}", Some("type already names the series")),
    (
        "{spec: {alternatives: [{vgpu: {type: NVIDIA L40S-8Q}}]}}",
        Some("write a vGPU type as the driver prints it"),
    ),
    ("{spec: {alternatives: [{mig: {profile: 1g.10gb+me}}]}}", None),
    (
        "{spec: {alternatives: [{mig: {profile: MIG 1g.24gb}}]}}",
        Some("write a MIG profile as the driver prints it"),
    ),
    ("{spec: {devices: {pciIds: ['10de:2bb5']}}}", None),
    (
        "{spec: {devices: {pciIds: ['10de:2bb5', '10DE:26B9']}}}",
        Some("write vendor:device in lower-case hexadecimal"),
    ),
];
