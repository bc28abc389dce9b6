//! Ports: the virtio-net device, its vhost-user backend, and what senders and receivers leave to each other.

pub mod backend;
pub mod control_queue;
pub mod device;
pub mod offload;
