//! The project's chores, as a library: `xtask` runs them by name, and the crate `tests` boots its guests with [`lab`].
#![forbid(unsafe_code)]

pub mod demo;
pub mod docs;
pub mod fuzz;
pub mod image;
pub mod judge;
pub mod lab;
pub mod paths;
pub mod progress;
pub mod setup;
pub mod suites;
pub mod tidy;
