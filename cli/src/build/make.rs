//! From a project and its base to the layers of its image: which, in which order, and how it runs.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use anyhow::Context as _;
use tempfile::TempDir;
use tombolo_oci::{Composition, Layer, Members, Platform, RunConfig};

use super::base::{self, Found, Wish};
use super::cache::Cache;
use super::detect::Language;
use super::host::{self, Interpreter};
use super::ignore::Wanted;
use super::image::{self, Image, Part, Whence};
use super::node::Package;
use super::project::Build;
use super::python::{self, PACKAGES, Python, Requirements};
use super::source::Tree;
use super::{NOBODY, Order, PATH, command, dockerfile, go, rust, tools};
use crate::exit::WrongUse;
use crate::steps::Steps;

/// Where a project's code is in the image.
const APP: &str = "app";

/// The label that names the commit an image was built from.
const REVISION: &str = "org.opencontainers.image.revision";

/// Serves what is in its directory, on the port it is told.
const SERVE: &str = "import functools, http.server, os
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
http.server.ThreadingHTTPServer(('', int(os.environ.get('PORT', '8080'))), Handler).serve_forever()";

/// A project that was looked at.
#[derive(Debug)]
pub(super) struct Project {
    tree: Tree,
    order: Order,
    build: Build,
    language: Language,
    /// A file of another language, where nobody said which one it is.
    other: Option<(&'static str, Language)>,
    files: Wanted,
}

/// Layers, lowest first, and where the content of each is.
type Layers = Vec<(Layer, Whence)>;

/// Layers above the base, lowest first, and how the image runs.
#[derive(Debug, Default)]
struct Made {
    layers: Layers,
    entrypoint: Vec<String>,
    env: Vec<String>,
    workdir: String,
    /// As whom, where the base says nothing.
    user: &'static str,
}

impl Project {
    pub(super) fn read(tree: Tree, order: Order) -> anyhow::Result<Self> {
        let build = Build::read(&tree.dir)?;
        let asked = order.language.or(build.language);
        let language = asked.unwrap_or_else(|| Language::of(&tree.dir, dockerfile::builder().is_some()));
        let files = Wanted::read(&tree.dir, language.is_project(), &build.include, &build.exclude)?;
        let other = if asked.is_none() { language.other(&tree.dir) } else { None };
        Ok(Self { tree, order, build, language, other, files })
    }

    /// The base that is asked for: on the command line, else by the project, else as usual for its language.
    pub(super) fn base(&self) -> anyhow::Result<Wish> {
        if self.language == Language::Dockerfile && self.order.base.is_some() {
            return Err(WrongUse("--base: a Dockerfile names its base itself, with FROM".into()).into());
        }
        Ok(Wish::of(self.order.base.as_deref().or(self.build.base.as_deref()), self.language)?)
    }

    pub(super) fn described(&self, base: &Found) -> String {
        let name = self.language.name();
        match self.language {
            Language::Dockerfile => format!("building {} by {name}", self.tree.dir.display()),
            _ => {
                let other = match self.other {
                    Some((file, Language::Dockerfile)) => {
                        format!(" (there is a {file} too, which needs buildah, podman or docker)")
                    }
                    Some((file, language)) => {
                        format!(" (there is a {file} too: --language {} takes that)", language.word())
                    }
                    None => String::new(),
                };
                format!("building {} as {name} on {base}{other}", self.tree.dir.display())
            }
        }
    }

    /// Makes the image. Blocks, for minutes where dependencies are to be fetched.
    pub(super) fn make(self, found: Found, cache: Cache, steps: Steps) -> anyhow::Result<Image> {
        let scratch = cache.scratch()?;
        if self.language == Language::Dockerfile {
            return self.by_dockerfile(cache, scratch);
        }
        let made = match self.language {
            Language::Rust => self.rust(scratch.path())?,
            Language::Go => self.go(&cache, scratch.path())?,
            Language::Python => self.python(&found, &cache, scratch.path(), steps)?,
            Language::Node => self.node(&cache, scratch.path(), steps)?,
            Language::Web => self.web(scratch.path(), steps)?,
            Language::Files | Language::Dockerfile => self.files(scratch.path(), steps)?,
        };
        let (mut layers, run, platform) = self.below(&found, &cache, &made)?;
        layers.extend(made.layers);
        let mut env = run.env;
        if !env.iter().any(|line| line.starts_with("PATH=")) && !matches!(found, Found::Scratch) {
            env.insert(0, PATH.to_owned());
        }
        for line in made.env {
            let name = line.split_once('=').map_or(line.as_str(), |(name, _)| name).to_owned() + "=";
            env.retain(|other| !other.starts_with(&name));
            env.push(line);
        }
        let config = RunConfig {
            entrypoint: made.entrypoint,
            cmd: Vec::new(),
            env,
            workdir: if made.workdir.is_empty() { run.workdir } else { made.workdir },
            user: if run.user.is_empty() { made.user.to_owned() } else { run.user },
            ..run
        };
        let composition = Composition { config, platform, labels: self.labels(), ..Composition::default() };
        let mut image = Image::of_layers(layers, composition, scratch, Some(cache));
        // What is found in a plain directory does not take the place of a command that somebody gave the service.
        image.has_command = self.language != Language::Files || !self.order.command.is_empty();
        Ok(image)
    }

    fn labels(&self) -> BTreeMap<String, String> {
        self.tree.commit.iter().map(|commit| (REVISION.to_owned(), commit.clone())).collect()
    }

    /// The layers of the base, and how it says it runs.
    fn below(
        &self,
        found: &Found,
        cache: &Cache,
        made: &Made,
    ) -> anyhow::Result<(Layers, RunConfig, Platform)> {
        match found {
            Found::Scratch => Ok((Vec::new(), RunConfig::default(), Platform::host())),
            Found::Host => {
                let host = host::base(cache, &self.interpreter(made)?)?;
                Ok((vec![(host.layer, Whence::File(host.file))], host.run, Platform::host()))
            }
            Found::Image(named) => {
                let whence = |layer: &Layer| Whence::Registry(named.place.clone(), layer.clone());
                let layers = named.image.layers.iter().map(|layer| (layer.clone(), whence(layer)));
                Ok((layers.collect(), named.image.run.clone(), named.image.platform.clone()))
            }
        }
    }

    /// What this machine must give for the project to run.
    fn interpreter(&self, made: &Made) -> anyhow::Result<Interpreter> {
        let node = || {
            let found = tools::find("node")
                .context("there is no node on this machine: install Node.js, or name an image with --base")?;
            let path = found.canonicalize().context("node cannot be found")?;
            Ok(Interpreter::Program { path, names: vec!["node"] })
        };
        match self.language {
            Language::Python | Language::Web => Ok(Interpreter::Python(Python::of_this_machine()?)),
            Language::Node => node(),
            Language::Rust | Language::Go | Language::Files | Language::Dockerfile => {
                let Some(program) = made.entrypoint.first() else { return Ok(Interpreter::Shell) };
                let own = self.tree.dir.join(program.trim_start_matches('/'));
                let wanted = if own.is_file() { named_in(&own) } else { Some(program.clone()) };
                match wanted.as_deref().and_then(|path| path.rsplit('/').next()) {
                    Some(name) if name.starts_with("python") => {
                        Ok(Interpreter::Python(Python::of_this_machine()?))
                    }
                    Some("node") => node(),
                    Some("sh" | "env") => Ok(Interpreter::Shell),
                    Some(name) => {
                        let path = tools::find(name)
                            .with_context(|| format!("there is no {name} on this machine"))?;
                        Ok(Interpreter::Program { path, names: Vec::new() })
                    }
                    // A program in machine code: what it loads is what it needs.
                    None => Ok(Interpreter::Program { path: own, names: Vec::new() }),
                }
            }
        }
    }

    /// The command that was asked for, or that the project names.
    fn asked(&self) -> anyhow::Result<Option<Vec<String>>> {
        if !self.order.command.is_empty() {
            return Ok(Some(self.order.command.clone()));
        }
        match self.build.command()? {
            Some(words) => Ok(Some(words)),
            None => command::of_procfile(&self.tree.dir),
        }
    }

    fn code(&self, at: &str, scratch: &Path, steps: Steps) -> anyhow::Result<(Layer, Whence)> {
        let mut members = Members::default();
        members.add_tree(&self.tree.dir, Path::new(at), &|path, is_directory| {
            self.files.has(path, is_directory)
        })?;
        if !members.has_file() {
            anyhow::bail!("{} holds no file that belongs into an image", self.tree.dir.display());
        }
        let mut out = members.symlinks().filter(|(path, target)| leads_out(Path::new(at), path, target));
        if let Some((path, target)) = out.next() {
            steps.say(&format!(
                "{} leads to {}, which is not in the image{}",
                path.strip_prefix(at).unwrap_or(path).display(),
                target.display(),
                match out.count() {
                    0 => String::new(),
                    more => format!(" (and {more} more links lead out of the project)"),
                }
            ));
        }
        image::layer(&members, scratch)
    }

    fn python(&self, found: &Found, cache: &Cache, scratch: &Path, steps: Steps) -> anyhow::Result<Made> {
        let entrypoint = match self.asked()? {
            Some(words) => words,
            None => python::command(&self.tree.dir)?,
        };
        let mut made = Made { entrypoint, ..Made::app() };
        if let Some(requirements) = Requirements::of(&self.tree.dir)? {
            let said = match found {
                Found::Image(named) => self.build.python.clone().or_else(|| base::python(&named.image)),
                Found::Scratch | Found::Host => None,
            };
            if matches!(found, Found::Image(_)) && said.is_none() {
                steps.say("the base image does not say its PYTHON_VERSION: this machine's is taken for it");
            }
            let (layer, file) = requirements.layer(&self.tree.dir, cache, said.as_deref())?;
            made.layers.push((layer, Whence::File(file)));
        }
        made.layers.push(self.code(APP, scratch, steps)?);
        made.env = vec![
            format!("PYTHONPATH=/{APP}:/{PACKAGES}"),
            "PYTHONDONTWRITEBYTECODE=1".into(),
            "PYTHONUNBUFFERED=1".into(),
        ];
        Ok(made)
    }

    fn node(&self, cache: &Cache, scratch: &Path, steps: Steps) -> anyhow::Result<Made> {
        let package = Package::read(&self.tree.dir)?;
        let entrypoint = match self.asked()? {
            Some(words) => words,
            None => package.command()?,
        };
        let mut made = Made { entrypoint, env: vec!["NODE_ENV=production".into()], ..Made::app() };
        if package.has_dependencies() {
            let (layer, file, locked) = package.layer(&self.files, cache)?;
            if !locked {
                steps.say("there is no package-lock.json: another day may bring other versions");
            }
            made.layers.push((layer, Whence::File(file)));
        }
        made.layers.push(self.code(APP, scratch, steps)?);
        Ok(made)
    }

    fn web(&self, scratch: &Path, steps: Steps) -> anyhow::Result<Made> {
        let public = self.tree.dir.join("public/index.html").is_file();
        let workdir = if public { format!("/{APP}/public") } else { format!("/{APP}") };
        let serve = ["python3", "-c", SERVE].map(str::to_owned).into();
        let entrypoint = self.asked()?.unwrap_or(serve);
        Ok(Made { layers: vec![self.code(APP, scratch, steps)?], entrypoint, workdir, ..Made::app() })
    }

    fn files(&self, scratch: &Path, steps: Steps) -> anyhow::Result<Made> {
        let asked = self.asked()?.unwrap_or_default();
        let entrypoint = command::of_directory(&self.tree.dir, &asked)?;
        Ok(Made { layers: vec![self.code("", scratch, steps)?], entrypoint, ..Made::default() })
    }

    fn rust(&self, scratch: &Path) -> anyhow::Result<Made> {
        let (named, arguments) = self.program_and_arguments()?;
        let program = rust::build(&self.tree.dir, named.as_deref())?;
        alone(&program, &arguments, scratch)
    }

    fn go(&self, cache: &Cache, scratch: &Path) -> anyhow::Result<Made> {
        let (named, arguments) = self.program_and_arguments()?;
        let out = cache.scratch()?;
        let program = go::build(&self.tree.dir, named.as_deref(), out.path())?;
        alone(&program, &arguments, scratch)
    }

    /// Of a compiled language, the first word names one of several programs.
    fn program_and_arguments(&self) -> anyhow::Result<(Option<String>, Vec<String>)> {
        let asked = self.asked()?.unwrap_or_default();
        let named = asked.first().map(|name| name.trim_start_matches(['.', '/']).to_owned());
        Ok((named, asked.into_iter().skip(1).collect()))
    }

    fn by_dockerfile(&self, cache: Cache, scratch: TempDir) -> anyhow::Result<Image> {
        let (layout, _) = dockerfile::build(&self.tree.dir, scratch.path(), &self.labels())?;
        let blobs = layout.manifest.layers.iter().chain([&layout.manifest.config]);
        let parts = blobs.map(|blob| Part {
            digest: blob.digest,
            size: blob.size,
            whence: Whence::File(layout.blob(&blob.digest)),
        });
        let parts = parts.collect();
        Ok(Image::of_manifest(layout.content, parts, scratch, cache))
    }
}

impl Made {
    /// Of a project whose code is in its own directory.
    fn app() -> Self {
        Self { workdir: format!("/{APP}"), user: NOBODY, ..Self::default() }
    }
}

/// An image of one program, which needs nothing else.
fn alone(program: &Path, arguments: &[String], scratch: &Path) -> anyhow::Result<Made> {
    let name = program.file_name().context("a program has a name")?;
    let mut members = Members::default();
    members.add_file(Path::new(name), program)?;
    let entrypoint =
        std::iter::once(format!("/{}", name.to_string_lossy())).chain(arguments.iter().cloned()).collect();
    let layers = vec![image::layer(&members, scratch)?];
    Ok(Made { layers, entrypoint, user: NOBODY, ..Made::default() })
}

/// Whether a link of the project that is at `at` leads to something of this machine that is not the project's.
pub(super) fn leads_out(at: &Path, link: &Path, target: &Path) -> bool {
    if target.is_absolute() {
        return target.exists();
    }
    let mut depth = link.strip_prefix(at).unwrap_or(link).components().count() as i64 - 1;
    target.components().any(|part| {
        depth += match part {
            Component::ParentDir => -1,
            Component::Normal(_) => 1,
            _ => 0,
        };
        depth < 0
    })
}

/// The interpreter that a script's first line names, by its name or path.
fn named_in(script: &Path) -> Option<String> {
    let content = std::fs::read(script).ok()?;
    let first = content.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(first).into_owned();
    let mut words = line.split_whitespace();
    let program = words.next()?;
    match program.ends_with("/env") {
        true => words.find(|word| !word.starts_with('-')).map(str::to_owned),
        false => Some(program.to_owned()),
    }
}
