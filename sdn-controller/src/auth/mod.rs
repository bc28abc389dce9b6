//! Who asks, and what they may.

mod certificate;
mod tokens;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use certificate::common_name;
pub use tokens::{Digest, Token, TokenError, Tokens};
pub(crate) use tokens::{make as new_token, stored as stored_token};

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

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Read => "read",
            Role::Operate => "operate",
            Role::Admin => "admin",
        })
    }
}

impl FromStr for Role {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Role, &'static str> {
        match text {
            "read" => Ok(Role::Read),
            "operate" => Ok(Role::Operate),
            "admin" => Ok(Role::Admin),
            _ => Err("is none of read, operate, admin"),
        }
    }
}

/// What somebody may do, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// What they may.
    pub role: Role,
    /// The tenant they are confined to.
    pub tenant: Option<String>,
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
    /// The token that says so, if one does.
    pub token: Option<Digest>,
}

impl Identity {
    /// The controller itself.
    pub fn controller() -> Identity {
        Identity {
            name: "controller".into(),
            from: "itself".into(),
            role: Role::Admin,
            tenant: None,
            token: None,
        }
    }

    /// Somebody on this host, whom the listener lets do anything.
    pub fn local(name: impl Into<String>, from: impl Into<String>) -> Identity {
        Identity { name: name.into(), from: from.into(), role: Role::Admin, tenant: None, token: None }
    }

    /// Somebody who may what `grant` says.
    pub fn granted(name: impl Into<String>, from: impl Into<String>, grant: Grant) -> Identity {
        let Grant { role, tenant } = grant;
        Identity { name: name.into(), from: from.into(), role, tenant, token: None }
    }
}
