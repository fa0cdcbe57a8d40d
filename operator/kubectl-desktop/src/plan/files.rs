//! Reads manifests and host files.
#![expect(clippy::disallowed_methods, reason = "adapter: reads files")]

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use gpudesk_crds::yaml;

use super::{
    estate::Estate,
    hosts,
    manifest::{self, Manifests},
    schema::Schemas,
};

/// Endings of the files in a folder that are read.
const ENDINGS: &[&str] = &["yaml", "yml", "json"];

/// The largest file that is read.
const MOST_BYTES: u64 = 1 << 30;

/// A file and its text.
type Text = (String, String);

/// Reads what `-f` names: files, folders (with `recursive` those in them too) or `-`.
///
/// # Errors
/// What cannot be read, a sentence each.
pub fn manifests(
    names: &[String],
    recursive: bool,
    namespace: &str,
    schemas: &Schemas,
) -> Result<Manifests, Vec<String>> {
    let (mut manifests, mut faults) = (Manifests::default(), vec![]);
    for name in names {
        let before = manifests.found();
        match texts(name, recursive) {
            Ok(texts) => texts.iter().for_each(|(file, text)| manifests.read(file, text, namespace, schemas)),
            Err(fault) => {
                faults.push(fault);
                continue;
            }
        }
        if name == "-" && manifests.found() == before {
            faults.push("standard input: there is no object in it; did the command before it fail?".into());
        }
    }
    if !names.is_empty() && faults.is_empty() && manifests.objects.is_empty() && manifests.faults.is_empty() {
        faults.push(nothing(names, &manifests, schemas));
    }
    if faults.is_empty() {
        return Ok(manifests);
    }
    faults.append(&mut manifests.faults);
    Err(faults)
}

/// What is said where nothing of ours was found.
fn nothing(names: &[String], manifests: &Manifests, schemas: &Schemas) -> String {
    let names: Vec<_> =
        names.iter().map(|name| if name == "-" { "standard input" } else { name.as_str() }).collect();
    let kinds: Vec<_> = schemas.kinds().collect();
    let others: Vec<_> = manifests.ignored.iter().map(|(kind, count)| format!("{count} of {kind}")).collect();
    let others = if others.is_empty() { String::new() } else { format!(", but {}", others.join(", ")) };
    format!("{}: there is no {} in it{others}", names.join(", "), kinds.join(", "))
}

/// Adds the machines that `--nodes` names: `FILE`, `FILE=COUNT` or a folder of such files; host files, or
/// `GpuNode` manifests with status.
///
/// # Errors
/// What is wrong, a sentence each.
pub fn nodes(
    names: &[String],
    namespace: &str,
    estate: &mut Estate,
    schemas: &Schemas,
) -> Result<(), Vec<String>> {
    let mut faults = vec![];
    for name in names {
        // A file may well have such a name.
        let is_file = Path::new(name).exists();
        let (path, count) = if is_file { (name.as_str(), None) } else { hosts::file_and_count(name) };
        let no_number = !is_file
            && count.is_none()
            && name.rsplit_once('=').is_some_and(|(file, _)| Path::new(file).exists());
        if no_number || count.is_some_and(|count| count == 0 || count > hosts::MOST) {
            faults.push(format!("--nodes {name}: write a count of 1 to {}", hosts::MOST));
            continue;
        }
        match texts(path, false) {
            Ok(texts) => {
                for (file, text) in texts {
                    if let Err(mut found) = machine(&file, &text, count, namespace, estate, schemas) {
                        faults.append(&mut found);
                    }
                }
            }
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

fn machine(
    file: &str,
    text: &str,
    count: Option<u32>,
    namespace: &str,
    estate: &mut Estate,
    schemas: &Schemas,
) -> Result<(), Vec<String>> {
    if manifest::is_manifest(text) {
        if count.is_some() {
            return Err(vec![format!("{file}: a GpuNode is one machine; =COUNT goes with host files")]);
        }
        let mut manifests = Manifests::default();
        manifests.read(file, text, namespace, schemas);
        return estate.lay(manifests);
    }
    let hosts = hosts::hosts(&hosts::stem(file), text, count);
    for host in hosts.map_err(|error| vec![format!("{file}: {error}")])? {
        estate.add_host(file, host).map_err(|fault| vec![fault])?;
    }
    Ok(())
}

fn texts(name: &str, recursive: bool) -> Result<Vec<Text>, String> {
    if name == "-" {
        let text = bounded(std::io::stdin()).map_err(|error| format!("standard input: {error}"))?;
        not_too_deep("standard input", &text)?;
        return Ok(vec![(name.into(), text)]);
    }
    if name.starts_with("http://") || name.starts_with("https://") {
        return Err(format!("{name}: addresses are not fetched; pipe what they give to -f -"));
    }
    let path = Path::new(name);
    let kind = fs::metadata(path).map_err(|error| format!("{name}: {error}"))?;
    let mut files = vec![];
    if kind.is_dir() {
        in_folder(path, recursive, &mut files)?;
        if files.is_empty() {
            return Err(format!("{name}: no file in this folder ends in .yaml, .yml or .json"));
        }
        files.sort();
    } else {
        files.push(path.to_owned());
    }
    let read = |file: PathBuf| {
        let name = file.display().to_string();
        let text = fs::File::open(&file).and_then(bounded).map_err(|error| format!("{name}: {error}"))?;
        not_too_deep(&name, &text)?;
        Ok((name, text))
    };
    files.into_iter().map(read).collect()
}

/// A text of a size that can be looked at.
fn bounded(from: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    from.take(MOST_BYTES + 1).read_to_string(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|length| length <= MOST_BYTES) {
        return Ok(text);
    }
    Err(std::io::Error::other(format!("larger than {} MiB; give it in parts", MOST_BYTES >> 20)))
}

/// Readers of YAML take ages for what is nested without end.
fn not_too_deep(name: &str, text: &str) -> Result<(), String> {
    match yaml::too_deep(text) {
        Some(line) => {
            Err(format!("{name}: line {line}: nested deeper than {} levels, or not YAML", yaml::MOST_LEVELS))
        }
        None => Ok(()),
    }
}

fn in_folder(folder: &Path, recursive: bool, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let fault = |error: std::io::Error| format!("{}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(fault)? {
        let entry = entry.map_err(fault)?;
        let path = entry.path();
        if entry.file_type().map_err(fault)?.is_dir() {
            if recursive {
                in_folder(&path, recursive, files)?;
            }
        } else if path.extension().and_then(|e| e.to_str()).is_some_and(|ending| ENDINGS.contains(&ending)) {
            files.push(path);
        }
    }
    Ok(())
}
