//! Addresses as a configuration names them: read once, and right from then on.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// What stands before the address of an external broker.
const MQTTS: &str = "mqtts://";

/// `host:port` by which something is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort(String);

/// Where an external broker is: `mqtts://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerUrl(HostPort);

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("{0:?} is not host:port")]
    HostPort(String),
    #[error("{0:?} must start with {MQTTS}")]
    Scheme(String),
}

impl BrokerUrl {
    pub fn address(&self) -> &HostPort {
        &self.0
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self(address.to_string())
    }
}

impl FromStr for HostPort {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let good = text.rsplit_once(':').is_some_and(|(host, port)| {
            let host_is_good =
                !host.is_empty() && !host.contains(['/', '@']) && !host.contains(char::is_whitespace);
            host_is_good && port.parse::<u16>().is_ok_and(|port| port != 0)
        });
        if good { Ok(Self(text.to_owned())) } else { Err(AddressError::HostPort(text.to_owned())) }
    }
}

impl FromStr for BrokerUrl {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let address = text.strip_prefix(MQTTS).ok_or_else(|| AddressError::Scheme(text.to_owned()))?;
        Ok(Self(address.parse()?))
    }
}

/// Reads an address, or none from an empty text.
pub(super) fn unless_empty<'de, D: Deserializer<'de>, T: FromStr<Err = AddressError>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(serde::de::Error::custom)
}
