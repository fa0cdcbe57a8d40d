//! `kubectl desktop view`: the screen of a desktop, for a viewer on this computer.
//!
//! ```text
//!   Desktop ─▶ target: where its screen is, or why there is none        pure
//!           ◀─ ticket: the hash of a secret, by a patch                 who may patch, may look
//!   relay   ◀─ dial: TLS to the one key that the Desktop names, the secret, and then the bytes
//!              either way to the node: its address, or a port-forward
//!   run: a loopback port for one viewer of this user (viewer); or screenshot: a picture, by rfb
//! ```

pub mod dial;
pub mod rfb;
pub mod run;
pub mod screenshot;
pub mod target;
pub mod ticket;
mod viewer;
