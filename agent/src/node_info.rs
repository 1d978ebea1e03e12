//! What this node is, read once at the start from the configuration and the kernel.

use std::net::SocketAddr;
use std::path::Path;

use tombolo_api::report::NodeInfo;
use tombolo_oci::Platform;

use crate::config::Config;

/// Describes the node that has so much memory, and whose router answers at `router`.
pub(crate) fn read(config: &Config, memory_bytes: u64, router: SocketAddr) -> NodeInfo {
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
        memory_bytes,
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
    }

    #[test]
    fn the_agents_labels_do_not_replace_configured_ones() {
        let mut config = Config { node: "press-7".into(), ..Config::default() };
        config.labels.insert("kubernetes.io/os".into(), "mine".into());
        let info = read(&config, 2 << 30, SocketAddr::from(([127, 0, 0, 1], 80)));
        assert_eq!(info.labels["kubernetes.io/hostname"], "press-7");
        assert_eq!(info.labels["kubernetes.io/os"], "mine");
        assert!(!info.boot_id.is_empty());
        assert_eq!((info.address.as_str(), info.memory_bytes), ("127.0.0.1:80", 2 << 30));
    }
}
