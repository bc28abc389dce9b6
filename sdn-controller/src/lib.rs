//! OpenFlow controller: switch sessions, desired state, reconcile, REST.
//!
//! Networks and static flows are set over REST ([`rest`]), stored durably ([`store`]) and turned into the rules of each
//! switch ([`plan`]). A session ([`session`], [`datapath`]) reads back the rules a switch has, sends the difference
//! ([`reconcile`]) and closes it with a barrier. Plan, reconcile and datapath do no I/O and take time as an argument.
#![forbid(unsafe_code)]

pub mod addresses;
pub mod controller;
pub mod daemon;
pub mod datapath;
pub mod entry;
pub mod flow_json;
pub mod metrics;
pub mod model;
pub mod plan;
pub mod reconcile;
pub mod rest;
pub mod session;
pub mod store;
pub mod views;

pub use daemon::{DaemonConfig, DaemonError, run};
