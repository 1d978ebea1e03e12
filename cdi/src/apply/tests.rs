//! Every rule of application on a specification as the agent makes it.

use proptest::prelude::*;

use super::*;
use crate::edits::{HookName, Permissions};

fn config(uid: u32) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": { "user": { "uid": uid, "gid": uid }, "env": ["PATH=/bin", "A=old"] },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm" },
            { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" },
        ],
        "linux": {
            "namespaces": [{ "type": "mount" }],
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
        },
    })
}

fn edits(of: Value) -> ContainerEdits {
    serde_json::from_value(of).unwrap()
}

fn applied(uid: u32, of: Value) -> Value {
    let mut config = config(uid);
    edits(of).apply(&mut config).unwrap();
    config
}

#[test]
fn variables_are_added_and_replace_those_of_the_same_name() {
    let config = applied(0, json!({ "env": ["A=new=1", "B=", "PATHS=x"] }));
    assert_eq!(config["process"]["env"], json!(["PATH=/bin", "A=new=1", "B=", "PATHS=x"]));
}

#[test]
fn a_node_is_completed_from_the_host() {
    let config = applied(
        0,
        json!({ "deviceNodes": [{ "path": "/dev/null" }, { "path": "/dev/mine", "hostPath": "/dev/zero" }] }),
    );
    assert_eq!(
        config["linux"]["devices"],
        json!([
            { "path": "/dev/null", "type": "c", "major": 1, "minor": 3 },
            { "path": "/dev/mine", "type": "c", "major": 1, "minor": 5 },
        ])
    );
    assert_eq!(
        config["linux"]["resources"]["devices"],
        json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" },
            { "allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm" },
        ])
    );
}

#[test]
fn a_node_that_says_all_is_not_looked_up() {
    let node = json!({ "path": "/dev/x", "hostPath": "/nowhere", "type": "b", "major": 240, "minor": 7, "fileMode": 0o640, "uid": 1, "gid": 0 });
    let config = applied(1000, json!({ "deviceNodes": [node] }));
    let device = json!({ "path": "/dev/x", "type": "b", "major": 240, "minor": 7, "fileMode": 0o640, "uid": 1, "gid": 0 });
    assert_eq!(config["linux"]["devices"], json!([device]));
}

#[test]
fn a_node_belongs_to_the_process() {
    let owner = |uid, node: Value| {
        let device = applied(uid, json!({ "deviceNodes": [node] }))["linux"]["devices"][0].clone();
        (device["uid"].clone(), device["gid"].clone())
    };
    assert_eq!(owner(1000, json!({ "path": "/dev/null" })), (json!(1000), json!(1000)));
    assert_eq!(owner(1000, json!({ "path": "/dev/null", "uid": 7 })), (json!(7), json!(1000)));
    assert_eq!(owner(0, json!({ "path": "/dev/null" })), (Value::Null, Value::Null));
}

#[test]
fn permissions_are_what_the_control_group_allows() {
    let access = |permissions: Value| {
        let node = json!({ "path": "/dev/null", "permissions": permissions });
        applied(0, json!({ "deviceNodes": [node] }))["linux"]["resources"]["devices"][1]["access"].clone()
    };
    assert_eq!(access(json!("")), json!("rwm"));
    assert_eq!(access(json!("r")), json!("r"));
    assert_eq!(access(json!("mr")), json!("rm"));
    assert_eq!(access(json!("none")), Value::Null, "no rule at all");
}

#[test]
fn a_fifo_and_a_character_device_without_buffer_get_no_rule() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let nodes = json!([{ "path": "/dev/fifo", "hostPath": path }, { "path": "/dev/null", "type": "u" }, { "path": "/dev/p", "type": "p" }]);
    let config = applied(0, json!({ "deviceNodes": nodes }));
    let kinds: Vec<_> =
        config["linux"]["devices"].as_array().unwrap().iter().map(|device| &device["type"]).collect();
    assert_eq!(kinds, ["p", "u", "p"]);
    assert_eq!(config["linux"]["resources"]["devices"].as_array().unwrap().len(), 1);
}

#[test]
fn a_link_to_a_device_is_followed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("by-id");
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let config = applied(0, json!({ "deviceNodes": [{ "path": "/dev/x", "hostPath": path }] }));
    assert_eq!(config["linux"]["devices"][0]["minor"], 7);
}

#[test]
fn a_node_that_is_not_there_fails_all_edits() {
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("absent");
    let plain = directory.path().join("plain");
    fs::write(&plain, "").unwrap();
    for (node, said) in [
        (json!({ "path": absent }), "is its driver loaded?"),
        (json!({ "path": plain }), "is no device"),
        (json!({ "path": "/dev/null", "type": "b" }), "is of type c, and the edits say b"),
    ] {
        let mut config = config(0);
        let before = config.clone();
        let error = edits(json!({ "env": ["A=new"], "deviceNodes": [{ "path": "/dev/zero" }, node] }))
            .apply(&mut config)
            .unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(config, before);
    }
}

#[test]
fn a_later_node_of_the_same_path_replaces_the_earlier() {
    let mut config = applied(
        0,
        json!({ "deviceNodes": [{ "path": "/dev/a", "hostPath": "/dev/null" }, { "path": "/dev/zero" }] }),
    );
    edits(json!({ "deviceNodes": [{ "path": "/dev/a", "hostPath": "/dev/full" }] }))
        .apply(&mut config)
        .unwrap();
    let devices = config["linux"]["devices"].as_array().unwrap();
    let numbers: Vec<_> = devices
        .iter()
        .map(|device| (device["path"].as_str().unwrap(), device["minor"].as_u64().unwrap()))
        .collect();
    assert_eq!(numbers, [("/dev/zero", 5), ("/dev/a", 7)]);
}

#[test]
fn mounts_replace_and_are_sorted_by_depth() {
    let mounts = json!([
        { "hostPath": "/lib/a/b", "containerPath": "/lib/a/b", "options": ["ro", "bind"] },
        { "hostPath": "/srv", "containerPath": "/tmp/", "options": ["rbind"], "type": "none" },
        { "hostPath": "/lib", "containerPath": "/lib" },
    ]);
    let config = applied(0, json!({ "mounts": mounts }));
    let all = config["mounts"].as_array().unwrap();
    let destinations: Vec<_> = all.iter().map(|mount| mount["destination"].as_str().unwrap()).collect();
    assert_eq!(destinations, ["/proc", "/dev", "/tmp/", "/lib", "/dev/shm", "/lib/a/b"]);
    assert_eq!(
        all[2],
        json!({ "destination": "/tmp/", "source": "/srv", "options": ["rbind"], "type": "none" })
    );
    assert_eq!(all[3], json!({ "destination": "/lib", "source": "/lib" }));
}

#[test]
fn bind_mounts_are_mapped_where_there_are_users() {
    let options = |options: Value, namespaces: Value| {
        let mut config = config(0);
        config["linux"]["namespaces"] = namespaces;
        let mount = json!({ "hostPath": "/srv", "containerPath": "/srv", "options": options });
        edits(json!({ "mounts": [mount] })).apply(&mut config).unwrap();
        let all = config["mounts"].as_array().unwrap();
        all.iter().find(|mount| mount["destination"] == "/srv").unwrap()["options"].clone()
    };
    let users = || json!([{ "type": "mount" }, { "type": "user" }]);
    assert_eq!(options(json!(["ro", "bind"]), users()), json!(["ro", "bind", "idmap"]));
    assert_eq!(options(json!(["rbind"]), users()), json!(["rbind", "ridmap"]));
    assert_eq!(options(json!(["bind", "ridmap"]), users()), json!(["bind", "ridmap"]));
    assert_eq!(options(json!(["ro"]), users()), json!(["ro"]));
    assert_eq!(options(json!(["bind"]), json!([{ "type": "mount" }])), json!(["bind"]));
}

#[test]
fn hooks_are_added_at_their_moment() {
    let names = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    for name in names {
        let mut config = config(0);
        config["hooks"] = json!({ name: [{ "path": "/first" }] });
        let hook =
            json!({ "hookName": name, "path": "/a", "args": ["a", "b"], "env": ["X=y"], "timeout": 3 });
        edits(json!({ "hooks": [hook] })).apply(&mut config).unwrap();
        let second = json!({ "path": "/a", "args": ["a", "b"], "env": ["X=y"], "timeout": 3 });
        assert_eq!(config["hooks"], json!({ name: [{ "path": "/first" }, second] }));
    }
    assert_eq!(HookName::CreateRuntime.as_str(), "createRuntime");
}

#[test]
fn groups_caches_and_interfaces_are_set() {
    let config = applied(
        0,
        json!({
            "additionalGids": [0, 44, 44, 110],
            "intelRdt": { "closID": "gpu", "l3CacheSchema": "L3:0=f", "schemata": ["MB:0=50"], "enableMonitoring": true },
            "netDevices": [{ "hostInterfaceName": "can0", "name": "can1" }],
        }),
    );
    assert_eq!(config["process"]["user"]["additionalGids"], json!([44, 110]));
    assert_eq!(
        config["linux"]["intelRdt"],
        json!({ "closID": "gpu", "l3CacheSchema": "L3:0=f", "schemata": ["MB:0=50"], "enableMonitoring": true })
    );
    assert_eq!(config["linux"]["netDevices"], json!({ "can0": { "name": "can1" } }));
}

/// Edits of every kind, as the container runtime reads them.
#[test]
fn what_is_applied_is_what_the_runtime_reads() {
    let config = applied(
        1000,
        json!({
            "env": ["B=c"],
            "deviceNodes": [{ "path": "/dev/x", "hostPath": "/dev/zero", "permissions": "r", "fileMode": 0o660 }],
            "mounts": [{ "hostPath": "/srv", "containerPath": "/srv", "options": ["ro", "rbind"], "type": "none" }],
            "hooks": [{ "hookName": "createContainer", "path": "/a", "args": ["a"], "env": ["X=y"], "timeout": 3 }],
            "additionalGids": [44],
            "intelRdt": { "closID": "gpu", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=50", "schemata": ["a"], "enableMonitoring": true },
            "netDevices": [{ "hostInterfaceName": "can0", "name": "can1" }],
        }),
    );
    let mut whole = config.clone();
    whole["process"]["args"] = json!(["/bin/true"]);
    whole["process"]["cwd"] = json!("/");
    let read: oci_spec::runtime::Spec = serde_json::from_value(whole).unwrap();
    let written = serde_json::to_value(&read).unwrap();
    for place in [
        "/process/env",
        "/process/user/additionalGids",
        "/linux/devices",
        "/linux/resources/devices",
        "/linux/netDevices",
        "/linux/intelRdt",
        "/mounts/4",
        "/hooks/createContainer",
    ] {
        assert_eq!(written.pointer(place), config.pointer(place), "{place}");
        assert!(config.pointer(place).is_some(), "{place}");
    }
}

#[test]
fn a_specification_of_another_shape_is_refused() {
    for (config, place) in [
        (json!([]), "`process`"),
        (json!({ "process": 1 }), "`process`"),
        (json!({ "process": { "env": {} } }), "process.env"),
    ] {
        let mut changed = config.clone();
        let error = edits(json!({ "env": ["A=b"] })).apply(&mut changed).unwrap_err();
        assert!(error.to_string().contains(place), "{error}");
        assert_eq!(changed, config);
    }
    let mut nothing = json!({ "linux": null });
    edits(json!({ "deviceNodes": [{ "path": "/dev/null" }] })).apply(&mut nothing).unwrap();
    assert_eq!(nothing["linux"]["devices"][0]["major"], 1);
}

fn node() -> impl Strategy<Value = DeviceNode> {
    (
        0_u32..4,
        0_u32..3,
        prop::sample::select(vec![Permissions::ALL, Permissions::NONE, "r".parse().unwrap()]),
    )
        .prop_map(|(path, minor, permissions)| DeviceNode {
            path: format!("/dev/n{path}").into(),
            kind: Some(DeviceType::Char),
            major: 1,
            minor,
            permissions,
            ..DeviceNode::default()
        })
}

fn mount() -> impl Strategy<Value = Mount> {
    let paths = vec!["/a", "/a/b", "/a/b/c", "/tmp", "/", "/dev/shm"];
    (prop::sample::select(paths), 0_u8..3).prop_map(|(path, source)| Mount {
        host_path: format!("/srv/{source}").into(),
        container_path: path.into(),
        ..Mount::default()
    })
}

proptest! {
    #[test]
    fn applying_twice_is_applying_once(
        device_nodes in prop::collection::vec(node(), 0..8),
        mounts in prop::collection::vec(mount(), 0..8),
    ) {
        let sorted_mounts = !mounts.is_empty();
        let edits = ContainerEdits { device_nodes, mounts, ..ContainerEdits::default() };
        let mut once = config(0);
        edits.apply(&mut once).unwrap();
        let mut twice = once.clone();
        edits.apply(&mut twice).unwrap();
        let all = |config: &Value, place: &str| config.pointer(place).and_then(Value::as_array).cloned().unwrap_or_default();
        let sorted = |config: &Value, place: &str| {
            let mut texts: Vec<String> = all(config, place).iter().map(Value::to_string).collect();
            texts.sort();
            texts
        };
        // Which of two unrelated mounts or devices comes first says nothing.
        for place in ["/linux/devices", "/linux/resources/devices", "/mounts"] {
            prop_assert_eq!(sorted(&once, place), sorted(&twice, place));
        }
        let mut paths: Vec<_> = all(&once, "/linux/devices").iter().map(|device| device["path"].to_string()).collect();
        let count = paths.len();
        paths.sort();
        paths.dedup();
        prop_assert_eq!(paths.len(), count, "one node a path");
        let mounts = all(&once, "/mounts");
        let depths: Vec<_> = mounts.iter().map(|mount| depth(mount["destination"].as_str().unwrap())).collect();
        prop_assert!(!sorted_mounts || depths.is_sorted());
    }
}
