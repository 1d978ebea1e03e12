//! The name of this machine's node: chosen at the first run, the same ever after.

use std::path::Path;

use anyhow::{Context as _, bail};
use tombolo_api::NodeId;

/// The file in the state directory that keeps it.
const FILE: &str = "node";

/// A DNS label's length.
const NAME_MAX: usize = 63;

/// The node's name: the one kept, else the one asked for, else the machine's. It is kept from then on.
pub(super) fn name(state_dir: &Path, asked: Option<&str>) -> anyhow::Result<String> {
    let path = state_dir.join(FILE);
    let kept = match std::fs::read_to_string(&path) {
        Ok(text) => Some(text.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
    };
    match (kept, asked) {
        (Some(kept), Some(asked)) if kept != asked => {
            bail!(
                "--node {asked}: {} belongs to node {kept}; leave --node away, or name another --state-dir",
                state_dir.display()
            )
        }
        (Some(kept), _) => Ok(kept),
        (None, asked) => {
            let name = match asked {
                Some(asked) => asked.parse::<NodeId>().context("--node")?.to_string(),
                None => fit(&nix::unistd::gethostname().unwrap_or_default().to_string_lossy()),
            };
            std::fs::write(&path, format!("{name}\n"))
                .with_context(|| format!("{} cannot be written", path.display()))?;
            Ok(name)
        }
    }
}

/// A host name's first part as a node id.
fn fit(host: &str) -> String {
    let first = host.split('.').next().unwrap_or_default();
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = first.chars().map(letter).take(NAME_MAX).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { "node".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_become_node_ids() {
        for (host, name) in [("Press_7.example.com", "press-7"), ("", "node"), ("-.-", "node"), ("ü", "node")]
        {
            assert_eq!(fit(host), name, "{host}");
        }
        assert!(fit(&"a-".repeat(60)).parse::<NodeId>().is_ok());
    }

    #[test]
    fn the_first_run_fixes_the_name() {
        let dir = tempfile::tempdir().unwrap();
        assert!(name(dir.path(), Some("Not A Name")).is_err());
        assert_eq!(name(dir.path(), Some("press-7")).unwrap(), "press-7");
        assert_eq!(name(dir.path(), None).unwrap(), "press-7");
        assert_eq!(name(dir.path(), Some("press-7")).unwrap(), "press-7");
        let error = name(dir.path(), Some("press-8")).unwrap_err().to_string();
        assert!(error.contains("belongs to node press-7"), "{error}");
    }
}
