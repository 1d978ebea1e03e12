//! How many instances there are: by concurrency, by request rate, within bounds, within the node's memory.

use std::sync::atomic::{AtomicUsize, Ordering};

use tombolo_harness::{Function, NodeOptions, Site, until};

#[tokio::test]
async fn instances_follow_the_concurrency_target_up_and_down() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    let function = Function::hello("hello")
        .annotation("autoscaling.knative.dev/target", "2")
        .annotation("autoscaling.knative.dev/target-utilization-percentage", "100")
        .annotation("autoscaling.knative.dev/window", "6s");
    let busy = Function::subject("busy")
        .annotation("autoscaling.knative.dev/target", "2")
        .annotation("autoscaling.knative.dev/window", "6s")
        .annotation("autoscaling.knative.dev/max-scale", "5");
    site.hub.deploy(&function).await;
    site.hub.deploy(&busy).await;
    until("the first answer", 20, || node.answer("busy", "/")).await;
    let load = node.load("busy", "/wait?200", 16, 1);
    until("as many instances as max-scale allows", 60, || async {
        let running = node.instances("busy").await?.len();
        if running == 5 { Ok(()) } else { Err(format!("{running} instances")) }
    })
    .await;
    let outcomes = load.stop().await;
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
    assert!(failed.is_empty(), "{} of {} requests failed: {:?}", failed.len(), outcomes.len(), failed[0]);
    until("zero instances", 90, || async {
        let running = node.instances("busy").await?.len();
        if running == 0 { Ok(()) } else { Err(format!("{running} instances")) }
    })
    .await;
}

#[tokio::test]
async fn a_node_never_starts_more_than_its_memory_holds() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    // Two of them fit, a third does not.
    let function = Function::subject("large").concurrency(1).memory_fifths(2);
    site.hub.deploy(&function).await;
    let load = node.load("large", "/wait?300", 6, 1);
    until("the reason at the hub", 60, || async {
        let text = site.hub.api.told("large").await.map_err(|error| error.to_string())?;
        if text.contains("InsufficientMemory") { Ok(()) } else { Err(text) }
    })
    .await;
    let running = node.instances("large").await.expect("the agent says what it runs").len();
    assert!((1..=2).contains(&running), "{running} instances of two fifths each");
    let outcomes = load.stop().await;
    assert!(outcomes.iter().all(tombolo_harness::Outcome::is_good), "requests wait, they do not fail");
}

#[tokio::test]
async fn a_fast_revision_grows_at_the_requests_and_not_at_ticks() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    // Without a limit of its own no request waits: only their number tells.
    let function = Function::subject("eager")
        .annotation("autoscaling.knative.dev/target", "2")
        .annotation("autoscaling.knative.dev/target-utilization-percentage", "100")
        .annotation("tombolo.dev/reaction", "fast");
    site.hub.deploy(&function).await;
    until("the first answer", 20, || node.answer("eager", "/")).await;
    let raised = || node.log().matches("requests ask for more instances").count();
    let before = raised();
    let load = node.load("eager", "/wait?1000", 8, 1);
    // What requests asked for stays for a stable window.
    until("an instance for each two requests", 20, || async {
        let running = node.instances("eager").await?.len();
        if running == 4 { Ok(()) } else { Err(format!("{running} instances")) }
    })
    .await;
    let outcomes = load.stop().await;
    assert!(outcomes.iter().all(tombolo_harness::Outcome::is_good), "{outcomes:?}");
    assert!(raised() > before, "nothing was decided at a request");
    let calm = raised();
    for _ in 0..20 {
        node.answer("eager", "/").await.expect("an instance is free");
    }
    assert_eq!(raised(), calm, "requests that find room change nothing");
}

#[tokio::test]
async fn what_can_never_fit_a_node_is_refused_at_once_and_says_why() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    let huge = Function::subject("huge").limit("memory", "1000Ti");
    site.hub.deploy_unready(&huge).await;
    site.hub.deploy(&Function::hello("hello")).await;
    until("the figures at the hub", 30, || async {
        let text = site.hub.api.told("huge").await.map_err(|error| error.to_string())?;
        let has_figures =
            text.contains("InsufficientMemory") && text.contains("one instance needs 1048576000Mi");
        if has_figures { Ok(()) } else { Err(text) }
    })
    .await;
    // Held it would wait for the revision's 300 s.
    let (status, body) = node.ask("huge", "/").await.answer.expect("an answer");
    assert!(status == 503 && body.contains("InsufficientMemory"), "{status}: {body}");
    until("the other function's answer", 20, || node.answer("hello", "/")).await;
    assert!(node.instances("huge").await.expect("the agent says what it runs").is_empty());
}

/// What one instance was seen to hold is what the next is reckoned with, also when that one is gone and the agent another.
#[tokio::test]
async fn a_function_without_a_limit_grows_by_what_it_was_seen_to_hold() {
    let Some(mut site) = Site::start().await else { return };
    let mut node = site.node(NodeOptions::named("press-7").memory_mib(1024)).await;
    let function = Function::subject("holds").concurrency(1);
    site.hub.deploy(&function).await;
    node.answer("holds", "/hold?100").await.expect("there is room");
    until("what it holds to be seen", 60, || async {
        // Each request has the agent look.
        node.answer("holds", "/").await?;
        if node.log().contains("most_mebibytes=104") { Ok(()) } else { Err(node.log()) }
    })
    .await;
    for agent in ["the same", "another"] {
        if agent == "another" {
            node.power_off().expect("the power can be cut");
            node.start_agent().expect("the agent starts again");
            until("an answer", 30, || node.answer("holds", "/")).await;
        }
        let load = node.load("holds", "/wait?300", 16, 1);
        until("the reason at the hub", 60, || async {
            let text = site.hub.api.told("holds").await.map_err(|error| error.to_string())?;
            let is_cut = text.contains("InsufficientMemory") && text.contains("one was seen to need 104Mi");
            if is_cut { Ok(()) } else { Err(text) }
        })
        .await;
        // Of the 921 MiB that are for instances.
        let running = node.instances("holds").await.expect("the agent says what it runs").len();
        assert!((1..=8).contains(&running), "{running} instances, {agent}");
        let outcomes = load.stop().await;
        assert!(outcomes.iter().all(tombolo_harness::Outcome::is_good), "requests wait, they do not fail");
    }
}

/// What a function loads at its first request no look before that sees.
#[tokio::test]
async fn a_burst_at_a_function_that_loads_late_takes_no_more_than_there_is() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").memory_mib(1024)).await;
    site.hub.deploy(&Function::subject("late").concurrency(1)).await;
    until("what it holds at rest to be seen", 60, || async {
        let log = node.log();
        if log.contains("what its instances were seen to hold revision=default/late-00001") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    let load = node.load("late", "/model?100", 20, 1);
    let most = AtomicUsize::new(0);
    until("the reason at the hub", 60, || async {
        most.fetch_max(node.instances("late").await?.len(), Ordering::Relaxed);
        let text = site.hub.api.told("late").await.map_err(|error| error.to_string())?;
        let is_cut = text.contains("InsufficientMemory") && text.contains("one was seen to need 104Mi");
        if is_cut { Ok(()) } else { Err(text) }
    })
    .await;
    until("as many as fit into the 921 MiB that are for instances", 60, || async {
        let running = node.instances("late").await?.len();
        most.fetch_max(running, Ordering::Relaxed);
        if running == 8 { Ok(()) } else { Err(format!("{running} instances")) }
    })
    .await;
    assert_eq!(most.load(Ordering::Relaxed), 8);
    let outcomes = load.stop().await;
    assert!(outcomes.iter().all(tombolo_harness::Outcome::is_good), "requests wait, they do not fail");
}

#[tokio::test]
async fn memory_that_other_programs_have_is_left_to_them() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").memory_mib(1024)).await;
    node.set_available_mib(200);
    let function = Function::subject("large").concurrency(1).limit("memory", "100Mi");
    site.hub.deploy(&function).await;
    let load = node.load("large", "/wait?300", 6, 1);
    until("the reason at the hub", 60, || async {
        let text = site.hub.api.told("large").await.map_err(|error| error.to_string())?;
        let is_told = text.contains("InsufficientMemory") && text.contains("programs that are not Tombolo's");
        if is_told { Ok(()) } else { Err(text) }
    })
    .await;
    assert_eq!(node.instances("large").await.expect("the agent says what it runs").len(), 1);
    node.set_available_mib(1000);
    until("what fits once they have ended", 60, || async {
        let running = node.instances("large").await?.len();
        if running > 4 { Ok(()) } else { Err(format!("{running} instances")) }
    })
    .await;
    let outcomes = load.stop().await;
    assert!(outcomes.iter().all(tombolo_harness::Outcome::is_good), "requests wait, they do not fail");
}

/// As Knative's; of what a node has not the room for it is not waited for.
#[tokio::test]
async fn a_new_revision_is_ready_when_its_least_instances_are() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7").memory_mib(1024)).await;
    let least = |name: &str, count: &str| {
        Function::subject(name).annotation("autoscaling.knative.dev/min-scale", count)
    };
    site.hub.deploy(&least("several", "3").limit("memory", "64Mi")).await;
    let is_told =
        |ready: &str| node.log().contains(&format!("a revision has become ready revision=default/{ready}"));
    assert!(is_told("several-00001 ready=3"), "{}", node.log());
    // One of them fits beside, a second does not.
    site.hub.deploy(&least("large", "2").limit("memory", "400Mi")).await;
    assert!(is_told("large-00001 ready=1"), "{}", node.log());
    until("the reason at the hub", 30, || async {
        let text = site.hub.api.told("large").await.map_err(|error| error.to_string())?;
        if text.contains("InsufficientMemory") && text.contains("1 of 2 wanted") { Ok(()) } else { Err(text) }
    })
    .await;
}

/// Each beside one without the annotation that is asked the same, and last.
#[tokio::test]
async fn the_annotations_of_the_autoscaler_act_as_they_are_called() {
    let Some(mut site) = Site::start().await else { return };
    let node = site.node(NodeOptions::named("press-7")).await;
    let function = |name: &str| {
        Function::subject(name).env("MODE", "polite").annotation("autoscaling.knative.dev/window", "6s")
    };
    let with = |name: &str, annotation: &str, value: &str| {
        function(name).annotation(&format!("autoscaling.knative.dev/{annotation}"), value)
    };
    let busy = |function: Function| function.annotation("autoscaling.knative.dev/target", "1");
    let rates = with("rates", "metric", "rps")
        .annotation("autoscaling.knative.dev/target", "5")
        .annotation("autoscaling.knative.dev/max-scale", "4");
    let all = [
        with("kept", "scale-to-zero-pod-retention-period", "30m"),
        with("three", "activation-scale", "3"),
        busy(with("lasting", "scale-down-delay", "30m")),
        busy(function("swift")),
        rates,
        function("plain"),
    ];
    for function in all {
        site.hub.deploy(&function).await;
    }
    for name in ["kept", "three", "plain"] {
        until("the first answer", 20, || node.answer(name, "/")).await;
    }
    let count = async |name: &str| node.instances(name).await.map(|instances| instances.len());
    let becomes = async |name: &str, wanted: usize| {
        until(&format!("{wanted} of {name}"), 60, || async {
            let running = count(name).await?;
            if running == wanted { Ok(()) } else { Err(format!("{running} instances")) }
        })
        .await;
    };
    becomes("plain", 0).await;
    becomes("three", 0).await;
    assert_eq!(count("kept").await, Ok(1), "the last one is kept for its time");
    node.answer("three", "/").await.expect("it wakes");
    becomes("three", 3).await;

    // Many short requests: a rate, and hardly any concurrency.
    let loads = ["plain", "rates"].map(|name| node.load(name, "/", 4, 100));
    becomes("rates", 4).await;
    assert_eq!(count("plain").await, Ok(1));
    for load in loads {
        assert!(load.stop().await.iter().all(tombolo_harness::Outcome::is_good));
    }

    let loads = ["lasting", "swift"].map(|name| node.load(name, "/wait?300", 4, 1));
    until("both to panic", 30, || async {
        let text = node.metrics().await?;
        let panics = |name: &str| {
            let of_it = |line: &&str| line.starts_with("tombolo_autoscaler_panic{") && line.contains(name);
            text.lines().find(of_it).is_some_and(|line| line.ends_with(" 1"))
        };
        if panics("lasting") && panics("swift") { Ok(()) } else { Err(text) }
    })
    .await;
    for name in ["lasting", "swift"] {
        until("an instance for each request", 60, || async {
            let running = count(name).await?;
            if running >= 4 { Ok(()) } else { Err(format!("{running} instances")) }
        })
        .await;
    }
    for load in loads {
        assert!(load.stop().await.iter().all(tombolo_harness::Outcome::is_good));
    }
    becomes("swift", 0).await;
    assert!(count("lasting").await.expect("the agent says what it runs") >= 4, "none leaves before its time");
}
