//! What a store does over a longer time, on devices in memory.

mod clones;
mod pins;
mod rig;
mod slow_checkpoint;
