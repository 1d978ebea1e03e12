//! What is remembered of rollouts that were undone, while a route has other wishes.

use super::*;

/// `b` was tried and undone.
fn undone() -> Node {
    let mut node = Node::new(60, Some(GATE));
    node.has(&["b", "a"]);
    node.step();
    node.answers("b", 40, 40, 3.0);
    node.after(LOOK_MS);
    assert!(node.report().rolled_back.is_some());
    node
}

fn pin(node: &mut Node) {
    let target = RouteTarget { configuration: String::new(), ..target(100, "", &["a"]) };
    node.route().targets = vec![target];
}

fn unpin(node: &mut Node) {
    node.route().targets = vec![target(100, "", &["b", "a"])];
}

#[test]
fn an_undone_revision_is_not_tried_again_after_the_route_was_fixed_to_another() {
    for leaves in [false, true] {
        let mut node = undone();
        pin(&mut node);
        if leaves {
            node.desired.revisions.remove(&key("b"));
            node.ready.remove("b");
        }
        node.after(100_000);
        assert_eq!((node.shares().as_str(), node.report_of_any()), ("none", None));
        node.restart();
        node.step();
        unpin(&mut node);
        node.add("b", "b");
        // It is fetched and started first.
        node.step();
        assert_eq!(
            (node.shares().as_str(), node.report().rolled_back.is_some()),
            ("a 100", true),
            "{leaves}"
        );
        node.ready.insert("b".into());
        node.after(1_000);
        assert_eq!(
            (node.shares().as_str(), node.report().rolled_back.is_some()),
            ("a 100", true),
            "{leaves}"
        );
        assert_eq!(node.report().goal, "b");
    }
}

#[test]
fn another_object_is_tried_after_the_route_was_fixed() {
    let mut node = undone();
    pin(&mut node);
    node.step();
    unpin(&mut node);
    node.add("b", "repaired");
    node.step();
    assert_eq!((node.shares().as_str(), node.report().rolled_back), ("a 99, b 1", None));
}

#[test]
fn what_is_preferred_to_an_undone_revision_ends_its_memory() {
    let mut node = undone();
    node.route().targets = vec![target(100, "", &["a", "b"])];
    node.step();
    assert_eq!((node.shares().as_str(), node.report().rolled_back), ("a 100", None));
}

#[test]
fn little_is_remembered_and_nothing_of_a_route_that_is_gone() {
    let mut node = undone();
    let track = node.rollouts.targets.values().next().unwrap().clone();
    let route = node.route().clone();
    for tag in 0..2 * UNNAMED_MAX {
        let key = TargetKey::new(&route, "c", &format!("t{tag}"));
        node.rollouts.targets.insert(key, track.clone());
    }
    pin(&mut node);
    assert!(node.step().save);
    assert_eq!(node.rollouts.targets.len(), UNNAMED_MAX);
    assert!(!node.step().save);
    node.desired.routes.clear();
    assert!(node.step().save);
    assert_eq!(node.rollouts, Rollouts::default());
}
