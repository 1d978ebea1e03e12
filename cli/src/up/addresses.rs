//! Where everything of `up` listens: chosen from flags, and tried before anything is started, so that a port in use is
//! told with the flag that changes it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use crate::args;

/// Ports where no flag says otherwise; those of `tombolo-hub` and `tombolo-agent`.
const API_PORT: u16 = 7080;
const ADMIN_PORT: u16 = 7081;
const NODE_PORT: u16 = 7443;
const MQTT_PORT: u16 = 7883;

/// Every address, with a port that was free a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) router: SocketAddr,
    pub(super) api: SocketAddr,
    pub(super) nodes: SocketAddr,
    pub(super) mqtt: SocketAddr,
    pub(super) admin: SocketAddr,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum AddressError {
    #[error("{address}, for {what}, is in use: choose another port with {flag}; 0 takes a free one")]
    InUse { address: SocketAddr, what: &'static str, flag: &'static str },
    #[error("{address}, for {what}, is no address of this machine: choose one with {flag}")]
    NotHere { address: SocketAddr, what: &'static str, flag: &'static str },
    #[error("{address}, for {what}, cannot be listened on: choose another with {flag}")]
    Other { address: SocketAddr, what: &'static str, flag: &'static str, source: io::Error },
}

impl Addresses {
    pub(super) fn choose(args: &args::Up) -> Result<Self, AddressError> {
        let or = |asked: Option<SocketAddr>, port| asked.unwrap_or(SocketAddr::new(args.bind, port));
        let router_flag = if args.router_listen.is_some() { "--router-listen" } else { "--http-port" };
        // All are held until all are had, so that two flags with one address are found out too.
        let router = listen(or(args.router_listen, args.http_port), "the router", router_flag)?;
        let api = listen(or(args.api_listen, API_PORT), "the hub's API", "--api-listen IP:PORT")?;
        let nodes = listen(or(args.node_listen, NODE_PORT), "the hub's nodes", "--node-listen IP:PORT")?;
        let mqtt = listen(or(args.mqtt_listen, MQTT_PORT), "the MQTT broker", "--mqtt-listen IP:PORT")?;
        let admin =
            listen(or(args.admin_listen, ADMIN_PORT), "the agent's health", "--admin-listen IP:PORT")?;
        Ok(Self { router: router.1, api: api.1, nodes: nodes.1, mqtt: mqtt.1, admin: admin.1 })
    }
}

/// An address as other machines reach it; `None` if it says so itself.
pub(super) fn advertised(address: SocketAddr) -> Option<SocketAddr> {
    address
        .ip()
        .is_unspecified()
        .then(|| SocketAddr::new(outward().unwrap_or(Ipv4Addr::LOCALHOST.into()), address.port()))
}

fn listen(
    address: SocketAddr,
    what: &'static str,
    flag: &'static str,
) -> Result<(TcpListener, SocketAddr), AddressError> {
    let listener = TcpListener::bind(address).and_then(|listener| Ok((listener.local_addr()?, listener)));
    match listener {
        Ok((address, listener)) => Ok((listener, address)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Err(AddressError::InUse { address, what, flag })
        }
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            Err(AddressError::NotHere { address, what, flag })
        }
        Err(source) => Err(AddressError::Other { address, what, flag, source }),
    }
}

/// This machine's address on the way to the rest of the world. Nothing is sent: the kernel looks up the route.
fn outward() -> io::Result<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // An address set aside for documentation, which every default route leads to.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn chosen(flags: &str) -> Result<Addresses, AddressError> {
        let line = format!(
            "tombolo up --http-port 0 --api-listen 127.0.0.1:0 --node-listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 {flags}"
        );
        let args::Command::Up(up) = args::Arguments::try_parse_from(line.split_whitespace()).unwrap().command
        else {
            panic!("not up")
        };
        Addresses::choose(&up)
    }

    #[test]
    fn free_ports_are_found() {
        let addresses = chosen("--mqtt-listen 127.0.0.1:0").unwrap();
        let Addresses { router, api, nodes, mqtt, admin } = addresses;
        let ports: std::collections::BTreeSet<u16> =
            [router, api, nodes, mqtt, admin].map(|address| address.port()).into();
        assert_eq!(ports.len(), 5);
        assert!(!ports.contains(&0));
    }

    #[test]
    fn a_port_in_use_names_its_flag() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let error =
            chosen(&format!("--mqtt-listen {}", taken.local_addr().unwrap())).unwrap_err().to_string();
        assert!(error.contains("is in use") && error.contains("--mqtt-listen"), "{error}");
        let error = chosen("--mqtt-listen 192.0.2.1:0").unwrap_err().to_string();
        assert!(error.contains("no address of this machine"), "{error}");
    }

    #[test]
    fn only_every_address_needs_another_name() {
        assert_eq!(advertised("127.0.0.1:1".parse().unwrap()), None);
        let told = advertised("0.0.0.0:1".parse().unwrap()).unwrap();
        assert!(!told.ip().is_unspecified() && told.port() == 1, "{told}");
    }
}
