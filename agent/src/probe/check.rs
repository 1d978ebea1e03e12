//! One attempt of a probe, whichever of the four kinds it is. It must not know when attempts are made, nor what they lead to.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tombolo_api::quantity::IntOrString;
use tombolo_api::serving::{Container, Probe};

use super::schedule::Pace;
use super::{Exec, Miss, Reach, connect, exec, grpc, http};

/// How often a port is tried that must open: an attempt costs some 10 µs.
const PORT_PACE: Pace =
    Pace { shortest: Duration::from_micros(200), longest: Duration::from_millis(100), part: 32 };

/// With a period given, the program's answers are not asked for much more often than that.
const GIVEN_PACE: Pace = Pace { longest: Duration::from_secs(1), ..PORT_PACE };

/// A command is a new process in the container, some milliseconds of work.
const EXEC_PACE: Pace =
    Pace { shortest: Duration::from_millis(50), longest: Duration::from_secs(1), part: 4 };

/// How long the end of a command may take to become known beyond the command's own time: whoever runs it may be starting anew,
/// and others may be before it.
const EXEC_ANSWER: Duration = Duration::from_secs(5);

/// What is looked at.
pub(super) enum Check {
    Tcp { port: u16 },
    Http { port: u16, request: http::Request },
    Grpc { port: u16, service: String },
    Exec { command: Vec<String>, exec: Exec },
}

/// Why a probe cannot be made, with the field that says so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsupported {
    #[error("{0}.exec cannot be served by this node: use httpGet, tcpSocket or grpc")]
    Exec(&'static str),
    #[error("{0}.exec.command is empty: name the program that tells whether the instance is well")]
    NoCommand(&'static str),
    #[error("{0}.httpGet.scheme HTTPS is not served: use HTTP, or tcpSocket")]
    Https(&'static str),
    #[error("{field}.{kind}.host is not served: leave it out, probes go to the instance itself")]
    Host { field: &'static str, kind: &'static str },
    #[error(
        "{field}: there is no port {port}: name one of the container's ports, or a number from 1 to 65535"
    )]
    Port { field: &'static str, port: String },
}

impl Check {
    /// `field` names the probe in errors. A probe that asks for nothing looks whether the serving port is open.
    pub(super) fn of(
        probe: &Probe,
        field: &'static str,
        container: Option<&Container>,
        serving_port: u16,
        can_exec: Option<&Exec>,
    ) -> Result<Self, Unsupported> {
        let host = |host: &str, kind| match host {
            "" => Ok(()),
            _ => Err(Unsupported::Host { field, kind }),
        };
        let port = |port: &IntOrString| {
            number(port, container, serving_port)
                .ok_or_else(|| Unsupported::Port { field, port: port.to_string() })
        };
        if let Some(get) = &probe.http_get {
            host(&get.host, "httpGet")?;
            if get.scheme.eq_ignore_ascii_case("https") {
                return Err(Unsupported::Https(field));
            }
            let port = port(&get.port)?;
            let named = container
                .and_then(|container| container.ports.first())
                .filter(|named| named.name == "h2c" && port == serving_port);
            return Ok(Self::Http { port, request: http::Request::new(get, port, named.is_some()) });
        }
        if let Some(action) = &probe.grpc {
            let port = port(&IntOrString::Int(action.port))?;
            return Ok(Self::Grpc { port, service: action.service.clone() });
        }
        if let Some(action) = &probe.exec {
            let exec = can_exec.ok_or(Unsupported::Exec(field))?.clone();
            let command = Some(action.command.clone()).filter(|command| !command.is_empty());
            let command = command.ok_or(Unsupported::NoCommand(field))?;
            return Ok(Self::Exec { command, exec });
        }
        let Some(action) = &probe.tcp_socket else { return Ok(Self::Tcp { port: serving_port }) };
        host(&action.host, "tcpSocket")?;
        Ok(Self::Tcp { port: port(&action.port)? })
    }

    /// How often it may be tried while the first pass is waited for.
    pub(super) fn pace(&self, has_period: bool) -> Pace {
        match self {
            Self::Exec { .. } => EXEC_PACE,
            Self::Tcp { .. } | Self::Http { .. } | Self::Grpc { .. } if has_period => GIVEN_PACE,
            Self::Tcp { .. } | Self::Http { .. } | Self::Grpc { .. } => PORT_PACE,
        }
    }

    /// Tries once. `spare` keeps what saves work the next time.
    pub(super) async fn attempt(
        &self,
        reach: &Reach,
        spare: &mut Option<OwnedFd>,
        timeout: Duration,
    ) -> Result<(), Miss> {
        let in_time = match self {
            Self::Exec { command, exec } => {
                let tried =
                    tokio::time::timeout(timeout + EXEC_ANSWER, exec::ask(exec, command, timeout)).await;
                tried.unwrap_or_else(|_| Err(Miss::Unknown("nobody says how it ended".to_owned())))
            }
            Self::Tcp { .. } | Self::Http { .. } | Self::Grpc { .. } => {
                let tried = tokio::time::timeout(timeout, self.ask(reach, spare)).await;
                let answer = tried.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")));
                answer.map_err(Miss::Failed)
            }
        };
        in_time.map_err(|miss| match miss {
            Miss::Failed(why) => Miss::Failed(format!("{self}: {why}")),
            Miss::Unknown(why) => Miss::Unknown(format!("{self}: {why}")),
        })
    }

    /// Asks the instance over its network.
    async fn ask(&self, reach: &Reach, spare: &mut Option<OwnedFd>) -> Result<(), String> {
        let (Self::Tcp { port } | Self::Http { port, .. } | Self::Grpc { port, .. }) = self else {
            return Ok(());
        };
        let open = connect::open(reach, spare, *port).await.map_err(words)?;
        match self {
            Self::Http { request, .. } => http::ask(open.stream().map_err(words)?, request).await,
            Self::Grpc { service, .. } => grpc::ask(open.stream().map_err(words)?, service).await,
            Self::Tcp { .. } | Self::Exec { .. } => Ok(()),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { port } => write!(f, "port {port}"),
            Self::Http { port, request } => write!(f, "GET {} on port {port}", request.path()),
            Self::Grpc { port, service } if service.is_empty() => write!(f, "gRPC health on port {port}"),
            Self::Grpc { port, service } => write!(f, "gRPC health of {service} on port {port}"),
            Self::Exec { command, .. } => write!(f, "command {}", command.join(" ")),
        }
    }
}

/// The serving port for 0 and for no name, else what is said.
fn number(port: &IntOrString, container: Option<&Container>, serving_port: u16) -> Option<u16> {
    match port {
        IntOrString::Int(0) => Some(serving_port),
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) if name.is_empty() => Some(serving_port),
        IntOrString::String(name) => {
            let named = container?.ports.iter().find(|port| port.name == *name)?;
            if named.container_port == 0 {
                return Some(serving_port);
            }
            u16::try_from(named.container_port).ok()
        }
    }
}

fn words(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "nothing listens there".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use tombolo_api::serving::{ContainerPort, ExecAction, GrpcAction, HttpGetAction, TcpSocketAction};

    use super::*;
    use crate::probe::tests::{here, unused_port};

    fn tcp(port: IntOrString) -> Probe {
        Probe { tcp_socket: Some(TcpSocketAction { port, host: String::new() }), ..Probe::default() }
    }

    fn http(get: HttpGetAction) -> Probe {
        Probe { http_get: Some(get), ..Probe::default() }
    }

    fn check(probe: &Probe, port_name: &str) -> Result<String, Unsupported> {
        let port = ContainerPort { container_port: 8080, name: port_name.into(), ..ContainerPort::default() };
        let container = Container { ports: vec![port], ..Container::default() };
        Check::of(probe, "probe", Some(&container), 8080, None).map(|check| check.to_string())
    }

    #[test]
    fn ports_are_numbers_or_names_and_the_serving_port_if_neither() {
        let table = [
            (Probe::default(), "port 8080"),
            (tcp(IntOrString::Int(0)), "port 8080"),
            (tcp(IntOrString::Int(9000)), "port 9000"),
            (tcp(IntOrString::String(String::new())), "port 8080"),
            (tcp(IntOrString::String("http1".into())), "port 8080"),
            (http(HttpGetAction { path: "x".into(), ..HttpGetAction::default() }), "GET /x on port 8080"),
            (
                Probe { grpc: Some(GrpcAction { port: 0, service: "a.B".into() }), ..Probe::default() },
                "gRPC health of a.B on port 8080",
            ),
        ];
        for (probe, expected) in table {
            assert_eq!(check(&probe, "http1").as_deref(), Ok(expected));
        }
    }

    #[test]
    fn what_cannot_be_probed_is_refused_by_its_field() {
        let get = HttpGetAction::default;
        let exec = ExecAction { command: vec!["true".into()] };
        let table = [
            (Probe { exec: Some(exec), ..Probe::default() }, "probe.exec cannot"),
            (http(HttpGetAction { scheme: "HTTPS".into(), ..get() }), "probe.httpGet.scheme HTTPS"),
            (http(HttpGetAction { host: "x".into(), ..get() }), "probe.httpGet.host"),
            (tcp(IntOrString::String("admin".into())), "there is no port admin"),
            (tcp(IntOrString::Int(70_000)), "there is no port 70000"),
        ];
        for (probe, expected) in table {
            let error = check(&probe, "http1").unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn tcp_passes_when_the_port_is_open() {
        let (reach, _) = here();
        let port = unused_port().await;
        let check = Check::Tcp { port };
        let mut spare = None;
        let refused = check.attempt(&reach, &mut spare, Duration::from_secs(10)).await.unwrap_err();
        assert_eq!(refused, Miss::Failed(format!("port {port}: nothing listens there")));
        let _listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        assert_eq!(check.attempt(&reach, &mut spare, Duration::from_secs(10)).await, Ok(()));
    }

    #[tokio::test]
    async fn a_program_that_says_nothing_fails_after_the_timeout() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (reach, _) = here();
        for probe in
            [http(HttpGetAction::default()), Probe { grpc: Some(GrpcAction::default()), ..Probe::default() }]
        {
            let check = Check::of(&probe, "probe", None, port, None).unwrap();
            let failed = check.attempt(&reach, &mut None, Duration::from_millis(50)).await.unwrap_err();
            let in_words = matches!(&failed, Miss::Failed(why) if why.ends_with("no answer within 50ms"));
            assert!(in_words, "{failed:?}");
        }
    }
}
