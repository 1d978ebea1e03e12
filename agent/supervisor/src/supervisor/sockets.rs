//! Sockets that agents listen on, kept open so that whoever connects while there is no agent waits for the next one. Knows
//! their names, not what they serve.

use std::os::fd::OwnedFd;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::AcceptConn;
use tombolo_agent_core::supervision::{Answer, Message, Refusal, SOCKETS_MAX};

use super::Supervisor;
use super::requests::is_label;
use crate::instance::Caller;

impl Supervisor {
    pub(super) fn keep_socket(
        &mut self,
        name: String,
        descriptor: Option<OwnedFd>,
    ) -> Result<Answer, Refusal> {
        let Some(socket) = descriptor else {
            return Err(Refusal::Malformed("no descriptor came along".into()));
        };
        if !is_label(&name) {
            return Err(Refusal::Malformed(format!("{name:?} is not a DNS label")));
        }
        // Anything else would be held open for ever without use to anybody.
        if !getsockopt(&socket, AcceptConn).unwrap_or(false) {
            return Err(Refusal::Malformed("what came along is no listening socket".into()));
        }
        if self.sockets.len() >= SOCKETS_MAX && !self.sockets.contains_key(&name) {
            return Err(Refusal::TooManySockets);
        }
        self.sockets.insert(name, socket);
        Ok(Answer::Done)
    }

    /// Answers with another descriptor of the socket, if there is one.
    pub(super) fn give_socket(&mut self, caller: Caller, name: &str) {
        let copy = self.sockets.get(name).map(OwnedFd::try_clone).transpose();
        let (result, descriptor) = match copy {
            Ok(copy) => (Ok(Answer::Taken { found: copy.is_some() }), copy),
            Err(error) => (Err(Refusal::Runtime(format!("cannot duplicate the socket: {error}"))), None),
        };
        self.send(caller.connection, &Message::Reply { seq: caller.seq, result }, descriptor);
    }
}
