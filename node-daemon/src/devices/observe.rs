//! Looking at one card: the kernel's files and the driver's library, nothing else.

use std::{collections::BTreeMap, io};

use gpudesk_crds::types::PciAddress;
use gpudesk_inventory::{
    scan::DriveNow,
    topology::{pci, vendor_vfio, vgpu_type},
};

use super::{
    control::{ControlError, DriverControl},
    kernel::{ANY, Kernel, block_of, function, line, link_name, maybe, memory_of, names, number, text},
    live::{
        Control, Function, LiveCard, Mdev, MdevType, QuotaSeen, Quotas, ResizableRegion, Sriov, VendorVgpu,
        VirtualFunction,
    },
    step::{Quota, Step},
};

/// Character devices that are open, as [`Kernel::open_devices`] tells.
pub(super) type Opened = BTreeMap<String, u32>;

/// NVIDIA's major number (`NV_MAJOR_DEVICE_NUMBER` of its kernel module).
const NVIDIA_MAJOR: u32 = 195;

/// Classes of devices that drivers make of a function: each device has a folder with the number of its node.
const CLASSES: [&str; 8] = ["accel", "drm", "graphics", "misc", "nvme", "sound", "uio", "vfio-dev"];

/// Looks at a card; `None` when nothing is at its address.
pub(super) fn observe(
    kernel: &dyn Kernel,
    control: &dyn DriverControl,
    opened: &Opened,
    address: PciAddress,
) -> io::Result<Option<LiveCard>> {
    let folder = function(address);
    let Some(own) = read_function(kernel, opened, address)? else { return Ok(None) };
    let group = link_name(kernel, &format!("{folder}/iommu_group"))?.and_then(|name| name.parse().ok());
    let sriov = sriov(kernel, &folder)?;
    let virtual_functions = virtual_functions(kernel, opened, &folder, sriov)?;
    let mut members = vec![];
    for member in group_of(kernel, group)?.into_iter().filter(|member| *member != address) {
        // Functions of the card itself are not what is in its way.
        if !virtual_functions.iter().any(|vf| vf.function.address == member)
            && let Some(member) = read_function(kernel, opened, member)?
            && !member.class.starts_with("06")
        {
            members.push(member);
        }
    }
    let carriers = std::iter::once(address).chain(virtual_functions.iter().map(|vf| vf.function.address));
    let carriers: Vec<PciAddress> = carriers.collect();
    // A card that is about to be unbound is closed to the library.
    let asked = if own.driver.as_deref() != Some("nvidia") || own.locked {
        Ok(Control::default())
    } else {
        ask(control, address)
    };
    let control_fault = asked.as_ref().err().map(ToString::to_string);
    let information = text(kernel, &format!("proc/driver/nvidia/gpus/{address}/information"))?;
    Ok(Some(LiveCard {
        answers: identity(kernel, &folder)?.is_some(),
        boot_vga: line(kernel, &format!("{folder}/boot_vga"))?.as_deref() == Some("1"),
        group,
        resizable: resizable(kernel, &folder)?,
        sriov,
        virtual_functions,
        mdev_types: mdev_types(kernel, &folder)?,
        mdevs: mdevs(kernel, opened, &carriers)?,
        control: asked.unwrap_or_default(),
        control_fault,
        // Question marks before the card is first used.
        uuid: information.and_then(|text| field(&text, "GPU UUID")).filter(|uuid| !uuid.contains('?')),
        along_in_use: along_in_use(kernel, &members)?,
        network: if own.class.starts_with("02") { kernel.network(address)? } else { None },
        drive: own.has_namespaces().then(|| drive(kernel, opened, address)).transpose()?,
        has_vfio: maybe(kernel.list(&format!("sys/bus/pci/drivers/{}", super::VFIO)))?.is_some(),
        members,
        has_stub: maybe(kernel.list(&format!("sys/bus/pci/drivers/{}", super::plan::sriov::STUB)))?.is_some(),
        function: own,
    }))
}

/// A drive of the host, which somebody may have open under any name.
fn drive(kernel: &dyn Kernel, opened: &Opened, address: PciAddress) -> io::Result<DriveNow> {
    let mut now = kernel.drive(address)?;
    let mut nodes = now.numbers.iter().map(|number| block_of(number)).chain([ANY.to_owned()]);
    if let Some(process) = nodes.find_map(|node| opened.get(&node).copied()) {
        now.in_use.get_or_insert_with(|| format!("process {process} of the host has it open"));
    }
    Ok(now)
}

/// The memory region that can be resized, and how large it is.
pub(super) fn resizable(kernel: &dyn Kernel, folder: &str) -> io::Result<Option<ResizableRegion>> {
    let mut regions = vec![];
    for index in 0..6 {
        if let Some(text) = text(kernel, &format!("{folder}/resource{index}_resize"))? {
            regions.push((index, pci::resizable_sizes(&text)));
        }
    }
    let Some(bar) = pci::resizable_bar(regions.into_iter()) else { return Ok(None) };
    let found = text(kernel, &format!("{folder}/resource"))?.unwrap_or_default();
    let now = pci::bars(&found).into_iter().find(|now| now.index == bar.index && !now.unassigned);
    Ok(Some(ResizableRegion { mib: now.map(|now| now.size_bytes >> 20), bar }))
}

/// A line `KEY: VALUE` of what NVIDIA's driver tells of a card.
fn field(text: &str, wanted: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == wanted).then(|| value.trim().to_owned())
    })
}

/// What a card that would go along with another has for somebody.
fn along_in_use(kernel: &dyn Kernel, members: &[Function]) -> io::Result<Option<(PciAddress, String)>> {
    for member in members {
        let folder = function(member.address);
        if maybe(kernel.link(&format!("{folder}/virtfn0")))?.is_some() {
            return Ok(Some((member.address, "virtual functions of it are on".into())));
        }
        if let Some(mdev) = mdevs(kernel, &Opened::new(), &[member.address])?.first() {
            return Ok(Some((member.address, format!("the mediated device {} is on it", mdev.uuid))));
        }
    }
    Ok(None)
}

fn ask(control: &dyn DriverControl, card: PciAddress) -> Result<Control, ControlError> {
    let mig = control.mig_mode(card)?;
    let on = mig.is_some_and(|mode| mode.current);
    Ok(Control {
        mig,
        gpu_instances: if on { control.gpu_instances(card)? } else { vec![] },
        mixed_size: control.mixed_size(card)?,
        persistence: control.persistence(card)?,
        scheduler: control.scheduler(card)?,
        power: control.power(card)?,
    })
}

/// What the configuration of a function tells of itself: ids, revision and class. `None` when it answers with ones alone,
/// as one does that is lost. A virtual function tells its class and no ids (PCI Express Base Specification, 9.3.4.1).
pub(super) fn identity(kernel: &dyn Kernel, folder: &str) -> io::Result<Option<[u8; 8]>> {
    let config = maybe(kernel.read(&format!("{folder}/config")))?.unwrap_or_default();
    let (Some(ids), Some(class)) = (config.get(0..4), config.get(8..12)) else { return Ok(None) };
    let told: Option<[u8; 8]> = [ids, class].concat().try_into().ok();
    Ok(told.filter(|_| class != [0xff; 4]))
}

/// One function; `None` when there is none.
pub(super) fn read_function(
    kernel: &dyn Kernel,
    opened: &Opened,
    address: PciAddress,
) -> io::Result<Option<Function>> {
    let folder = function(address);
    let id = |file: &str| -> io::Result<Option<String>> {
        Ok(text(kernel, &format!("{folder}/{file}"))?.and_then(|text| pci::id(&text)))
    };
    let (Some(vendor), Some(device)) = (id("vendor")?, id("device")?) else { return Ok(None) };
    let own = |file: &str| line(kernel, &format!("{folder}/{file}"));
    let driver = link_name(kernel, &format!("{folder}/driver"))?;
    let held_by = held_by(kernel, opened, address, driver.as_deref())?;
    let locked = driver.as_deref() == Some("nvidia")
        && number::<u32>(kernel, &format!("proc/driver/nvidia/gpus/{address}/unbindLock"))? == Some(1);
    Ok(Some(Function {
        address,
        class: own("class")?.and_then(|text| pci::class(&text)).unwrap_or_default(),
        vendor,
        device,
        driver,
        // The kernel writes the words of its printf where there is none.
        driver_override: own("driver_override")?.filter(|driver| driver != "(null)"),
        d3cold: own("d3cold_allowed")?.map(|line| line == "1"),
        power: own("power/control")?,
        reset_methods: match own("reset_method")? {
            Some(text) => pci::reset_methods(&text),
            None if maybe(kernel.list(&folder))?
                .is_some_and(|names| names.iter().any(|name| name == "reset")) =>
            {
                vec!["default".into()]
            }
            None => vec![],
        },
        held_by,
        locked,
    }))
}

/// A process that has a device node of a function open.
fn held_by(
    kernel: &dyn Kernel,
    opened: &Opened,
    address: PciAddress,
    driver: Option<&str>,
) -> io::Result<Option<u32>> {
    if opened.is_empty() {
        return Ok(None);
    }
    let folder = function(address);
    let mut nodes = vec![];
    if driver == Some("nvidia") {
        let information = text(kernel, &format!("proc/driver/nvidia/gpus/{address}/information"))?;
        let minor = information.and_then(|text| field(&text, "Device Minor")?.parse::<u32>().ok());
        nodes.extend(minor.map(|minor| format!("{NVIDIA_MAJOR}:{minor}")));
    }
    if let Some(group) = link_name(kernel, &format!("{folder}/iommu_group"))? {
        // The second is of a group without an IOMMU.
        for group in [group.clone(), format!("noiommu-{group}")] {
            nodes.extend(line(kernel, &format!("sys/class/vfio/{group}/dev"))?);
        }
    }
    for class in CLASSES {
        // Of a drive, block devices are none of these: their numbers are others'.
        let deep = match class {
            "sound" => Some(""),
            "nvme" => Some("ng"),
            _ => None,
        };
        for name in names(kernel, &format!("{folder}/{class}"))? {
            let inner = format!("{folder}/{class}/{name}");
            nodes.extend(line(kernel, &format!("{inner}/dev"))?);
            if let Some(head) = deep {
                for name in names(kernel, &inner)?.iter().filter(|name| name.starts_with(head)) {
                    nodes.extend(line(kernel, &format!("{inner}/{name}/dev"))?);
                }
            }
        }
    }
    // The wires to the screens of a card.
    for name in names(kernel, &folder)?.iter().filter(|name| name.starts_with("i2c-")) {
        nodes.extend(line(kernel, &format!("{folder}/{name}/i2c-dev/{name}/dev"))?);
    }
    nodes.extend([memory_of(address), ANY.to_owned()]);
    Ok(nodes.iter().find_map(|node| opened.get(node).copied()))
}

/// A process for which the kernel waits in a step.
pub(super) fn holder(kernel: &dyn Kernel, opened: &Opened, step: &Step) -> io::Result<Option<u32>> {
    // No file of the function itself is read: the kernel keeps some of them back for as long as the step waits.
    let held = |address| {
        let driver = link_name(kernel, &format!("{}/driver", function(address)))?;
        held_by(kernel, opened, address, driver.as_deref())
    };
    match step {
        Step::MdevRemove { uuid } => mdev_held_by(kernel, opened, uuid),
        Step::NumVfs { card, .. } => {
            let mut index = 0;
            while let Some(name) = link_name(kernel, &format!("{}/virtfn{index}", function(*card)))? {
                if let Ok(address) = name.parse()
                    && let Some(process) = held(address)?
                {
                    return Ok(Some(process));
                }
                index += 1;
            }
            held(*card)
        }
        Step::MigMode { card, .. } | Step::GpuInstanceDestroy { card, .. } => held(*card),
        step => step.function().map_or(Ok(None), held),
    }
}

fn group_of(kernel: &dyn Kernel, group: Option<i32>) -> io::Result<Vec<PciAddress>> {
    let Some(group) = group else { return Ok(vec![]) };
    let names = names(kernel, &format!("sys/kernel/iommu_groups/{group}/devices"))?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

fn sriov(kernel: &dyn Kernel, folder: &str) -> io::Result<Option<Sriov>> {
    let Some(total) = number(kernel, &format!("{folder}/sriov_totalvfs"))?.filter(|total| *total > 0) else {
        return Ok(None);
    };
    Ok(Some(Sriov {
        total,
        // The number itself is told under the lock that whoever waits for a user has.
        on: names(kernel, folder)?.iter().filter(|name| name.starts_with("virtfn")).map(|_| 1).sum(),
        autoprobe: line(kernel, &format!("{folder}/sriov_drivers_autoprobe"))?.map(|line| line == "1"),
        quotas: maybe(kernel.list(&format!("{folder}/sriov_admin/vf1/profile")))?.is_some(),
    }))
}

fn virtual_functions(
    kernel: &dyn Kernel,
    opened: &Opened,
    folder: &str,
    sriov: Option<Sriov>,
) -> io::Result<Vec<VirtualFunction>> {
    let mut found = vec![];
    for index in 0..sriov.map_or(0, |sriov| sriov.on) {
        let address = link_name(kernel, &format!("{folder}/virtfn{index}"))?;
        let Some(address) = address.and_then(|name| name.parse::<PciAddress>().ok()) else { continue };
        let Some(read) = read_function(kernel, opened, address)? else { continue };
        let own = function(address);
        let group = link_name(kernel, &format!("{own}/iommu_group"))?.and_then(|name| name.parse().ok());
        found.push(VirtualFunction {
            alone: group_of(kernel, group)? == [address],
            // One that cannot be read is taken.
            vgpu: vendor_vgpu(kernel, &own).unwrap_or_else(|_| {
                Some(VendorVgpu {
                    current: None,
                    creatable: BTreeMap::new(),
                    placement: None,
                    gpu_instance: None,
                    params: None,
                })
            }),
            mdev_types: mdev_types(kernel, &own).unwrap_or_default(),
            quotas: quotas(kernel, folder, index + 1),
            function: read,
        });
    }
    Ok(found)
}

/// What a virtual function may take of its card. Where the tiles of a card differ, reading is EUCLEAN.
fn quotas(kernel: &dyn Kernel, folder: &str, number: u32) -> Quotas {
    let of = |quota: Quota| {
        let path = format!("{folder}/sriov_admin/vf{number}/profile/{}", quota.file());
        match self::number::<u32>(kernel, &path) {
            Ok(Some(value)) => QuotaSeen::Value(value),
            Ok(None) if !matches!(maybe(kernel.read(&path)), Ok(Some(_))) => QuotaSeen::None,
            Ok(None) => QuotaSeen::Unclear("it is no number".into()),
            Err(error) => QuotaSeen::Unclear(error.to_string()),
        }
    };
    Quotas { number, exec_quantum: of(Quota::ExecQuantum), preempt_timeout: of(Quota::PreemptTimeout) }
}

fn vendor_vgpu(kernel: &dyn Kernel, folder: &str) -> io::Result<Option<VendorVgpu>> {
    let folder = format!("{folder}/nvidia");
    let Some(current) = text(kernel, &format!("{folder}/current_vgpu_type"))? else { return Ok(None) };
    // No number where no vGPU is: ENXIO, or the largest number.
    let of = |file: &str| {
        let bytes = kernel.read(&format!("{folder}/{file}")).unwrap_or_default();
        vendor_vfio::number(&String::from_utf8_lossy(&bytes))
    };
    let list = text(kernel, &format!("{folder}/creatable_vgpu_types"))?.unwrap_or_default();
    let creatable = vendor_vfio::creatable_types(&list);
    Ok(Some(VendorVgpu {
        current: vendor_vfio::current_type(&current).map(|id| id.unwrap_or(0)),
        creatable: creatable.into_iter().map(|(id, name)| (id, vgpu_type::short(&name).to_owned())).collect(),
        placement: of("placement_id"),
        gpu_instance: of("gpu_instance_id"),
        params: kernel
            .read(&format!("{folder}/vgpu_params"))
            .ok()
            .map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()),
    }))
}

fn mdev_types(kernel: &dyn Kernel, folder: &str) -> io::Result<Vec<MdevType>> {
    let folder = format!("{folder}/mdev_supported_types");
    let mut types = vec![];
    for id in names(kernel, &folder)? {
        let own = |file: &str| line(kernel, &format!("{folder}/{id}/{file}"));
        let name = own("name")?.map_or_else(|| id.clone(), |name| vgpu_type::short(&name).to_owned());
        let available = own("available_instances")?.and_then(|line| line.parse().ok()).unwrap_or(0);
        types.push(MdevType { id, name, available });
    }
    Ok(types)
}

/// The folder of all mediated devices.
const BUS: &str = "sys/bus/mdev/devices";

/// A process that has a mediated device open.
fn mdev_held_by(kernel: &dyn Kernel, opened: &Opened, uuid: &str) -> io::Result<Option<u32>> {
    let Some(group) = link_name(kernel, &format!("{BUS}/{uuid}/iommu_group"))? else { return Ok(None) };
    let mut nodes = vec![];
    nodes.extend(line(kernel, &format!("sys/class/vfio/{group}/dev"))?);
    for name in names(kernel, &format!("{BUS}/{uuid}/vfio-dev"))? {
        nodes.extend(line(kernel, &format!("{BUS}/{uuid}/vfio-dev/{name}/dev"))?);
    }
    nodes.push(ANY.to_owned());
    Ok(nodes.iter().find_map(|node| opened.get(node).copied()))
}

fn mdevs(kernel: &dyn Kernel, opened: &Opened, carriers: &[PciAddress]) -> io::Result<Vec<Mdev>> {
    let mut found = vec![];
    for uuid in names(kernel, BUS)? {
        let Some(target) = maybe(kernel.link(&format!("{BUS}/{uuid}")))? else { continue };
        let parent = target.rsplit('/').nth(1).and_then(|name| name.parse().ok());
        let Some(parent) = parent.filter(|parent| carriers.contains(parent)) else { continue };
        found.push(Mdev {
            type_id: link_name(kernel, &format!("{BUS}/{uuid}/mdev_type"))?,
            params: line(kernel, &format!("{BUS}/{uuid}/nvidia/vgpu_params"))?,
            held_by: mdev_held_by(kernel, opened, &uuid)?,
            uuid,
            parent,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "composes a function")]

    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::*;
    use crate::host::kernel::HostKernel;

    fn put(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn whoever_has_any_node_of_a_function_open_is_seen() {
        let root = tempfile::tempdir().unwrap();
        let address: PciAddress = "0000:41:00.0".parse().unwrap();
        let folder = root.path().join(function(address));
        put(&folder.join("vendor"), "0x10de\n");
        put(&folder.join("device"), "0x26b9\n");
        symlink("../../../../kernel/iommu_groups/20", folder.join("iommu_group")).unwrap();
        put(&root.path().join("sys/class/vfio/noiommu-20/dev"), "510:0\n");
        let nodes = [
            ("accel/accel0", "261:0"),
            ("drm/card0", "226:0"),
            ("graphics/fb0", "29:0"),
            ("i2c-3/i2c-dev/i2c-3", "89:3"),
            ("misc/odd", "10:5"),
            ("sound/card1/pcmC1D3p", "116:3"),
            ("uio/uio0", "240:0"),
            ("vfio-dev/vfio0", "509:0"),
        ];
        for (node, number) in nodes {
            put(&folder.join(node).join("dev"), &format!("{number}\n"));
        }
        let held = |node: &str| {
            let opened = Opened::from([(node.to_owned(), 7)]);
            read_function(&HostKernel::new(root.path()), &opened, address).unwrap().unwrap().held_by
        };
        assert_eq!(held("1:3"), None);
        assert_eq!(held("0000:42:00.0 memory"), None);
        let numbers = nodes.iter().map(|(_, number)| (*number).to_owned());
        for node in numbers.chain(["510:0".into(), memory_of(address), ANY.into()]) {
            assert_eq!(held(&node), Some(7), "{node}");
        }
    }
}
