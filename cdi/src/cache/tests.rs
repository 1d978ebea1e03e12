//! Which specification counts, what a bad file does to the others, and when a change is seen.

use serde_json::json;

use super::*;

struct Directories {
    _root: tempfile::TempDir,
    all: Vec<PathBuf>,
}

impl Directories {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let all: Vec<_> = ["etc", "run"].map(|name| root.path().join(name)).into();
        for directory in &all {
            fs::create_dir(directory).unwrap();
        }
        Self { _root: root, all }
    }

    fn path(&self, directory: usize, name: &str) -> PathBuf {
        self.all[directory].join(name)
    }

    /// A file whose device `name` sets the variable `FROM`.
    fn put(&self, directory: usize, file: &str, names: &[&str], from: &str) {
        let devices: Vec<_> = names
            .iter()
            .map(|name| json!({ "name": name, "containerEdits": { "env": [format!("FROM={from}"), format!("HAS_{name}=1")] } }))
            .collect();
        let all = json!({ "env": [format!("FILE_{from}=1")], "additionalGids": [7] });
        let text = json!({ "cdiVersion": "0.7.0", "kind": "vendor.com/x", "devices": devices, "containerEdits": all });
        fs::write(self.path(directory, file), text.to_string()).unwrap();
    }

    fn read(&self) -> Cache {
        Cache::read(&self.all)
    }
}

fn name(device: &str) -> QualifiedName {
    format!("vendor.com/x={device}").parse().unwrap()
}

fn env(cache: &Cache, devices: &[&str]) -> Vec<String> {
    let mut config = json!({});
    let names: Vec<_> = devices.iter().map(|device| name(device)).collect();
    cache.apply(&mut config, &names).unwrap();
    config["process"]["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| pair.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_later_directory_goes_before_an_earlier() {
    let directories = Directories::new();
    directories.put(0, "a.json", &["a", "b"], "etc");
    directories.put(1, "z.json", &["a"], "run");
    let cache = directories.read();
    assert_eq!(env(&cache, &["a"]), ["FILE_run=1", "FROM=run", "HAS_a=1"]);
    assert_eq!(env(&cache, &["b"]), ["FILE_etc=1", "FROM=etc", "HAS_b=1"]);
    assert!(cache.errors().is_empty() && cache.conflicts().is_empty());
}

#[test]
fn what_a_file_says_for_all_is_applied_once() {
    let directories = Directories::new();
    directories.put(0, "a.json", &["a", "b"], "etc");
    let cache = directories.read();
    let edits = cache.edits(&[name("a"), name("b")]).unwrap();
    assert_eq!(edits.additional_gids, [7]);
    assert_eq!(env(&cache, &["b", "a"]), ["FILE_etc=1", "FROM=etc", "HAS_b=1", "HAS_a=1"]);
}

#[test]
fn two_of_the_same_priority_make_a_device_unusable() {
    let directories = Directories::new();
    directories.put(0, "a.json", &["a", "b"], "one");
    directories.put(0, "b.json", &["a"], "two");
    directories.put(0, "c.json", &["a"], "three");
    let cache = directories.read();
    let paths: Vec<_> = ["a.json", "b.json", "c.json"].map(|file| directories.path(0, file)).into();
    assert_eq!(cache.conflicts().get(&name("a")), Some(&Conflict(paths)));
    assert_eq!(cache.devices().collect::<Vec<_>>(), [&name("b")]);
    let error = cache.edits(&[name("a")]).unwrap_err().to_string();
    assert!(
        error.contains("vendor.com/x=a (several do, remove all but one: ") && error.contains("b.json"),
        "{error}"
    );
    // What is plain where it counts is no conflict.
    directories.put(1, "a.json", &["a"], "run");
    assert!(env(&directories.read(), &["a"]).contains(&"FROM=run".to_owned()));
}

#[test]
fn a_conflict_hides_what_it_would_replace() {
    let directories = Directories::new();
    directories.put(0, "a.json", &["a"], "etc");
    directories.put(1, "a.json", &["a"], "one");
    directories.put(1, "b.json", &["a"], "two");
    assert!(!directories.read().contains(&name("a")));
}

#[test]
fn a_bad_file_hides_no_other() {
    let directories = Directories::new();
    directories.put(0, "good.json", &["a"], "etc");
    fs::write(directories.path(0, "bad.json"), "{").unwrap();
    fs::write(directories.path(0, "old.yaml"), "cdiVersion: 9.9.9\nkind: a/b\ndevices: []\n").unwrap();
    fs::write(directories.path(0, "notes.txt"), "not a specification").unwrap();
    fs::write(directories.path(0, "c.yml"), "neither").unwrap();
    fs::create_dir(directories.path(0, "directory.json")).unwrap();
    fs::write(directories.path(0, "long.json"), vec![b' '; usize::try_from(FILE_BYTES_MAX).unwrap() + 1])
        .unwrap();
    std::os::unix::fs::symlink("nowhere", directories.path(0, "broken.json")).unwrap();
    let cache = directories.read();
    assert!(cache.contains(&name("a")));
    let files: Vec<_> =
        cache.errors().keys().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(files, ["bad.json", "broken.json", "long.json", "old.yaml"]);
    assert!(cache.errors()[&directories.path(0, "old.yaml")].to_string().contains("no version of CDI"));
}

#[test]
fn all_unresolved_names_are_told_and_nothing_is_changed() {
    let directories = Directories::new();
    directories.put(0, "a.json", &["a"], "etc");
    let cache = directories.read();
    let mut config = json!({ "process": {} });
    let error = cache.apply(&mut config, &[name("x"), name("a"), name("y")]).unwrap_err();
    assert_eq!(error.to_string(), "no CDI specification describes vendor.com/x=x, vendor.com/x=y");
    assert!(matches!(error, InjectError::Unresolved(Unresolved(names)) if names.len() == 2));
    assert_eq!(config, json!({ "process": {} }));
}

#[test]
fn directories_that_are_not_there_are_empty_until_they_are() {
    let directories = Directories::new();
    fs::remove_dir(&directories.all[1]).unwrap();
    let mut cache = directories.read();
    assert!(cache.errors().is_empty() && cache.devices().next().is_none());
    assert!(!cache.refresh());
    fs::create_dir(&directories.all[1]).unwrap();
    directories.put(1, "a.json", &["a"], "run");
    assert!(cache.refresh() && cache.contains(&name("a")));
}

#[test]
fn every_change_of_a_file_is_seen_and_nothing_else() {
    let directories = Directories::new();
    directories.put(0, "a.json", &["a"], "one");
    let mut cache = directories.read();
    assert!(!cache.refresh());
    fs::write(directories.path(0, "notes.txt"), "").unwrap();
    assert!(!cache.refresh(), "not a specification");
    directories.put(0, "b.json", &["b"], "one");
    assert!(cache.refresh() && cache.contains(&name("b")), "a new file");
    fs::write(directories.path(0, "b.json"), "{").unwrap();
    assert!(cache.refresh() && !cache.contains(&name("b")), "another content");
    assert_eq!(cache.errors().len(), 1);
    fs::remove_file(directories.path(0, "b.json")).unwrap();
    assert!(cache.refresh() && cache.errors().is_empty(), "a file less");
    // Replaced by one of the same size and age.
    directories.put(0, "new", &["c"], "two");
    let modified = fs::metadata(directories.path(0, "a.json")).unwrap().modified().unwrap();
    fs::File::options()
        .append(true)
        .open(directories.path(0, "new"))
        .unwrap()
        .set_modified(modified)
        .unwrap();
    fs::rename(directories.path(0, "new"), directories.path(0, "a.json")).unwrap();
    assert!(cache.refresh() && cache.contains(&name("c")) && !cache.contains(&name("a")));
}
