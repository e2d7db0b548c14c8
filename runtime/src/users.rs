//! Users and groups by name, from the image: its /etc/passwd and /etc/group are opened inside the image's root. No
//! library of the host is used, which could be redirected to other files.

use std::os::fd::BorrowedFd;

use crate::path::Root;
use crate::sys::{self, Context as _};

/// The maximum length of a passwd or group file. The image determines its length, and the daemon reads it
/// (CVE-2025-4437).
const LONGEST: usize = 1 << 20;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// The highest id. 2^32-1 means "no change" to the kernel (setresuid(2)).
const HIGHEST: u32 = u32::MAX - 1;

/// The requested user of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserRequest {
    /// The user, by id or by name.
    pub user: Principal,
    /// The group. Without one it is the user's group in /etc/passwd, or 0.
    pub group: Option<Principal>,
    /// Supplementary groups, by number.
    pub supplemental: Vec<u32>,
    /// The policy for the groups in the image's /etc/group.
    pub policy: GroupsPolicy,
}

/// A user or a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// By id.
    Id(u32),
    /// By name, as in the image.
    Name(String),
}

impl Default for Principal {
    fn default() -> Self {
        Self::Id(0)
    }
}

/// The policy for the supplementary groups in the image's /etc/group (CRI `SupplementalGroupsPolicy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GroupsPolicy {
    /// The requested groups and those that list the user as a member.
    #[default]
    Merge,
    /// Only the requested groups.
    Strict,
}

/// A user with ids, as the kernel needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, sorted. They include the primary group.
    pub groups: Vec<u32>,
    /// The home folder in /etc/passwd.
    pub home: Option<String>,
}

/// An error of looking up a user.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The image has no such user.
    #[error("user {0:?} not found in the image's /etc/passwd")]
    UnknownUser(String),
    /// The image has no such group.
    #[error("group {0:?} not found in the image's /etc/group")]
    UnknownGroup(String),
    /// A number that is not a valid id.
    #[error("invalid user or group id {0:?}: it must be between 0 and {HIGHEST}")]
    NotAnId(String),
    /// A required file is longer than the limit.
    #[error("invalid {file} of the image: {size} bytes, the limit is {LONGEST}")]
    TooLong {
        /// The file's path.
        file: &'static str,
        /// Its length.
        size: u64,
    },
    /// The image's files cannot be read.
    #[error("failed to read the image's users: {0}")]
    System(#[from] sys::Error),
}

impl UserRequest {
    /// Parses an image's user: `user` or `user:group`, each by name or number. An empty one is root (OCI image
    /// spec, `config.User`).
    ///
    /// # Errors
    /// A number is not a valid id.
    pub fn of_image(user: &str) -> Result<Self, UserError> {
        let (user, group) = match user.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (user, None),
        };
        Ok(Self {
            user: Principal::parse(user)?,
            group: group.filter(|group| !group.is_empty()).map(Principal::parse).transpose()?,
            ..Self::default()
        })
    }
}

impl Principal {
    /// Parses a name or number. A number that is too large for an id is an error: truncated, it would be another
    /// id (CVE-2024-40635).
    ///
    /// # Errors
    /// The number is not a valid id.
    pub fn parse(text: &str) -> Result<Self, UserError> {
        if text.is_empty() {
            return Ok(Self::Id(0));
        }
        let number = text.strip_prefix(['-', '+']).unwrap_or(text);
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Self::Name(text.to_owned()));
        }
        match text.parse::<u32>() {
            Ok(id) if id <= HIGHEST && number.len() == text.len() => Ok(Self::Id(id)),
            _ => Err(UserError::NotAnId(text.to_owned())),
        }
    }
}

/// Looks up a user in an image. `root` is a descriptor of the image's root directory. A file that is too long is
/// an error only if a name must be found in it. A user or a group by number does not need the file: it then gets
/// no further groups and no home.
///
/// # Errors
/// The image has no such user or group, or a required file is too long.
pub fn resolve_user(root: BorrowedFd<'_>, request: &UserRequest) -> Result<ResolvedUser, UserError> {
    let root = Root::new(sys::mount::same_place(root)?);
    let by_name = matches!(request.user, Principal::Name(_));
    let group_by_name = matches!(request.group, Some(Principal::Name(_)));
    let passwd = read(&root, PASSWD, by_name)?;
    let group = if group_by_name || request.policy == GroupsPolicy::Merge {
        read(&root, GROUP, group_by_name)?
    } else {
        String::new()
    };
    resolve(&passwd, &group, request)
}

/// Reads a file. One that does not exist, or is not a regular file, counts as empty.
fn read(root: &Root, path: &'static str, needed: bool) -> Result<String, UserError> {
    use rustix::io::Errno;
    let content = root.open_file(path).and_then(|file| {
        let size = rustix::fs::fstat(&file).on("fstat", path)?.st_size;
        let size = u64::try_from(size).unwrap_or(u64::MAX);
        if size > u64::try_from(LONGEST).unwrap_or(u64::MAX) {
            return Ok(Err(size));
        }
        // The file may have grown since then. At most `LONGEST` bytes are read.
        sys::fs::read_all(file, LONGEST).map(Ok)
    });
    match content {
        Ok(Ok(bytes)) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Ok(Err(size)) if needed => Err(UserError::TooLong { file: path, size }),
        Ok(Err(size)) => {
            tracing::warn!(
                file = path,
                size,
                limit = LONGEST,
                "ignored a file of the image that is too long"
            );
            Ok(String::new())
        }
        Err(error) if matches!(error.errno, Errno::NOENT | Errno::NOTDIR | Errno::INVAL | Errno::LOOP) => {
            Ok(String::new())
        }
        Err(error) => Err(error.into()),
    }
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Parses a line of passwd(5). Returns `None` for an invalid line, which is skipped.
fn passwd_entry(line: &str) -> Option<Entry<'_>> {
    let mut fields = line.split(':');
    let (name, _password) = (fields.next()?, fields.next()?);
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let home = fields.nth(1).unwrap_or_default();
    (!name.is_empty() && uid <= HIGHEST && gid <= HIGHEST).then_some(Entry { name, uid, gid, home })
}

/// Parses a line of group(5) to its name, id and members.
fn group_entry(line: &str) -> Option<(&str, u32, impl Iterator<Item = &str>)> {
    let mut fields = line.split(':');
    let (name, _password, gid) = (fields.next()?, fields.next()?, fields.next()?.parse().ok()?);
    let members = fields.next().unwrap_or_default().trim_end().split(',');
    (!name.is_empty() && gid <= HIGHEST).then_some((name, gid, members))
}

fn resolve(passwd: &str, group: &str, request: &UserRequest) -> Result<ResolvedUser, UserError> {
    let mut entries = passwd.lines().filter_map(passwd_entry);
    let (entry, uid) = match &request.user {
        Principal::Id(uid) => (entries.find(|entry| entry.uid == *uid), *uid),
        Principal::Name(name) => {
            let entry = entries.find(|entry| entry.name == name);
            let uid = entry.as_ref().map(|entry| entry.uid);
            (entry, uid.ok_or_else(|| UserError::UnknownUser(name.clone()))?)
        }
    };
    let gid = match &request.group {
        Some(Principal::Id(gid)) => *gid,
        Some(Principal::Name(name)) => group
            .lines()
            .filter_map(group_entry)
            .find_map(|(entry, gid, _)| (entry == name).then_some(gid))
            .ok_or_else(|| UserError::UnknownGroup(name.clone()))?,
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut groups = vec![gid];
    groups.extend(&request.supplemental);
    if let (GroupsPolicy::Merge, Some(entry)) = (request.policy, &entry) {
        let listed = group.lines().filter_map(group_entry);
        groups.extend(
            listed.filter_map(|(_, gid, mut members)| {
                members.any(|member| member == entry.name).then_some(gid)
            }),
        );
    }
    groups.sort_unstable();
    groups.dedup();
    let home = entry.map(|entry| entry.home.to_owned()).filter(|home| !home.is_empty());
    Ok(ResolvedUser { uid, gid, groups, home })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:1000:1000::/srv:/bin/sh\nbig:x:4294967295:1::/:/\n";
    const GROUP: &str = "root:x:0:\nweb:x:1000:\nlogs:x:50:web,root\nmail:x:51:web\nodd:x:nine:web\n";

    fn of(user: &str) -> Result<ResolvedUser, UserError> {
        resolve(PASSWD, GROUP, &UserRequest::of_image(user)?)
    }

    #[test]
    fn users_get_their_groups() {
        let web = of("web").unwrap();
        assert_eq!((web.uid, web.gid, web.home.as_deref()), (1000, 1000, Some("/srv")));
        assert_eq!(web.groups, [50, 51, 1000]);
        assert_eq!(of("1000").unwrap(), web);
        assert_eq!(of("web:logs").unwrap().gid, 50);
        let unlisted = of("4711").unwrap();
        assert_eq!((unlisted.uid, unlisted.gid, unlisted.groups), (4711, 0, vec![0]));
        assert_eq!(of("").unwrap().uid, 0);
    }

    #[test]
    fn the_strict_policy_adds_no_groups() {
        let request = UserRequest {
            user: Principal::Id(1000),
            supplemental: vec![1234],
            policy: GroupsPolicy::Strict,
            ..UserRequest::default()
        };
        assert_eq!(resolve(PASSWD, GROUP, &request).unwrap().groups, [1000, 1234]);
        let merged = UserRequest { policy: GroupsPolicy::Merge, ..request };
        assert_eq!(resolve(PASSWD, GROUP, &merged).unwrap().groups, [50, 51, 1000, 1234]);
    }

    #[test]
    fn errors_name_unknown_users_and_invalid_ids() {
        assert!(matches!(of("nobody"), Err(UserError::UnknownUser(name)) if name == "nobody"));
        assert!(matches!(of("0:none"), Err(UserError::UnknownGroup(name)) if name == "none"));
        for text in ["4294967295", "4294967296", "99999999999999999999", "-1", "+5"] {
            assert!(matches!(of(text), Err(UserError::NotAnId(_))), "{text}");
        }
        assert!(
            matches!(of("big"), Err(UserError::UnknownUser(_))),
            "an entry with an invalid id is skipped"
        );
    }

    #[test]
    fn a_file_that_is_too_long_is_an_error_only_if_it_is_needed() {
        use std::os::fd::AsFd as _;

        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("etc")).unwrap();
        let root = std::fs::File::open(folder.path()).unwrap();
        let write = |passwd: u64, group: u64| {
            for (name, text, size) in [("etc/passwd", PASSWD, passwd), ("etc/group", GROUP, group)] {
                std::fs::write(folder.path().join(name), text).unwrap();
                // The rest of the file is a hole, which uses no space.
                let file = std::fs::File::options().write(true).open(folder.path().join(name)).unwrap();
                file.set_len(size.max(text.len().try_into().unwrap())).unwrap();
            }
        };
        let of = |user: &str, policy| {
            resolve_user(root.as_fd(), &UserRequest { policy, ..UserRequest::of_image(user).unwrap() })
        };
        let (merge, strict) = (GroupsPolicy::Merge, GroupsPolicy::Strict);
        let limit = u64::try_from(LONGEST).unwrap();

        write(limit, limit);
        assert_eq!(of("web", merge).unwrap().groups, [50, 51, 1000]);

        write(limit + 1, limit + 1);
        let error = of("web", merge).unwrap_err().to_string();
        assert_eq!(error, "invalid /etc/passwd of the image: 1048577 bytes, the limit is 1048576");
        let numbers = of("1000:50", merge).unwrap();
        assert_eq!((numbers.uid, numbers.gid, numbers.groups, numbers.home), (1000, 50, vec![50], None));
        assert_eq!(of("0", strict).unwrap().uid, 0);
        let error = of("1000:logs", strict).unwrap_err().to_string();
        assert!(error.contains("invalid /etc/group of the image: 1048577 bytes"), "{error}");

        write(0, 1 << 40);
        assert_eq!(of("web", strict).unwrap().gid, 1000);
        assert_eq!(of("web", merge).unwrap().groups, [1000], "further groups are not looked up");
        assert!(
            matches!(of("web:logs", merge), Err(UserError::TooLong { file: "/etc/group", size }) if size == 1 << 40)
        );
    }

    proptest! {
        #[test]
        fn no_file_makes_a_lookup_by_id_fail_or_changes_the_id(passwd in "(\\PC|\n|:){0,200}", group in "(\\PC|\n|:){0,200}") {
            let user = resolve(&passwd, &group, &UserRequest { user: Principal::Id(7), ..UserRequest::default() }).unwrap();
            prop_assert_eq!(user.uid, 7);
            prop_assert!(user.gid <= HIGHEST);
        }

        #[test]
        fn every_number_is_parsed_exactly_or_rejected(number in any::<u64>()) {
            match Principal::parse(&number.to_string()) {
                Ok(Principal::Id(id)) => prop_assert_eq!(u64::from(id), number),
                Ok(Principal::Name(_)) => prop_assert!(false),
                Err(_) => prop_assert!(number > u64::from(HIGHEST)),
            }
        }
    }
}
