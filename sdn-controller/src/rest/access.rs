//! Which role each route needs. A route that is not named here is the administrator's alone.

use axum::http::Method;

use crate::auth::{Identity, Role};
use crate::model::Kind;

/// What a route asks of whoever uses it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// Nothing: there are no secrets.
    Anybody,
    /// A role; `tenants`: those confined to a tenant may too, and see and change what is theirs.
    Role {
        /// The least role.
        least: Role,
        /// Whether those confined to a tenant may.
        tenants: bool,
    },
}

/// Why somebody may not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Denied {
    /// Their role is too low.
    Role(Role),
    /// They are confined to a tenant.
    Tenant,
}

/// The rule of a request by its route, as the router names it.
pub fn rule(method: &Method, route: &str) -> Rule {
    let least = if method.is_safe() { Role::Read } else { Role::Operate };
    let role = |least, tenants| Rule::Role { least, tenants };
    let of_kind = |kind: &Kind| {
        let rest = route.strip_prefix("/v1/").and_then(|route| route.strip_prefix(kind.plural()));
        rest.is_some_and(|rest| rest.is_empty() || rest == "/{name}")
    };
    match route {
        "/" | "/page/style.css" | "/page/app.js" | "/openapi.json" => Rule::Anybody,
        "/v1/events" | "/v1/addresses" | "/v1/counters" | "/v1/whoami" => role(least, true),
        "/v1/document" | "/v1/audit" | "/v1/topology" => role(least, false),
        // Questions with a filter in the body change nothing.
        "/stats/flow/{dpid}" | "/stats/aggregateflow/{dpid}" => role(Role::Read, false),
        _ if route == "/v1/switches" || route.starts_with("/v1/switches/") => role(least, false),
        _ if route.starts_with("/stats/") => role(least, false),
        _ if Kind::ALL.iter().filter(|kind| **kind != Kind::Flow).any(of_kind) => role(least, true),
        _ => role(Role::Admin, false),
    }
}

impl Rule {
    /// Whether `who` may.
    ///
    /// # Errors
    /// Why not.
    pub fn admits(self, who: &Identity) -> Result<(), Denied> {
        match self {
            Rule::Role { least, .. } if who.role < least => Err(Denied::Role(least)),
            Rule::Role { tenants: false, .. } if who.tenant.is_some() => Err(Denied::Tenant),
            _ => Ok(()),
        }
    }
}
