//! The command of an image: words of a line as a person writes it, a Procfile's, or a program that is found by its name.

use std::path::Path;

use anyhow::{Context as _, anyhow, bail};

use super::tools::is_program;

/// Programs that are taken by their name, in this order.
const PROGRAMS: [&str; 2] = ["run", "main"];

/// What only a shell understands.
const FOR_A_SHELL: [char; 14] = ['$', '`', '|', '&', ';', '<', '>', '(', ')', '*', '?', '~', '\n', '#'];

/// A line's words. A line that needs a shell gets one, which becomes the command itself.
pub(super) fn of_line(line: &str) -> anyhow::Result<Vec<String>> {
    let line = line.trim();
    if line.contains(FOR_A_SHELL) {
        let several = line.contains(['|', '&', ';', '\n']);
        let line = if several { line.to_owned() } else { format!("exec {line}") };
        return Ok(vec!["/bin/sh".into(), "-c".into(), line]);
    }
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), _) if open == letter => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, ' ' | '\t') => words.extend(word.take()),
            (None | Some('"'), '\\') => {
                let next = letters.next().context("a line does not end with `\\`")?;
                word.get_or_insert_default().push(next);
            }
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    match quote {
        Some(quote) => bail!("{line:?} has a {quote} without its partner"),
        None if words.is_empty() => bail!("it is empty"),
        None => Ok(words),
    }
}

/// The `web` process of a Procfile.
pub(super) fn of_procfile(dir: &Path) -> anyhow::Result<Option<Vec<String>>> {
    let Ok(text) = std::fs::read_to_string(dir.join("Procfile")) else { return Ok(None) };
    match text.lines().find_map(|line| line.strip_prefix("web:")) {
        Some(line) => of_line(line).context("web in Procfile").map(Some),
        None => Ok(None),
    }
}

/// The command that runs in the image made of a plain directory: the one asked for, or the program found there. A first
/// word that names a file of the directory becomes its place in the image.
pub(super) fn of_directory(dir: &Path, asked: &[String]) -> anyhow::Result<Vec<String>> {
    if let Some((program, arguments)) = asked.split_first() {
        let inside = program.trim_start_matches("./");
        let program = match program.starts_with('/') || !dir.join(inside).is_file() {
            true => program.clone(),
            false => format!("/{inside}"),
        };
        return Ok(std::iter::once(program).chain(arguments.iter().cloned()).collect());
    }
    let programs = programs(dir)?;
    let by_name = PROGRAMS.iter().find(|name| programs.iter().any(|program| program == *name));
    match (by_name, programs.as_slice()) {
        (Some(name), _) => Ok(vec![format!("/{name}")]),
        (None, [only]) => Ok(vec![format!("/{only}")]),
        (None, []) => Err(anyhow!(
            "{} is no project of a known language and has no executable file: put a program there, named `run` or `main`, or say what to run after `--`",
            dir.display()
        )),
        (None, many) => Err(anyhow!(
            "{} has several executable files ({}): name one `run` or `main`, or say what to run after `--`",
            dir.display(),
            many.join(", ")
        )),
    }
}

/// Whether a program stands there under a name that says so.
pub(super) fn has_named_program(dir: &Path) -> bool {
    PROGRAMS.iter().any(|name| is_program(&dir.join(name)))
}

/// The executable files at the top of a directory, sorted.
pub(super) fn programs(dir: &Path) -> anyhow::Result<Vec<String>> {
    let unreadable = || format!("{} cannot be read", dir.display());
    let mut programs = Vec::new();
    for entry in dir.read_dir().with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if is_program(&entry.path()) {
            programs.push(name);
        }
    }
    programs.sort();
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn put(dir: &Path, name: &str, mode: u32) {
        std::fs::write(dir.join(name), "#!").unwrap();
        std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn lines_are_taken_apart_as_a_shell_would() {
        for (line, words) in [
            ("python3 main.py", vec!["python3", "main.py"]),
            ("  a  'b c' d\\ e \"f'g\" ''", vec!["a", "b c", "d e", "f'g", ""]),
            ("gunicorn -b :$PORT app", vec!["/bin/sh", "-c", "exec gunicorn -b :$PORT app"]),
            ("a && b", vec!["/bin/sh", "-c", "a && b"]),
        ] {
            assert_eq!(of_line(line).unwrap(), words, "{line}");
        }
        for bad in ["", "  ", "a 'b", "a\\"] {
            assert!(of_line(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_procfile_names_its_web_process() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(of_procfile(dir.path()).unwrap(), None);
        std::fs::write(dir.path().join("Procfile"), "worker: x\nweb: python3 serve.py\n").unwrap();
        assert_eq!(of_procfile(dir.path()).unwrap().unwrap(), ["python3", "serve.py"]);
    }

    #[test]
    fn programs_are_found_by_convention() {
        let dir = tempfile::tempdir().unwrap();
        let found = || of_directory(dir.path(), &[]).map_err(|error| error.to_string());
        put(dir.path(), "data", 0o644);
        assert!(found().unwrap_err().contains("no executable file"));
        put(dir.path(), "server", 0o755);
        assert_eq!(found().unwrap(), ["/server"]);
        put(dir.path(), "tool", 0o755);
        assert!(found().unwrap_err().contains("(server, tool)"));
        put(dir.path(), "main", 0o755);
        assert_eq!(found().unwrap(), ["/main"]);
        put(dir.path(), "run", 0o755);
        assert_eq!(found().unwrap(), ["/run"]);
    }

    #[test]
    fn an_asked_command_is_found_in_the_image() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "server", 0o755);
        let asked = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            of_directory(dir.path(), &words).unwrap()
        };
        assert_eq!(asked(&["./server", "./x"]), ["/server", "./x"]);
        assert_eq!(asked(&["server"]), ["/server"]);
        assert_eq!(asked(&["/bin/sh"]), ["/bin/sh"]);
        assert_eq!(asked(&["sh", "-c"]), ["sh", "-c"]);
    }
}
