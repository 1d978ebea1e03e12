//! The configurations of hub and agent, as `up` makes them. The only file of the command that knows their shapes.

use std::fs::DirBuilder;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use anyhow::Context as _;

use super::addresses::{self, Addresses};

/// What `up` was told or has chosen.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) state_dir: PathBuf,
    pub(super) run_dir: PathBuf,
    pub(super) node: String,
    pub(super) addresses: Addresses,
}

impl Settings {
    /// The hub keeps a certificate authority and people's resources: no name in its directory may be walked through.
    pub(super) fn make_directories(&self) -> anyhow::Result<()> {
        let dir = self.hub_dir();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("{} cannot be made", dir.display()))
    }

    pub(super) fn hub(&self) -> tombolo_hub::config::Config {
        let advertise = |address| addresses::advertised(address).map(Into::into);
        let mut config = tombolo_hub::config::Config { state_dir: self.hub_dir(), ..Default::default() };
        config.api.listen = self.addresses.api;
        config.nodes.listen = self.addresses.nodes;
        config.nodes.advertise = advertise(self.addresses.nodes);
        config.mqtt.listen = self.addresses.mqtt;
        config.mqtt.advertise = advertise(self.addresses.mqtt);
        config.routes.http_port = self.addresses.router.port();
        config
    }

    /// The agent of a hub whose node listener is at `hub`. It is told what the hub tells it too, or it would ask for ever.
    pub(super) fn agent(&self, hub: SocketAddr, token: String) -> tombolo_agent::Start {
        let mut config = tombolo_agent::config::Config {
            node: self.node.clone(),
            state_dir: self.state_dir.join("agent"),
            run_dir: self.run_dir.clone(),
            ..Default::default()
        };
        config.hub.url = format!("https://{}", addresses::advertised(hub).unwrap_or(hub));
        config.hub.token = token;
        config.router.listen = self.addresses.router;
        config.admin.listen = self.addresses.admin;
        // This very program, even if its file is replaced while it runs.
        let supervisor_command = vec!["/proc/self/exe".into(), crate::SUPERVISOR.into()];
        tombolo_agent::Start { config, supervisor_command }
    }

    fn hub_dir(&self) -> PathBuf {
        self.state_dir.join("hub")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(bind: &str) -> Settings {
        let at = |port| SocketAddr::new(bind.parse().unwrap(), port);
        let addresses = Addresses { router: at(1), api: at(2), nodes: at(3), mqtt: at(4), admin: at(5) };
        Settings { state_dir: "/s".into(), run_dir: "/r".into(), node: "press-7".into(), addresses }
    }

    #[test]
    fn every_address_gets_where_it_belongs() {
        let settings = settings("127.0.0.1");
        let hub = settings.hub();
        assert_eq!(
            [hub.api.listen, hub.nodes.listen, hub.mqtt.listen].map(|address| address.port()),
            [2, 3, 4]
        );
        assert_eq!((hub.routes.http_port, hub.nodes.advertise), (1, None));
        let start = settings.agent("127.0.0.1:9".parse().unwrap(), "t".into());
        assert_eq!(
            [start.config.router.listen, start.config.admin.listen].map(|address| address.port()),
            [1, 5]
        );
        assert_eq!(
            (start.config.hub.url.as_str(), start.config.hub.token.as_str()),
            ("https://127.0.0.1:9", "t")
        );
        assert_eq!((start.config.node.as_str(), start.config.run_dir), ("press-7", "/r".into()));
    }

    #[test]
    fn nodes_elsewhere_are_told_an_address_that_is_one() {
        let hub = settings("0.0.0.0").hub();
        for advertised in [&hub.nodes.advertise, &hub.mqtt.advertise] {
            let address: SocketAddr = advertised.as_ref().unwrap().to_string().parse().unwrap();
            assert!(!address.ip().is_unspecified(), "{address}");
        }
    }
}
