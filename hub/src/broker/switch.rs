//! The broker's state behind one lock: who is connected, what is retained, who gets a message. Synchronous; knows no socket.
//!
//! A node sees its own subtree only, so a message goes to at most two clients: the node it belongs to and the hub. Nothing is
//! ever searched for among all sessions.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rumqttc::{
    DisconnectReasonCode, PubAckReason, Publish, QoS, RetainForwardRule, SubscribeFilter, SubscribeReasonCode,
};
use tokio::sync::Notify;
use tombolo_api::NodeId;
use tombolo_api::topics::{self, Leaf};

use super::queue::{Message, Queue};
use super::retained::Retained;

/// Most filters of one session: an agent that fetches blobs has some dozens.
const FILTERS_MAX: usize = 1_024;

/// Longest filter, bytes: the longest topic has some 150.
const FILTER_MAX: usize = 256;

/// Who a client is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Client {
    Hub,
    Node(NodeId),
}

/// A last will, checked.
#[derive(Clone, Debug)]
pub(super) struct Will {
    pub(super) topic: Bytes,
    pub(super) payload: Bytes,
    pub(super) retain: bool,
    /// How long a client whose connection broke may take to come back before it is published.
    pub(super) delay: Duration,
}

#[derive(Default)]
pub(super) struct Switch {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sessions: HashMap<Client, Session>,
    retained: Retained,
    next_serial: u64,
    /// Wills of clients that may still come back, with their sessions' serials.
    late: HashMap<Client, (u64, Will)>,
}

/// One connected client.
struct Session {
    serial: u64,
    filters: BTreeMap<String, SubscribeFilter>,
    queue: Queue,
    will: Option<Will>,
    wake: Arc<Notify>,
    /// Set when the connection must end.
    ended: Option<DisconnectReasonCode>,
}

/// A connection's hold on its session. Simply dropped, the session's will is published.
pub(super) struct Ticket {
    switch: Arc<Switch>,
    pub(super) client: Client,
    serial: u64,
    pub(super) wake: Arc<Notify>,
}

/// A client whose connection broke and whose will waits.
pub(super) struct Lost {
    switch: Arc<Switch>,
    client: Client,
    serial: u64,
    pub(super) delay: Duration,
}

/// What a connection should do next.
pub(super) enum Next {
    Send(Box<Publish>),
    /// Nothing until `wake`.
    Wait,
    End(DisconnectReasonCode),
}

impl Client {
    fn node(&self) -> Option<&NodeId> {
        match self {
            Self::Hub => None,
            Self::Node(node) => Some(node),
        }
    }

    fn may_publish(&self, topic: &str) -> bool {
        match self {
            Self::Hub => true,
            Self::Node(node) => topics::node_may_publish(node, topic),
        }
    }

    fn may_subscribe(&self, filter: &str) -> bool {
        match self {
            Self::Hub => filter.starts_with(topics::PREFIX),
            Self::Node(node) => topics::node_may_subscribe(node, filter),
        }
    }
}

impl Will {
    /// Whether `client` may leave it.
    pub(super) fn is_allowed(&self, client: &Client) -> bool {
        std::str::from_utf8(&self.topic)
            .is_ok_and(|topic| topics::parse(topic).is_some() && client.may_publish(topic))
    }
}

impl Switch {
    /// Begins a session. One that this client still has is ended, its will first: what the new one says comes later. With
    /// `resume` the client goes on where it was, and a will with a delay is not published.
    pub(super) fn join(
        self: &Arc<Self>,
        client: Client,
        window: u16,
        will: Option<Will>,
        resume: bool,
    ) -> Ticket {
        let mut state = self.lock();
        if resume && let Some(session) = state.sessions.get_mut(&client) {
            session.will.take_if(|will| !will.delay.is_zero());
        }
        state.end(&client, None, Some(DisconnectReasonCode::SessionTakenOver));
        if let Some((_, will)) = state.late.remove(&client).filter(|_| !resume) {
            state.speak(&will);
        }
        state.next_serial += 1;
        let serial = state.next_serial;
        let wake = Arc::new(Notify::new());
        let session = Session {
            serial,
            filters: BTreeMap::new(),
            queue: Queue::new(window),
            will,
            wake: wake.clone(),
            ended: None,
        };
        state.sessions.insert(client.clone(), session);
        drop(state);
        Ticket { switch: self.clone(), client, serial, wake }
    }

    pub(super) fn retain_sessions(&self, welcome: impl Fn(&NodeId) -> bool) {
        let mut state = self.lock();
        for (client, session) in &mut state.sessions {
            if let Client::Node(node) = client
                && !welcome(node)
            {
                session.ended = Some(DisconnectReasonCode::NotAuthorized);
                // It must not come back as a retained message after its node has been forgotten.
                session.will = None;
                session.wake.notify_one();
            }
        }
        state.late.retain(|client, _| match client {
            Client::Node(node) => welcome(node),
            Client::Hub => true,
        });
    }

    #[cfg(test)]
    pub(super) fn load(&self) -> super::Load {
        let state = self.lock();
        super::Load {
            sessions: state.sessions.len(),
            retained: state.retained.len(),
            retained_bytes: state.retained.bytes(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// The next thing to do for this connection.
    pub(super) fn next(&self) -> Next {
        let mut state = self.switch.lock();
        match state.sessions.get_mut(&self.client) {
            Some(session) if session.serial == self.serial => match session.ended {
                Some(reason) => Next::End(reason),
                None => session.queue.take().map_or(Next::Wait, |publish| Next::Send(Box::new(publish))),
            },
            _ => Next::End(DisconnectReasonCode::SessionTakenOver),
        }
    }

    /// The client has got the message with this id. Returns whether it had been sent one.
    pub(super) fn acked(&self, id: u16) -> bool {
        self.session(|session| session.queue.acked(id)).unwrap_or(true)
    }

    /// Takes a message from the client.
    pub(super) fn publish(&self, publish: &Publish) -> PubAckReason {
        let Ok(topic) = std::str::from_utf8(&publish.topic) else { return PubAckReason::TopicNameInvalid };
        let Some((owner, leaf)) = topics::parse(topic) else { return PubAckReason::TopicNameInvalid };
        if !self.client.may_publish(topic) {
            return PubAckReason::NotAuthorized;
        }
        let mut state = self.switch.lock();
        let route =
            Route { owner, leaf, topic: &publish.topic, retain: publish.retain, from: Some(&self.client) };
        state.route(&route, &publish.payload, publish.qos)
    }

    /// Adds a filter, and queues the retained messages it matches.
    pub(super) fn subscribe(&self, filter: SubscribeFilter) -> SubscribeReasonCode {
        let path = filter.path.as_str();
        if path.starts_with("$share/") {
            return SubscribeReasonCode::SharedSubscriptionsNotSupported;
        }
        if path.len() > FILTER_MAX || !rumqttc::valid_filter(path) {
            return SubscribeReasonCode::TopicFilterInvalid;
        }
        if !self.client.may_subscribe(path) {
            return SubscribeReasonCode::NotAuthorized;
        }
        let mut state = self.switch.lock();
        let state = &mut *state;
        let Some(session) =
            state.sessions.get_mut(&self.client).filter(|session| session.serial == self.serial)
        else {
            return SubscribeReasonCode::Unspecified;
        };
        let new = !session.filters.contains_key(path);
        if new && session.filters.len() >= FILTERS_MAX {
            return SubscribeReasonCode::QuotaExceeded;
        }
        let qos = at_most(filter.qos, QoS::AtLeastOnce);
        let wanted = match filter.retain_forward_rule {
            RetainForwardRule::OnEverySubscribe => true,
            RetainForwardRule::OnNewSubscribe => new,
            RetainForwardRule::Never => false,
        };
        if wanted {
            for (topic, payload) in state.retained.matching(self.client.node(), path) {
                let message = Message { topic: topic.clone(), payload: payload.clone(), qos, retain: true };
                if session.queue.push(message).is_err() {
                    return SubscribeReasonCode::QuotaExceeded;
                }
            }
        }
        session.filters.insert(filter.path.clone(), filter);
        SubscribeReasonCode::Success(qos)
    }

    /// Takes a filter away. Returns whether there was one.
    pub(super) fn unsubscribe(&self, filter: &str) -> bool {
        self.session(|session| session.filters.remove(filter).is_some()).unwrap_or(false)
    }

    /// Ends the session as the client asked, without its will.
    pub(super) fn leave(self) {
        self.session(|session| session.will = None);
    }

    /// Ends the session because its connection broke. Its will is published now, unless the client may still come back.
    pub(super) fn lose(self) -> Option<Lost> {
        let mut state = self.switch.lock();
        let session = state.sessions.get_mut(&self.client).filter(|session| session.serial == self.serial)?;
        let will = session.will.take_if(|will| !will.delay.is_zero())?;
        let delay = will.delay;
        state.late.insert(self.client.clone(), (self.serial, will));
        Some(Lost { switch: self.switch.clone(), client: self.client.clone(), serial: self.serial, delay })
    }

    fn session<T>(&self, act: impl FnOnce(&mut Session) -> T) -> Option<T> {
        let mut state = self.switch.lock();
        state.sessions.get_mut(&self.client).filter(|session| session.serial == self.serial).map(act)
    }
}

impl Lost {
    /// The client did not come back in time.
    pub(super) fn speak(self) {
        let mut state = self.switch.lock();
        if state.late.get(&self.client).is_some_and(|(serial, _)| *serial == self.serial)
            && let Some((_, will)) = state.late.remove(&self.client)
        {
            state.speak(&will);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.switch.lock();
        state.end(&self.client, Some(self.serial), None);
    }
}

/// A message's way.
struct Route<'a> {
    owner: NodeId,
    leaf: Leaf,
    topic: &'a Bytes,
    retain: bool,
    from: Option<&'a Client>,
}

impl State {
    /// Ends a session (only that with `serial`, if given) and publishes its will. `notice`: tells its connection.
    fn end(&mut self, client: &Client, serial: Option<u64>, notice: Option<DisconnectReasonCode>) {
        if serial
            .is_some_and(|serial| self.sessions.get(client).is_none_or(|session| session.serial != serial))
        {
            return;
        }
        let Some(session) = self.sessions.remove(client) else { return };
        if notice.is_some() {
            session.wake.notify_one();
        }
        if let Some(will) = session.will {
            self.speak(&will);
        }
    }

    /// Publishes a will.
    fn speak(&mut self, will: &Will) {
        let parsed = std::str::from_utf8(&will.topic).ok().and_then(topics::parse);
        let Some((owner, leaf)) = parsed else { return };
        let route = Route { owner, leaf, topic: &will.topic, retain: will.retain, from: None };
        self.route(&route, &will.payload, QoS::AtLeastOnce);
    }

    fn route(&mut self, route: &Route<'_>, payload: &Bytes, qos: QoS) -> PubAckReason {
        // Copied once: the packet's buffer is larger than the message and must not live on with it.
        let topic = Bytes::copy_from_slice(route.topic);
        let kept = if route.retain {
            self.retained.keep(&route.owner, &route.leaf, &topic, payload)
        } else {
            Ok(Bytes::copy_from_slice(payload))
        };
        let payload = match kept {
            Ok(payload) => payload,
            Err(reason) => return reason,
        };
        for client in [Client::Node(route.owner.clone()), Client::Hub] {
            let Some(session) = self.sessions.get_mut(&client) else { continue };
            let Some(filter) = matching(session, route, &client) else { continue };
            if !route.retain && session.queue.is_behind() {
                return PubAckReason::QuotaExceeded;
            }
            let message = Message {
                topic: topic.clone(),
                payload: payload.clone(),
                qos: at_most(filter.qos, at_most(qos, QoS::AtLeastOnce)),
                retain: route.retain && filter.preserve_retain,
            };
            if session.queue.push(message).is_err() {
                tracing::warn!(?client, "a client does not read what it is sent, it is cut off");
                session.ended = Some(DisconnectReasonCode::QuotaExceeded);
            }
            session.wake.notify_one();
        }
        PubAckReason::Success
    }
}

/// The filter by which `client` hears of this message.
fn matching<'a>(session: &'a Session, route: &Route<'_>, client: &Client) -> Option<&'a SubscribeFilter> {
    let topic = std::str::from_utf8(route.topic).ok()?;
    let own = route.from == Some(client);
    session
        .filters
        .values()
        .filter(|filter| !(own && filter.nolocal) && rumqttc::matches(topic, &filter.path))
        .max_by_key(|filter| filter.qos as u8)
}

fn at_most(a: QoS, b: QoS) -> QoS {
    if (a as u8) < (b as u8) { a } else { b }
}
