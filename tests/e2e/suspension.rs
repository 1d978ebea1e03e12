//! Functions that take turns on a device with what they have on it moved away and back, by a plugin of the test.

use std::collections::{BTreeMap, BTreeSet};

use tombolo_device_sdk::SharedAccelerator;
use tombolo_harness::{Function, Outcome, until};

use crate::devices::{Bench, EYE, Eyes, watching};

mod ledger;

use ledger::{Ledger, Tells};

/// A node with these devices, whose plugin moves what the ledger says.
async fn bench(devices: &[&str], idle_timeout_s: u64) -> Option<(Bench, Eyes, Ledger)> {
    let bench = Bench::without_plugin(devices, idle_timeout_s).await?;
    let ledger = Ledger::default();
    let plugin = Eyes::serve(&bench, Some(SharedAccelerator::new(ledger.clone())));
    bench.offers(devices.len()).await;
    Some((bench, plugin, ledger))
}

fn sleeping(name: &str) -> Function {
    watching(name).annotation("tombolo.dev/idle-tier", "suspended")
}

/// The instances of a service in any tier, with their tiers.
async fn tiers(bench: &Bench, service: &str) -> BTreeMap<String, String> {
    let status = bench.node.status().await.expect("the agent answers");
    let of_service = |revision: &&serde_json::Value| {
        revision["name"].as_str().is_some_and(|name| name.starts_with(&format!("{service}-")))
    };
    let revisions = status["revisions"].as_array().cloned().unwrap_or_default();
    let instances =
        revisions.iter().filter(of_service).filter_map(|revision| revision["instances"].as_array());
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    instances.flatten().map(|instance| (text(&instance["id"]), text(&instance["tier"]))).collect()
}

async fn has_tier(bench: &Bench, service: &str, tier: &str) -> String {
    until(&format!("{service} to be {tier}"), 60, || async {
        let found = tiers(bench, service).await;
        match found.iter().next() {
            Some((id, has)) if found.len() == 1 && has == tier => Ok(id.clone()),
            _ => Err(format!("{found:?}")),
        }
    })
    .await
}

/// The tier alone is that of one whose state is only about to be moved, too.
async fn is_moved(ledger: &Ledger) {
    until("a state to be away", 60, || async {
        let away = ledger.away();
        if away.is_empty() { Err(away) } else { Ok(()) }
    })
    .await;
}

/// How often the function's program has been asked this, which it knows from its memory alone.
async fn count(bench: &Bench, service: &str) -> u64 {
    let answer = bench.node.answer(service, "/count").await.expect("it answers");
    answer.parse().expect("a number")
}

/// The host's number of the only process of a service.
async fn pid(bench: &Bench, service: &str) -> i64 {
    let instances = bench.node.instances(service).await.expect("the agent answers");
    *instances.values().next().expect("an instance runs")
}

async fn events_tell(bench: &Bench, words: &[&str]) {
    until(&format!("an event of {words:?}"), 60, || async {
        let events = bench.site.hub.api.get("/apis/tombolo.dev/v1/namespaces/default/events").await;
        let events = events.map_err(|error| error.to_string())?.to_string();
        if words.iter().all(|word| events.contains(word)) { Ok(()) } else { Err(events) }
    })
    .await;
}

#[tokio::test]
async fn functions_take_turns_on_a_device_and_go_on_where_they_were() {
    let Some((bench, _plugin, ledger)) = bench(&["eye0"], 600).await else { return };
    let names = ["first", "second", "third"];
    let mut ids = BTreeMap::new();
    for name in names {
        bench.site.hub.deploy(&sleeping(name)).await;
        bench.has(name, "eye0").await;
        assert_eq!(count(&bench, name).await, 1);
        ids.insert(name, has_tier(&bench, name, "running").await);
    }
    for round in 2..5 {
        for name in names {
            assert_eq!(count(&bench, name).await, round, "{name}");
            // Nobody takes it for as long as nobody else is called.
            assert_eq!(has_tier(&bench, name, "running").await, ids[name], "round {round}");
        }
    }
    assert_eq!(ledger.moves(), 2 + 9, "no move without a request that waits");
    ledger.assert_right();
    let metrics = bench.node.metrics().await.expect("the agent answers");
    let restores = "tombolo_activation_stage_seconds_count{tier=\"suspended\",stage=\"restore\"} 9";
    assert!(metrics.contains(restores), "{metrics}");
}

/// Also under requests that come without a pause: whoever waits has a turn.
#[tokio::test]
async fn six_functions_take_many_turns_under_load_and_no_request_fails() {
    let Some((bench, _plugin, ledger)) = bench(&["eye0"], 600).await else { return };
    let names = ["one", "two", "three", "four", "five", "six"];
    let mut before = BTreeMap::new();
    for name in names {
        bench.site.hub.deploy(&sleeping(name)).await;
        bench.has(name, "eye0").await;
        before.insert(name, (has_tier(&bench, name, "running").await, pid(&bench, name).await));
    }
    let outs = || names.map(|name| ledger.outs(before[name].1));
    let at_first = outs();
    // The first two are busy all the time, the others are called now and then.
    let pauses = [0, 0, 50, 100, 300, 700];
    let loads: Vec<_> =
        names.iter().zip(pauses).map(|(name, pause)| bench.node.load(name, "/count", 2, pause)).collect();
    until("each to have had three turns", 120, || async {
        let turns: Vec<u32> = outs().iter().zip(at_first).map(|(now, before)| now - before).collect();
        if turns.iter().all(|turns| *turns >= 3) { Ok(()) } else { Err(turns) }
    })
    .await;
    for (name, load) in names.into_iter().zip(loads) {
        let outcomes = load.stop().await;
        let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
        assert!(failed.is_empty(), "{name}: {failed:?}");
        let counts: BTreeSet<u64> = outcomes
            .iter()
            .map(|outcome| outcome.answer.as_ref().expect("good").1.parse().expect("a number"))
            .collect();
        // Nobody has forgotten anything: each count once, and none left out.
        assert_eq!(counts, (1..=outcomes.len() as u64).collect(), "{name}");
        let instances = tiers(&bench, name).await;
        assert_eq!(instances.keys().collect::<Vec<_>>(), [&before[name].0], "{name}");
    }
    ledger.assert_right();
}

#[tokio::test]
async fn a_suspended_function_outlives_the_agent() {
    let Some((mut bench, _plugin, ledger)) = bench(&["eye0"], 1).await else { return };
    bench.site.hub.deploy(&sleeping("sleeper")).await;
    assert_eq!(count(&bench, "sleeper").await, 1);
    let id = has_tier(&bench, "sleeper", "suspended").await;
    is_moved(&ledger).await;
    bench.node.kill_agent();
    bench.node.start_agent().expect("the agent starts again");
    knows_the_plugin(&bench).await;
    assert_eq!(has_tier(&bench, "sleeper", "suspended").await, id);
    assert_eq!(count(&bench, "sleeper").await, 2);
    assert!(tiers(&bench, "sleeper").await.contains_key(&id));
    ledger.assert_right();
}

async fn knows_the_plugin(bench: &Bench) {
    until("the agent to know the plugin", 60, || async {
        let status = bench.node.status().await?;
        if status["allocatable"][EYE].as_u64() > Some(0) { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
}

/// In the middle of a move out, and of one back: whatever has been moved by then is found.
#[tokio::test]
async fn an_agent_that_is_killed_in_the_middle_of_a_move_finds_what_was_moved() {
    let Some((mut bench, _plugin, ledger)) = bench(&["eye0"], 1).await else { return };
    bench.site.hub.deploy(&sleeping("sleeper")).await;
    let mut counts = 1;
    assert_eq!(count(&bench, "sleeper").await, counts);
    let id = has_tier(&bench, "sleeper", "suspended").await;
    for way in ["out", "back"] {
        if way == "out" {
            counts += 1;
            assert_eq!(count(&bench, "sleeper").await, counts);
        }
        ledger.hold_up();
        let before = ledger.held_up();
        let request = async {
            // Its answer is lost with the agent.
            if way == "back" {
                drop(bench.node.answer("sleeper", "/").await)
            } else {
                std::future::pending().await
            }
        };
        let begun = until("a move to begin", 60, || async {
            if ledger.held_up() > before { Ok(()) } else { Err(ledger.held_up()) }
        });
        tokio::select! { () = request => {}, () = begun => {} }
        bench.node.kill_agent();
        ledger.go_on();
        bench.node.start_agent().expect("the agent starts again");
        knows_the_plugin(&bench).await;
        counts += 1;
        assert_eq!(count(&bench, "sleeper").await, counts, "{way}");
        assert_eq!(has_tier(&bench, "sleeper", "suspended").await, id, "{way}");
    }
    ledger.assert_right();
}

#[tokio::test]
async fn requests_for_a_suspended_function_wait_for_its_plugin_and_are_told_why() {
    let Some((bench, plugin, ledger)) = bench(&["eye0"], 1).await else { return };
    bench.site.hub.deploy(&sleeping("sleeper").timeout_s(3)).await;
    assert_eq!(count(&bench, "sleeper").await, 1);
    let id = has_tier(&bench, "sleeper", "suspended").await;
    is_moved(&ledger).await;
    plugin.stop().await;
    let refused = bench.node.ask("sleeper", "/count").await.answer.expect("an answer");
    assert_eq!(refused.0, 504, "{refused:?}");
    assert!(refused.1.contains("DevicesNotReady"), "{refused:?}");
    let _plugin = Eyes::serve(&bench, Some(SharedAccelerator::new(ledger.clone())));
    knows_the_plugin(&bench).await;
    assert_eq!(count(&bench, "sleeper").await, 2);
    assert!(tiers(&bench, "sleeper").await.contains_key(&id));
    ledger.assert_right();
}

#[tokio::test]
async fn a_plugin_that_goes_in_the_middle_of_a_move_is_waited_for() {
    let Some((bench, mut plugin, ledger)) = bench(&["eye0"], 1).await else { return };
    let again = || Eyes::serve(&bench, Some(SharedAccelerator::new(ledger.clone())));
    let is_held_up = |times| {
        let ledger = ledger.clone();
        async move {
            until("a move to be under way", 60, || async {
                if ledger.held_up() == times { Ok(()) } else { Err(ledger.held_up()) }
            })
            .await;
        }
    };
    ledger.hold_up();
    bench.site.hub.deploy(&sleeping("sleeper")).await;
    assert_eq!(count(&bench, "sleeper").await, 1);
    let pid = pid(&bench, "sleeper").await;
    is_held_up(1).await;
    let id = has_tier(&bench, "sleeper", "suspended").await;
    plugin.kill();
    ledger.cut_off();
    plugin = again();
    assert_eq!(count(&bench, "sleeper").await, 2, "it went on, and its state came back");
    until("it to be suspended again", 60, || async {
        let outs = ledger.outs(pid);
        if outs == 2 { Ok(()) } else { Err(outs) }
    })
    .await;
    ledger.hold_up();
    let (counted, _plugin) = tokio::join!(count(&bench, "sleeper"), async {
        is_held_up(2).await;
        plugin.kill();
        ledger.cut_off();
        again()
    });
    assert_eq!(counted, 3);
    assert!(tiers(&bench, "sleeper").await.contains_key(&id));
    ledger.assert_right();
}

/// What functions take is not what was counted: two devices, and memory for one of them.
#[tokio::test]
async fn who_was_called_longest_ago_makes_room_for_one_that_does_not_fit() {
    let Some((bench, _plugin, ledger)) = bench(&["eye0", "eye1"], 600).await else { return };
    for (name, device) in [("first", "eye0"), ("second", "eye1"), ("third", "eye0")] {
        bench.site.hub.deploy(&sleeping(name)).await;
        bench.has(name, device).await;
        assert_eq!(count(&bench, name).await, 1);
        ledger.holds(pid(&bench, name).await, 1 << 20);
    }
    let second = has_tier(&bench, "second", "running").await;
    ledger.has_room_for(1 << 20);
    assert_eq!(count(&bench, "first").await, 2);
    assert_eq!(has_tier(&bench, "second", "suspended").await, second);
    assert!(ledger.no_rooms() > 0);
    events_tell(&bench, &["NotRestored", "1048576"]).await;
    assert_eq!((count(&bench, "second").await, count(&bench, "third").await), (2, 2));
    ledger.assert_right();
}

#[tokio::test]
async fn what_does_not_fit_into_the_nodes_memory_ends_instead() {
    let Some((bench, _plugin, ledger)) = bench(&["eye0"], 600).await else { return };
    for name in ["small", "large"] {
        bench.site.hub.deploy(&sleeping(name)).await;
        bench.has(name, "eye0").await;
        assert_eq!(count(&bench, name).await, 1);
        ledger.holds(pid(&bench, name).await, if name == "large" { 1 << 50 } else { 1 << 20 });
    }
    assert_eq!(count(&bench, "small").await, 2, "it went on where it was");
    events_tell(&bench, &["NotSuspended", "1073741824 MiB"]).await;
    assert_eq!(count(&bench, "large").await, 1, "it began anew");
    assert_eq!(count(&bench, "small").await, 3);
    ledger.assert_right();
}

/// Its limit and the node's memory for it would be made for nothing.
#[tokio::test]
async fn what_is_moved_waits_until_it_is_told_how_much_that_is() {
    let Some((bench, _plugin, ledger)) = bench(&["eye0"], 1).await else { return };
    ledger.tells(Tells::NotNow);
    bench.site.hub.deploy(&sleeping("sleeper")).await;
    assert_eq!(count(&bench, "sleeper").await, 1);
    let id = has_tier(&bench, "sleeper", "running").await;
    ledger.holds(pid(&bench, "sleeper").await, 1 << 20);
    bench.says("sleeper", "NotSuspended").await;
    assert_eq!(ledger.moves(), 0);
    assert_eq!(count(&bench, "sleeper").await, 2, "it serves");
    ledger.tells(Tells::All);
    is_moved(&ledger).await;
    assert_eq!(has_tier(&bench, "sleeper", "suspended").await, id);
    assert_eq!(count(&bench, "sleeper").await, 3);
    ledger.assert_right();
}

#[tokio::test]
async fn what_is_never_told_the_size_of_is_not_moved_and_that_is_said() {
    let Some((bench, _plugin, ledger)) = bench(&["eye0"], 1).await else { return };
    ledger.tells(Tells::NoAmounts);
    bench.site.hub.deploy(&sleeping("sleeper")).await;
    assert_eq!(count(&bench, "sleeper").await, 1);
    ledger.holds(pid(&bench, "sleeper").await, 1 << 20);
    bench.says("sleeper", "NotSuspended").await;
    events_tell(&bench, &["NotSuspended", "is not told"]).await;
    assert_eq!(count(&bench, "sleeper").await, 1, "it began anew");
    assert_eq!(ledger.moves(), 0);
}

/// Also what is begun while others are moved: a child whose state stayed away would hang for good.
#[tokio::test]
async fn one_that_cannot_be_moved_now_has_all_its_processes_back() {
    let Some((bench, _plugin, ledger)) = bench(&["eye0"], 1).await else { return };
    bench.site.hub.deploy(&sleeping("sleeper")).await;
    let id = has_tier(&bench, "sleeper", "running").await;
    ledger.bears(Some(pid(&bench, "sleeper").await));
    bench.says("sleeper", "NotSuspended").await;
    until("all its processes to be back", 60, || async {
        let away = ledger.away();
        if away.is_empty() { Ok(()) } else { Err(away) }
    })
    .await;
    ledger.bears(None);
    until("the program and its children to be away", 60, || async {
        let away = ledger.away();
        if away.len() > 1 { Ok(()) } else { Err(away) }
    })
    .await;
    assert_eq!(has_tier(&bench, "sleeper", "suspended").await, id);
    assert!(bench.node.answer("sleeper", "/count").await.is_ok());
    assert!(tiers(&bench, "sleeper").await.contains_key(&id));
    ledger.assert_right();
}

#[tokio::test]
async fn where_nothing_can_be_suspended_that_is_said_and_functions_begin_anew() {
    let Some(bench) = Bench::without_plugin(&["eye0"], 1).await else { return };
    let _plugin = Eyes::serve(&bench, None);
    bench.offers(1).await;
    for name in ["first", "second"] {
        bench.site.hub.deploy(&sleeping(name)).await;
        bench.has(name, "eye0").await;
        bench.says(name, "NotSuspended").await;
    }
    bench.has("first", "eye0").await;
    events_tell(&bench, &["NotSuspended", EYE]).await;
}
