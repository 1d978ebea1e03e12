//! A project out of a git repository: one revision, without history, fetched by git itself and its own credentials.

use std::path::{Component, PathBuf};
use std::process::Command;

use anyhow::{Context as _, anyhow, bail};

use super::cache::Cache;
use super::source::Tree;
use super::tools;
use crate::exit::WrongUse;

/// `URL[#REV[:DIR]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Address {
    url: String,
    /// A branch, a tag or a commit.
    revision: String,
    directory: PathBuf,
}

impl Address {
    fn parse(text: &str) -> Result<Self, WrongUse> {
        let wrong = |what: &str| WrongUse(format!("--git {text}: {what}"));
        let (url, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (revision, directory) = fragment.split_once(':').unwrap_or((fragment, ""));
        if url.is_empty() || url.starts_with('-') {
            return Err(wrong("there is no URL: use URL, URL#REVISION or URL#REVISION:DIRECTORY"));
        }
        if revision.starts_with('-') || revision.contains(char::is_whitespace) {
            return Err(wrong("that is no revision: use a branch, a tag or a commit"));
        }
        let directory = PathBuf::from(directory);
        if !directory.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err(wrong("the directory must be in the repository, such as functions/hello"));
        }
        let revision = if revision.is_empty() { "HEAD" } else { revision };
        Ok(Self { url: url.to_owned(), revision: revision.to_owned(), directory })
    }

    /// The directory's or else the repository's name.
    fn name(&self) -> String {
        let own = self.url.trim_end_matches('/').trim_end_matches(".git");
        let own = own.rsplit(['/', ':']).next().unwrap_or(own);
        self.directory.file_name().map_or(own.to_owned(), |name| name.to_string_lossy().into_owned())
    }
}

/// Fetches what `text` names. Blocks.
pub(super) fn fetch(text: &str) -> anyhow::Result<Tree> {
    let address = Address::parse(text)?;
    let git = tools::find("git").context("there is no git: install it, or name a directory")?;
    let cache = Cache::open(false)?;
    let checkout = cache.scratch()?;
    let git = Git { program: git, dir: checkout.path().to_owned() };
    git.run(&["init", "--quiet", "."])?;
    // A server that gives commits by name of a branch only gives one of its history with all of it.
    let shallow =
        git.run(&["fetch", "--quiet", "--depth", "1", "--no-tags", "--", &address.url, &address.revision]);
    let revision = match shallow {
        Ok(()) => "FETCH_HEAD",
        Err(_) if is_commit(&address.revision) => {
            git.run(&["fetch", "--quiet", "--", &address.url, "+refs/heads/*:refs/remotes/origin/*"])?;
            &address.revision
        }
        Err(error) => {
            return Err(error.context(format!(
                "{} of {} cannot be fetched (git uses its own credentials and asks for none)",
                address.revision, address.url
            )));
        }
    };
    git.run(&["checkout", "--quiet", "--detach", revision])?;
    let commit = git.answer(&["rev-parse", "HEAD"])?;
    let root = checkout.path().canonicalize().context("the checkout is gone")?;
    let dir = root.join(&address.directory);
    let dir = dir.canonicalize().map_err(|_| {
        anyhow!("there is no directory {} in {} at {commit}", address.directory.display(), address.url)
    })?;
    if !dir.starts_with(&root) || !dir.is_dir() {
        bail!("{} is no directory in {}", address.directory.display(), address.url);
    }
    Ok(Tree { dir, name: address.name(), commit: Some(commit), _checkout: Some((checkout, cache)) })
}

fn is_commit(revision: &str) -> bool {
    revision.len() >= 7 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

struct Git {
    program: PathBuf,
    dir: PathBuf,
}

impl Git {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(&self.dir).env("GIT_TERMINAL_PROMPT", "0");
        if std::env::var_os("GIT_SSH_COMMAND").is_none() && std::env::var_os("GIT_SSH").is_none() {
            command.env("GIT_SSH_COMMAND", "ssh -oBatchMode=yes");
        }
        // Of the repository this is typed in, perhaps by a hook of its.
        for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
            command.env_remove(variable);
        }
        // No command of the repository's is run, and its files are as they were committed.
        for setting in [
            "protocol.ext.allow=never",
            "core.hooksPath=/dev/null",
            "core.autocrlf=false",
            "submodule.recurse=false",
            "advice.detachedHead=false",
            "init.defaultBranch=main",
        ] {
            command.args(["-c", setting]);
        }
        command.args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> anyhow::Result<()> {
        tools::run(&mut self.command(arguments), &format!("git {}", arguments[0]))
    }

    fn answer(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let said = tools::answer(&mut self.command(arguments), &format!("git {}", arguments[0]))?;
        Ok(String::from_utf8_lossy(&said).trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        for (text, url, revision, directory, name) in [
            ("https://h/a/hello.git", "https://h/a/hello.git", "HEAD", "", "hello"),
            ("git@h:a/hello", "git@h:a/hello", "HEAD", "", "hello"),
            ("/srv/x#v1.2", "/srv/x", "v1.2", "", "x"),
            ("https://h/a#main:functions/greet", "https://h/a", "main", "functions/greet", "greet"),
            ("https://h/a/#:sub", "https://h/a/", "HEAD", "sub", "sub"),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!((address.url.as_str(), address.revision.as_str()), (url, revision), "{text}");
            assert_eq!(
                (address.directory.as_path(), address.name().as_str()),
                (Path::new(directory), name),
                "{text}"
            );
        }
        for bad in ["", "#x", "--upload-pack=x", "u#-x", "u#a b", "u#a:../x", "u#a:/etc"] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_revision_is_fetched() {
        let dir = tempfile::tempdir().unwrap();
        let Some(program) = tools::find("git") else { return eprintln!("SKIPPED: git is not installed") };
        let git = Git { program, dir: dir.path().to_owned() };
        let commit = |text: &str| {
            std::fs::create_dir_all(dir.path().join("sub")).unwrap();
            std::fs::write(dir.path().join("sub/a"), text).unwrap();
            git.run(&["add", "."]).unwrap();
            git.run(&["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", text]).unwrap();
            git.answer(&["rev-parse", "HEAD"]).unwrap()
        };
        git.run(&["init", "-q", "."]).unwrap();
        let (first, second) = (commit("1"), commit("2"));
        git.run(&["tag", "v1", &first]).unwrap();
        let url = format!("file://{}", dir.path().display());
        for (fragment, expected, text) in [
            ("", &second, "2"),
            ("#v1", &first, "1"),
            (&format!("#{first}"), &first, "1"),
            ("#v1:sub", &first, "1"),
        ] {
            let tree = fetch(&format!("{url}{fragment}")).unwrap();
            assert_eq!(tree.commit.as_ref(), Some(expected), "{fragment}");
            let file = if fragment.ends_with("sub") { "a" } else { "sub/a" };
            assert_eq!(std::fs::read_to_string(tree.dir.join(file)).unwrap(), text, "{fragment}");
        }
        for bad in ["#absent", "#v1:absent"] {
            assert!(fetch(&format!("{url}{bad}")).is_err(), "{bad}");
        }
    }
}
