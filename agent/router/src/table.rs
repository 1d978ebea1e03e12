//! A route table made ready for the data path: hosts hashed, revisions and instances found.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use http::HeaderMap;
use tokio::sync::mpsc;
use tombolo_agent_core::activation::pick;
use tombolo_agent_core::routes::{Endpoint, HostRoutes, RouteTable, Split};
use tombolo_api::RevisionKey;

use crate::meter::Meter;
use crate::random;
use crate::revision::{Revision, Target};
use crate::steering::{Rules, TAG_HEADER};

/// The routes in force. Readers keep what they read and look here again only when [`Routes::version`] has moved.
#[derive(Default)]
pub(crate) struct Routes {
    version: AtomicU64,
    hosts: RwLock<Arc<HashMap<Arc<str>, Arc<Host>>>>,
}

/// A host's shares.
pub(crate) struct Host {
    shares: Box<[Share]>,
    /// `None` for most hosts, whose requests' headers are then not looked at.
    choices: Option<Choices>,
}

/// What a request's headers may choose instead of the shares.
struct Choices {
    tags: HashMap<Arc<str>, Box<[Share]>>,
    rules: Arc<Rules>,
}

/// Where a request goes.
pub(crate) struct Draw<'a> {
    pub(crate) share: &'a Share,
    /// Whether it came here by the shares and not by its headers; `None` on hosts that leave no choice.
    pub(crate) default_route: Option<bool>,
    /// What its headers chose, if anything.
    pub(crate) tag: Option<Arc<str>>,
}

/// One share of a host's requests.
pub(crate) struct Share {
    percent: u8,
    pub(crate) revision: Arc<Revision>,
    pub(crate) target: Arc<Target>,
}

/// A tag and where it leads.
type Choice<'a> = (&'a Arc<str>, &'a [Share]);

/// What a table's revisions became.
type Targets<'a> = BTreeMap<&'a RevisionKey, (Arc<Revision>, Arc<Target>)>;

impl Routes {
    /// Changes whenever the routes do.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(crate) fn host(&self, name: &str) -> Option<Arc<Host>> {
        self.hosts.read().expect("no panic under this lock").get(name).cloned()
    }

    /// Put a table in force: new requests follow it, waiting ones are looked at again, instances not in it are left.
    pub(crate) fn apply(&self, table: Arc<RouteTable>, meter: &Meter, demand: &mpsc::Sender<RevisionKey>) {
        let mut targets = Targets::new();
        for (key, backend) in &table.revisions {
            let revision = meter.find_revision(key, demand);
            let target = revision.target_of(backend).unwrap_or_else(|| {
                let instances =
                    backend.takers().iter().map(|endpoint| meter.find_instance(endpoint)).collect();
                let target = Arc::new(Target::new(Arc::clone(backend), instances));
                // At once: who waits for an instance is not to wait for the rest of the table.
                revision.retarget(Some(Arc::clone(&target)));
                target
            });
            targets.insert(key, (revision, target));
        }
        let before = Arc::clone(&self.hosts.read().expect("no panic under this lock"));
        let hosts = table.hosts.iter().map(|(name, routes)| {
            let known = before.get(name);
            let host = Host::new(routes, known.map(|host| &**host), &targets);
            let same = known.filter(|known| known.leads_as(&host));
            (Arc::clone(name), same.map_or_else(|| Arc::new(host), Arc::clone))
        });
        *self.hosts.write().expect("no panic under this lock") = Arc::new(hosts.collect());
        self.version.fetch_add(1, Ordering::Release);
        let routed: BTreeSet<&Endpoint> =
            table.revisions.values().flat_map(|backend| backend.takers()).collect();
        for instance in meter.instances() {
            if !routed.contains(&instance.endpoint) {
                instance.retire();
            }
        }
        for revision in meter.revisions() {
            if !targets.contains_key(&revision.key) {
                revision.retarget(None);
            }
        }
        meter.forget(&table);
        meter.set_in_force(table);
    }
}

impl Host {
    /// `before`: the same host in the last table, whose rules are compiled already.
    fn new(routes: &HostRoutes, before: Option<&Self>, targets: &Targets<'_>) -> Self {
        let shares = shares(&routes.splits, targets);
        let choices = (!routes.tags.is_empty()).then(|| {
            let tags =
                routes.tags.iter().map(|(tag, splits)| (tag.as_str().into(), self::shares(splits, targets)));
            let known = before.and_then(|host| host.choices.as_ref()).map(|choices| &choices.rules);
            let rules = match known.filter(|rules| rules.are_of(&routes.steering)) {
                Some(rules) => Arc::clone(rules),
                None => Arc::new(Rules::compile(&routes.steering)),
            };
            Choices { tags: tags.collect(), rules }
        });
        Self { shares, choices }
    }

    /// Whether requests go the same ways by both; said only of hosts whose headers choose nothing.
    fn leads_as(&self, other: &Self) -> bool {
        let pairs = || self.shares.iter().zip(&other.shares);
        let without_choices = self.choices.is_none() && other.choices.is_none();
        without_choices
            && self.shares.len() == other.shares.len()
            && pairs().all(|(one, two)| one.leads_as(two))
    }

    /// The share that gets the next request; none if the drawn one leads to a revision the table lacks.
    pub(crate) fn draw(&self, headers: &HeaderMap) -> Option<Draw<'_>> {
        self.draw_chosen(|choices| choices.chosen(headers))
    }

    /// As [`Host::draw`] for a request that was drawn before: it keeps the tag that its headers chose then, if that is still there.
    pub(crate) fn draw_again(&self, tag: Option<&str>) -> Option<Draw<'_>> {
        self.draw_chosen(|choices| choices.tagged(tag?))
    }

    fn draw_chosen<'a>(&'a self, choose: impl FnOnce(&'a Choices) -> Option<Choice<'a>>) -> Option<Draw<'a>> {
        let Some(choices) = &self.choices else {
            return Some(Draw { share: draw(&self.shares)?, default_route: None, tag: None });
        };
        let chosen = choose(choices);
        let share = draw(chosen.map_or(&*self.shares, |(_, shares)| shares))?;
        let tag = chosen.map(|(tag, _)| Arc::clone(tag));
        Some(Draw { share, default_route: Some(tag.is_none()), tag })
    }
}

impl Share {
    fn leads_as(&self, other: &Self) -> bool {
        let same_target = Arc::ptr_eq(&self.target, &other.target);
        self.percent == other.percent && same_target && Arc::ptr_eq(&self.revision, &other.revision)
    }
}

impl Choices {
    /// What the headers choose: by name, or else by the first rule that holds. An unknown name chooses nothing, as in Knative.
    fn chosen(&self, headers: &HeaderMap) -> Option<Choice<'_>> {
        let named = headers.get(TAG_HEADER).and_then(|tag| self.tagged(tag.to_str().ok()?));
        named.or_else(|| self.tagged(self.rules.tag(headers)?))
    }

    fn tagged(&self, tag: &str) -> Option<Choice<'_>> {
        self.tags.get_key_value(tag).map(|(tag, shares)| (tag, &**shares))
    }
}

fn shares(splits: &[Split], targets: &Targets<'_>) -> Box<[Share]> {
    let share = |split: &Split| {
        let (revision, target) = targets.get(&split.revision)?;
        let (revision, target) = (Arc::clone(revision), Arc::clone(target));
        Some(Share { percent: split.percent, revision, target })
    };
    splits.iter().filter_map(share).collect()
}

fn draw(shares: &[Share]) -> Option<&Share> {
    match shares {
        [share] if share.percent == 100 => Some(share),
        shares => shares.get(pick(shares.iter().map(|share| share.percent), random::percent())?),
    }
}

#[cfg(test)]
mod tests {
    use tombolo_agent_core::routes::Backend;

    use super::*;

    const DRAWS: u32 = 10_000;

    fn applied(splits: &[(u8, &str)], revisions: &[&str]) -> (Routes, Meter) {
        let (routes, meter) = (Routes::default(), Meter::new());
        routes.apply(Arc::new(table(splits, revisions)), &meter, &mpsc::channel(1).0);
        (routes, meter)
    }

    fn table(splits: &[(u8, &str)], revisions: &[&str]) -> RouteTable {
        let key = |name: &str| RevisionKey::new("default", name);
        let backend = Arc::new(Backend {
            ready: Vec::new(),
            standby: Vec::new(),
            unavailable: None,
            awaits: None,
            h2c: false,
            container_concurrency: 0,
            timeout_ms: 0,
            response_start_timeout_ms: 0,
            idle_timeout_ms: 0,
        });
        let splits = splits.iter().map(|(percent, name)| Split { percent: *percent, revision: key(name) });
        RouteTable {
            hosts: BTreeMap::from([(
                "a.b".into(),
                Arc::new(HostRoutes { splits: splits.collect(), ..HostRoutes::default() }),
            )]),
            revisions: revisions.iter().map(|name| (key(name), Arc::clone(&backend))).collect(),
        }
    }

    fn draws(routes: &Routes) -> BTreeMap<String, u32> {
        let host = routes.host("a.b").unwrap();
        let mut counts = BTreeMap::new();
        for _ in 0..DRAWS {
            let name = host
                .draw(&HeaderMap::new())
                .map_or("none".to_owned(), |draw| draw.share.revision.key.name.to_string());
            *counts.entry(name).or_default() += 1;
        }
        counts
    }

    #[test]
    fn shares_are_drawn_as_often_as_they_say() {
        for shares in [&[(50, "x"), (50, "y")][..], &[(1, "x"), (29, "y"), (70, "z")], &[(100, "x")]] {
            let names: Vec<_> = shares.iter().map(|(_, name)| *name).collect();
            let counts = draws(&applied(shares, &names).0);
            let deviation = |(percent, name): &(u8, &str)| {
                let expected = f64::from(DRAWS) * f64::from(*percent) / 100.0;
                (f64::from(counts.get(*name).copied().unwrap_or_default()) - expected).powi(2) / expected
            };
            // At two degrees of freedom chance exceeds this once in 160,000 runs.
            let chi_squared: f64 = shares.iter().map(deviation).sum();
            assert!(chi_squared < 24.0, "{chi_squared} {counts:?}");
        }
    }

    #[test]
    fn a_share_of_nothing_is_never_drawn() {
        assert_eq!(
            draws(&applied(&[(0, "x"), (100, "y")], &["x", "y"]).0),
            BTreeMap::from([("y".into(), DRAWS)])
        );
    }

    #[test]
    fn a_host_whose_requests_go_as_before_stays_the_same() {
        let mut table = table(&[(50, "x"), (50, "y")], &["x", "y"]);
        let (routes, meter) = (Routes::default(), Meter::new());
        let is_the_same = |table: &RouteTable| {
            let before = routes.host("a.b");
            routes.apply(Arc::new(table.clone()), &meter, &mpsc::channel(1).0);
            before.is_some_and(|before| Arc::ptr_eq(&before, &routes.host("a.b").unwrap()))
        };
        assert!(!is_the_same(&table) && is_the_same(&table));
        Arc::make_mut(table.revisions.values_mut().next().unwrap()).container_concurrency = 7;
        assert!(!is_the_same(&table) && is_the_same(&table), "it has another target");
        Arc::make_mut(table.hosts.values_mut().next().unwrap()).splits[0].percent = 49;
        assert!(!is_the_same(&table) && is_the_same(&table), "it has another share");
    }

    #[test]
    fn hosts_and_versions_follow_the_table() {
        let (routes, meter) = applied(&[(100, "x")], &["x"]);
        let version = routes.version();
        assert!(routes.host("a.b").is_some() && routes.host("c.d").is_none());
        routes.apply(Arc::default(), &meter, &mpsc::channel(1).0);
        assert!(routes.version() != version && routes.host("a.b").is_none());
        assert!(meter.snapshot().is_empty());
    }
}
