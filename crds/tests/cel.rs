//! Every validation rule refuses what it is for, in its own words, and lets the neighbour through.
//!
//! Each case is the smallest valid object of its kind with one fragment merged into it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use gpudesk_crds::{Desktop, schema};
use kube::core::cel::{ValidationErrors, Validator, validate_cel_update};
use serde_json::{Value, json};

/// Fragment, and what the refusal says; nothing for a fragment that is fine.
type Case = (&'static str, Option<&'static str>);

const DESKTOPS: &[Case] = &[
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
];

const TEMPLATES: &[Case] = &[
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
    ("{spec: {networks: [{name: -lan, user: {}}]}}", Some("write lower-case letters, digits and hyphens")),
    (
        "{spec: {gpus: [{name: a_b, profileRef: {name: p}}]}}",
        Some("write lower-case letters, digits and hyphens"),
    ),
    ("{spec: {cloudInit: {}}}", Some("exactly one of inline and secretRef")),
    ("{spec: {consoles: {vnc: {passwordSecretRef: {name: a/b}}}}}", Some("write the name of a Secret")),
];

const NODES: &[Case] = &[
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
        "{spec: {devices: [{name: a, selector: {uuid: u}, mode: Mig, layout: {}}]}}",
        Some("a layout has exactly one of mig and vgpu"),
    ),
];

const PROFILES: &[Case] = &[
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

/// A name that is one character too long, for rules that a fragment cannot show.
fn long_names() -> [(&'static str, Value, &'static str); 4] {
    let named = |length: usize| json!({"metadata": {"name": "a".repeat(length)}});
    [
        ("Desktop", named(64), "must be a DNS label of at most 63 characters"),
        ("DesktopTemplate", named(64), "metadata.name must be at most 63 characters"),
        ("GpuProfile", named(64), "metadata.name must be at most 63 characters"),
        ("GpuNode", named(201), "metadata.name must be at most 200 characters"),
    ]
}

const TEMPLATE_REF_CHANGED: &str = "templateRef cannot be changed";

fn smallest(kind: &str) -> Value {
    let spec = match kind {
        "Desktop" => json!({"templateRef": {"name": "t"}}),
        "DesktopTemplate" => {
            json!({"memory": {"sizeMiB": 1024}, "disks": [{"name": "system", "image": {"name": "debian-12"}}]})
        }
        "GpuProfile" => json!({"alternatives": [{"passthrough": {}}]}),
        _ => json!({}),
    };
    json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": kind, "metadata": {"name": "a"}, "spec": spec})
}

fn merge(into: &mut Value, fragment: Value) {
    match (into, fragment) {
        (Value::Object(into), Value::Object(fragment)) => {
            for (key, value) in fragment {
                if value.is_null() {
                    into.remove(&key);
                } else {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (into, fragment) => *into = fragment,
    }
}

fn schema_of(kind: &str) -> Value {
    let crd = schema::all().into_iter().find(|crd| crd.spec.names.kind == kind).expect("a kind of gpudesk");
    serde_json::to_value(&crd).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take()
}

/// What the rules say of the smallest object with the fragment; empty when it is accepted.
fn judge(kind: &str, schema: &Value, fragment: Value) -> Vec<String> {
    let mut object = smallest(kind);
    merge(&mut object, fragment);
    let errors = Validator::new().validate(schema, &object, None);
    errors.err().into_iter().flat_map(ValidationErrors::into_vec).map(|error| error.to_string()).collect()
}

fn check(kind: &str, cases: &[Case]) {
    let schema = schema_of(kind);
    let mut wrong = Vec::new();
    for (fragment, refusal) in cases {
        let said = judge(kind, &schema, serde_yaml::from_str(fragment).unwrap());
        let right = match refusal {
            None => said.is_empty(),
            Some(refusal) => said.iter().any(|said| said.contains(refusal)),
        };
        if !right {
            wrong.push(format!("{fragment}\n  expected {refusal:?}, rules say {said:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn desktops() {
    check("Desktop", DESKTOPS);
}

#[test]
fn templates() {
    check("DesktopTemplate", TEMPLATES);
}

#[test]
fn nodes() {
    check("GpuNode", NODES);
}

#[test]
fn profiles() {
    check("GpuProfile", PROFILES);
}

#[test]
fn names_that_are_too_long_are_refused() {
    for (kind, fragment, refusal) in long_names() {
        let said = judge(kind, &schema_of(kind), fragment);
        assert!(said.iter().any(|said| said.contains(refusal)), "{kind}: {said:?}");
    }
}

fn desktop_of(template: &str) -> Desktop {
    let mut object = smallest("Desktop");
    merge(&mut object, json!({"spec": {"templateRef": {"name": template}}}));
    serde_json::from_value(object).unwrap()
}

#[test]
fn the_template_of_a_desktop_stays() {
    assert!(validate_cel_update(&desktop_of("a"), &desktop_of("a")).is_ok());
    let said = validate_cel_update(&desktop_of("b"), &desktop_of("a")).unwrap_err().to_string();
    assert!(said.contains(TEMPLATE_REF_CHANGED), "{said}");
}

fn collect(schema: &Value, path: &str, messages: &mut BTreeSet<(String, String)>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        messages.insert((path.to_owned(), rule["message"].as_str().unwrap().to_owned()));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        collect(property, &format!("{path}.{name}"), messages);
    }
    if schema["items"].is_object() {
        collect(&schema["items"], path, messages);
    }
}

#[test]
fn no_rule_is_without_a_case() {
    let mut messages = BTreeSet::new();
    for crd in schema::all() {
        let crd = serde_json::to_value(&crd).unwrap();
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap().to_owned();
        collect(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &kind, &mut messages);
    }
    assert!(messages.len() > 50, "only {} rules were found", messages.len());

    let tables =
        [("Desktop", DESKTOPS), ("DesktopTemplate", TEMPLATES), ("GpuNode", NODES), ("GpuProfile", PROFILES)];
    let mut refusals: Vec<(&str, &str)> = vec![("Desktop", TEMPLATE_REF_CHANGED)];
    refusals.extend(long_names().iter().map(|(kind, _, refusal)| (*kind, *refusal)));
    for (kind, table) in tables {
        refusals.extend(table.iter().filter_map(|(_, refusal)| Some((kind, (*refusal)?))));
    }
    let untested: Vec<_> = messages
        .iter()
        .filter(|(path, message)| {
            let kind = path.split('.').next().unwrap_or_default();
            !refusals.iter().any(|(of, refusal)| *of == kind && message.contains(refusal))
        })
        .collect();
    assert!(untested.is_empty(), "{untested:#?}");
}
