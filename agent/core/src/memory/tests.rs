//! What the kernel's words are taken for, and what is learnt of them.

use super::*;
use crate::actual::{InstanceActual, Moment};

const MI: u64 = 1 << 20;
const GI: u64 = 1 << 30;

fn node(total_gi: u64, available_gi: u64) -> NodeMemory {
    NodeMemory { total_bytes: total_gi * GI, available_bytes: available_gi * GI }
}

#[test]
fn the_kernel_says_what_there_is() {
    let text = "MemTotal:        4194304 kB\nMemFree:          100 kB\nMemAvailable:    3145728 kB\n";
    assert_eq!(NodeMemory::parse(text), Some(node(4, 3)));
    for text in
        ["", "MemTotal: 7 kB\n", "MemTotal: x kB\nMemAvailable: 1 kB\n", "MemTotalX: 1\nMemAvailable: 1 kB"]
    {
        assert_eq!(NodeMemory::parse(text), None, "{text:?}");
    }
}

#[test]
fn a_tenth_is_left_to_others_and_what_they_have_beyond_it_counts() {
    let taken = |node: NodeMemory, held_gi: u64| {
        let taken = node.taken_by_others(held_gi * GI, 0);
        assert_eq!(taken % (node.total_bytes / STEPS), 0, "in steps");
        taken as f64 / node.total_bytes as f64
    };
    // What instances hold is theirs.
    assert_eq!(taken(node(100, 98), 0), 0.0);
    assert_eq!(taken(node(100, 40), 58), 0.0);
    // A fourth is others', and a twentieth stays free beside it: a tenth is there anyway.
    let more = taken(node(100, 40), 35);
    assert!((0.20..0.22).contains(&more), "{more}");
    assert!(taken(node(100, 0), 0) >= 0.95);
    assert_eq!(taken(node(100, 200), 7), 0.0);
    assert_eq!(NodeMemory { total_bytes: 0, available_bytes: 0 }.taken_by_others(0, 0), 0);
}

#[test]
fn what_moves_a_little_is_no_news() {
    let total_bytes = 64 * GI;
    let taken = |available_gi: u64, before_gi: u64| {
        let node = NodeMemory { total_bytes, available_bytes: available_gi * GI };
        node.taken_by_others(0, before_gi * GI) / GI
    };
    // 20 GiB are others', 16.8 beyond what is theirs: in steps of one.
    assert_eq!(taken(44, 0), 17);
    assert_eq!(taken(43, 17), 18, "more counts at once");
    assert_eq!(taken(44, 18), 18, "not a whole step less");
    assert_eq!(taken(45, 18), 16);
    assert_eq!(taken(45, 17), 17);
    assert_eq!(taken(46, 17), 15);
    // About the edge of nothing, too.
    assert_eq!((taken(61, 0), taken(61, 1), taken(62, 1)), (0, 1, 0));
    assert_eq!(taken(60, 0), 1);
    assert_eq!(taken(64, 1), 0);
}

#[test]
fn what_can_be_read_again_is_not_held() {
    let v2 = "anon 1000\nfile 900000\nkernel 77\nkernel_stack 100\npagetables 10\nsec_pagetables 0\npercpu 1\nsock 2\nshmem 20000\n\
              slab_reclaimable 5000\nslab_unreclaimable 300\n";
    assert_eq!(held_bytes(v2), Some(21_413));
    let v1 = "cache 900000\nrss 5\nshmem 5\nhierarchical_memory_limit 9223372036854771712\ntotal_cache 900000\ntotal_rss 4096\n\
              total_shmem 8192\n";
    assert_eq!(held_bytes(v1), Some(12_288));
    for text in ["", "file 7\n", "anon x\n"] {
        assert_eq!(held_bytes(text), None, "{text:?}");
    }
}

/// One revision with instances `a` and `b`.
fn actual(phase: &Phase) -> Actual {
    let (key, object) = (RevisionKey::new("default", "s-00001"), Digest::of(b"s"));
    let mut actual = Actual::default();
    for name in ["a", "b"] {
        let made = InstanceActual::new(key.clone(), object, 80, phase.clone(), Moment(0));
        let instance = InstanceActual { begins: true, ..made };
        actual.instances.insert(InstanceId(name.into()), instance);
    }
    actual.revisions.insert(key, RevisionActual::new(object, true, Moment(0)));
    actual
}

fn learnt(actual: &Actual) -> Learnt {
    actual.revisions.values().next().unwrap().memory
}

fn note(actual: &mut Actual, name: &str, bytes: u64) -> bool {
    actual.note_held([(InstanceId(name.into()), Some(bytes))], &Traffic::default(), Moment(7))
}

#[test]
fn a_revision_is_known_by_the_least_and_the_most_of_its_instances() {
    let mut actual = actual(&Phase::Ready);
    assert!(note(&mut actual, "a", 100 * MI));
    let seen = |least, most| {
        Learnt::Seen(Footprint { least_bytes: least * MI, most_bytes: most * MI, served: false })
    };
    // In steps of at most an eighth.
    assert_eq!(learnt(&actual), seen(96, 104));
    assert!(!note(&mut actual, "a", 101 * MI), "a little is no news");
    assert!(note(&mut actual, "a", 3 * GI));
    assert!(note(&mut actual, "b", 20 * MI + 1));
    assert_eq!(learnt(&actual), seen(20, 3 * 1024));
    assert_eq!(actual.instances[&InstanceId("a".into())].held_bytes, 3 * GI);
    assert!(!note(&mut actual, "c", GI), "it is gone");

    // Nothing that instances hold is others'.
    actual.note_node(&NodeMemory { total_bytes: 4 * GI, available_bytes: GI - 21 * MI }, true);
    assert_eq!(actual.others_bytes, 0);
    actual.instances.clear();
    actual.note_node(&NodeMemory { total_bytes: 4 * GI, available_bytes: GI }, true);
    assert!(actual.others_bytes > 2 * GI);
}

#[test]
fn of_what_was_not_looked_at_the_claim_is_taken_for_what_it_holds() {
    let mut actual = actual(&Phase::Frozen);
    let node = NodeMemory { total_bytes: 4 * GI, available_bytes: 2 * GI };
    for instance in actual.instances.values_mut() {
        (instance.claim.memory_bytes, instance.begins) = (Some(GI), false);
    }
    actual.note_node(&node, true);
    assert_eq!(actual.others_bytes, 0, "all that is missing may be theirs");
    // What was on devices is in the node's memory beside it, and what waits holds nothing.
    for (instance, phase) in actual.instances.values_mut().zip([Phase::Suspended, Phase::Primed]) {
        (instance.phase, instance.moved_bytes) = (phase, if instance.held_bytes == 0 { GI } else { 0 });
    }
    actual.instances.get_mut(&InstanceId("b".into())).unwrap().moved_bytes = 0;
    actual.note_node(&node, true);
    assert_eq!(actual.others_bytes, 0);
    actual.instances.get_mut(&InstanceId("a".into())).unwrap().moved_bytes = 0;
    actual.note_node(&node, true);
    assert!(actual.others_bytes > GI / 2);
    // One that was found suspended is looked at with what it moved, which is reckoned for itself.
    actual.instances.get_mut(&InstanceId("a".into())).unwrap().moved_bytes = GI;
    note(&mut actual, "a", GI + 300 * MI);
    assert_eq!(actual.instances[&InstanceId("a".into())].held_bytes, 300 * MI);
}

#[test]
fn what_has_just_been_made_hides_nothing_that_others_have() {
    let mut actual = actual(&Phase::Launching);
    for instance in actual.instances.values_mut() {
        instance.claim.memory_bytes = Some(GI);
    }
    let node = NodeMemory { total_bytes: 4 * GI, available_bytes: 2 * GI };
    actual.note_node(&node, true);
    let theirs = actual.others_bytes;
    assert!(theirs > GI, "{theirs}");
    // Where the kernel does not say what instances hold, what is missing may be theirs for ever.
    actual.note_node(&node, false);
    assert_eq!(actual.others_bytes, 0);
}

#[test]
fn what_was_swapped_out_says_nothing_of_how_one_begins() {
    let mut actual = actual(&Phase::Ready);
    note(&mut actual, "a", 100 * MI);
    assert!(!note(&mut actual, "a", 2 * MI), "it was frozen meanwhile");
    assert_eq!(learnt(&actual).footprint().unwrap().least_bytes, 96 * MI);
    assert!(note(&mut actual, "b", 50 * MI), "another one");
    assert_eq!(learnt(&actual).footprint().unwrap().least_bytes, 48 * MI);
}

#[test]
fn what_is_not_ready_says_nothing_of_how_one_begins() {
    let mut actual = actual(&Phase::Probing);
    assert!(!note(&mut actual, "a", 7 * MI));
    assert_eq!(learnt(&actual), Learnt::Nothing);
    let inherited = Footprint { least_bytes: 50 * MI, most_bytes: 80 * MI, served: true };
    for known in actual.revisions.values_mut() {
        known.memory = Learnt::Inherited(inherited);
    }
    assert!(!note(&mut actual, "a", 7 * MI));
    assert_eq!(learnt(&actual).footprint(), Some(inherited));
    for instance in actual.instances.values_mut() {
        instance.phase = Phase::Ready;
    }
    note(&mut actual, "a", 30 * MI);
    assert_eq!(
        learnt(&actual),
        Learnt::Seen(Footprint { least_bytes: 30 * MI, most_bytes: 30 * MI, served: false })
    );
    // One of another object.
    for instance in actual.instances.values_mut() {
        (instance.phase, instance.object) = (Phase::Ready, Digest::of(b"before"));
    }
    assert!(!note(&mut actual, "a", GI));
}

#[test]
fn what_they_hold_at_work_is_known_once_one_that_answers_was_looked_at() {
    let mut actual = actual(&Phase::Probing);
    let a = InstanceId("a".into());
    let served = Traffic { served: [a.clone()].into(), ..Traffic::default() };
    let another = Traffic { served: [InstanceId("b".into())].into(), ..Traffic::default() };
    let look = |actual: &mut Actual, bytes, traffic: &Traffic, at| {
        actual.note_held([(a.clone(), bytes)], traffic, Moment(at))
    };
    let of_served = |actual: &Actual| learnt(actual).footprint().map(|footprint| footprint.served);
    assert!(!look(&mut actual, Some(30 * MI), &served, 1), "it is not ready");
    actual.instances.values_mut().for_each(|instance| instance.phase = Phase::Ready);
    assert!(look(&mut actual, Some(30 * MI), &another, 2));
    assert_eq!(of_served(&actual), Some(false));
    assert!(!look(&mut actual, None, &served, 3), "the kernel does not say");
    assert_eq!(
        (of_served(&actual), actual.instances[&InstanceId("a".into())].looked_at),
        (Some(false), Some(Moment(3)))
    );
    assert!(look(&mut actual, Some(30 * MI), &served, 4));
    assert_eq!(of_served(&actual), Some(true));
    // It stays known, in another agent, too.
    assert!(!look(&mut actual, Some(30 * MI), &Traffic::default(), 5));
    let footprints = Footprints::decode(&Footprints::among(&actual.revisions).encode()).unwrap();
    let (key, known) = actual.revisions.iter().next().unwrap();
    assert_eq!(footprints.of(key, &known.object, &desired(&["s-00001"]), &BTreeMap::new()), known.memory);
    // A revision whose predecessor had answered is thought to be alike until it is seen itself.
    actual.revisions.values_mut().for_each(|known| {
        known.memory = Learnt::Inherited(known.memory.footprint().unwrap());
    });
    assert_eq!(of_served(&actual), Some(true));
    assert!(look(&mut actual, Some(30 * MI), &Traffic::default(), 6));
    assert_eq!(of_served(&actual), Some(false));
}

/// As the hub wants it: revisions of one configuration, and the digest of each one's object.
fn desired(names: &[&str]) -> Desired {
    let mut desired = Desired::default();
    for name in names {
        let object = tombolo_api::desired::RevisionObject {
            namespace: "default".into(),
            name: (*name).into(),
            uid: String::new(),
            service: "s".into(),
            configuration: if name.starts_with('s') { "s".into() } else { "t".into() },
            annotations: BTreeMap::new(),
            spec: Default::default(),
            verification: None,
        };
        desired.revisions.insert(RevisionKey::new("default", name), (Digest::of(b"s"), object.into()));
    }
    desired
}

#[test]
fn what_was_learnt_outlives_the_agent_but_not_the_object() {
    let mut actual = actual(&Phase::Ready);
    note(&mut actual, "a", 100 * MI);
    let footprints = Footprints::decode(&Footprints::among(&actual.revisions).encode()).unwrap();
    let (key, known) = actual.revisions.iter().next().unwrap();
    let one = desired(&["s-00001"]);
    assert_eq!(footprints.of(key, &known.object, &one, &BTreeMap::new()), known.memory);
    assert!(Footprints::decode(b"neither").is_err());

    // Another object of it, or the next revision, is thought to be alike until it is seen.
    let inherited = Learnt::Inherited(known.memory.footprint().unwrap());
    let next = Digest::of(b"next");
    assert_eq!(footprints.of(key, &next, &one, &BTreeMap::new()), inherited);
    let of = |name: &str, footprints: &Footprints, known: &BTreeMap<_, _>| {
        footprints.of(
            &RevisionKey::new("default", name),
            &next,
            &desired(&["s-00001", "s-00002", "t-00001"]),
            known,
        )
    };
    assert_eq!(of("s-00002", &footprints, &BTreeMap::new()), inherited);
    assert_eq!(of("s-00002", &Footprints::default(), &actual.revisions), inherited);
    assert_eq!(of("s-00002", &Footprints::default(), &BTreeMap::new()), Learnt::Nothing);
    assert_eq!(of("t-00001", &footprints, &actual.revisions), Learnt::Nothing);

    actual.revisions.values_mut().for_each(|known| known.memory = inherited);
    assert_eq!(Footprints::among(&actual.revisions), Footprints::default());
}
