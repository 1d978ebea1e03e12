//! Projects become images: the same files the same image, whatever else differs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::base::Found;
use super::cache::Cache;
use super::make::Project;
use super::*;

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn project(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let dir = self.dir.path().join(name);
        for (path, text) in files {
            let (path, mode) = path.strip_prefix('+').map_or((*path, 0o644), |path| (path, 0o755));
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        dir
    }

    fn build(&self, dir: &Path, found: Found, order: Order) -> anyhow::Result<Image> {
        let project = Project::read(Tree::of_directory(dir)?, order)?;
        let cache = Cache::open_in(&self.dir.path().join("cache"), false)?;
        project.make(found, cache, Steps::begin())
    }

    fn digest(&self, dir: &Path, found: Found) -> Digest {
        self.build(dir, found, Order::default()).unwrap().digest()
    }
}

fn config(image: &Image) -> String {
    let Some(image::Whence::Memory(content)) = image.parts.last().map(|part| &part.whence) else {
        panic!("no configuration")
    };
    String::from_utf8(content.to_vec()).unwrap()
}

#[test]
fn a_plain_directory_is_one_layer_whatever_its_place_and_times() {
    let bench = Bench::new();
    let files = [("+run", "#!/bin/sh"), ("data/a", "1"), (".tomboloignore", "*.log"), ("x.log", "1")];
    let (one, two) = (bench.project("one", &files), bench.project("deep/two", &files));
    let file = fs::File::options().write(true).open(two.join("data/a")).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)).unwrap();
    fs::write(two.join("x.log"), "2").unwrap();
    let digest = bench.digest(&one, Found::Scratch);
    assert_eq!(bench.digest(&two, Found::Scratch), digest);
    fs::write(two.join("data/a"), "2").unwrap();
    assert_ne!(bench.digest(&two, Found::Scratch), digest);
    let image = bench.build(&one, Found::Scratch, Order::default()).unwrap();
    assert_eq!(image.parts.len(), 2);
    assert!(config(&image).contains(r#""Entrypoint":["/run"]"#) && !image.has_command);
}

#[test]
fn one_line_of_python_changes_one_layer() {
    if tools::find("python3").is_none() {
        return eprintln!("SKIPPED: python3 is not installed");
    }
    let bench = Bench::new();
    let dir = bench.project("one", &[("main.py", "print(1)\n"), ("__pycache__/main.pyc", "x")]);
    let build = || bench.build(&dir, Found::Host, Order::default()).unwrap();
    let first = build();
    fs::write(dir.join("main.py"), "print(2)\n").unwrap();
    let second = build();
    let digests = |image: &Image| image.parts.iter().map(|part| part.digest).collect::<Vec<_>>();
    let (first, second) = ((digests(&first), config(&first)), (digests(&second), config(&second)));
    assert_eq!(first.0.len(), 3, "the interpreter, the code and the configuration");
    assert_eq!(first.0[0], second.0[0]);
    assert_ne!(first.0[1], second.0[1]);
    for said in
        [r#""Entrypoint":["python3","main.py"]"#, r#""WorkingDir":"/app""#, "PYTHONPATH=/app:/packages"]
    {
        assert!(first.1.contains(said), "{said}: {}", first.1);
    }
    fs::write(dir.join("main.py"), "print(1)\n").unwrap();
    assert_eq!(digests(&build()), first.0);
}

#[test]
fn what_is_asked_for_counts_more_than_what_is_found() {
    let bench = Bench::new();
    let settings = "[build]\ncommand = \"python3 serve.py\"\n";
    let dir = bench.project("one", &[("main.py", ""), ("tombolo.toml", settings)]);
    let entrypoint = |command: &[&str]| {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        config(&bench.build(&dir, Found::Scratch, Order { command, ..Order::default() }).unwrap())
    };
    assert!(entrypoint(&[]).contains(r#""Entrypoint":["python3","serve.py"]"#));
    assert!(entrypoint(&["python3", "-V"]).contains(r#""Entrypoint":["python3","-V"]"#));
    let order =
        Order { language: Some(Language::Files), command: vec!["main.py".into()], ..Order::default() };
    let image = bench.build(&dir, Found::Scratch, order).unwrap();
    assert!(config(&image).contains(r#""Entrypoint":["/main.py"]"#) && image.has_command);
}

#[test]
fn an_image_is_named_after_its_directory_unless_it_is_given_a_name() {
    let bench = Bench::new();
    let tree = Tree::of_directory(&bench.project("My_App", &[("a", "")])).unwrap();
    let host = |name: &str| Some(name.to_owned());
    for (asked, at, expected) in [
        (None, None, "default/my-app:latest"),
        (Some("x"), None, "default/x:latest"),
        (Some("ns/x:1.2"), None, "ns/x:1.2"),
        (Some("registry.example/x:1"), host("registry.example"), "x:1"),
        (Some("localhost:5000/a/b/c"), host("localhost:5000"), "a/b/c:latest"),
    ] {
        let named = Destination::of(asked, &tree).unwrap();
        assert_eq!((named.host, format!("{}:{}", named.repository, named.tag).as_str()), (at, expected));
    }
    for bad in ["X", "a:-", "a b", "registry.example/", "registry.example/X"] {
        assert!(Destination::of(Some(bad), &tree).unwrap_err().is::<WrongUse>(), "{bad}");
    }
    // What makes no repository's name between two letters makes one `-`.
    let tree = Tree::of_directory(&bench.project("Über  App_", &[("a", "")])).unwrap();
    assert_eq!(Destination::of(None, &tree).unwrap().repository.as_str(), "default/ber-app");
}

#[test]
fn links_that_lead_out_are_seen() {
    let outside = env!("CARGO_MANIFEST_DIR");
    for (link, target, expected) in [
        ("app/a", "b", false),
        ("app/deep/a", "../b", false),
        ("app/deep/a", "../../b", true),
        ("app/a", "../b", true),
        ("app/a", "./b/../../c", true),
        ("app/a", outside, true),
        ("app/a", "/no/such/file", false),
    ] {
        let leads = make::leads_out(Path::new("app"), Path::new(link), Path::new(target));
        assert_eq!(leads, expected, "{link} to {target}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let bench = Bench::new();
    for (name, files, says) in [
        ("empty", &[("data", "")][..], "executable file"),
        ("python", &[("requirements.txt", "")], "main.py"),
        ("node", &[("package.json", "{}")], "scripts.start"),
        ("settings", &[("tombolo.toml", "[build]\nbase = 3"), ("main.py", "")], "tombolo.toml"),
    ] {
        let dir = bench.project(name, files);
        let error = format!("{:#}", bench.build(&dir, Found::Scratch, Order::default()).unwrap_err());
        assert!(error.contains(says), "{error}");
    }
}
