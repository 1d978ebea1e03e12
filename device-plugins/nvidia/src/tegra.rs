//! Boards whose GPU is part of the processor (Jetson), for which the driver's library tells nothing. What a container needs
//! of them is in lists that come with the board's system: lines of `dev`, `lib`, `sym` and `dir` with a path.
//!
//! Such a GPU has the machine's memory, and no errors to report.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::config::Paths;
use crate::files::{self, Driver};
use crate::gpu::{Gpu, Usage, Uuid};

const LISTS: &str = "/etc/nvidia-container-runtime/host-files-for-container.d";

/// By either of these a board is known.
const RELEASE: &str = "/etc/nv_tegra_release";
const FAMILY: &str = "devices/soc0/family";

/// The only GPU of its kind in a machine.
const NAME: &str = "tegra";

/// A board with all that its lists name and that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Board {
    pub(crate) gpu: Gpu,
    pub(crate) driver: Driver,
}

/// Why a board cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BoardError {
    #[error("this is no board with a Tegra processor")]
    None,
    #[error(
        "the lists of the board's files in {LISTS} name no device that is there: install the board's package of them"
    )]
    NoLists,
}

pub(crate) fn look(paths: &Paths) -> Result<Board, BoardError> {
    let family = fs::read_to_string(paths.sys.join(FAMILY)).unwrap_or_default();
    if !files::under(&paths.root, Path::new(RELEASE)).exists() && family.trim() != "Tegra" {
        return Err(BoardError::None);
    }
    let mut nodes = BTreeSet::new();
    let mut driver = Driver::default();
    for (kind, path) in entries(paths) {
        match kind.as_str() {
            "dev" => nodes.extend(matching_nodes(&path, paths)),
            "lib" | "dir" if files::under(&paths.root, &path).exists() => driver.files.push(path),
            "sym" => driver.links.extend(link(path, paths)),
            _ => {}
        }
    }
    if nodes.is_empty() {
        return Err(BoardError::NoLists);
    }
    let gpu = Gpu {
        index: 0,
        uuid: Uuid(NAME.to_owned()),
        name: model(paths),
        minor: 0,
        bus: String::new(),
        memory_bytes: memory_bytes(paths),
        instances: None,
        nodes: Some(nodes.into_iter().collect()),
        usage: Usage::default(),
    };
    Ok(Board { gpu, driver })
}

/// What all lists say, each once, in the order of the lists' names.
fn entries(paths: &Paths) -> Vec<(String, PathBuf)> {
    let directory = files::under(&paths.root, Path::new(LISTS));
    let mut lists: Vec<_> = files::names(&directory).filter(|name| name.ends_with(".csv")).collect();
    lists.sort();
    let mut seen = BTreeSet::new();
    let mut entries = Vec::new();
    for list in lists {
        let text = fs::read_to_string(directory.join(list)).unwrap_or_default();
        for (kind, path) in text.lines().filter_map(|line| line.split_once(',')) {
            let path = PathBuf::from(path.trim());
            if path.is_absolute() && seen.insert(path.clone()) {
                entries.push((kind.trim().to_owned(), path));
            }
        }
    }
    entries
}

/// Names below `/dev` of the nodes that are there; the last part of `path` may have one `*`.
fn matching_nodes(path: &Path, paths: &Paths) -> Vec<String> {
    let Some(name) = path.strip_prefix("/dev").ok().and_then(Path::to_str) else { return Vec::new() };
    let (directory, last) = name.rsplit_once('/').unwrap_or(("", name));
    let Some((start, end)) = last.split_once('*') else {
        return if paths.dev.join(name).exists() { vec![name.to_owned()] } else { Vec::new() };
    };
    let fits = |each: &String| {
        each.len() >= start.len() + end.len() && each.starts_with(start) && each.ends_with(end)
    };
    let found = files::names(&paths.dev.join(directory)).filter(fits);
    found.map(|each| Path::new(directory).join(each).display().to_string()).collect()
}

/// The file that a link of the host leads to, and the link.
fn link(path: PathBuf, paths: &Paths) -> Option<(PathBuf, PathBuf)> {
    let target = fs::read_link(files::under(&paths.root, &path)).ok()?;
    let target = path.parent()?.join(target);
    files::under(&paths.root, &target).is_file().then_some((target, path))
}

fn model(paths: &Paths) -> String {
    let text = fs::read_to_string(paths.proc.join("device-tree/model")).unwrap_or_default();
    let text = text.trim_end_matches('\0').trim();
    if text.is_empty() { "NVIDIA Tegra".to_owned() } else { text.to_owned() }
}

fn memory_bytes(paths: &Paths) -> u64 {
    let text = fs::read_to_string(paths.proc.join("meminfo")).unwrap_or_default();
    let kilobytes = text.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    kilobytes.unwrap_or_default() << 10
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Host;

    fn board(lists: &[(&str, &str)]) -> Host {
        let host = Host::new();
        host.put("root/etc/nv_tegra_release", b"# R36 (release), REVISION: 4.3");
        host.put("proc/device-tree/model", b"NVIDIA Jetson Orin Nano\0");
        host.put("proc/meminfo", b"MemTotal:        7990000 kB\nMemFree: 1 kB\n");
        for (name, text) in lists {
            host.put(&format!("root{LISTS}/{name}"), text.as_bytes());
        }
        host
    }

    #[test]
    fn a_board_has_what_its_lists_name_and_what_is_there() {
        let host = board(&[
            (
                "devices.csv",
                "dev, /dev/nvhost-ctrl-gpu\ndev, /dev/nvmap\ndev, /dev/nvgpu/igpu0/*\ndev, /dev/absent\n",
            ),
            (
                "drivers.csv",
                "lib, /usr/lib/tegra/libcuda.so.1.1\nlib, /usr/lib/tegra/absent.so\n\
                 sym, /usr/lib/libcuda.so\nsym, /usr/lib/broken.so\ndir, /etc/nvidia\ndev, /dev/nvmap\n",
            ),
            ("readme.txt", "dev, /dev/other\n"),
        ]);
        for path in [
            "dev/nvhost-ctrl-gpu",
            "dev/nvmap",
            "dev/other",
            "dev/nvgpu/igpu0/as",
            "dev/nvgpu/igpu0/ctrl",
            "root/usr/lib/tegra/libcuda.so.1.1",
            "root/etc/nvidia/a.conf",
        ] {
            host.put(path, b"");
        }
        host.link("root/usr/lib/libcuda.so", "tegra/libcuda.so.1.1");
        host.link("root/usr/lib/broken.so", "nothing");
        let Board { gpu, driver } = look(&host.paths).unwrap();
        let nodes = ["nvgpu/igpu0/as", "nvgpu/igpu0/ctrl", "nvhost-ctrl-gpu", "nvmap"];
        assert_eq!(gpu.nodes, Some(nodes.map(str::to_owned).into()));
        assert_eq!((gpu.name.as_str(), gpu.memory_bytes), ("NVIDIA Jetson Orin Nano", 7_990_000 << 10));
        assert_eq!(
            driver.files,
            [PathBuf::from("/usr/lib/tegra/libcuda.so.1.1"), PathBuf::from("/etc/nvidia")]
        );
        let link = ("/usr/lib/tegra/libcuda.so.1.1".into(), "/usr/lib/libcuda.so".into());
        assert_eq!(driver.links, [link]);
    }

    #[test]
    fn without_lists_a_board_says_what_is_missing() {
        let host = board(&[]);
        assert_eq!(look(&host.paths), Err(BoardError::NoLists));
        assert!(BoardError::NoLists.to_string().contains("install"));
    }

    #[test]
    fn another_machine_is_no_board() {
        let host = Host::new();
        assert_eq!(look(&host.paths), Err(BoardError::None));
        host.put("sys/devices/soc0/family", b"Tegra\n");
        assert_eq!(look(&host.paths), Err(BoardError::NoLists));
    }
}
