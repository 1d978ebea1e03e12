//! Python: dependencies installed by pip or uv into a layer of their own, and the interpreter of this machine.
//!
//! What is installed holds no time, no compiled file and no path of this machine, so that the same requirements give the
//! same layer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, anyhow, bail};
use serde::Deserialize;
use tombolo_oci::{Layer, Members, Platform, write_layer};

use super::cache::{Cache, Key};
use super::tools;

/// Where dependencies are in the image.
pub(super) const PACKAGES: &str = "packages";

/// Files of requirements that name each other, at most.
const FILES_MAX: usize = 64;

/// The interpreter of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Python {
    /// The program itself, whatever links and wrappers lead to it.
    pub(super) program: PathBuf,
    pub(super) version: String,
    pub(super) stdlib: PathBuf,
    pub(super) platstdlib: PathBuf,
}

/// What an interpreter says of itself, in a virtual environment too.
const WHO: &str = "import json,os,sys,sysconfig
print(json.dumps({'program': os.path.realpath(getattr(sys, '_base_executable', None) or sys.executable),
 'version': '%d.%d.%d' % sys.version_info[:3], 'stdlib': sysconfig.get_path('stdlib'),
 'platstdlib': sysconfig.get_path('platstdlib')}))";

impl Python {
    /// The one on the PATH. It is asked once: the wrappers of version managers take their time.
    pub(super) fn of_this_machine() -> anyhow::Result<Self> {
        static FOUND: OnceLock<Python> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(found.clone());
        }
        let found = Self::ask()?;
        Ok(FOUND.get_or_init(|| found).clone())
    }

    fn ask() -> anyhow::Result<Self> {
        let program = ["python3", "python"].into_iter().find_map(tools::find);
        let program = program
            .context("there is no python3 on this machine: install it, or name an image with --base")?;
        let said =
            tools::answer(Command::new(&program).args(["-I", "-S", "-c", WHO]), "asking python3 what it is")?;
        serde_json::from_slice(&said)
            .with_context(|| format!("{} does not say what it is", program.display()))
    }
}

/// What a function in Python needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Requirements {
    /// As pip reads them.
    text: String,
    /// Where they are read: what a list names beside itself is found from its own place.
    file: Option<PathBuf>,
    /// Everything that the text leads to, for the key.
    all: String,
    /// Something of the project's own, which may change without the text: it is made anew each time.
    local: bool,
}

impl Requirements {
    /// What the project in `dir` says it needs; `None`: nothing.
    pub(super) fn of(dir: &Path) -> anyhow::Result<Option<Self>> {
        let listed = dir.join("requirements.txt");
        let (text, file) = match fs::read_to_string(&listed) {
            Ok(text) => (text, Some(listed)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => match of_pyproject(dir)? {
                Some(text) => (text, None),
                None => return Ok(None),
            },
            Err(error) => return Err(error).with_context(|| format!("{} cannot be read", listed.display())),
        };
        if lines(&text).next().is_none() {
            return Ok(None);
        }
        let (mut all, mut local) = (text.clone(), is_local(&text));
        let mut files: Vec<PathBuf> = others(&text).map(PathBuf::from).collect();
        let mut seen = 0;
        while let Some(name) = files.pop() {
            seen += 1;
            if seen > FILES_MAX {
                bail!("requirements.txt leads to more than {FILES_MAX} files: does one name itself?");
            }
            let path = dir.join(&name);
            let more =
                fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
            local |= is_local(&more);
            let beside = name.parent().unwrap_or(Path::new(""));
            files.extend(others(&more).map(|other| beside.join(other)));
            all.push_str(&format!("\n# {}\n{more}", name.display()));
        }
        Ok(Some(Self { text, file, all, local }))
    }

    /// The layer with everything installed. `version` is that of the base image, if it is not this machine's Python. Blocks.
    pub(super) fn layer(
        &self,
        dir: &Path,
        cache: &Cache,
        version: Option<&str>,
    ) -> anyhow::Result<(Layer, PathBuf)> {
        let host = Python::of_this_machine()?;
        let version = version.filter(|version| minor(version) != minor(&host.version));
        let mut key = Key::new("python");
        key.add(self.all.as_bytes());
        key.add(Platform::host().to_string().as_bytes());
        key.add(minor(version.unwrap_or(&host.version)).as_bytes());
        if !self.local
            && let Some(found) = cache.find(&key)
        {
            return Ok(found);
        }
        let scratch = cache.scratch()?;
        let target = scratch.path().join("target");
        let list = match &self.file {
            Some(file) => file.clone(),
            None => {
                let list = scratch.path().join("requirements.txt");
                fs::write(&list, &self.text).context("the requirements cannot be written")?;
                list
            }
        };
        fs::create_dir(&target).context("a directory for the dependencies cannot be made")?;
        tools::run(&mut installer(dir, &list, &target, version)?, "installing the requirements")?;
        tidy(&target)?;
        let mut members = Members::default();
        members.add_tree(&target, Path::new(PACKAGES), &|path, _| {
            !path.ends_with("__pycache__") && path.extension().is_none_or(|ending| ending != "pyc")
        })?;
        let (file, layer) = write_layer(&members, &cache.tmp())?;
        let file = cache.keep(&key, file, &layer, Default::default())?;
        Ok((layer, file))
    }
}

/// `[project] dependencies`, a line each; a lock of uv's where uv is there to read it.
fn of_pyproject(dir: &Path) -> anyhow::Result<Option<String>> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct File {
        project: Option<Project>,
        tool: toml::Table,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Project {
        dependencies: Vec<String>,
    }
    let path = dir.join("pyproject.toml");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
    };
    if dir.join("uv.lock").is_file()
        && let Some(uv) = tools::find("uv")
    {
        let mut export = Command::new(uv);
        export.args(["export", "--frozen", "--no-dev", "--no-emit-project", "--quiet"]).current_dir(dir);
        let said = tools::answer(&mut export, "reading uv.lock")?;
        return String::from_utf8(said).map(Some).context("uv's list is no text");
    }
    let file: File =
        toml::from_str(&text).with_context(|| format!("{} is not understood", path.display()))?;
    match file.project {
        Some(project) => Ok(Some(project.dependencies.join("\n"))),
        None if file.tool.contains_key("poetry") => Err(anyhow!(
            "{} has its dependencies where only Poetry reads them: write them down with `poetry export -o requirements.txt`",
            path.display()
        )),
        None => Ok(None),
    }
}

/// Lines that say something.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Other files of requirements and constraints that a text names.
fn others(text: &str) -> impl Iterator<Item = String> {
    let options = ["--requirement", "--constraint", "-r", "-c"];
    lines(text).filter_map(move |line| {
        let rest = options.iter().find_map(|option| line.strip_prefix(option))?;
        let name = rest.trim_start_matches(['=', ' ', '\t']).trim();
        let name = name.split(" #").next().unwrap_or(name).trim();
        (!name.contains("://")).then(|| name.to_owned())
    })
}

/// Whether something is installed from the project's own files.
fn is_local(text: &str) -> bool {
    lines(text).any(|line| {
        let line = line.strip_prefix("-e ").or(line.strip_prefix("--editable ")).map_or(line, str::trim);
        let option = line.starts_with('-');
        line.starts_with('.')
            || line.contains("file:")
            || line.ends_with(".whl")
            || (!option && line.contains('/') && !line.contains("://"))
            || (option && (line.starts_with("-f") || line.starts_with("--find-links")))
    })
}

/// `3.12` of `3.12.4`.
fn minor(version: &str) -> String {
    version.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// The command that installs `list` into `target`.
fn installer(dir: &Path, list: &Path, target: &Path, version: Option<&str>) -> anyhow::Result<Command> {
    let python =
        ["python3", "python"].into_iter().find_map(tools::find).context("there is no python3 here")?;
    let has_pip = || {
        let mut asked = Command::new(&python);
        asked.args(["-c", "import pip"]).stderr(std::process::Stdio::null());
        asked.status().is_ok_and(|status| status.success())
    };
    let mut command;
    if let Some(uv) = tools::find("uv") {
        command = Command::new(uv);
        command.args(["pip", "install", "--python"]).arg(&python).args(["--link-mode", "copy", "--quiet"]);
        command.args(as_uv_has_it(|name| std::env::var(name).ok()));
        if let Some(version) = version {
            command.args(["--python-version", version]);
        }
    } else if has_pip() {
        command = Command::new(&python);
        command.args([
            "-m",
            "pip",
            "install",
            "--no-compile",
            "--no-input",
            "--quiet",
            "--no-warn-script-location",
        ]);
        command.args(["--disable-pip-version-check", "--root-user-action=ignore"]);
        // Settings of a person's that a directory for packages contradicts.
        command.env("PIP_USER", "0").env("PIP_REQUIRE_VIRTUALENV", "0");
        if let Some(version) = version {
            command.args([
                "--python-version",
                &minor(version),
                "--only-binary=:all:",
                "--implementation",
                "cp",
            ]);
            for platform in wheels() {
                command.arg("--platform").arg(platform);
            }
        }
    } else {
        bail!(
            "the requirements need pip or uv, and there is neither: install one (Debian: `apt install python3-pip`)"
        );
    }
    command.arg("--target").arg(target).arg("-r").arg(list).current_dir(dir);
    Ok(command)
}

/// Where packages come from, as pip's variables say it, for uv, which does not read them. Its own count more.
fn as_uv_has_it(variable: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let mut arguments = Vec::new();
    for (pip, uv, option) in [
        ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "--default-index"),
        ("PIP_EXTRA_INDEX_URL", "UV_INDEX", "--index"),
        ("PIP_FIND_LINKS", "UV_FIND_LINKS", "--find-links"),
    ] {
        let value = if set(uv).is_none() { set(pip) } else { None };
        for place in value.iter().flat_map(|value| value.split_whitespace()) {
            arguments.extend([option.to_owned(), place.to_owned()]);
        }
    }
    let no = ["", "0", "false", "no", "off"];
    if set("PIP_NO_INDEX").is_some_and(|value| !no.contains(&value.to_ascii_lowercase().as_str())) {
        arguments.push("--no-index".to_owned());
    }
    arguments
}

/// Tags of the wheels for this machine's platform, with GNU's C library, newest first.
fn wheels() -> Vec<String> {
    let architecture = std::env::consts::ARCH;
    let glibc = [
        "manylinux_2_35",
        "manylinux_2_34",
        "manylinux_2_31",
        "manylinux_2_28",
        "manylinux_2_17",
        "manylinux2014",
    ];
    glibc.iter().chain(&["linux"]).map(|start| format!("{start}_{architecture}")).collect()
}

/// What says of a package where, when and by what it was installed.
const OF_INSTALLERS: [&str; 4] = ["direct_url.json", "INSTALLER", "uv_build.json", "uv_cache.json"];

/// Takes out what says where and when it was installed.
fn tidy(target: &Path) -> anyhow::Result<()> {
    let cannot = |path: &Path| {
        let path = path.display().to_string();
        move || format!("{path} cannot be changed")
    };
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    for script in entries(&target.join("bin")) {
        let content = fs::read(&script).with_context(cannot(&script))?;
        if let Some(changed) = portable(&content) {
            fs::write(&script, changed).with_context(cannot(&script))?;
        }
    }
    for info in entries(target).filter(|path| path.extension().is_some_and(|ending| ending == "dist-info")) {
        let record = info.join("RECORD");
        for path in OF_INSTALLERS.map(|name| info.join(name)) {
            if path.exists() {
                fs::remove_file(&path).with_context(cannot(&path))?;
            }
        }
        if let Ok(text) = fs::read_to_string(&record) {
            fs::write(&record, recorded(&text)).with_context(cannot(&record))?;
        }
    }
    // Of pip's or uv's own.
    for name in [".lock", ".gitignore", "CACHEDIR.TAG"] {
        let _ = fs::remove_file(target.join(name));
    }
    Ok(())
}

/// A script that is run by the image's Python, not by this machine's.
fn portable(content: &[u8]) -> Option<Vec<u8>> {
    let end = content.iter().position(|byte| *byte == b'\n')?;
    let first = content[..end].strip_prefix(b"#!")?;
    first.windows(6).any(|word| word == b"python").then(|| {
        let mut changed = b"#!/usr/bin/env python3".to_vec();
        changed.extend_from_slice(&content[end..]);
        changed
    })
}

/// The list of a package's files without those that were changed or left out, sorted.
fn recorded(text: &str) -> String {
    let left_out = |line: &str| {
        let path = line.split(',').next().unwrap_or(line);
        path.starts_with("../../bin/")
            || path.starts_with("bin/")
            || path.ends_with(".pyc")
            || path.rsplit_once(".dist-info/").is_some_and(|(_, name)| OF_INSTALLERS.contains(&name))
    };
    let mut lines: Vec<_> = text.lines().filter(|line| !left_out(line)).collect();
    lines.sort_unstable();
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// The command of a project that names none: its own file of one of these names.
pub(super) fn command(dir: &Path) -> anyhow::Result<Vec<String>> {
    let found = ["main.py", "app.py"].into_iter().find(|name| dir.join(name).is_file());
    let name = found.with_context(|| {
        format!(
            "{} does not say what to run: write a main.py, or `command` below [build] in tombolo.toml, or put it after `--`",
            dir.display()
        )
    })?;
    Ok(vec!["python3".into(), name.into()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_followed_and_local_ones_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(Requirements::of(dir.path()).unwrap(), None);
        put("requirements.txt", "# nothing\n\n");
        assert_eq!(Requirements::of(dir.path()).unwrap(), None);
        put("requirements.txt", "flask==3.0\n-r more.txt\n");
        put("more.txt", "x==1");
        let first = Requirements::of(dir.path()).unwrap().unwrap();
        assert!(!first.local);
        put("more.txt", "x==2");
        let second = Requirements::of(dir.path()).unwrap().unwrap();
        assert!(first.text == second.text && first.all != second.all);
        for local in ["./vendor/x", "-e .", "x @ file:///a", "x.whl", "vendor/x", "/srv/x", "-f wheels"] {
            put("more.txt", local);
            assert!(Requirements::of(dir.path()).unwrap().unwrap().local, "{local}");
        }
        for distant in ["x @ https://a/b", "--index-url https://a/b", "x==1 # a b"] {
            put("more.txt", distant);
            assert!(!Requirements::of(dir.path()).unwrap().unwrap().local, "{distant}");
        }
        fs::create_dir(dir.path().join("deep")).unwrap();
        put("more.txt", "-rdeep/a.txt");
        put("deep/a.txt", "--constraint=b.txt");
        put("deep/b.txt", "y==3");
        let deep = Requirements::of(dir.path()).unwrap().unwrap();
        assert!(deep.all.contains("y==3"), "a list names others from its own place: {}", deep.all);
        put("more.txt", "-r requirements.txt");
        assert!(Requirements::of(dir.path()).is_err(), "it goes round");
    }

    #[test]
    fn a_project_file_has_dependencies_too() {
        let dir = tempfile::tempdir().unwrap();
        let put = |text: &str| fs::write(dir.path().join("pyproject.toml"), text).unwrap();
        put("[project]\nname = \"a\"\ndependencies = [\"flask>=3\", \"x\"]");
        assert_eq!(Requirements::of(dir.path()).unwrap().unwrap().text, "flask>=3\nx");
        put("[tool.poetry.dependencies]\nx = \"1\"");
        assert!(Requirements::of(dir.path()).unwrap_err().to_string().contains("poetry export"));
    }

    #[test]
    fn what_pip_is_told_counts_for_uv_unless_uv_is_told() {
        let arguments = |set: &'static [(&str, &str)]| {
            let value = |name: &str| set.iter().find(|(key, _)| *key == name);
            as_uv_has_it(|name| value(name).map(|(_, value)| (*value).to_owned())).join(" ")
        };
        assert_eq!(arguments(&[]), "");
        assert_eq!(
            arguments(&[("PIP_FIND_LINKS", "/a /b"), ("PIP_NO_INDEX", "1"), ("PIP_INDEX_URL", "u")]),
            "--default-index u --find-links /a --find-links /b --no-index"
        );
        assert_eq!(
            arguments(&[("PIP_INDEX_URL", "u"), ("UV_DEFAULT_INDEX", "v"), ("PIP_NO_INDEX", "no")]),
            ""
        );
    }

    #[test]
    fn nothing_of_this_machine_is_left_in_a_package() {
        let dir = tempfile::tempdir().unwrap();
        let info = dir.path().join("x-1.dist-info");
        fs::create_dir_all(&info).unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        fs::write(dir.path().join("bin/x"), "#!/home/a/venv/bin/python3.11\nimport x\n").unwrap();
        fs::write(dir.path().join("bin/y"), "#!/bin/sh\n").unwrap();
        for name in OF_INSTALLERS {
            fs::write(info.join(name), "{}").unwrap();
        }
        fs::write(
            info.join("RECORD"),
            "x/b.py,sha256=1,1\n../../bin/x,sha256=2,2\nx/a.py,,\nx/__pycache__/a.pyc,,\n\
             x-1.dist-info/INSTALLER,,\nx-1.dist-info/uv_cache.json,sha256=3,3\n",
        )
        .unwrap();
        tidy(dir.path()).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("bin/x"), "#!/usr/bin/env python3\nimport x\n");
        assert_eq!(read("bin/y"), "#!/bin/sh\n");
        assert_eq!(read("x-1.dist-info/RECORD"), "x/a.py,,\nx/b.py,sha256=1,1\n");
        assert_eq!(fs::read_dir(&info).unwrap().count(), 1, "the list alone");
    }
}
