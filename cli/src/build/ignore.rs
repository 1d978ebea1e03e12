//! Which files of a project belong into its image: patterns of `.tomboloignore` or `.dockerignore`, of the project's file, and
//! what never belongs there.
//!
//! Must not know what the files are for.

use std::path::Path;

use anyhow::Context as _;

/// Directories that tools keep for themselves, wherever they are.
const NEVER_DIRECTORIES: [&str; 11] = [
    ".git",
    ".hg",
    ".svn",
    "__pycache__",
    "node_modules",
    ".venv",
    "venv",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".tox",
];

/// Files at the top that say how the image is made.
const NEVER_FILES: [&str; 5] =
    ["tombolo.toml", ".tomboloignore", ".dockerignore", ".gitignore", ".gitattributes"];

/// The files of one project that are wanted.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// If there are any, only these.
    include: Vec<Rule>,
    /// The last one that fits decides.
    exclude: Vec<Rule>,
    /// A project of a language, whose tools' own directories are known.
    project: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    parts: Vec<String>,
    /// Fits at any depth.
    floating: bool,
    directory_only: bool,
    /// `!`: what it fits belongs in after all.
    back: bool,
}

impl Wanted {
    /// The rules of the project in `dir`.
    pub(super) fn read(
        dir: &Path,
        project: bool,
        include: &[String],
        exclude: &[String],
    ) -> anyhow::Result<Self> {
        let mut wanted = Self { project, ..Self::default() };
        for (name, floats) in [(".tomboloignore", true), (".dockerignore", false)] {
            let path = dir.join(name);
            match std::fs::read_to_string(&path) {
                Ok(text) => {
                    wanted.exclude.extend(text.lines().filter_map(|line| Rule::parse(line, floats)));
                    break;
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("{} cannot be read", path.display()));
                }
            }
        }
        wanted.include = include.iter().filter_map(|line| Rule::parse(line, true)).collect();
        wanted.exclude.extend(exclude.iter().filter_map(|line| Rule::parse(line, true)));
        Ok(wanted)
    }

    /// Whether what is at `path`, below the project's directory, belongs into the image.
    pub(super) fn has(&self, path: &Path, is_directory: bool) -> bool {
        let parts: Vec<&str> = path.iter().map(|part| part.to_str().unwrap_or("\u{fffd}")).collect();
        let Some(name) = parts.last() else { return true };
        if parts == [".git"] || (parts.len() == 1 && NEVER_FILES.contains(name)) {
            return false;
        }
        if self.project && is_directory && NEVER_DIRECTORIES.contains(name) {
            return false;
        }
        if self.project && name.ends_with(".pyc") {
            return false;
        }
        let fits = |rule: &Rule| {
            (1..=parts.len()).any(|end| {
                // A rule that fits a directory fits everything below it.
                rule.fits(&parts[..end], is_directory || end < parts.len())
            })
        };
        if let Some(rule) = self.exclude.iter().rev().find(|rule| fits(rule)) {
            // Something below an excluded directory may be wanted back: the directory is looked into then.
            return rule.back || (is_directory && self.exclude.iter().any(|rule| rule.back));
        }
        // Directories are looked into, for what is included may be in them.
        self.include.is_empty() || is_directory || self.include.iter().any(fits)
    }
}

impl Rule {
    fn parse(line: &str, floats: bool) -> Option<Self> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let (back, line) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest));
        let directory_only = line.ends_with('/');
        let rooted = line.starts_with('/') || line.trim_end_matches('/').contains('/') || !floats;
        let parts: Vec<String> =
            line.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect();
        (!parts.is_empty()).then_some(Self { parts, floating: !rooted, directory_only, back })
    }

    fn fits(&self, path: &[&str], is_directory: bool) -> bool {
        if self.directory_only && !is_directory {
            return false;
        }
        match self.floating {
            true => path.last().is_some_and(|name| fits_part(self.parts[0].as_bytes(), name.as_bytes())),
            false => fits_parts(&self.parts, path),
        }
    }
}

fn fits_parts(pattern: &[String], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "**" => {
            fits_parts(rest, path) || (!path.is_empty() && fits_parts(pattern, &path[1..]))
        }
        (Some((first, rest)), Some((name, below))) => {
            fits_part(first.as_bytes(), name.as_bytes()) && fits_parts(rest, below)
        }
        _ => false,
    }
}

/// `*` and `?` within one name. Linear but for the last star, which is all that ever has to be tried again.
fn fits_part(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(lines: &[&str], floats: bool) -> Wanted {
        let exclude = lines.iter().filter_map(|line| Rule::parse(line, floats)).collect();
        Wanted { exclude, project: true, ..Wanted::default() }
    }

    #[test]
    fn patterns_are_read_as_in_gitignore() {
        let wanted =
            rules(&["# no", "", "*.log", "/data", "docs/*.txt", "build/", "a/**/z", "!keep.log"], true);
        for (path, directory, expected) in [
            ("main.py", false, true),
            ("x.log", false, false),
            ("deep/x.log", false, false),
            ("deep/keep.log", false, true),
            ("data", false, false),
            ("deep/data", false, true),
            ("docs/a.txt", false, false),
            ("docs/deep/a.txt", false, true),
            ("build", false, true),
            ("build/x", false, false),
            ("a/z", false, false),
            ("a/b/c/z", false, false),
            ("a/b/c/y", false, true),
        ] {
            assert_eq!(wanted.has(Path::new(path), directory), expected, "{path}");
        }
    }

    #[test]
    fn patterns_of_dockerignore_begin_at_the_top() {
        let wanted = rules(&["*.log", "**/*.tmp"], false);
        assert!(!wanted.has(Path::new("x.log"), false) && wanted.has(Path::new("deep/x.log"), false));
        assert!(!wanted.has(Path::new("deep/x.tmp"), false));
    }

    #[test]
    fn what_tools_keep_is_left_out_of_projects_only() {
        let plain = Wanted::default();
        let project = rules(&[], true);
        for (path, directory) in [("node_modules", true), ("a/__pycache__", true), ("a/b.pyc", false)] {
            assert!(
                plain.has(Path::new(path), directory) && !project.has(Path::new(path), directory),
                "{path}"
            );
        }
        for wanted in [plain, project] {
            assert!(!wanted.has(Path::new(".git"), true) && !wanted.has(Path::new("tombolo.toml"), false));
            assert!(wanted.has(Path::new("deep/tombolo.toml"), false));
        }
    }

    #[test]
    fn include_leaves_the_rest_out() {
        let dir = tempfile::tempdir().unwrap();
        let wanted =
            Wanted::read(dir.path(), true, &["src".into(), "*.py".into()], &["*_test.py".into()]).unwrap();
        for (path, expected) in
            [("src/deep/x", true), ("main.py", true), ("main_test.py", false), ("README.md", false)]
        {
            assert_eq!(wanted.has(Path::new(path), false), expected, "{path}");
        }
    }

    #[test]
    fn stars_fit_any_letters() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("a*b*c", "aXbYbc", true),
            ("a*b*c", "aXbY", false),
            ("?", "", false),
            ("?b", "ab", true),
            ("ab", "abc", false),
        ] {
            assert_eq!(fits_part(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }
}
