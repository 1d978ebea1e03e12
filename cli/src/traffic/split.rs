//! A change of how requests are shared between revisions, and how it is worked into a service's `traffic`. Shares and
//! tags that are not named stay as they are.
//!
//! Must not know the network.

use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::exit::WrongUse;
use crate::fields::{items, number, text};

/// How the newest ready revision is written, whichever it is.
const LATEST: &str = "@latest";

/// Who gets requests.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Latest,
    Revision(String),
}

/// `TARGET=PERCENT`. The target is a revision, a tag or `@latest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    target: String,
    percent: u8,
}

/// `TARGET=TAG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tagging {
    target: String,
    tag: String,
}

/// What a person wants to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Split {
    pub(crate) shares: Vec<Share>,
    pub(crate) tags: Vec<Tagging>,
    /// Tags to take away.
    pub(crate) untag: Vec<String>,
}

/// One target as a service has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    target: Target,
    tag: String,
    percent: i64,
}

impl FromStr for Share {
    type Err = WrongUse;

    fn from_str(text: &str) -> Result<Self, WrongUse> {
        let parsed = text.split_once('=').and_then(|(target, percent)| {
            let percent = percent.strip_suffix('%').unwrap_or(percent).parse().ok()?;
            (!target.is_empty() && percent <= 100).then(|| Self { target: target.to_owned(), percent })
        });
        parsed.ok_or_else(|| {
            WrongUse(format!(
                "{text}: use REVISION=PERCENT, TAG=PERCENT or {LATEST}=PERCENT, the percent from 0 to 100"
            ))
        })
    }
}

impl FromStr for Tagging {
    type Err = WrongUse;

    fn from_str(text: &str) -> Result<Self, WrongUse> {
        let parsed = text.split_once('=').filter(|(target, tag)| !target.is_empty() && !tag.is_empty());
        let (target, tag) =
            parsed.ok_or_else(|| WrongUse(format!("--tag {text}: use REVISION=TAG or {LATEST}=TAG")))?;
        Ok(Self { target: target.to_owned(), tag: tag.to_owned() })
    }
}

impl Split {
    pub(crate) fn is_empty(&self) -> bool {
        self.shares.is_empty() && self.tags.is_empty() && self.untag.is_empty()
    }

    /// The `traffic` that a service gets. `newer` says that a new revision is made by the same write: what the latest one
    /// gets until now then stays with the revision it is.
    pub(crate) fn onto(&self, live: Option<&Value>, newer: bool) -> Result<Value, WrongUse> {
        let mut entries = live.map_or_else(Vec::new, entries_of);
        if entries.is_empty() {
            entries.push(Entry { target: Target::Latest, tag: String::new(), percent: 100 });
        }
        if let (true, Some(live)) = (newer, live) {
            pin(&mut entries, live);
        }
        for tag in &self.untag {
            let found = entries.iter_mut().find(|entry| entry.tag == *tag);
            found.ok_or_else(|| WrongUse(format!("--untag {tag}: no revision has this tag")))?.tag.clear();
        }
        for Tagging { target, tag } in &self.tags {
            let target = resolved(&entries, target);
            entries.iter_mut().filter(|entry| entry.tag == *tag).for_each(|entry| entry.tag.clear());
            let untagged = entries.iter().position(|entry| entry.target == target && entry.tag.is_empty());
            match untagged {
                Some(at) => entries[at].tag.clone_from(tag),
                None => entries.push(Entry { target, tag: tag.clone(), percent: 0 }),
            }
        }
        self.share(&mut entries)?;
        entries.retain(|entry| entry.percent > 0 || !entry.tag.is_empty());
        Ok(entries.iter().map(Entry::to_json).collect())
    }

    /// Gives every named target its percent. What is left goes to the only other one that gets requests now.
    fn share(&self, entries: &mut Vec<Entry>) -> Result<(), WrongUse> {
        if self.shares.is_empty() {
            return Ok(());
        }
        let mut named = vec![false; entries.len()];
        for share in &self.shares {
            let by_tag = entries.iter().position(|entry| !entry.tag.is_empty() && entry.tag == share.target);
            let target = resolved(entries, &share.target);
            let same = entries.iter().position(|entry| entry.target == target);
            let at = by_tag.or(same).unwrap_or_else(|| {
                entries.push(Entry { target, tag: String::new(), percent: 0 });
                named.push(false);
                entries.len() - 1
            });
            if std::mem::replace(&mut named[at], true) {
                return Err(WrongUse(format!("{} is given a percent twice", share.target)));
            }
            entries[at].percent = share.percent.into();
        }
        let total: i64 = self.shares.iter().map(|share| i64::from(share.percent)).sum();
        let others: Vec<usize> =
            (0..entries.len()).filter(|at| !named[*at] && entries[*at].percent > 0).collect();
        match (100 - total, others.as_slice()) {
            (0, _) => others.into_iter().for_each(|at| entries[at].percent = 0),
            (rest, [only]) if rest > 0 => entries[*only].percent = rest,
            (..0, _) => {
                return Err(WrongUse(format!("the percents add up to {total}: at most 100 can be shared")));
            }
            (rest, others) => {
                let now = others.iter().map(|at| format!("{}={}", entries[*at].target, entries[*at].percent));
                let now: Vec<String> = now.collect();
                let now = if now.is_empty() { "nobody else gets any".to_owned() } else { now.join(", ") };
                return Err(WrongUse(format!(
                    "the percents add up to {total}: say who gets the other {rest} (now: {now})"
                )));
            }
        }
        Ok(())
    }
}

/// The traffic of a service as a person reads it: `90% hello-00001, 10% @latest (canary)`.
pub(crate) fn told(traffic: &Value) -> String {
    let entries = items(traffic, "").iter().map(Entry::of);
    let each = entries.map(|entry| {
        let tag = if entry.tag.is_empty() { String::new() } else { format!(" ({})", entry.tag) };
        format!("{}% {}{tag}", entry.percent, entry.target)
    });
    each.collect::<Vec<_>>().join(", ")
}

/// A target as a person writes it. A tag stands for what has it now.
fn resolved(entries: &[Entry], name: &str) -> Target {
    if name == LATEST {
        return Target::Latest;
    }
    let tagged = entries.iter().find(|entry| !entry.tag.is_empty() && entry.tag == name);
    tagged.map_or_else(|| Target::Revision(name.to_owned()), |entry| entry.target.clone())
}

fn entries_of(live: &Value) -> Vec<Entry> {
    items(live, "/spec/traffic").iter().map(Entry::of).collect()
}

/// Puts the revision that is the latest now in place of "the latest", before there is a newer one.
fn pin(entries: &mut [Entry], live: &Value) {
    let serving = items(live, "/status/traffic").iter().find(|target| target["latestRevision"] == true);
    let named = serving.map(|target| text(target, "/revisionName")).filter(|name| !name.is_empty());
    let now = named.unwrap_or_else(|| text(live, "/status/latestReadyRevisionName"));
    if now.is_empty() {
        return;
    }
    for entry in entries.iter_mut().filter(|entry| entry.target == Target::Latest) {
        entry.target = Target::Revision(now.to_owned());
    }
}

impl Entry {
    fn of(target: &Value) -> Self {
        let latest = text(target, "/revisionName").is_empty();
        Self {
            target: if latest {
                Target::Latest
            } else {
                Target::Revision(text(target, "/revisionName").to_owned())
            },
            tag: text(target, "/tag").to_owned(),
            percent: number(target, "/percent").unwrap_or(0),
        }
    }

    fn to_json(&self) -> Value {
        let mut target = match &self.target {
            Target::Latest => json!({"latestRevision": true}),
            Target::Revision(name) => json!({"latestRevision": false, "revisionName": name}),
        };
        target["percent"] = self.percent.into();
        if !self.tag.is_empty() {
            target["tag"] = self.tag.clone().into();
        }
        target
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Latest => LATEST,
            Self::Revision(name) => name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(shares: &[&str], tags: &[&str], untag: &[&str]) -> Split {
        Split {
            shares: shares.iter().map(|text| text.parse().unwrap()).collect(),
            tags: tags.iter().map(|text| text.parse().unwrap()).collect(),
            untag: untag.iter().map(|tag| (*tag).to_owned()).collect(),
        }
    }

    fn live(traffic: &[(&str, i64, &str)]) -> Value {
        let target = |(name, percent, tag): &(&str, i64, &str)| match *name {
            LATEST => json!({"latestRevision": true, "percent": percent, "tag": tag}),
            name => json!({"latestRevision": false, "revisionName": name, "percent": percent, "tag": tag}),
        };
        json!({
            "spec": {"traffic": traffic.iter().map(target).collect::<Vec<_>>()},
            "status": {"latestReadyRevisionName": "a-3"},
        })
    }

    #[test]
    fn shares_and_tags_are_changed_as_asked() {
        let fresh = [(LATEST, 100, "")];
        let both = [("a-1", 60, ""), (LATEST, 40, "next")];
        for (now, newer, shares, tags, untag, expected) in [
            (&fresh[..], false, &["a-1=90", "@latest=10"][..], &[][..], &[][..], "10% @latest, 90% a-1"),
            // What serves now keeps the rest when something newer comes.
            (&fresh, true, &["@latest=10"], &["@latest=canary"], &[], "90% a-3, 10% @latest (canary)"),
            (&fresh, true, &[], &["@latest=canary"], &[], "100% a-3, 0% @latest (canary)"),
            (&fresh, false, &[], &["@latest=canary"], &[], "100% @latest (canary)"),
            (&both, false, &["a-1=30%"], &[], &[], "30% a-1, 70% @latest (next)"),
            (&both, false, &["next=100"], &[], &[], "100% @latest (next)"),
            (&both, false, &["@latest=100"], &[], &["next"], "100% @latest"),
            (&both, false, &["a-1=100"], &[], &[], "100% a-1, 0% @latest (next)"),
            (&both, false, &[], &["a-1=next"], &[], "60% a-1 (next), 40% @latest"),
            (
                &both,
                false,
                &[],
                &["a-2=old", "next=new"],
                &[],
                "60% a-1, 40% @latest (next), 0% a-2 (old), 0% @latest (new)",
            ),
            (&both, false, &["a-2=50", "a-1=50"], &[], &["next"], "50% a-1, 50% a-2"),
            (&[], false, &["@latest=100"], &[], &[], "100% @latest"),
        ] {
            let changed = split(shares, tags, untag).onto(Some(&live(now)), newer).unwrap();
            assert_eq!(told(&changed), expected, "{shares:?} {tags:?} {untag:?}");
            let total: i64 = items(&changed, "").iter().filter_map(|it| number(it, "/percent")).sum();
            assert_eq!(total, 100);
        }
        assert_eq!(told(&split(&["@latest=100"], &[], &[]).onto(None, true).unwrap()), "100% @latest");
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let three = live(&[("a-1", 60, ""), ("a-2", 20, ""), (LATEST, 20, "")]);
        for (shares, untag, why) in [
            (&["a-1=10"][..], &[][..], "say who gets the other 90 (now: a-2=20, @latest=20)"),
            (&["a-1=70", "a-2=70"], &[], "add up to 140"),
            (&["a-1=50", "a-1=50"], &[], "twice"),
            (&[], &["none"], "no revision has this tag"),
        ] {
            let error = split(shares, &[], untag).onto(Some(&three), false).unwrap_err();
            assert!(error.0.contains(why), "{}", error.0);
        }
        for bad in ["", "a", "=5", "a=", "a=101", "a=-1", "a=x"] {
            assert!(bad.parse::<Share>().is_err(), "{bad}");
        }
        for bad in ["", "a", "=t", "a="] {
            assert!(bad.parse::<Tagging>().is_err(), "{bad}");
        }
    }
}
