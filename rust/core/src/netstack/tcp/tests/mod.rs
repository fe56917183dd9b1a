//! Two connections back to back on virtual time.

mod faults;
mod link;
mod states;
mod throughput;
