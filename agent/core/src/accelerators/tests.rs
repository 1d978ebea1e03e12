//! What is told of accelerators, by example, and that it is never told often, whatever they do.

use proptest::prelude::*;
use tombolo_api::report::{InstanceReport, RevisionPhase, Tier};

use super::*;
use crate::devices::overuse::Use;

const MINUTE: u64 = 60_000;

fn id(text: &str) -> InstanceId {
    InstanceId(text.into())
}

/// A GPU with 16 GiB.
fn gpu(name: &str) -> Measured {
    let report = AcceleratorReport {
        id: name.into(),
        model: "A test's".into(),
        memory_bytes: Some(16 << 30),
        memory_used_bytes: Some(1 << 30),
        utilisation_percent: Some(0),
        temperature_celsius: Some(40),
        power_watts: Some(60),
        memory_errors: Some(MemoryErrors::default()),
        ..AcceleratorReport::default()
    };
    Measured { report, held: [(id("a"), 1 << 30)].into() }
}

fn one(change: impl FnOnce(&mut Measured)) -> Measurements {
    let mut measured = gpu("GPU-1");
    change(&mut measured);
    [("GPU-1".to_owned(), measured)].into()
}

/// One that has told of the GPU as it is at first.
fn teller() -> Teller {
    let mut teller = Teller::new(MINUTE);
    assert_eq!(teller.hear(&one(|_| {}), Moment(0)), (true, None));
    teller
}

#[test]
fn what_moves_little_is_never_told() {
    let mut teller = teller();
    let little: [fn(&mut Measured); 8] = [
        |it| it.report.memory_used_bytes = Some((1 << 30) + (320 << 20)),
        |it| it.report.utilisation_percent = Some(9),
        |it| it.report.temperature_celsius = Some(44),
        |it| it.report.temperature_celsius = Some(36),
        |it| it.report.power_watts = Some(69),
        |it| {
            it.held.insert(id("a"), (1 << 30) + (320 << 20));
        },
        |it| it.report.memory_used_bytes = Some((1 << 30) + 1),
        |_| {},
    ];
    for (index, change) in little.into_iter().enumerate() {
        let heard = teller.hear(&one(change), Moment(100 * MINUTE * (1 + index as u64)));
        assert_eq!(heard, (false, None), "change {index}");
    }
    assert_eq!(*teller.told(), one(|_| {}), "as it was at first");
}

#[test]
fn what_moves_far_is_told_when_a_minute_is_over_and_all_with_it() {
    let far: [fn(&mut Measured); 9] = [
        |it| it.report.memory_used_bytes = Some((1 << 30) + (330 << 20)),
        |it| it.report.utilisation_percent = Some(10),
        |it| it.report.temperature_celsius = Some(45),
        |it| it.report.power_watts = Some(70),
        |it| it.report.power_watts = None,
        |it| {
            it.held.insert(id("b"), 1);
        },
        |it| {
            it.held.remove(&id("a"));
        },
        |it| {
            it.held.insert(id("a"), 3 << 30);
        },
        |it| it.report.memory_errors = Some(MemoryErrors { corrected: 1, uncorrected: 0 }),
    ];
    for (index, change) in far.into_iter().enumerate() {
        let mut teller = teller();
        let now_so = one(|it| {
            change(it);
            it.report.memory_utilisation_percent = None;
            it.report.temperature_celsius = it.report.temperature_celsius.map(|degrees| degrees + 1);
        });
        assert_eq!(teller.hear(&now_so, Moment(1)), (false, Some(Moment(MINUTE))), "change {index}");
        assert_eq!(teller.hear(&now_so, Moment(MINUTE)), (true, None), "change {index}");
        let degrees = teller.told()["GPU-1"].report.temperature_celsius;
        assert_eq!(degrees, now_so["GPU-1"].report.temperature_celsius, "what moved little goes with it");
        assert_eq!(teller.hear(&now_so, Moment(9 * MINUTE)), (false, None), "change {index}");
    }
}

#[test]
fn news_does_not_wait_for_the_minute() {
    let news: [fn(&mut Measured); 5] = [
        |it| it.report.fault = "the driver reported the critical error Xid 79".into(),
        |it| it.report.memory_errors = Some(MemoryErrors { corrected: 0, uncorrected: 1 }),
        |it| it.report.parts = vec!["MIG-1".into()],
        |it| it.report.memory_bytes = Some(8 << 30),
        |it| it.report.model = "Another".into(),
    ];
    for (index, change) in news.into_iter().enumerate() {
        let mut teller = teller();
        let soon = Moment(NEWS_PAUSE_MS);
        assert_eq!(teller.hear(&one(change), Moment(1)), (false, Some(soon)), "change {index}");
        assert_eq!(teller.hear(&one(change), soon), (true, None), "change {index}");
    }
    let mut late = teller();
    let another = [("GPU-1".to_owned(), gpu("GPU-1")), ("GPU-2".to_owned(), gpu("GPU-2"))].into();
    assert_eq!(late.hear(&another, Moment(MINUTE)), (true, None), "one more");
}

#[test]
fn errors_that_go_on_are_told_ever_more_rarely() {
    let mut teller = teller();
    let mut told = Vec::new();
    // One more every ten seconds, for a day.
    for count in 1..8_640_u64 {
        let errors = Some(MemoryErrors { corrected: 1000 * count, uncorrected: count });
        let now = Moment(count * 10_000);
        if teller.hear(&one(|it| it.report.memory_errors = errors), now).0 {
            told.push(count);
        }
    }
    let soon: Vec<_> = told.iter().filter(|count| **count < 6).collect();
    assert_eq!(soon, [&1, &2, &4], "news while each is as many again");
    assert!(told.windows(2).all(|pair| pair[1] - pair[0] >= 6 || pair[1] >= 2 * pair[0]), "{told:?}");
}

#[test]
fn a_plugin_that_is_started_again_changes_nothing() {
    let mut teller = teller();
    let none = Measurements::new();
    assert_eq!(teller.hear(&none, Moment(10)), (false, Some(Moment(10 + MISSING_MS))));
    assert_eq!(teller.hear(&one(|_| {}), Moment(MISSING_MS)), (false, None));
    let (gone, over) = (Moment(2 * MINUTE), Moment(2 * MINUTE + MISSING_MS));
    assert_eq!(teller.hear(&none, gone), (false, Some(over)));
    assert_eq!(teller.hear(&none, over), (true, None));
    assert!(teller.told().is_empty());
    assert_eq!(teller.hear(&none, Moment(9 * MINUTE)), (false, None));
    assert_eq!(teller.hear(&one(|_| {}), Moment(9 * MINUTE)), (true, None), "it is back");
}

#[test]
fn what_is_held_of_a_part_is_held_of_the_whole_and_counts_for_who_is_known() {
    let use_of = |bytes| Use { bytes, processes: 1 };
    let uses: Uses = [
        (id("a"), [("MIG-1".to_owned(), use_of(2 << 20)), ("MIG-2".to_owned(), use_of(1 << 20))].into()),
        (id("b"), [("GPU-2".to_owned(), use_of(5)), ("GPU-9".to_owned(), use_of(7))].into()),
    ]
    .into();
    let mut cut = gpu("GPU-1").report;
    cut.parts = vec!["MIG-1".into(), "MIG-2".into()];
    let all = measurements([&cut, &gpu("GPU-2").report], &uses);
    assert_eq!(all["GPU-1"].held, [(id("a"), 3 << 20)].into());
    assert_eq!(all["GPU-2"].held, [(id("b"), 5)].into());
    let revision = RevisionReport {
        namespace: "default".into(),
        name: "s-00001".into(),
        uid: String::new(),
        phase: RevisionPhase::Ready,
        reason: String::new(),
        message: String::new(),
        instances: vec![InstanceReport { id: "a".into(), tier: Tier::Running, pid: 1, restarts: 0 }],
        desired: 1,
        timed_out: false,
    };
    let told = reports(&all, &[revision]);
    let held = AcceleratorUse {
        namespace: "default".into(),
        revision: "s-00001".into(),
        instance: "a".into(),
        bytes: 3 << 20,
    };
    assert_eq!((told[0].held.clone(), told[1].held.clone()), (vec![held], vec![]), "b is gone");
    assert_eq!(told[1], gpu("GPU-2").report);
}

proptest! {
    /// Whatever figures do, second by second, for ten minutes: told at most once a minute, and once they stand still what is told
    /// is near to what is so.
    #[test]
    fn figures_are_told_at_most_once_a_minute_and_in_the_end(
        moves in prop::collection::vec((0..101_u32, 20..100_i32, 0..400_u32, 0..16_u64), 600),
    ) {
        let mut teller = teller();
        let (mut told, mut now, mut last) = (0, Moment(0), one(|_| {}));
        for (percent, degrees, watts, gib) in moves {
            now = now.after(1000);
            last = one(|it| {
                it.report.utilisation_percent = Some(percent);
                it.report.temperature_celsius = Some(degrees);
                it.report.power_watts = Some(watts);
                it.report.memory_used_bytes = Some(gib << 30);
                it.held.insert(id("a"), gib << 30);
            });
            told += u64::from(teller.hear(&last, now).0);
        }
        prop_assert!(told <= 10, "{told} times in ten minutes");
        // Nothing comes any more but the time that was asked for.
        while let (_, Some(wake)) = teller.hear(&last, now) {
            prop_assert!(wake > now, "it is not asked for again and again");
            now = wake;
        }
        prop_assert!(difference(&teller.told()["GPU-1"], &last["GPU-1"]) == Little);
    }

    /// However often news comes, there is a pause between two times that it is told.
    #[test]
    fn news_is_told_with_pauses(faults in prop::collection::vec(0..4_u32, 300)) {
        let mut teller = teller();
        let mut at = vec![Moment(0)];
        for (second, fault) in (1..).zip(faults) {
            let now = Moment(second * 1000);
            if teller.hear(&one(|it| it.report.fault = format!("fault {fault}")), now).0 {
                at.push(now);
            }
        }
        prop_assert!(at.windows(2).all(|pair| pair[1].since(pair[0]) >= NEWS_PAUSE_MS));
    }
}
