//! Users and groups by name, looked up in the image: its /etc/passwd and /etc/group are opened inside its own root, and
//! never by a library of the host's, which could be led elsewhere.

use std::os::fd::BorrowedFd;

use crate::path::Root;
use crate::sys::{self, Context as _};

/// The longest passwd or group file that is read: an image decides how long it is, and the daemon reads it
/// (CVE-2025-4437).
const LONGEST: usize = 1 << 20;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// The highest id: 2^32-1 is "no change" to the kernel (setresuid(2)).
const HIGHEST: u32 = u32::MAX - 1;

/// Which user a process is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserRequest {
    /// The user.
    pub user: Principal,
    /// The group; without one it is the user's own of /etc/passwd, or 0.
    pub group: Option<Principal>,
    /// Groups beside it, by number.
    pub supplemental: Vec<u32>,
    /// Which groups of the image the user gets as well.
    pub policy: GroupsPolicy,
}

/// A user or a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// By number.
    Id(u32),
    /// By name, to be found in the image.
    Name(String),
}

impl Default for Principal {
    fn default() -> Self {
        Self::Id(0)
    }
}

/// Which groups of the image's /etc/group a user gets (CRI `SupplementalGroupsPolicy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GroupsPolicy {
    /// Those that list the user, and those asked for.
    #[default]
    Merge,
    /// Those asked for alone.
    Strict,
}

/// A user as the kernel knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, sorted; the group itself is among them.
    pub groups: Vec<u32>,
    /// The home folder of /etc/passwd.
    pub home: Option<String>,
}

/// A user could not be found.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No such user in the image.
    #[error("user {0:?} is not in the image's /etc/passwd")]
    UnknownUser(String),
    /// No such group in the image.
    #[error("group {0:?} is not in the image's /etc/group")]
    UnknownGroup(String),
    /// A number that is no id.
    #[error("{0:?} is no user or group id: these go from 0 to {HIGHEST}")]
    NotAnId(String),
    /// A file that is needed is longer than any that is read.
    #[error("the image's {file} has {size} bytes, the limit is {LONGEST}")]
    TooLong {
        /// Which.
        file: &'static str,
        /// Its length.
        size: u64,
    },
    /// The image's files cannot be read.
    #[error("read the image's users: {0}")]
    System(#[from] sys::Error),
}

impl UserRequest {
    /// The request of an image: `user`, `user:group`, each by name or number; empty is root (OCI image spec,
    /// `config.User`).
    ///
    /// # Errors
    /// A number that is no id.
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
    /// A number is an id, anything else a name. A number too large for an id is neither: it must not become another
    /// one by being cut (CVE-2024-40635).
    ///
    /// # Errors
    /// Such a number.
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

/// Looks a user up in the image whose root `root` is a descriptor of. A file that is too long is an error only where a
/// name is looked for in it: a user or a group by number is one without the image as well, and has then what the kernel
/// needs, but no further groups and no home.
///
/// # Errors
/// The user or the group is unknown there, or a file that is needed is too long.
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

/// A file that is not there or is no file has no entries.
fn read(root: &Root, path: &'static str, needed: bool) -> Result<String, UserError> {
    use rustix::io::Errno;
    let content = root.open_file(path).and_then(|file| {
        let size = rustix::fs::fstat(&file).on("fstat", path)?.st_size;
        let size = u64::try_from(size).unwrap_or(u64::MAX);
        if size > u64::try_from(LONGEST).unwrap_or(u64::MAX) {
            return Ok(Err(size));
        }
        // It may have grown since then: this does not read more either.
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
                "a file of the image is too long, none of it is used"
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

/// A line of passwd(5); what is no such line is passed over.
fn passwd_entry(line: &str) -> Option<Entry<'_>> {
    let mut fields = line.split(':');
    let (name, _password) = (fields.next()?, fields.next()?);
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let home = fields.nth(1).unwrap_or_default();
    (!name.is_empty() && uid <= HIGHEST && gid <= HIGHEST).then_some(Entry { name, uid, gid, home })
}

/// Name, id and members of a line of group(5).
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
            .find_map(|(known, gid, _)| (known == name).then_some(gid))
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
    fn users_have_their_groups() {
        let web = of("web").unwrap();
        assert_eq!((web.uid, web.gid, web.home.as_deref()), (1000, 1000, Some("/srv")));
        assert_eq!(web.groups, [50, 51, 1000]);
        assert_eq!(of("1000").unwrap(), web);
        assert_eq!(of("web:logs").unwrap().gid, 50);
        let stranger = of("4711").unwrap();
        assert_eq!((stranger.uid, stranger.gid, stranger.groups), (4711, 0, vec![0]));
        assert_eq!(of("").unwrap().uid, 0);
    }

    #[test]
    fn strictly_means_only_what_was_asked_for() {
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
    fn what_is_unknown_or_no_id_is_named() {
        assert!(matches!(of("nobody"), Err(UserError::UnknownUser(name)) if name == "nobody"));
        assert!(matches!(of("0:none"), Err(UserError::UnknownGroup(name)) if name == "none"));
        for text in ["4294967295", "4294967296", "99999999999999999999", "-1", "+5"] {
            assert!(matches!(of(text), Err(UserError::NotAnId(_))), "{text}");
        }
        assert!(matches!(of("big"), Err(UserError::UnknownUser(_))), "an entry with no id is none");
    }

    #[test]
    fn a_file_that_is_too_long_fails_only_who_needs_it() {
        use std::os::fd::AsFd as _;

        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("etc")).unwrap();
        let root = std::fs::File::open(folder.path()).unwrap();
        let write = |passwd: u64, group: u64| {
            for (name, text, size) in [("etc/passwd", PASSWD, passwd), ("etc/group", GROUP, group)] {
                std::fs::write(folder.path().join(name), text).unwrap();
                // The rest is a hole, which costs nobody anything.
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
        assert_eq!(error, "the image's /etc/passwd has 1048577 bytes, the limit is 1048576");
        let numbers = of("1000:50", merge).unwrap();
        assert_eq!((numbers.uid, numbers.gid, numbers.groups, numbers.home), (1000, 50, vec![50], None));
        assert_eq!(of("0", strict).unwrap().uid, 0);
        let error = of("1000:logs", strict).unwrap_err().to_string();
        assert!(error.contains("/etc/group has 1048577 bytes"), "{error}");

        write(0, 1 << 40);
        assert_eq!(of("web", strict).unwrap().gid, 1000);
        assert_eq!(of("web", merge).unwrap().groups, [1000], "its further groups are not known");
        assert!(
            matches!(of("web:logs", merge), Err(UserError::TooLong { file: "/etc/group", size }) if size == 1 << 40)
        );
    }

    proptest! {
        #[test]
        fn no_file_makes_the_lookup_fail_or_gives_a_foreign_id(passwd in "(\\PC|\n|:){0,200}", group in "(\\PC|\n|:){0,200}") {
            let user = resolve(&passwd, &group, &UserRequest { user: Principal::Id(7), ..UserRequest::default() }).unwrap();
            prop_assert_eq!(user.uid, 7);
            prop_assert!(user.gid <= HIGHEST);
        }

        #[test]
        fn every_number_is_itself_or_refused(number in any::<u64>()) {
            match Principal::parse(&number.to_string()) {
                Ok(Principal::Id(id)) => prop_assert_eq!(u64::from(id), number),
                Ok(Principal::Name(_)) => prop_assert!(false),
                Err(_) => prop_assert!(number > u64::from(HIGHEST)),
            }
        }
    }
}
