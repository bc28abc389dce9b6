//! Owner, group and mode of a socket, as people give them.

use nix::unistd::{Group, User};
use serde::{Deserialize, Serialize};

use crate::check::Fields;

/// Owner, group and mode of a socket; `None` leaves what the daemon's own user gives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SocketAccess {
    /// User id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
    /// Group id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    /// Permission bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

impl SocketAccess {
    /// Takes `socket_owner`, `socket_group` (names or ids) and `socket_mode` (octal) from a table of settings.
    pub fn read(fields: &mut Fields<'_>) -> SocketAccess {
        let user = |text: &str| User::from_name(text).ok()?.map(|user| user.uid.as_raw());
        let group = |text: &str| Group::from_name(text).ok()?.map(|group| group.gid.as_raw());
        let id =
            |text: &str, by_name: &dyn Fn(&str) -> Option<u32>| text.parse().ok().or_else(|| by_name(text));
        SocketAccess {
            owner: read(fields, "socket_owner", "a user name or id of this host", "no such user", |t| {
                id(t, &user)
            }),
            group: read(fields, "socket_group", "a group name or id of this host", "no such group", |t| {
                id(t, &group)
            }),
            mode: read(fields, "socket_mode", "octal permission bits such as 0660", "not a mode", |text| {
                u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777)
            }),
        }
    }
}

fn read(
    fields: &mut Fields<'_>,
    key: &'static str,
    expected: &str,
    wrong: &str,
    parse: impl FnOnce(&str) -> Option<u32>,
) -> Option<u32> {
    let text = fields.optional::<String>(key, expected)?;
    let found = parse(&text);
    if found.is_none() {
        fields.errors().add(key, &text, wrong, format!("give {expected}"));
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::Errors;

    fn check(input: serde_json::Value) -> (SocketAccess, Errors) {
        let mut errors = Errors::new();
        let access = SocketAccess::read(&mut Fields::new("", input, &mut errors));
        (access, errors)
    }

    #[test]
    fn names_and_ids() {
        let (access, errors) =
            check(json!({"socket_owner": "0", "socket_group": "root", "socket_mode": "0660"}));
        assert_eq!(access, SocketAccess { owner: Some(0), group: Some(0), mode: Some(0o660) });
        assert!(errors.is_empty());
        assert_eq!(check(json!({})).0, SocketAccess::default());
    }

    #[test]
    fn everything_wrong_is_told() {
        let input =
            json!({"socket_owner": "no-such-user", "socket_group": "no-such-group", "socket_mode": "1777"});
        let (access, errors) = check(input);
        assert_eq!(access, SocketAccess::default());
        assert_eq!(errors.list().len(), 3);
    }
}
