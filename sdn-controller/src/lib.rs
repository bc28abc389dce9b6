//! OpenFlow controller: switch sessions, desired state, reconcile, REST.
//!
//! What is wanted ([`model`]) is set over REST ([`rest`]), stored durably ([`store`]), cut into a part for each switch
//! ([`layout`]) and turned into rules and meters there ([`plan`]). A session ([`session`], [`datapath`]) reads back what a
//! switch has, sends the difference ([`reconcile`]) and closes it with a barrier. Layout, plan, reconcile and datapath
//! do no I/O and take time as an argument.
#![forbid(unsafe_code)]

pub mod addresses;
pub mod auth;
pub mod controller;
pub mod daemon;
pub mod datapath;
pub mod discovery;
mod doorway;
pub mod edit;
pub mod entry;
pub mod events;
pub mod flow_json;
pub mod layout;
pub mod links;
pub mod metrics;
pub mod model;
pub mod plan;
pub mod reconcile;
pub mod rest;
pub mod rule_set;
pub mod session;
pub mod store;
pub mod views;

pub use daemon::{DaemonConfig, DaemonError, OpenFlowAddress, run};
