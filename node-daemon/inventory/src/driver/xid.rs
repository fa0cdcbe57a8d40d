//! NVIDIA's error numbers and what to do about them.
//!
//! Source: NVIDIA's XID catalogue, and which of them its device plugin for Kubernetes takes for
//! application errors.

/// What an error asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// A program did something wrong; the card is fine.
    Application,
    /// The programs on it must start anew; the card is fine.
    Contained,
    /// The card must be reset.
    Reset,
    /// The card is off the bus.
    OffTheBus,
    /// Something to look at; the card goes on.
    Alert,
    /// The driver says apart what is to be done.
    Hint,
    /// Not in the table.
    Unknown,
}

/// What an error means and asks for, in one sentence.
pub(super) fn meaning(code: u32) -> (Group, &'static str) {
    use Group::{Alert, Application, Contained, Hint, OffTheBus, Reset};
    match code {
        13 => {
            (Application, "A program used the GPU wrongly (graphics engine exception): look at that program.")
        }
        31 => (
            Application,
            "A program used memory of the GPU that is not its own (page fault): look at that program.",
        ),
        43 => (Application, "A program was stopped by the GPU: look at that program."),
        45 => (Application, "A program was ended while it used the GPU: nothing to do."),
        68 => {
            (Application, "A program gave the video processor what it cannot decode: look at that program.")
        }
        109 => (
            Application,
            "A program held the GPU longer than it may (context switch timeout): look at that program.",
        ),
        48 => (
            Reset,
            "Memory had an error that cannot be corrected: stop the desktops of the card and reset it.",
        ),
        54 => (Alert, "The auxiliary power of the card is missing: check its power cable."),
        62 => (Reset, "The GPU's own controller stopped: stop the desktops of the card and reset it."),
        63 => (Contained, "A row of memory was replaced: reset the card when its desktops are stopped."),
        64 => (Reset, "A row of memory could not be replaced: stop the desktops of the card and reset it."),
        74 => (Alert, "An NVLink had errors: check the bridge or the baseboard if they go on."),
        78 => (Alert, "A vGPU did not start: check that host driver and guest driver belong together."),
        79 => (
            OffTheBus,
            "The card fell off the bus: power the machine off and on, and reseat the card if it happens again.",
        ),
        92 => (Alert, "Many memory errors were corrected: ask the maker of the card."),
        94 => (Contained, "A memory error hit one program: start that desktop again."),
        95 => (Reset, "A memory error hit every program of the card: stop its desktops and reset it."),
        110 => (Reset, "The security processor of the card had an error: stop its desktops and reset it."),
        119 => (
            Reset,
            "The GPU's system processor (GSP) did not answer: stop the desktops of the card and reset it.",
        ),
        120 => (
            Reset,
            "The GPU's system processor (GSP) had an error: stop the desktops of the card and reset it.",
        ),
        136 => (Reset, "Training of a link failed: stop the desktops of the card and reset it."),
        154 => (Hint, "The driver wants the card recovered: do what recoveryAction says."),
        _ => (Group::Unknown, "Look this number up in NVIDIA's XID catalogue."),
    }
}
