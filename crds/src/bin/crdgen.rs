//! Writes the definitions of the four kinds as YAML into the folders named on the command line.
#![expect(clippy::disallowed_methods, reason = "a generator writes files")]

use std::{env, fs, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let folders: Vec<_> = env::args_os().skip(1).collect();
    if folders.is_empty() {
        eprintln!("usage: crdgen FOLDER...");
        return ExitCode::from(2);
    }
    for folder in &folders {
        for crd in gpudesk_crds::schema::all() {
            let path = Path::new(folder).join(gpudesk_crds::schema::file_name(&crd));
            let written = gpudesk_crds::schema::yaml(&crd)
                .map_err(std::io::Error::other)
                .and_then(|yaml| fs::write(&path, yaml));
            if let Err(error) = written {
                eprintln!("crdgen: {}: {error}", path.display());
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
