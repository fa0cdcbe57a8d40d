//! Tests of placement: the geometry of real cards, whole decisions, and properties over many.

mod builders;
mod decisions;
mod differential;
mod figures;
mod geometry;
mod layouts;
mod model;
mod oracle;
mod orders;
mod policies;
mod properties;
mod schedulers;
mod strays;
mod waiting;
