//! The agent and the pipeline over a data path in this process: frames in, frames out, real forwarders on threads
//! of their own, controllers and `ovs-ofctl` over real sockets.

mod bundles;
mod client;
mod counters;
mod data_path;
mod differential;
mod hostile;
mod ovs_ofctl;
mod packets;
mod regressions;
mod sessions;
mod tls;
mod trace;
