//! A base image made of this machine's own files: an interpreter, the shared libraries it needs, `sh` and `env`. Made where no
//! image is named and the hub has none, so that an edge site needs no registry but its hub's. The same files give the same
//! layer; times and owners are no part of it.
//!
//! Must not know the function's code.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tombolo_oci::{Layer, Members, RunConfig, write_layer};

use super::cache::{Cache, Key, Stamp};
use super::loader;
use super::python::Python;
use super::{NOBODY, PATH};

/// Found by a program's own means while it runs, not by its list of libraries: names of hosts and users, ends of threads.
const UNLISTED: [&str; 4] = ["libgcc_s.so.1", "libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2"];

/// Certificates of the authorities this machine believes; the first that is there.
const AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Where they are in the image.
const AUTHORITIES_AT: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Directories of Python's library that a function has no use for: tests, installers, windows.
const NOT_OF_PYTHON: [&str; 10] = [
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "dist-packages",
];

/// What the base is for.
#[derive(Clone, Debug)]
pub(super) enum Interpreter {
    Python(Python),
    /// One file and what it loads, and other names for it.
    Program {
        path: PathBuf,
        names: Vec<&'static str>,
    },
    /// A shell is enough.
    Shell,
}

/// The layer, where it is, and how what stands on it runs.
#[derive(Debug)]
pub(super) struct HostBase {
    pub(super) layer: Layer,
    pub(super) file: PathBuf,
    pub(super) run: RunConfig,
}

/// Files by their path in the image, and links.
#[derive(Debug, Default)]
struct Files {
    from: BTreeMap<PathBuf, PathBuf>,
    links: BTreeMap<PathBuf, PathBuf>,
    /// Compiled modules of Python.
    compiled: BTreeMap<PathBuf, PathBuf>,
}

/// Makes the base, or finds the one made before of the very same files. Blocks.
pub(super) fn base(cache: &Cache, interpreter: &Interpreter) -> anyhow::Result<HostBase> {
    let mut files = Files::default();
    let mut programs = Vec::new();
    for name in ["/bin/sh", "/usr/bin/env"] {
        if Path::new(name).is_file() {
            programs.push(files.add(Path::new(name))?);
        }
    }
    match interpreter {
        Interpreter::Shell => {}
        Interpreter::Program { path, names } => {
            programs.push(files.add_named(path, names)?);
        }
        Interpreter::Python(python) => {
            programs.push(files.add_named(&python.program, &["python3", "python"])?);
            files.add_python(python)?;
        }
    }
    let authorities = AUTHORITIES.into_iter().map(Path::new).find(|path| path.is_file());
    if let Some(path) = authorities {
        files.from.insert(below_root(Path::new(AUTHORITIES_AT)), path.to_owned());
    }
    let run = RunConfig {
        env: [Some(PATH.to_owned()), Some("LANG=C.UTF-8".into()), authorities.map(|_| certificates())]
            .into_iter()
            .flatten()
            .collect(),
        user: NOBODY.to_owned(),
        ..RunConfig::default()
    };
    let key = files.key();
    if let Some((layer, file)) = cache.find(&key) {
        return Ok(HostBase { layer, file, run });
    }
    let libraries = files.add_libraries(&programs)?;
    let depends = libraries.iter().filter_map(|path| Some((path.clone(), Stamp::of(path)?))).collect();
    let members = files.members()?;
    let (file, layer) = write_layer(&members, &cache.tmp())?;
    let file = cache.keep(&key, file, &layer, depends)?;
    Ok(HostBase { layer, file, run })
}

fn certificates() -> String {
    format!("SSL_CERT_FILE={AUTHORITIES_AT}")
}

impl Files {
    /// Adds a file at its own path, whatever links lead to it. Returns the file.
    fn add(&mut self, path: &Path) -> anyhow::Result<PathBuf> {
        self.from.insert(place(path)?, path.to_owned());
        Ok(path.to_owned())
    }

    /// Adds a program at its own path, and under `names` where a PATH finds it.
    fn add_named(&mut self, program: &Path, names: &[&str]) -> anyhow::Result<PathBuf> {
        let at = place(program)?;
        self.from.insert(at.clone(), program.to_owned());
        for name in names {
            let link = Path::new("usr/bin").join(name);
            if link != at {
                self.links.insert(link, Path::new("/").join(&at));
            }
        }
        Ok(program.to_owned())
    }

    /// Adds Python's own library, with the modules that are compiled already.
    fn add_python(&mut self, python: &Python) -> anyhow::Result<()> {
        for root in BTreeSet::from([&python.stdlib, &python.platstdlib]) {
            let mut members = Members::default();
            let compiled = RefCell::new(Vec::new());
            let wanted = |path: &Path, is_directory: bool| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if name.ends_with(".pyc") {
                    if !name.contains(".opt-") {
                        compiled.borrow_mut().push(path.to_owned());
                    }
                    return false;
                }
                is_wanted_of_python(&name, is_directory)
            };
            let top = place(&root.join("os.py"))?;
            let top = top.parent().context("a library has a directory")?;
            members.add_tree(root, top, &wanted)?;
            for (at, from) in members.files_on_disk() {
                self.from.insert(at.to_owned(), from.to_owned());
            }
            for path in compiled.into_inner() {
                self.compiled.insert(top.join(&path), root.join(&path));
            }
        }
        Ok(())
    }

    /// Everything that is known before any program is asked.
    fn key(&self) -> Key {
        let mut key = Key::new("host");
        for (at, from) in self.from.iter().chain(&self.compiled) {
            key.add(at.as_os_str().as_encoded_bytes());
            if let Some(stamp) = Stamp::of(from) {
                key.add_stamp(from, stamp);
            }
        }
        for (at, target) in &self.links {
            key.add(format!("{} -> {}", at.display(), target.display()).as_bytes());
        }
        key
    }

    /// Adds what the programs load, and what the library's modules load. Returns the files that were found.
    fn add_libraries(&mut self, programs: &[PathBuf]) -> anyhow::Result<BTreeSet<PathBuf>> {
        let (mut loaders, mut found) = (BTreeSet::new(), BTreeMap::new());
        for program in programs {
            if let Some(loader) = loader::of_program(program)? {
                found.extend(loader::libraries(&loader, program)?);
                loaders.insert(loader);
            }
        }
        let modules: Vec<_> = self.from.values().filter(|path| is_module(path)).cloned().collect();
        if let Some(loader) = loaders.iter().next_back() {
            for module in modules {
                // One that lacks its library here cannot be imported here either.
                found.extend(loader::libraries(loader, &module).unwrap_or_default());
            }
        }
        let standard = found.get("libc.so.6").and_then(|libc| libc.parent()).map(Path::to_owned);
        if let Some(standard) = &standard {
            for name in UNLISTED {
                let path = standard.join(name);
                if path.is_file() {
                    found.insert(name.to_owned(), path);
                }
            }
        }
        for (name, path) in &found {
            let at = place(path)?;
            self.from.insert(at.clone(), path.clone());
            // The image has no cache of the loader's, so that it looks into the standard directories only.
            if let Some(standard) = &standard
                && at.starts_with("usr/local")
            {
                let link = place(&standard.join(name))?;
                self.links.insert(link, Path::new("/").join(at));
            }
        }
        for loader in loaders {
            found.insert(loader.display().to_string(), loader.clone());
            self.from.insert(place(&loader)?, loader);
        }
        Ok(found.into_values().collect())
    }

    fn members(&self) -> anyhow::Result<Members> {
        let mut members = Members::default();
        for name in ["bin", "sbin", "lib", "lib32", "lib64"] {
            if let Ok(target) = fs::read_link(Path::new("/").join(name)) {
                members.add_symlink(Path::new(name), &target)?;
            }
        }
        for (at, from) in &self.from {
            members.add_file(at, from)?;
        }
        for (at, from) in &self.compiled {
            if let Some(content) = unchecked(from) {
                let at = at.to_str().context("a module has a plain name")?;
                members.add_content(at, content, false)?;
            }
        }
        for (at, target) in &self.links {
            if !members.contains(at) {
                members.add_symlink(at, target)?;
            }
        }
        members.add_shared_directory(Path::new("tmp"))?;
        let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65532:65532:nobody:/tmp:/bin/false\n";
        members.add_content("etc/passwd", users.into(), false)?;
        members.add_content("etc/group", "root:x:0:\nnobody:x:65532:\n".into(), false)?;
        Ok(members)
    }
}

/// A file's path in the image: its directory's real one, below the root, and its name as it is asked for.
fn place(path: &Path) -> anyhow::Result<PathBuf> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        anyhow::bail!("{} is no file", path.display());
    };
    let real = directory.canonicalize().with_context(|| format!("{} cannot be read", directory.display()))?;
    Ok(below_root(&real.join(name)))
}

fn below_root(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

fn is_wanted_of_python(name: &str, is_directory: bool) -> bool {
    if is_directory {
        return !NOT_OF_PYTHON.contains(&name) && !name.starts_with("config-");
    }
    let unwanted =
        ["_tkinter.", "_test", "xxlimited", "_xxtest", "_ctypes_test", "sitecustomize.py", "EXTERNALLY"];
    !unwanted.iter().any(|start| name.starts_with(start)) && !name.ends_with(".a") && !name.ends_with(".exe")
}

fn is_module(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "so")
}

/// A compiled module that is believed whatever its source's time, which is zero in a layer: otherwise Python would compile its
/// library anew at each cold start. `None` if it is not of the source as it is now.
fn unchecked(compiled: &Path) -> Option<Vec<u8>> {
    let name = compiled.file_name()?.to_str()?;
    let source = compiled.parent()?.parent()?.join(format!("{}.py", name.split('.').next()?));
    let found = source.metadata().ok()?;
    let mut content = fs::read(compiled).ok()?;
    let field = |at: usize| {
        content.get(at..at + 4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    let (flags, time, size) = (field(4)?, field(8)?, field(12)?);
    // Both are stored in 32 bits, whatever they are.
    if flags != 0
        || i64::from(time) != found.mtime() & 0xffff_ffff
        || u64::from(size) != found.len() & 0xffff_ffff
    {
        return None;
    }
    content[4..16].fill(0);
    content[4] = 1;
    Some(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    #[test]
    fn a_shell_and_what_it_needs_is_the_same_layer_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |name: &str| {
            let cache = Cache::open_in(&dir.path().join(name), false).unwrap();
            let made = base(&cache, &Interpreter::Shell).unwrap();
            assert_eq!(base(&cache, &Interpreter::Shell).unwrap().layer, made.layer);
            assert!(made.file.is_file());
            made.layer
        };
        assert_eq!(layer("a"), layer("b"));
    }

    #[test]
    fn compiled_modules_are_taken_if_they_are_of_their_source() {
        let dir = tempfile::tempdir().unwrap();
        let (source, compiled) = (dir.path().join("a.py"), dir.path().join("__pycache__/a.cpython-311.pyc"));
        fs::create_dir(dir.path().join("__pycache__")).unwrap();
        fs::write(&source, "x = 1").unwrap();
        let file = fs::File::options().write(true).open(&source).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(0x0102_0304)).unwrap();
        let module = |time: [u8; 4]| {
            let mut content = b"MAGI\0\0\0\0".to_vec();
            content.extend(time);
            content.extend([5, 0, 0, 0]);
            content.extend(b"code");
            fs::write(&compiled, content).unwrap();
            unchecked(&compiled)
        };
        assert_eq!(module([4, 3, 2, 1]).unwrap(), b"MAGI\x01\0\0\0\0\0\0\0\0\0\0\0code");
        assert_eq!(module([5, 3, 2, 1]), None);
    }
}
