//! Users and groups of a container, as its own /etc/passwd and /etc/group
//! have them. Pure: the contents of the files are handed in.
//!
//! Sources followed: passwd(5), group(5).

use std::path::PathBuf;

/// As whom a program runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: PathBuf,
}

/// Why a `USER[:GROUP]` means nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownId {
    /// Not in /etc/passwd.
    #[error("the container's /etc/passwd has no user '{0}'")]
    User(String),
    /// Not in /etc/group.
    #[error("the container's /etc/group has no group '{0}'")]
    Group(String),
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
        Some(User { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    })
}

/// Name, id and members of each group.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, gid, members, ..] = fields[..] else { return None };
        Some((name, gid.parse().ok()?, members))
    })
}

/// Looks up `USER[:GROUP]`, names or numbers; no USER means root. A number
/// need not be in the files. A group that is given stands alone; without one
/// the user has all the groups that name it as a member.
///
/// # Errors
/// [`UnknownId`] for a name that is not in the files.
pub fn identity(wanted: Option<&str>, passwd: &str, group: &str) -> Result<Identity, UnknownId> {
    let wanted = wanted.unwrap_or("0");
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, "")) => (user, None),
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let found = users(passwd)
        .find(|entry| entry.name == user)
        .or_else(|| users(passwd).find(|entry| Some(entry.uid) == number));
    let uid = match (&found, number) {
        (Some(entry), _) => entry.uid,
        (None, Some(uid)) => uid,
        (None, None) => return Err(UnknownId::User(user.to_owned())),
    };
    let mut identity = Identity {
        uid,
        gid: found.as_ref().map_or(0, |entry| entry.gid),
        groups: Vec::new(),
        home: match &found {
            Some(entry) if entry.home.starts_with('/') => entry.home.into(),
            None if uid == 0 => "/root".into(),
            _ => "/".into(),
        },
    };
    if let Some(wanted) = wanted_group {
        identity.gid = groups(group)
            .find(|(name, ..)| *name == wanted)
            .map(|(_, gid, _)| gid)
            .or_else(|| wanted.parse().ok())
            .ok_or_else(|| UnknownId::Group(wanted.to_owned()))?;
    } else if let Some(entry) = &found {
        identity.groups = groups(group)
            .filter(|(_, _, members)| members.split(',').any(|member| member == entry.name))
            .map(|(_, gid, _)| gid)
            .collect();
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nada:x:1000:100:Ada,,,:/home/ada:\n";
    const GROUP: &str = "root:x:0:\nusers:x:100:\nvideo:x:44:bob,ada\naudio:x:29:adam\n";

    fn look(wanted: &str) -> Result<Identity, UnknownId> {
        identity(Some(wanted), PASSWD, GROUP)
    }

    #[test]
    fn nobody_in_particular_is_root() {
        let root = Identity { uid: 0, gid: 0, groups: vec![], home: "/root".into() };
        assert_eq!(identity(None, PASSWD, GROUP).unwrap(), root);
        assert_eq!(identity(None, "", "").unwrap(), root);
    }

    #[test]
    fn names_and_numbers() {
        let ada = Identity { uid: 1000, gid: 100, groups: vec![44], home: "/home/ada".into() };
        assert_eq!(look("ada").unwrap(), ada);
        assert_eq!(look("1000").unwrap(), ada);
        let given = look("ada:video").unwrap();
        assert_eq!((given.uid, given.gid, given.groups.len()), (1000, 44, 0));
        let unknown = look("77:88").unwrap();
        assert_eq!((unknown.uid, unknown.gid, unknown.home), (77, 88, "/".into()));
    }

    #[test]
    fn unknown_names() {
        assert_eq!(look("eve").unwrap_err(), UnknownId::User("eve".to_owned()));
        assert_eq!(look("ada:eve").unwrap_err(), UnknownId::Group("eve".to_owned()));
    }
}
