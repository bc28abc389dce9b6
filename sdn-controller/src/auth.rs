//! Who asks, and what they may.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What somebody may do; each may what those before it may.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look.
    Read,
    /// Change what is wanted.
    Operate,
    /// Change who may.
    Admin,
}

/// Somebody who asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The name, for the audit log.
    pub name: String,
    /// Where they are.
    pub from: String,
    /// What they may.
    pub role: Role,
    /// The tenant they are confined to.
    pub tenant: Option<String>,
}

impl Identity {
    /// The controller itself.
    pub fn controller() -> Identity {
        Identity { name: "controller".into(), from: "itself".into(), role: Role::Admin, tenant: None }
    }

    /// Somebody on this host, whom the listener lets do anything.
    pub fn local(name: impl Into<String>, from: impl Into<String>) -> Identity {
        Identity { name: name.into(), from: from.into(), role: Role::Admin, tenant: None }
    }
}
