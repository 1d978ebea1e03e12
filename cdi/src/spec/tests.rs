//! Reading and writing of specification files: every rule with a file that breaks it.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// As the vendor's tool writes it for a GPU and an instance of a cut one.
const GENERATED: &str = r#"---
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/nvidia-uvm
  - path: /dev/nvidiactl
    fileMode: 0666
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - args:
    - nvidia-cdi-hook
    - update-ldcache
    - --folder
    - /usr/lib/x86_64-linux-gnu
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  mounts:
  - containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.570.86.15
    hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.570.86.15
    options: [ro, nosuid, nodev, bind]
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      hostPath: /dev/nvidia0
  name: "0"
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
    - path: /dev/nvidia-caps/nvidia-cap21
      permissions: r
  name: "0:0"
kind: nvidia.com/gpu
"#;

fn yaml(text: &str) -> Result<Spec, String> {
    Spec::parse(text.as_bytes(), Format::Yaml).map_err(|error| error.to_string())
}

/// The smallest file there can be, with `change` made to it.
fn changed(change: impl FnOnce(&mut Value)) -> Result<Spec, String> {
    let mut file = json!({
        "cdiVersion": "1.1.0",
        "kind": "vendor.com/class",
        "devices": [{ "name": "d", "containerEdits": { "env": ["A=b"] } }],
    });
    change(&mut file);
    // JSON is YAML too, and both readers hold to the same rules.
    let text = file.to_string();
    let parsed = Spec::parse(text.as_bytes(), Format::Json).map_err(|error| error.to_string());
    assert_eq!(parsed.is_ok(), yaml(&text).is_ok(), "{text}: {parsed:?}, {:?}", yaml(&text));
    parsed
}

#[test]
fn a_generated_file_is_read() {
    let spec = yaml(GENERATED).unwrap();
    assert_eq!(spec.kind().to_string(), "nvidia.com/gpu");
    let names: Vec<_> = spec.devices().iter().map(|device| device.name.as_str()).collect();
    assert_eq!(names, ["0", "0:0"]);
    assert_eq!(spec.edits().device_nodes[1].file_mode, Some(0o666));
    assert_eq!(spec.edits().hooks[0].args.len(), 4);
    let cap = &spec.devices()[1].container_edits.device_nodes[1];
    assert_eq!((cap.permissions.read, cap.permissions.write), (true, false));
}

#[test]
fn what_is_written_is_read_back_the_same() {
    let spec = yaml(GENERATED).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for name in ["a.json", "a.yaml"] {
        let path = directory.path().join("new/folder").join(name);
        assert!(spec.write(&path).unwrap(), "{name}");
        assert!(!spec.write(&path).unwrap(), "{name}: nothing has changed");
        let format = Format::of(&path).unwrap();
        assert_eq!(Spec::parse(&fs::read(&path).unwrap(), format).unwrap(), spec, "{name}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, FILE_MODE);
    }
    let left = fs::read_dir(directory.path().join("new/folder")).unwrap().count();
    assert_eq!(left, 2, "no file in between is left");
    assert!(matches!(spec.write(Path::new("a.yml")), Err(WriteError::Ending(_))));
}

#[test]
fn a_reader_never_sees_half_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.json");
    let of_size = |count: usize| {
        let env = (0..count).map(|number| format!("V{number}=1").parse().unwrap()).collect();
        let container_edits = ContainerEdits { env, ..ContainerEdits::default() };
        let device = Device { name: "d".parse().unwrap(), annotations: BTreeMap::new(), container_edits };
        Spec::new("vendor.com/class".parse().unwrap(), vec![device], ContainerEdits::default()).unwrap()
    };
    let (small, large) = (of_size(1), of_size(20_000));
    small.write(&path).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for spec in [&large, &small].into_iter().cycle().take(20) {
                spec.write(&path).unwrap();
            }
        });
        while !writer.is_finished() {
            let seen = Spec::parse(&fs::read(&path).unwrap(), Format::Json).unwrap();
            assert!(seen == small || seen == large);
        }
    });
}

#[test]
fn the_least_version_is_the_one_that_has_what_is_used() {
    type Plain = fn(&mut Value);
    type Change = Box<dyn Fn(&mut Value)>;
    let edits = |change: Value| move |file: &mut Value| file["containerEdits"] = change.clone();
    let cases: Vec<(&str, Change)> = vec![
        ("0.3.0", Box::new((|_| {}) as Plain)),
        (
            "0.4.0",
            Box::new(edits(
                json!({ "mounts": [{ "hostPath": "/a", "containerPath": "/b", "type": "bind" }] }),
            )),
        ),
        ("0.3.0", Box::new(edits(json!({ "mounts": [{ "hostPath": "/a", "containerPath": "/b" }] })))),
        ("0.5.0", Box::new(edits(json!({ "deviceNodes": [{ "path": "/a", "hostPath": "/b" }] })))),
        ("0.5.0", Box::new((|file| file["devices"][0]["name"] = json!("0")) as Plain)),
        ("0.6.0", Box::new((|file| file["annotations"] = json!({ "a": "b" })) as Plain)),
        ("0.6.0", Box::new((|file| file["devices"][0]["annotations"] = json!({ "a": "b" })) as Plain)),
        ("0.6.0", Box::new((|file| file["kind"] = json!("vendor.com/class.sub")) as Plain)),
        ("0.7.0", Box::new(edits(json!({ "additionalGids": [5] })))),
        ("0.7.0", Box::new(edits(json!({ "intelRdt": { "closID": "a" } })))),
        ("1.1.0", Box::new(edits(json!({ "intelRdt": { "schemata": ["L3:0=f"] } })))),
        ("1.1.0", Box::new(edits(json!({ "intelRdt": { "enableMonitoring": true } })))),
        (
            "1.1.0",
            Box::new(edits(json!({ "netDevices": [{ "hostInterfaceName": "eth1", "name": "eth0" }] }))),
        ),
    ];
    let released = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];
    for (least, change) in cases {
        let mut seen = Value::Null;
        for version in released {
            let parsed = changed(|file| {
                change(file);
                file["cdiVersion"] = version.into();
                seen = file.clone();
            });
            let enough = released.iter().position(|each| *each == version)
                >= released.iter().position(|each| *each == least);
            assert_eq!(parsed.is_ok(), enough, "{version} of {seen}: {parsed:?}");
        }
        let spec = changed(change).unwrap();
        let made = Spec::new(spec.kind().clone(), spec.devices().to_vec(), spec.edits().clone()).unwrap();
        if spec.annotations().is_empty() {
            assert_eq!(made.version().to_string(), least, "{seen}");
        }
    }
}

#[test]
fn a_file_that_breaks_a_rule_is_refused_and_told_why() {
    let device = |edits: Value| move |file: &mut Value| file["devices"][0]["containerEdits"] = edits.clone();
    let node = |node: Value| device(json!({ "deviceNodes": [node] }));
    let hook = |hook: Value| device(json!({ "hooks": [hook] }));
    type Change = Box<dyn FnOnce(&mut Value)>;
    let cases: Vec<(&str, Change)> = vec![
        ("unknown field", Box::new(|file| file["containerRuntime"] = json!([]))),
        ("unknown field", Box::new(|file| file["devices"][0]["nameShort"] = json!("x"))),
        ("unknown field", Box::new(device(json!({ "env": ["A=b"], "devices": [] })))),
        ("unknown field", Box::new(node(json!({ "path": "/a", "containerPath": "/b" })))),
        (
            "unknown field",
            Box::new(device(
                json!({ "mounts": [{ "hostPath": "/a", "containerPath": "/b", "readonly": true }] }),
            )),
        ),
        ("unknown field", Box::new(hook(json!({ "hookName": "prestart", "path": "/a", "dir": "/" })))),
        ("unknown field", Box::new(device(json!({ "intelRdt": { "enableCMT": true } })))),
        ("unknown field", Box::new(device(json!({ "additionalGIDs": [1] })))),
        ("no version of CDI", Box::new(|file| file["cdiVersion"] = json!("1.2.0"))),
        ("no version of CDI", Box::new(|file| file["cdiVersion"] = json!("0.5"))),
        (
            "missing field `cdiVersion`",
            Box::new(|file| drop(file.as_object_mut().unwrap().remove("cdiVersion"))),
        ),
        ("missing field `kind`", Box::new(|file| drop(file.as_object_mut().unwrap().remove("kind")))),
        ("missing field `devices`", Box::new(|file| drop(file.as_object_mut().unwrap().remove("devices")))),
        ("not of the form vendor/class", Box::new(|file| file["kind"] = json!("class"))),
        ("vendor \"1\"", Box::new(|file| file["kind"] = json!("1/class"))),
        ("there are no devices", Box::new(|file| file["devices"] = json!([]))),
        ("device \"d-\"", Box::new(|file| file["devices"][0]["name"] = json!("d-"))),
        (
            "device d is there twice",
            Box::new(|file| {
                let first = file["devices"][0].clone();
                file["devices"].as_array_mut().unwrap().push(first)
            }),
        ),
        ("device d has no edits", Box::new(device(json!({})))),
        ("no key of an annotation", Box::new(|file| file["annotations"] = json!({ "a b": "c" }))),
        ("NAME=value", Box::new(device(json!({ "env": ["A"] })))),
        ("NAME=value", Box::new(device(json!({ "env": ["=b"] })))),
        ("must not be empty", Box::new(node(json!({ "path": "" })))),
        ("no type of device", Box::new(node(json!({ "path": "/a", "type": "d" })))),
        ("-1", Box::new(node(json!({ "path": "/a", "type": "c", "major": -1 })))),
        ("no permissions", Box::new(node(json!({ "path": "/a", "permissions": "rx" })))),
        (
            "must not be empty",
            Box::new(device(json!({ "mounts": [{ "hostPath": "", "containerPath": "/b" }] }))),
        ),
        (
            "must not be empty",
            Box::new(device(json!({ "mounts": [{ "hostPath": "/a", "containerPath": "" }] }))),
        ),
        ("unknown variant", Box::new(hook(json!({ "hookName": "prestop", "path": "/a" })))),
        ("has to be absolute", Box::new(hook(json!({ "hookName": "prestart", "path": "a" })))),
        ("zero", Box::new(hook(json!({ "hookName": "prestart", "path": "/a", "timeout": 0 })))),
        ("NAME=value", Box::new(hook(json!({ "hookName": "prestart", "path": "/a", "env": ["x"] })))),
        ("closID", Box::new(device(json!({ "intelRdt": { "closID": "a/b" } })))),
        ("closID", Box::new(device(json!({ "intelRdt": { "closID": ".." } })))),
        (
            "must not be empty",
            Box::new(device(json!({ "netDevices": [{ "hostInterfaceName": "", "name": "a" }] }))),
        ),
        (
            "named twice",
            Box::new(device(
                json!({ "netDevices": [{ "hostInterfaceName": "a", "name": "x" }, { "hostInterfaceName": "a", "name": "y" }] }),
            )),
        ),
        (
            "named twice",
            Box::new(device(
                json!({ "netDevices": [{ "hostInterfaceName": "a", "name": "x" }, { "hostInterfaceName": "b", "name": "x" }] }),
            )),
        ),
    ];
    for (said, change) in cases {
        let mut seen = Value::Null;
        let why = changed(|file| {
            change(file);
            seen = file.clone();
        })
        .expect_err(&seen.to_string());
        assert!(why.contains(said), "{seen}\n  says {why:?}, not {said:?}");
    }
    assert!(changed(|_| {}).is_ok());
}

#[test]
fn what_is_no_text_is_refused() {
    assert!(matches!(Spec::parse(b"\xff", Format::Json), Err(ParseError::NotText(_))));
    assert!(yaml("").is_err());
    assert!(yaml("- a\n- b\n").is_err());
}

proptest! {
    /// Files are written by whoever may write them.
    #[test]
    fn no_file_whatever_it_holds_makes_a_reader_fall(
        at in 0..GENERATED.len(), length in 0_usize..40, put in "[a-z0-9:{}\\[\\]\"'&*!|>%@` \n-]{0,12}",
    ) {
        let end = (at + length).min(GENERATED.len());
        let text = format!("{}{put}{}", &GENERATED[..at], &GENERATED[end..]);
        for format in [Format::Json, Format::Yaml] {
            if let Ok(spec) = Spec::parse(text.as_bytes(), format) {
                let again = serde_json::to_vec(&spec).unwrap();
                prop_assert_eq!(Spec::parse(&again, Format::Json).unwrap(), spec);
            }
        }
    }
}
