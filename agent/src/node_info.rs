//! What this node is, read once at the start from the configuration and the kernel.

use std::net::SocketAddr;
use std::path::Path;

use tombolo_api::report::NodeInfo;
use tombolo_oci::Platform;

use crate::config::Config;

/// Percent of the node's memory that instances may fill; the rest is the kernel's, the agent's and the system's.
const INSTANCES_PERCENT: u64 = 90;

/// Memory for instances, bytes. Without bound where the kernel does not say what there is.
pub(crate) fn memory_for_instances() -> u64 {
    match memory_bytes(&text("/proc/meminfo")) {
        0 => u64::MAX,
        bytes => bytes / 100 * INSTANCES_PERCENT,
    }
}

/// Describes the node whose router answers at `router`.
pub(crate) fn read(config: &Config, router: SocketAddr) -> NodeInfo {
    let platform = Platform::host();
    let mut labels = config.labels.clone();
    for (name, value) in [
        ("kubernetes.io/hostname", config.node.clone()),
        ("kubernetes.io/os", platform.os.clone()),
        ("kubernetes.io/arch", platform.architecture.clone()),
    ] {
        labels.entry(name.to_owned()).or_insert(value);
    }
    NodeInfo {
        labels,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_version: line("/proc/sys/kernel/osrelease"),
        os_image: os_image(&text("/etc/os-release")),
        architecture: platform.architecture,
        boot_id: line(&config.boot_id_file),
        cpus: std::thread::available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
        memory_bytes: memory_bytes(&text("/proc/meminfo")),
        address: router.to_string(),
        limitations: Vec::new(),
        ..NodeInfo::default()
    }
}

fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn line(path: impl AsRef<Path>) -> String {
    text(path).trim().to_owned()
}

fn os_image(os_release: &str) -> String {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    value.unwrap_or("Linux").trim_matches('"').to_owned()
}

fn memory_bytes(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes: Option<u64> = total.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    kilobytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_says() {
        assert_eq!(
            os_image("NAME=\"x\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(os_image(""), "Linux");
        assert_eq!(memory_bytes("MemTotal:        2097152 kB\nMemFree: 1 kB\n"), 2 << 30);
        assert_eq!(memory_bytes("?"), 0);
    }

    #[test]
    fn the_agents_labels_do_not_replace_configured_ones() {
        let mut config = Config { node: "press-7".into(), ..Config::default() };
        config.labels.insert("kubernetes.io/os".into(), "mine".into());
        let info = read(&config, SocketAddr::from(([127, 0, 0, 1], 80)));
        assert_eq!(info.labels["kubernetes.io/hostname"], "press-7");
        assert_eq!(info.labels["kubernetes.io/os"], "mine");
        assert!(!info.boot_id.is_empty());
        assert_eq!(info.address, "127.0.0.1:80");
    }
}
