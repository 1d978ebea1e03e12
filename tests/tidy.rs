//! The source tree's own rules as tests: what a reader may rely on without looking.
//!
//! Reads the tree as text and knows nothing of what the programs do. A place that breaks a rule for a reason stands in the
//! rule's list of exceptions with that reason.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file before its tests.
const FILE_LINES_MAX: usize = 500;

/// Lines of one function.
const FUNCTION_LINES_MAX: usize = 70;

/// Longest line of code, characters.
const LINE_CHARS_MAX: usize = 140;

/// Files that may hold `unsafe`, each because of system calls that no safe crate wraps.
const UNSAFE: [&str; 16] = [
    "agent/src/memory.rs",
    "agent/supervisor/",
    "agent/router/tests/router/netns.rs",
    "device-plugins/nvidia/src/cuda.rs",
    "device-plugins/nvidia/src/driver/raw.rs",
    "examples/camera-defects/src/camera.rs",
    "examples/camera-defects/src/server.rs",
    "examples/gpu-inference/src/cuda/driver.rs",
    "examples/hello/src/main.rs",
    "tests/fake-checkpoint/src/calls.rs",
    "tests/fake-clock/src/lib.rs",
    "tests/fake-cuda/src/calls.rs",
    "tests/fake-nvml/src/calls.rs",
    "tests/harness/src/process.rs",
    "tests/programs/",
    "tests/tidy.rs",
];

struct Source {
    /// From the workspace's root, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// Everything before the inline tests.
    fn production(&self) -> &str {
        self.text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default()
    }

    fn is_test(&self) -> bool {
        self.path.starts_with("tests/") || self.path.contains("/tests/") || self.path.ends_with("/tests.rs")
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned()
}

/// Every file of the tree with this ending, build outputs left out.
fn files(ending: &str) -> Vec<Source> {
    let mut found = Vec::new();
    walk(&root(), ending, &mut found);
    found
}

fn walk(dir: &Path, ending: &str, found: &mut Vec<Source>) {
    for entry in fs::read_dir(dir).expect("the tree can be read") {
        let path = entry.expect("the tree can be read").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && name != ".git" {
                walk(&path, ending, found);
            }
        } else if name.ends_with(ending) {
            let text = fs::read_to_string(&path).expect("sources are text");
            let path = path.strip_prefix(root()).expect("below the root").display().to_string();
            found.push(Source { path, text });
        }
    }
}

fn report(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// Every place where `which` holds, as `path:line: text`.
fn lines(sources: &[Source], production: bool, which: impl Fn(&Source, &str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        let text = if production { source.production() } else { &source.text };
        for (number, line) in text.lines().enumerate() {
            if which(source, line) {
                found.push(format!("{}:{}: {}", source.path, number + 1, line.trim()));
            }
        }
    }
    found
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

#[test]
fn every_file_says_what_it_holds() {
    let broken: Vec<_> = files(".rs")
        .into_iter()
        .filter(|source| !source.text.starts_with("//!"))
        .map(|source| source.path)
        .collect();
    report("a file opens with `//!`: what it holds and what it must not know", &broken);
}

#[test]
fn files_and_lines_have_an_end() {
    let sources = files(".rs");
    let long: Vec<_> = sources
        .iter()
        .filter(|source| !source.is_test() && source.production().lines().count() > FILE_LINES_MAX)
        .map(|source| format!("{}: {} lines", source.path, source.production().lines().count()))
        .collect();
    report("past the limit a file becomes a folder of phases, or a crate", &long);
    let broken = lines(&sources, false, |_, line| {
        // A sentence for a person, or a document of another format, is not cut for the sake of the code around it.
        let quoted: usize = line.split('"').skip(1).step_by(2).map(str::len).sum();
        line.chars().count() > LINE_CHARS_MAX + quoted || line.contains('\t') || line.ends_with(' ')
    });
    report("lines are short, without tabs and trailing spaces", &broken);
}

#[test]
fn functions_fit_on_a_screen() {
    let mut broken = Vec::new();
    for source in files(".rs").iter().filter(|source| !source.is_test()) {
        let mut open: Option<(usize, usize, String)> = None;
        for (number, line) in source.production().lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let code = line.trim_start();
            let starts = [
                "fn ",
                "pub fn ",
                "pub(crate) fn ",
                "pub(super) fn ",
                "async fn ",
                "pub async fn ",
                "pub(crate) async fn ",
            ];
            if open.is_none()
                && starts.iter().any(|start| code.starts_with(start))
                && !code.ends_with('}')
                && !code.ends_with(';')
            {
                open = Some((indent, number, code.to_owned()));
            }
            if let Some((depth, start, name)) = &open
                && indent == *depth
                && code.starts_with('}')
            {
                if number - start > FUNCTION_LINES_MAX {
                    broken.push(format!("{}:{}: {} lines: {name}", source.path, start + 1, number - start));
                }
                open = None;
            }
        }
    }
    report("functions have at most 70 lines", &broken);
}

#[test]
fn nothing_is_unfinished_or_hidden() {
    let sources: Vec<_> = files(".rs").into_iter().filter(|source| source.path != "tests/tidy.rs").collect();
    let words = ["todo!", "unimplemented!", "TODO", "FIXME", "XXX", "HACK", "#[ignore"];
    let broken = lines(&sources, false, |_, line| words.iter().any(|word| line.contains(word)));
    report("nothing is left unfinished or switched off", &broken);
}

#[test]
fn unsafe_is_where_it_is_expected() {
    let broken = lines(&files(".rs"), false, |source, line| {
        !is_comment(line)
            && (line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("allow(unsafe_code"))
            && !UNSAFE.iter().any(|path| source.path.starts_with(path))
    });
    report("unsafe code stands only where the list says", &broken);
}

#[test]
fn names_say_something() {
    let vague = ["utils", "util", "common", "helpers", "helper", "manager", "misc"];
    let broken: Vec<_> = files(".rs")
        .into_iter()
        .map(|source| source.path)
        .filter(|path| path.split(['/', '.']).any(|part| vague.contains(&part)))
        .collect();
    report("modules are named after what they hold", &broken);
    let mods: Vec<_> = files("mod.rs")
        .into_iter()
        .map(|source| source.path)
        .filter(|path| path.ends_with("/mod.rs"))
        .collect();
    report("foo.rs beside foo/, not mod.rs", &mods);
}

#[test]
fn cores_are_pure() {
    let cores: Vec<_> = files(".rs")
        .into_iter()
        .filter(|source| {
            ["api/src/", "agent/core/src/", "hub/core/src/"].iter().any(|core| source.path.starts_with(core))
        })
        .collect();
    let impure = [
        "tokio",
        "std::fs",
        "std::net::Tcp",
        "std::process",
        "Instant::now",
        "SystemTime",
        "std::env",
        "std::thread",
        "rand::",
    ];
    let broken = lines(&cores, true, |source, line| {
        !source.is_test() && !is_comment(line) && impure.iter().any(|word| line.contains(word))
    });
    report("a core has no clock, no files, no sockets, no threads", &broken);
}

/// The files that name `word` in code, manifests of packages left out.
fn naming(word: &str) -> Vec<String> {
    let named =
        |source: &Source| source.production().lines().any(|line| !is_comment(line) && line.contains(word));
    files(".rs")
        .into_iter()
        .filter(|source| !source.is_test() && named(source))
        .map(|source| source.path)
        .collect()
}

#[test]
fn edges_are_named_in_one_place() {
    let outside = |word: &str, place: &str| -> Vec<String> {
        naming(word).into_iter().filter(|path| !path.starts_with(place)).collect()
    };
    report("only the supervisor names libcontainer", &outside("libcontainer::", "agent/supervisor/"));
    report("only the store names sled", &outside("sled::", "store/"));
    let places = [
        ("agent/src/", "rumqttc::", vec!["link"]),
        // The broker is built on the client's codec.
        ("hub/src/", "rumqttc::", vec!["link", "broker"]),
        ("agent/src/", "tombolo_store::", vec!["keep"]),
    ];
    for (part, word, allowed) in places {
        // A folder of the same name as its file is the same place.
        let elsewhere = |path: &String| {
            path.strip_prefix(part)
                .is_some_and(|rest| !allowed.contains(&rest.split(['/', '.']).next().unwrap_or_default()))
        };
        let found: Vec<_> = naming(word).into_iter().filter(elsewhere).collect();
        report(&format!("in {part} only {allowed:?} names {word}"), &found);
    }
}

#[test]
fn the_gpus_driver_is_loaded_by_its_plugin_alone() {
    const PLUGIN: &str = "device-plugins/nvidia/";
    // What is run for tests and as an example is no part of a node.
    let is_elsewhere =
        |path: &str| !["tests/", "examples/", PLUGIN].iter().any(|place| path.starts_with(place));
    let loaders = ["libloading", "nvml-wrapper", "nvml-wrapper-sys", "tombolo-device-nvidia"];
    let loads = |manifest: &Source| {
        let names = manifest.text.lines().filter_map(|line| line.split_once(['.', ' ', '=']));
        let names: Vec<_> = names.map(|(name, _)| name.trim_matches('"')).collect();
        loaders.iter().any(|loader| names.contains(loader))
    };
    let manifests: Vec<_> =
        files("Cargo.toml").into_iter().filter(|manifest| manifest.path != "Cargo.toml").collect();
    assert!(manifests.iter().any(|manifest| manifest.path.starts_with(PLUGIN) && loads(manifest)));
    let broken = manifests.iter().filter(|manifest| is_elsewhere(&manifest.path) && loads(manifest));
    let mut broken: Vec<_> = broken.map(|manifest| manifest.path.clone()).collect();
    for call in ["dlopen(", "Library::new("] {
        broken.extend(naming(call).into_iter().filter(|path| is_elsewhere(path)));
    }
    report("only the plugin for NVIDIA GPUs loads libraries into itself, or is built into anything", &broken);
}

#[test]
fn packages_share_the_workspaces_settings() {
    let mut broken = Vec::new();
    for manifest in files("Cargo.toml") {
        if manifest.path == "Cargo.toml" {
            continue;
        }
        for line in [
            "version.workspace = true",
            "edition.workspace = true",
            "license.workspace = true",
            "[lints]\nworkspace = true",
        ] {
            if !manifest.text.contains(line) {
                broken.push(format!("{}: lacks {line:?}", manifest.path));
            }
        }
        for line in manifest.text.lines().filter(|line| line.contains("version = \"")) {
            broken.push(format!("{}: {line}: versions stand in the workspace's manifest", manifest.path));
        }
    }
    report("a package inherits version, edition, licence, lints and dependencies", &broken);
}

#[test]
fn the_specification_names_what_exists() {
    let specification =
        fs::read_to_string(root().join("SPECIFICATION.md")).expect("there is a SPECIFICATION.md");
    let all: String = files(".rs").into_iter().map(|source| source.text).collect();
    let mut broken = Vec::new();
    // `test: name` and `bench: name row` in backquotes.
    for quoted in specification
        .lines()
        .filter(|line| line.starts_with('|'))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
    {
        if let Some(name) = quoted.strip_prefix("test: ")
            && !all.contains(&format!("fn {name}("))
        {
            broken.push(format!("there is no test {name}"));
        }
        if let Some(name) = quoted.strip_prefix("bench: ")
            && !name.split(' ').all(|word| all.contains(&format!("\"{word}\"")))
        {
            broken.push(format!("there is no benchmark row {name}"));
        }
    }
    report("a promise names the test or benchmark that keeps it", &broken);
    assert!(specification.contains("`test: ") && specification.contains("`bench: "));
}

#[test]
fn the_architecture_names_every_package() {
    let architecture =
        fs::read_to_string(root().join("ARCHITECTURE.md")).expect("there is an ARCHITECTURE.md");
    let broken: Vec<_> = files("Cargo.toml")
        .into_iter()
        .filter_map(|manifest| manifest.path.strip_suffix("/Cargo.toml").map(str::to_owned))
        .filter(|package| {
            !architecture.contains(&format!("`{package}/`")) && !architecture.contains(&format!("{package}/"))
        })
        .collect();
    report("the codemap names every package", &broken);
}
