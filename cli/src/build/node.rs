//! Node.js: dependencies installed by npm into a layer of their own, and the command of a package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, anyhow};
use serde_json::Value;
use tombolo_oci::{Layer, Members, Platform, write_layer};

use super::cache::{Cache, Key};
use super::ignore::Wanted;
use super::{command, tools};

/// Files that fix the versions of dependencies, in npm's order.
const LOCKS: [&str; 2] = ["npm-shrinkwrap.json", "package-lock.json"];

/// A package of Node.js.
#[derive(Clone, Debug)]
pub(super) struct Package {
    dir: PathBuf,
    content: Vec<u8>,
    document: Value,
}

impl Package {
    pub(super) fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("package.json");
        let content = match fs::read(&path) {
            Ok(content) => content,
            // A file alone is a program too.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => b"{}".to_vec(),
            Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
        };
        let document = serde_json::from_slice(&content);
        let document = document.with_context(|| format!("{} is not understood", path.display()))?;
        Ok(Self { dir: dir.to_owned(), content, document })
    }

    /// What starts it: `scripts.start`, `main`, or a file of a usual name.
    pub(super) fn command(&self) -> anyhow::Result<Vec<String>> {
        if let Some(line) = self.document["scripts"]["start"].as_str() {
            return command::of_line(line).context("scripts.start in package.json");
        }
        let usual = ["server.js", "index.js", "main.js", "app.js", "server.mjs", "index.mjs", "main.mjs"];
        let main = self.document["main"].as_str().filter(|main| !main.is_empty());
        let file = main.or_else(|| usual.into_iter().find(|name| self.dir.join(name).is_file()));
        let file = file.ok_or_else(|| {
            anyhow!(
                "{} does not say what to run: give package.json a `scripts.start`, write an index.js, or put it after `--`",
                self.dir.display()
            )
        })?;
        Ok(vec!["node".into(), file.into()])
    }

    pub(super) fn has_dependencies(&self) -> bool {
        ["dependencies", "optionalDependencies"]
            .iter()
            .any(|kind| self.document[kind].as_object().is_some_and(|some| !some.is_empty()))
    }

    /// The layer with everything installed, and whether a lock fixed what that is. Blocks.
    pub(super) fn layer(&self, files: &Wanted, cache: &Cache) -> anyhow::Result<(Layer, PathBuf, bool)> {
        let lock = LOCKS.iter().map(|name| self.dir.join(name)).find(|path| path.is_file());
        let locked = match &lock {
            Some(path) => fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?,
            None => Vec::new(),
        };
        let mut key = Key::new("node");
        key.add(&self.content);
        key.add(&locked);
        key.add(Platform::host().to_string().as_bytes());
        // Something of the project's own may change without either file.
        let local = [&self.content, &locked].iter().any(|text| {
            ["\"file:", "\"link:", "\"resolved\": \"file:"].iter().any(|word| find(text, word.as_bytes()))
        });
        if !local && let Some((layer, file)) = cache.find(&key) {
            return Ok((layer, file, lock.is_some()));
        }
        let npm = tools::find("npm").context(
            "package.json has dependencies, which npm installs, and there is no npm: install it beside Node.js (Debian: `apt install npm`)",
        )?;
        let scratch = cache.scratch()?;
        copy(&self.dir, scratch.path(), &|path, is_directory| match local {
            true => files.has(path, is_directory),
            false => {
                let name = path.to_string_lossy();
                name == "package.json" || name == ".npmrc" || LOCKS.contains(&&*name)
            }
        })?;
        let mut install = Command::new(npm);
        install.arg(if lock.is_some() { "ci" } else { "install" });
        install.args(["--omit=dev", "--no-audit", "--no-fund", "--no-progress", "--loglevel=error"]);
        install.current_dir(scratch.path());
        tools::run(&mut install, "installing the dependencies")?;
        let mut members = Members::default();
        let modules = scratch.path().join("node_modules");
        if modules.is_dir() {
            members
                .add_tree(&modules, Path::new("app/node_modules"), &|path, _| !path.starts_with(".cache"))?;
        }
        let (file, layer) = write_layer(&members, &cache.tmp())?;
        let file = cache.keep(&key, file, &layer, Default::default())?;
        Ok((layer, file, lock.is_some()))
    }
}

fn find(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

/// Copies files that are wanted into a directory that is there.
fn copy(from: &Path, to: &Path, wanted: &dyn Fn(&Path, bool) -> bool) -> anyhow::Result<()> {
    let mut members = Members::default();
    members.add_tree(from, Path::new("x"), wanted)?;
    for (at, file) in members.files_on_disk() {
        let target = to.join(at.strip_prefix("x").unwrap_or(at));
        let cannot = || format!("{} cannot be copied", file.display());
        if let Some(directory) = target.parent() {
            fs::create_dir_all(directory).with_context(cannot)?;
        }
        fs::copy(file, &target).with_context(cannot)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_says_how_it_starts() {
        let dir = tempfile::tempdir().unwrap();
        let started = |package: &str| {
            fs::write(dir.path().join("package.json"), package).unwrap();
            Package::read(dir.path()).unwrap().command().map(|words| words.join(" "))
        };
        assert!(started("{}").unwrap_err().to_string().contains("scripts.start"));
        assert_eq!(started(r#"{"main": "lib/a.js"}"#).unwrap(), "node lib/a.js");
        assert_eq!(
            started(r#"{"main": "a.js", "scripts": {"start": "node b.js -x"}}"#).unwrap(),
            "node b.js -x"
        );
        fs::write(dir.path().join("server.js"), "").unwrap();
        assert_eq!(started("{}").unwrap(), "node server.js");
        fs::write(dir.path().join("package.json"), "{").unwrap();
        assert!(Package::read(dir.path()).is_err());
    }

    #[test]
    fn development_alone_needs_no_layer() {
        let dir = tempfile::tempdir().unwrap();
        for (package, expected) in [
            (r#"{"devDependencies": {"x": "1"}}"#, false),
            (r#"{"dependencies": {}}"#, false),
            (r#"{"dependencies": {"x": "1"}}"#, true),
        ] {
            fs::write(dir.path().join("package.json"), package).unwrap();
            assert_eq!(Package::read(dir.path()).unwrap().has_dependencies(), expected, "{package}");
        }
    }
}
