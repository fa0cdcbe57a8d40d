//! Files that claim to be captures.
#![no_main]

use gpudesk_inventory::{scan::Scanner, tree::Tree};

#[path = "../scratch.rs"]
mod scratch;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let path = scratch::file(bytes);
    let Ok(tree) = Tree::open(&path) else { return };
    let _ = tree.names("", |_| true);
    let _ = (tree.text("proc/version"), tree.link("sys"), tree.exists("sys/class"));
    let _ = Scanner::new(tree).read();
});
