//! From the user an image names to numbers, by the image's own `/etc/passwd` and `/etc/group`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use tombolo_agent_core::bundle::{Account, User};

/// Largest account file read, bytes; the largest of known distributions have 10 KiB.
const FILE_MAX: u64 = 1 << 20;

/// Resolves `user` (`name`, `uid`, either with `:group`; empty means root). `None` if it names nobody.
pub(super) fn resolve(user: &str, passwd: &str, group: &str) -> Option<User> {
    let (name, group_name) = user.split_once(':').map_or((user, None), |(name, group)| (name, Some(group)));
    let row = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|row| row.len() >= 4 && (row[0] == name || (name.parse::<u32>().is_ok() && row[2] == name)));
    let of_row = |column: usize| row.as_ref().and_then(|row| row[column].parse().ok());
    let uid = match name {
        "" | "root" => 0,
        name => name.parse().ok().or_else(|| of_row(2))?,
    };
    let gid = match group_name {
        None | Some("") => of_row(3).unwrap_or(0),
        Some(group_name) => group_name.parse().ok().or_else(|| group_of(group, group_name))?,
    };
    Some(User { uid, gid })
}

/// The accounts of `passwd`, by user number; of two with one number the first.
pub(super) fn accounts(passwd: &str) -> BTreeMap<u32, Account> {
    let mut accounts = BTreeMap::new();
    for line in passwd.lines() {
        let row: Vec<_> = line.split(':').collect();
        if let [_, _, uid, gid, _, home, ..] = row[..]
            && let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse())
        {
            accounts.entry(uid).or_insert_with(|| Account { gid, home: home.to_owned() });
        }
    }
    accounts
}

fn group_of(group: &str, name: &str) -> Option<u32> {
    let mut rows = group.lines().map(|line| line.split(':').collect::<Vec<_>>());
    rows.find(|row| row.len() >= 3 && row[0] == name)?[2].parse().ok()
}

/// `/etc/{name}` as the image's layers (topmost first) show it; empty if there is none. Links are not followed: they could
/// lead out of the image.
pub(super) fn account_file(layers: &[PathBuf], name: &str) -> String {
    let found =
        layers.iter().map(|layer| layer.join("etc").join(name)).find(|path| path.symlink_metadata().is_ok());
    let plain = |path: &Path| {
        let real = |path: &Path, wants: fn(&std::fs::Metadata) -> bool| {
            path.symlink_metadata().is_ok_and(|meta| wants(&meta))
        };
        real(path, std::fs::Metadata::is_file)
            && path.parent().is_some_and(|etc| real(etc, std::fs::Metadata::is_dir))
    };
    let mut text = String::new();
    if let Some(path) = found.filter(|path| plain(path))
        && let Ok(file) = File::open(path)
    {
        // One that is no text names nobody.
        let _ = file.take(FILE_MAX).read_to_string(&mut text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/:\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nadm:x:4:root\n";

    #[test]
    fn names_and_numbers_resolve_as_docker_does_it() {
        for (user, expected) in [
            ("", Some((0, 0))),
            ("root", Some((0, 0))),
            ("web", Some((101, 102))),
            ("web:adm", Some((101, 4))),
            ("101", Some((101, 102))),
            ("1000", Some((1000, 0))),
            ("1000:1000", Some((1000, 1000))),
            ("1000:adm", Some((1000, 4))),
            ("nobody", None),
            ("web:nogroup", None),
        ] {
            let found = resolve(user, PASSWD, GROUP).map(|user| (user.uid, user.gid));
            assert_eq!(found, expected, "{user:?}");
        }
    }

    #[test]
    fn accounts_are_found_by_number() {
        let passwd = format!("{PASSWD}again:x:101:7::/other:\nbroken:x:y\n\n");
        let account = |gid, home: &str| Account { gid, home: home.into() };
        assert_eq!(accounts(&passwd), [(0, account(0, "/root")), (101, account(102, "/"))].into());
    }

    #[test]
    fn the_topmost_layer_counts_and_links_do_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let layers: Vec<_> = ["top", "base", "link"].iter().map(|name| dir.path().join(name)).collect();
        std::fs::create_dir_all(layers[0].join("usr")).unwrap();
        std::fs::create_dir_all(layers[1].join("etc")).unwrap();
        std::fs::write(layers[1].join("etc/passwd"), PASSWD).unwrap();
        assert_eq!(account_file(&layers[..2], "passwd"), PASSWD);
        assert_eq!(account_file(&layers[..2], "group"), "");
        std::fs::create_dir_all(&layers[2]).unwrap();
        std::os::unix::fs::symlink(layers[1].join("etc"), layers[2].join("etc")).unwrap();
        assert_eq!(account_file(&layers[2..], "passwd"), "");
    }
}
