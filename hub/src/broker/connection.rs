//! One client's connection: TLS, who it is, CONNECT, then packets both ways until one side ends it.
//!
//! ```text
//! stranger ──TLS──▶ named by its certificate ──CONNECT──▶ joined ──▶ gone (its will published, unless it said goodbye)
//! ```
//!
//! Reading goes on while writing waits, so two sides that write at once never block each other. Whoever reads nothing for
//! long is cut off.

use std::time::Duration;

use rumqttc::mqttbytes::Error as PacketError;
use rumqttc::{
    ConnAck, ConnAckProperties, Connect, ConnectReturnCode, Disconnect, DisconnectReasonCode, LastWill,
    Packet, PubAck, Publish, QoS, SubAck, Subscribe, UnsubAck, UnsubAckReason, Unsubscribe,
};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};
use tombolo_api::frame::PACKET_MAX;
use tombolo_api::{Digest, NodeId};

mod wire;

use self::wire::{Wire, send};
use super::Shared;
use super::switch::{Client, Next, Ticket, Will};
use crate::pki::{HUB_NAME, Peer};

/// How long a stranger gets from its first byte to the end of CONNECT.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Largest CONNECT: an id, a few properties and a will that is a presence.
const CONNECT_MAX: u32 = 16 * 1024;

/// Longest keep-alive, seconds: bounds how late a silent loss of a client is noticed.
const KEEP_ALIVE_MAX_S: u16 = 300;

/// Longest time a will waits for its client to come back, seconds.
const SESSION_EXPIRY_MAX_S: u32 = 60;

/// How long a client may take nothing of what is written to it.
const STALL_MAX: Duration = Duration::from_secs(30);

/// Output that waits in the connection's buffer before more is made, bytes.
const OUTPUT_MAX: usize = 64 * 1024;

/// Room made for reading, bytes: at least and at most, whatever length a packet claims to have.
const INPUT_STEP: std::ops::RangeInclusive<usize> = 2 * 1024..=32 * 1024;

/// How many messages of one client may be unacknowledged.
const RECEIVE_MAX: u16 = 64;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("nothing heard for too long")]
    Silent,
    #[error("it did not read for {} s", STALL_MAX.as_secs())]
    Stalled,
    #[error("no valid certificate, or no CONNECT in {} s", CONNECT_DEADLINE.as_secs())]
    Stranger,
    #[error("{client:?} was refused: {code:?}")]
    Refused { client: String, code: ConnectReturnCode },
    #[error("a packet cannot be read")]
    Packet(#[from] PacketError),
    #[error("{0:?} of {1:?}")]
    Ended(DisconnectReasonCode, Client),
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
}

/// A client that may join.
struct Joining {
    client: Client,
    connect: Connect,
    will: Option<Will>,
    /// The key in its certificate.
    key: Digest,
}

/// Serves one connection to its end. `stranger` is given back when the client is known.
pub(super) async fn serve(
    socket: TcpStream,
    shared: &Shared,
    stranger: OwnedSemaphorePermit,
) -> Result<(), End> {
    let opening = timeout(CONNECT_DEADLINE, open(socket, shared));
    let opened = tokio::select! {
        opened = opening => opened.map_err(|_| End::Stranger)??,
        () = shared.stop.cancelled() => return Ok(()),
    };
    drop(stranger);
    let (mut wire, joining) = opened;
    let Joining { client, connect, will, key } = joining;
    let asked = connect.properties.as_ref();
    wire.packet_max = asked.and_then(|asked| asked.max_packet_size).map_or(PACKET_MAX, |max| max as usize);
    let window = asked.and_then(|asked| asked.receive_maximum).unwrap_or(u16::MAX);
    let keep_alive = if (1..=KEEP_ALIVE_MAX_S).contains(&connect.keep_alive) {
        connect.keep_alive
    } else {
        KEEP_ALIVE_MAX_S
    };
    wire.put(&Packet::ConnAck(welcome(keep_alive, lasts_s(&connect))))?;
    let ticket = shared.switch.join(client, window, will, !connect.clean_start);
    // Once more: a node that was removed in the meantime is not among the sessions that were ended then.
    if !is_welcome(&ticket.client, &key, shared) {
        let client = ticket.client.clone();
        ticket.leave();
        return Err(End::Ended(DisconnectReasonCode::NotAuthorized, client));
    }
    let end = exchange(&mut wire, &ticket, Duration::from_secs(u64::from(keep_alive)) * 3 / 2, shared).await;
    match end {
        Ok(Goodbye::Asked) => {
            ticket.leave();
            Ok(())
        }
        Ok(Goodbye::WithWill) => {
            drop(wire);
            lost(ticket, shared).await;
            Ok(())
        }
        Err(End::Ended(reason, client)) => {
            drop(ticket);
            wire.goodbye(reason).await;
            Err(End::Ended(reason, client))
        }
        Err(End::Packet(error)) => {
            drop(ticket);
            wire.goodbye(DisconnectReasonCode::MalformedPacket).await;
            Err(error.into())
        }
        Err(end) => {
            drop(wire);
            lost(ticket, shared).await;
            Err(end)
        }
    }
}

/// Gives a client whose connection broke the time it asked for to come back.
async fn lost(ticket: Ticket, shared: &Shared) {
    if let Some(lost) = ticket.lose() {
        shared.stop.run_until_cancelled(tokio::time::sleep(lost.delay)).await;
        lost.speak();
    }
}

/// How a client said goodbye.
enum Goodbye {
    Asked,
    WithWill,
}

/// From the first byte to a CONNECT that may be accepted.
async fn open(socket: TcpStream, shared: &Shared) -> Result<(Wire, Joining), End> {
    socket.set_nodelay(true)?;
    let stream = shared.tls.accept(socket).await?;
    let certificates = stream.get_ref().1.peer_certificates();
    let peer = certificates.and_then(|chain| chain.first()).and_then(Peer::of).ok_or(End::Stranger)?;
    let mut wire = Wire::new(stream);
    let packet = loop {
        match Packet::read(&mut wire.input, Some(CONNECT_MAX)) {
            Ok(packet) => break packet,
            Err(PacketError::InsufficientBytes(_)) => {}
            Err(error) => return Err(error.into()),
        }
        if wire.reader.read_buf(&mut wire.input).await? == 0 {
            return Err(End::Stranger);
        }
    };
    let Packet::Connect(connect, will, _) = packet else { return Err(End::Stranger) };
    match admit(&peer, connect, will, shared) {
        Ok(joining) => Ok((wire, joining)),
        Err(code) => {
            wire.put(&Packet::ConnAck(ConnAck { session_present: false, code, properties: None }))?;
            wire.drain().await?;
            Err(End::Refused { client: peer.name, code })
        }
    }
}

/// Whether the one whom the certificate names may join with this CONNECT.
fn admit(
    peer: &Peer,
    connect: Connect,
    will: Option<LastWill>,
    shared: &Shared,
) -> Result<Joining, ConnectReturnCode> {
    let client = if peer.name == HUB_NAME {
        Client::Hub
    } else {
        let node: NodeId = peer.name.parse().map_err(|_| ConnectReturnCode::NotAuthorized)?;
        Client::Node(node)
    };
    if !is_welcome(&client, &peer.key, shared) {
        return Err(ConnectReturnCode::NotAuthorized);
    }
    if connect.client_id != peer.name {
        return Err(ConnectReturnCode::ClientIdentifierNotValid);
    }
    if connect.properties.as_ref().is_some_and(|asked| asked.authentication_method.is_some()) {
        return Err(ConnectReturnCode::BadAuthenticationMethod);
    }
    let will = will.map(|will| {
        let delay_s =
            will.properties.and_then(|asked| asked.delay_interval).unwrap_or(0).min(lasts_s(&connect));
        let delay = Duration::from_secs(u64::from(delay_s));
        Will { topic: will.topic, payload: will.message, retain: will.retain, delay }
    });
    if will.as_ref().is_some_and(|will| !will.is_allowed(&client)) {
        return Err(ConnectReturnCode::NotAuthorized);
    }
    Ok(Joining { client, connect, will, key: peer.key })
}

fn is_welcome(client: &Client, key: &Digest, shared: &Shared) -> bool {
    match client {
        Client::Hub => true,
        Client::Node(node) => (shared.admits)(node, key),
    }
}

/// How long what is kept of the session outlives its connection.
fn lasts_s(connect: &Connect) -> u32 {
    let asked = connect.properties.as_ref().and_then(|asked| asked.session_expiry_interval);
    asked.unwrap_or(0).min(SESSION_EXPIRY_MAX_S)
}

/// What the broker says of itself.
fn welcome(keep_alive: u16, lasts_s: u32) -> ConnAck {
    ConnAck {
        session_present: false,
        code: ConnectReturnCode::Success,
        properties: Some(ConnAckProperties {
            session_expiry_interval: Some(lasts_s),
            receive_max: Some(RECEIVE_MAX),
            max_qos: Some(1),
            retain_available: Some(1),
            max_packet_size: Some(PACKET_MAX as u32),
            wildcard_subscription_available: Some(1),
            subscription_identifiers_available: Some(0),
            shared_subscription_available: Some(0),
            server_keep_alive: Some(keep_alive),
            assigned_client_identifier: None,
            topic_alias_max: None,
            reason_string: None,
            user_properties: Vec::new(),
            response_information: None,
            server_reference: None,
            authentication_method: None,
            authentication_data: None,
        }),
    }
}

/// Packets both ways until the end.
async fn exchange(
    wire: &mut Wire,
    ticket: &Ticket,
    patience: Duration,
    shared: &Shared,
) -> Result<Goodbye, End> {
    let mut heard = Instant::now();
    let mut taken = Instant::now();
    loop {
        // Before anything is answered: the time in which there was nothing to write is no stall.
        if !wire.has_output() {
            taken = Instant::now();
        }
        while wire.output.len() < OUTPUT_MAX {
            match Packet::read(&mut wire.input, Some(PACKET_MAX as u32)) {
                Ok(packet) => {
                    if let Some(goodbye) = answer(packet, wire, ticket)? {
                        return Ok(goodbye);
                    }
                }
                Err(PacketError::InsufficientBytes(missing)) => {
                    wire.input.reserve(missing.clamp(*INPUT_STEP.start(), *INPUT_STEP.end()));
                    break;
                }
                Err(PacketError::PayloadSizeLimitExceeded { .. }) => {
                    return Err(End::Ended(DisconnectReasonCode::PacketTooLarge, ticket.client.clone()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        fill(wire, ticket)?;
        wire.trim();
        let room = wire.output.len() < OUTPUT_MAX;
        let unsent = wire.has_output();
        let due = if unsent { (heard + patience).min(taken + STALL_MAX) } else { heard + patience };
        let Wire { reader, input, writer, output, flushed, .. } = &mut *wire;
        tokio::select! {
            read = reader.read_buf(input), if room => {
                if read? == 0 {
                    return Err(End::Io(std::io::ErrorKind::UnexpectedEof.into()));
                }
                heard = Instant::now();
            }
            sent = send(writer, output, flushed), if unsent => {
                sent?;
                taken = Instant::now();
            }
            () = ticket.wake.notified(), if room => {}
            () = tokio::time::sleep_until(due) => {
                return Err(if unsent && taken.elapsed() >= STALL_MAX { End::Stalled } else { End::Silent });
            }
            () = shared.stop.cancelled() => {
                return Err(End::Ended(DisconnectReasonCode::ServerShuttingDown, ticket.client.clone()));
            }
        }
    }
}

/// Takes what waits for the client into the output.
fn fill(wire: &mut Wire, ticket: &Ticket) -> Result<(), End> {
    while wire.output.len() < OUTPUT_MAX {
        match ticket.next() {
            Next::Send(publish) => {
                let (id, size) = (publish.pkid, publish.size());
                if size > wire.packet_max {
                    // The client cannot take it, so it counts as delivered (MQTT-3.1.2-25).
                    tracing::warn!(client = ?ticket.client, size, "a message is larger than its receiver takes");
                    ticket.acked(id);
                    continue;
                }
                wire.put(&Packet::Publish(*publish))?;
            }
            Next::Wait => break,
            Next::End(reason) => return Err(End::Ended(reason, ticket.client.clone())),
        }
    }
    Ok(())
}

/// Deals with one packet of the client.
fn answer(packet: Packet, wire: &mut Wire, ticket: &Ticket) -> Result<Option<Goodbye>, End> {
    let end = |reason| Err(End::Ended(reason, ticket.client.clone()));
    match packet {
        Packet::Publish(publish) => return take(&publish, wire, ticket).map(|()| None),
        Packet::PubAck(ack) => {
            ticket.acked(ack.pkid);
        }
        Packet::Subscribe(Subscribe { pkid, filters, properties }) => {
            if properties.is_some_and(|properties| properties.id.is_some()) {
                return end(DisconnectReasonCode::SubscriptionIdentifiersNotSupported);
            }
            let return_codes = filters.into_iter().map(|filter| ticket.subscribe(filter)).collect();
            wire.put(&Packet::SubAck(SubAck { pkid, return_codes, properties: None }))?;
        }
        Packet::Unsubscribe(Unsubscribe { pkid, filters, .. }) => {
            let reason = |filter: &String| {
                if ticket.unsubscribe(filter) {
                    UnsubAckReason::Success
                } else {
                    UnsubAckReason::NoSubscriptionExisted
                }
            };
            let reasons = filters.iter().map(reason).collect();
            wire.put(&Packet::UnsubAck(UnsubAck { pkid, reasons, properties: None }))?;
        }
        Packet::PingReq => wire.put(&Packet::PingResp)?,
        Packet::Disconnect(Disconnect { reason_code: DisconnectReasonCode::NormalDisconnection, .. }) => {
            return Ok(Some(Goodbye::Asked));
        }
        Packet::Disconnect(_) => return Ok(Some(Goodbye::WithWill)),
        _ => return end(DisconnectReasonCode::ProtocolError),
    }
    Ok(None)
}

/// Takes a message of the client.
fn take(publish: &Publish, wire: &mut Wire, ticket: &Ticket) -> Result<(), End> {
    let end = |reason| Err(End::Ended(reason, ticket.client.clone()));
    if publish.qos == QoS::ExactlyOnce {
        return end(DisconnectReasonCode::QoSNotSupported);
    }
    if publish.properties.as_ref().is_some_and(|properties| properties.topic_alias.is_some()) {
        return end(DisconnectReasonCode::TopicAliasInvalid);
    }
    let reason = ticket.publish(publish);
    if reason as u8 >= 0x80 {
        tracing::debug!(client = ?ticket.client, topic = ?publish.topic, ?reason, "a message was not accepted");
    }
    if publish.qos == QoS::AtLeastOnce {
        wire.put(&Packet::PubAck(PubAck { pkid: publish.pkid, reason, properties: None }))?;
    }
    Ok(())
}
