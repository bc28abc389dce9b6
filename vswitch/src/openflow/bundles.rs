//! Bundles: changes that a controller collects and that are then carried out together or not at all (ONF EXT-230).
//!
//! Every bundle is carried out as if it had been opened with both flags: in the order in which the messages were added,
//! all or none, and live at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ofp::{Body, BundleAdd, BundleControl, BundleControlType, BundleFlags, ErrorCode, Message};

use super::{Head, convert, flow_mod, groups, meters};
use crate::bridge::Change;
use crate::flow::Shared;

/// Bundles that a controller may have at once.
const BUNDLES_MAX: usize = 16;
/// Messages in all bundles of all controllers together.
const MESSAGES_MAX: usize = 1 << 20;
/// Counts the messages in all bundles.
#[derive(Clone, Default)]
pub struct Budget(Arc<AtomicUsize>);

/// A message of a bundle.
pub struct Added {
    /// Its number.
    pub xid: u32,
    /// Its first bytes.
    pub head: Head,
}

/// A bundle.
#[derive(Default)]
struct Bundle {
    flags: BundleFlags,
    closed: bool,
    /// A message was refused, so not all can be carried out.
    spoiled: bool,
    changes: Vec<Change>,
    messages: Vec<Added>,
    shared: Shared,
    last: flow_mod::LastInstructions,
}

/// What a control message leads to.
pub enum Outcome {
    /// This is answered.
    Reply(BundleControlType),
    /// These changes, which these messages asked for, are to be carried out.
    Commit(Vec<Change>, Vec<Added>),
}

/// The bundles of one controller.
pub struct Bundles {
    open: HashMap<u32, Bundle>,
    budget: Budget,
}

impl Bundles {
    /// None yet.
    pub fn new(budget: Budget) -> Bundles {
        Bundles { open: HashMap::new(), budget }
    }

    /// What a control message asks for.
    ///
    /// # Errors
    /// The code to answer with.
    pub fn control(&mut self, request: &BundleControl) -> Result<Outcome, ErrorCode> {
        use BundleControlType::{
            CloseReply, CloseRequest, CommitRequest, DiscardReply, DiscardRequest, OpenReply, OpenRequest,
        };
        match request.kind {
            OpenRequest if self.open.contains_key(&request.bundle_id) => Err(ErrorCode::BUNDLE_EXISTS),
            OpenRequest => self.bundle(request.bundle_id, request.flags).map(|_| Outcome::Reply(OpenReply)),
            CloseRequest => {
                let bundle = self.existing(request)?;
                if std::mem::replace(&mut bundle.closed, true) {
                    return Err(ErrorCode::BUNDLE_CLOSED);
                }
                Ok(Outcome::Reply(CloseReply))
            }
            CommitRequest => {
                let result = self.existing(request).map(|bundle| bundle.spoiled);
                let bundle = self.remove(request.bundle_id);
                match (result?, bundle) {
                    (false, Some(bundle)) => Ok(Outcome::Commit(bundle.changes, bundle.messages)),
                    _ => Err(ErrorCode::BUNDLE_MESSAGE_FAILED),
                }
            }
            DiscardRequest => {
                self.remove(request.bundle_id).ok_or(ErrorCode::BUNDLE_BAD_ID)?;
                Ok(Outcome::Reply(DiscardReply))
            }
            // Only switches send these.
            _ => Err(ErrorCode::BUNDLE_BAD_TYPE),
        }
    }

    /// Adds a message; `xid` is that of the message that carried it.
    ///
    /// # Errors
    /// The code to answer with; the bundle can then only be discarded.
    pub fn add(&mut self, xid: u32, request: &BundleAdd) -> Result<(), ErrorCode> {
        let budget = self.budget.clone();
        let bundle = self.bundle(request.bundle_id, request.flags)?;
        let checked = check(bundle, xid, request);
        let taken = budget.0.fetch_add(1, Ordering::Relaxed) < MESSAGES_MAX;
        let added = checked
            .and_then(|change| if taken { Ok(change) } else { Err(ErrorCode::BUNDLE_TOO_MANY_MESSAGES) });
        match added {
            Ok(mut change) => {
                if let Change::Flow(flow) = &mut change {
                    flow.share(&mut bundle.shared);
                }
                bundle.changes.push(change);
                let message = request.message.encode().unwrap_or_default();
                bundle.messages.push(Added { xid, head: Head::new(&message) });
                Ok(())
            }
            Err(code) => {
                budget.0.fetch_sub(1, Ordering::Relaxed);
                bundle.spoiled = true;
                Err(code)
            }
        }
    }

    /// Notes that a message for this bundle could not even be read.
    pub fn spoil(&mut self, bundle_id: u32) {
        if let Some(bundle) = self.open.get_mut(&bundle_id) {
            bundle.spoiled = true;
        }
    }

    /// The bundle of this number; adding to one that does not exist opens it.
    fn bundle(&mut self, bundle_id: u32, flags: BundleFlags) -> Result<&mut Bundle, ErrorCode> {
        if flags.0 & !BundleFlags::NAMED.0 != 0 {
            return Err(ErrorCode::BUNDLE_BAD_FLAGS);
        }
        if !self.open.contains_key(&bundle_id) && self.open.len() >= BUNDLES_MAX {
            return Err(ErrorCode::OUT_OF_BUNDLES);
        }
        let new = || Bundle { flags, ..Bundle::default() };
        Ok(self.open.entry(bundle_id).or_insert_with(new))
    }

    fn existing(&mut self, request: &BundleControl) -> Result<&mut Bundle, ErrorCode> {
        let bundle = self.open.get_mut(&request.bundle_id).ok_or(ErrorCode::BUNDLE_BAD_ID)?;
        if bundle.flags == request.flags { Ok(bundle) } else { Err(ErrorCode::BUNDLE_BAD_FLAGS) }
    }

    fn remove(&mut self, bundle_id: u32) -> Option<Bundle> {
        let bundle = self.open.remove(&bundle_id)?;
        self.budget.0.fetch_sub(bundle.changes.len(), Ordering::Relaxed);
        Some(bundle)
    }
}

impl Drop for Bundles {
    fn drop(&mut self) {
        let kept = self.open.values().map(|bundle| bundle.changes.len()).sum();
        self.budget.0.fetch_sub(kept, Ordering::Relaxed);
    }
}

/// The change that a message of a bundle asks for, if it may be added.
fn check(bundle: &mut Bundle, xid: u32, request: &BundleAdd) -> Result<Change, ErrorCode> {
    if bundle.closed {
        return Err(ErrorCode::BUNDLE_CLOSED);
    }
    if bundle.flags != request.flags {
        return Err(ErrorCode::BUNDLE_BAD_FLAGS);
    }
    let Message { xid: inner_xid, body } = &*request.message;
    if *inner_xid != xid {
        return Err(ErrorCode::BUNDLE_MESSAGE_BAD_XID);
    }
    match body {
        Body::FlowMod(flow_mod) => flow_mod::change(flow_mod, &mut bundle.last).map(Change::Flow),
        Body::GroupMod(group_mod) => groups::change(group_mod).map(Change::Group),
        Body::MeterMod(meter_mod) => meters::change(meter_mod).map(Change::Meter),
        Body::PortMod(port_mod) => convert::port_change(port_mod).map(Change::Port),
        _ => Err(ErrorCode::BUNDLE_MESSAGE_UNSUPPORTED),
    }
}
