//! Ports, pipeline, flow tables and OpenFlow agent of the software switch, and its daemon.
//!
//! ```text
//! admin ---> Switch (ports, kept over restarts) ---> Bridge (ports, flows) ---> DataPath ---> workers
//! agent (OpenFlow) ------------------------------------^
//! frontends ---> sessions ---> NetBackend (rings) ------------------------------^
//! ```
#![forbid(unsafe_code)]

pub mod admin;
pub mod bridge;
mod cache;
pub mod capture;
pub mod config;
pub mod daemon;
pub mod data_path;
pub mod fdb;
pub mod flow;
pub mod flow_tables;
pub mod forwarder;
pub mod frame_words;
pub mod groups;
mod hash;
pub mod meters;
mod metrics;
pub mod model;
pub mod openflow;
pub mod pipeline;
pub mod port;
pub mod port_spec;
pub mod ports;
pub mod switch;
pub mod tables;
pub mod trace;
mod trie;
mod worker;
