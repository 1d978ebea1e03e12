//! The two directions of one connection with their buffers. Knows packets, not what they mean.

use std::time::Duration;

use bytes::BytesMut;
use rumqttc::mqttbytes::Error as PacketError;
use rumqttc::{Disconnect, DisconnectReasonCode, Packet};
use tokio::io::{AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tombolo_api::frame::PACKET_MAX;

/// Buffers larger than this are given back when they are empty, bytes.
const BUFFER_KEPT: usize = 8 * 1024;

/// How long the goodbye may take.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(1);

/// The two directions of a connection with their buffers.
pub(super) struct Wire {
    pub(super) reader: ReadHalf<TlsStream<TcpStream>>,
    pub(super) writer: WriteHalf<TlsStream<TcpStream>>,
    pub(super) input: BytesMut,
    pub(super) output: BytesMut,
    pub(super) flushed: bool,
    /// Largest packet the client takes.
    pub(super) packet_max: usize,
}

impl Wire {
    pub(super) fn new(stream: TlsStream<TcpStream>) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader,
            writer,
            input: BytesMut::new(),
            output: BytesMut::new(),
            flushed: true,
            packet_max: PACKET_MAX,
        }
    }

    pub(super) fn put(&mut self, packet: &Packet) -> Result<(), PacketError> {
        packet.write(&mut self.output, None).map(drop)
    }

    pub(super) fn has_output(&self) -> bool {
        !self.output.is_empty() || !self.flushed
    }

    /// Gives large buffers back when they are empty: most connections are idle most of the time.
    pub(super) fn trim(&mut self) {
        for buffer in [&mut self.input, &mut self.output] {
            if buffer.is_empty() && buffer.capacity() > BUFFER_KEPT {
                *buffer = BytesMut::new();
            }
        }
    }

    pub(super) async fn drain(&mut self) -> std::io::Result<()> {
        while self.has_output() {
            send(&mut self.writer, &mut self.output, &mut self.flushed).await?;
        }
        Ok(())
    }

    /// Says why it is over, as far as the client still listens.
    pub(super) async fn goodbye(&mut self, reason: DisconnectReasonCode) {
        let last = async {
            self.put(&Packet::Disconnect(Disconnect::new(reason))).ok();
            self.drain().await.ok();
            self.writer.shutdown().await.ok();
        };
        timeout(GOODBYE_DEADLINE, last).await.ok();
    }
}

/// One step of sending: some output, or else the flush after it. May be cancelled and called again.
pub(super) async fn send(
    writer: &mut WriteHalf<TlsStream<TcpStream>>,
    output: &mut BytesMut,
    flushed: &mut bool,
) -> std::io::Result<()> {
    if output.is_empty() {
        writer.flush().await?;
        *flushed = true;
        return Ok(());
    }
    *flushed = false;
    if writer.write_buf(output).await? == 0 {
        return Err(std::io::ErrorKind::WriteZero.into());
    }
    Ok(())
}
