//! oras and the hub's registry: artifacts with a type, what is attached to them, copies, tags and deletions.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tombolo_harness::{Site, skip};

use super::HUB;

const MODEL: &str = "application/vnd.example.model";
const PARTS: &str = "application/vnd.example.parts";

/// oras in a directory of its own.
struct Oras {
    dir: PathBuf,
}

impl Oras {
    fn new(dir: &Path) -> Option<Self> {
        if Command::new("oras").arg("version").output().is_err() {
            skip("oras is not installed");
            return None;
        }
        std::fs::create_dir_all(dir).expect("the test's directory can be written");
        Some(Self { dir: dir.to_owned() })
    }

    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("oras");
        command.args(arguments).current_dir(&self.dir).env("HOME", &self.dir);
        let output = command.output().expect("an installed tool runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// A command about things of one registry, without TLS.
    fn ask(&self, arguments: &[&str]) -> String {
        let arguments = [arguments, &["--plain-http"]].concat();
        self.run(&arguments).unwrap_or_else(|error| panic!("oras {arguments:?}: {error}"))
    }

    fn ask_json(&self, arguments: &[&str]) -> Value {
        let text = self.ask(arguments);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Digests and types of what is attached.
    fn attached(&self, name: &str, artifact_type: &str) -> Vec<(String, String)> {
        let mut arguments = vec!["discover", "--format", "json", name];
        if !artifact_type.is_empty() {
            arguments.extend(["--artifact-type", artifact_type]);
        }
        let found = self.ask_json(&arguments);
        let of = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
        let found = found["manifests"].as_array().expect("a list of what is attached");
        found.iter().map(|entry| (of(entry, "digest"), of(entry, "artifactType"))).collect()
    }

    fn tags(&self, repository: &str) -> Vec<String> {
        self.ask(&["repo", "tags", repository]).lines().map(str::to_owned).collect()
    }
}

/// An artifact keeps its type, its annotations and what is attached to it, here and in a copy; blobs are mounted.
#[tokio::test]
async fn keeps_what_oras_pushes_attaches_and_copies() {
    let Some(site) = Site::start().await else { return };
    let Some(oras) = Oras::new(&site.dir().join("oras")) else { return };
    let weights: Vec<u8> = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(oras.dir.join("weights.bin"), &weights).expect("the test's directory can be written");
    std::fs::write(oras.dir.join("parts.json"), "{\"parts\":[]}")
        .expect("the test's directory can be written");
    let (place, copy) = (format!("{HUB}/models/defects"), format!("{HUB}/copies/defects"));
    let (model, copied) = (format!("{place}:v1"), format!("{copy}:v3"));

    oras.ask(&[
        "push",
        "--artifact-type",
        MODEL,
        "--annotation",
        "org.example.line=press",
        &format!("{model},stable"),
        "weights.bin:application/vnd.example.weights",
    ]);
    let manifest = oras.ask_json(&["manifest", "fetch", &model]);
    assert_eq!(
        (&manifest["artifactType"], &manifest["annotations"]["org.example.line"]),
        (&json!(MODEL), &json!("press"))
    );
    assert_eq!(oras.tags(&place), ["stable", "v1"]);
    assert_eq!(oras.attached(&model, ""), []);
    oras.ask(&["attach", "--artifact-type", PARTS, &model, "parts.json:application/json"]);
    let attached = oras.attached(&model, "");
    assert_eq!(attached.iter().map(|(_, kind)| kind.as_str()).collect::<Vec<_>>(), [PARTS]);
    assert_eq!(oras.attached(&model, PARTS), attached);
    assert_eq!(oras.attached(&model, "application/vnd.example.none"), []);

    oras.ask(&["tag", &model, "v2"]);
    let plain = ["--from-plain-http", "--to-plain-http"];
    let told = oras.run(&[&["cp", "-r", &model, &copied], plain.as_slice()].concat()).expect("oras copies");
    assert!(told.contains("Mounted"), "{told}");
    assert_eq!(oras.ask(&["resolve", &copied]), oras.ask(&["resolve", &format!("{place}:v2")]));
    assert_eq!(oras.attached(&copied, ""), attached);
    assert_eq!(oras.ask(&["repo", "ls", HUB]), "copies/defects\nmodels/defects");

    // What one repository gives up stays in the copy.
    let named = format!("{place}@{}", oras.ask(&["resolve", &model]));
    oras.ask(&["manifest", "delete", "-f", &named]);
    let gone = oras.run(&["resolve", "--plain-http", &model]).expect_err("it is deleted");
    assert!(gone.contains("not found"), "{gone}");
    oras.ask(&["pull", "-o", "back", &copied]);
    let back = std::fs::read(oras.dir.join("back/weights.bin")).expect("it was pulled");
    assert_eq!(back, weights);
    let parts = format!("{copy}@{}", attached[0].0);
    oras.ask(&["pull", "-o", "back", &parts]);
    assert!(oras.dir.join("back/parts.json").is_file(), "what was attached can be pulled too");
}
