//! What the node says on a connection: subscriptions, presence, report, events, log chunks. State-based: on a new connection
//! and at every change it says what has not been said. It must not know MQTT.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tombolo_agent_core::accelerators;
use tombolo_api::frame::CHUNK_MAX;
use tombolo_api::report::{Presence, Serving};
use tombolo_api::topics::NodeTopics;
use tombolo_api::{Digest, NodeId};

use super::{HAND_OVER, Link, LinkState, Stuck, Wire, json};

/// Events not acknowledged in this time are sent again.
const EVENTS_DEADLINE: Duration = Duration::from_secs(30);

/// Between two reports: a burst of changes is one.
const REPORT_PAUSE: Duration = Duration::from_millis(250);

/// Presence is said again this often, in case it was lost where nobody noticed.
const HEARTBEAT: Duration = Duration::from_secs(240);

/// Says what there is to say on the present connection.
pub(super) struct Speaker {
    wire: Wire,
    topics: NodeTopics,
    session: String,
    state: watch::Receiver<LinkState>,
    /// The connection spoken on; `None` while there is none.
    connection: Option<u64>,
    subscribed: BTreeSet<Digest>,
    /// Of the last presence said on this connection.
    said: Option<Option<Serving>>,
    next_heartbeat: Instant,
    /// Digest of the last report the broker was given.
    reported: Option<Digest>,
    /// Something changed since the report was last composed.
    report_due: bool,
    /// Told when the hub says that it has not the report that the presence names.
    report_wanted: Arc<Notify>,
    next_report: Instant,
    /// The last event sent and not acknowledged, and when to send again.
    events: Option<(u64, Instant)>,
}

impl Speaker {
    pub(super) fn new(
        wire: Wire,
        me: &NodeId,
        session: &str,
        state: watch::Receiver<LinkState>,
        report_wanted: Arc<Notify>,
    ) -> Self {
        let now = Instant::now();
        Self {
            wire,
            topics: NodeTopics::of(me),
            session: session.to_owned(),
            state,
            connection: None,
            subscribed: BTreeSet::new(),
            said: None,
            next_heartbeat: now,
            reported: None,
            report_due: true,
            report_wanted,
            next_report: now,
            events: None,
        }
    }

    /// Runs until everything it listens to is gone.
    pub(super) async fn run(&mut self, link: &mut Link) {
        let mut outbox_changes = link.outbox.changes();
        loop {
            if self.speak(link).await.is_err() {
                tracing::debug!("the connection to the hub does not move");
                // Everything is said anew on the next connection, or after a while on this one.
                self.connection = None;
                tokio::time::sleep(HAND_OVER).await;
                self.state.mark_changed();
            }
            let up = self.connection.is_some();
            let wake = self.next_wake();
            let changed = tokio::select! {
                changed = self.state.changed() => changed.is_ok(),
                changed = link.accepted.changed(), if up => self.due(changed),
                changed = link.report.changed(), if up => self.due(changed),
                changed = link.accelerators.changed(), if up => self.due(changed),
                changed = link.specifications.changed(), if up => self.due(changed),
                changed = link.ready.changed(), if up => self.due(changed),
                changed = link.refusals.changed(), if up => self.due(changed),
                () = self.report_wanted.notified() => {
                    self.reported = None;
                    self.due(Ok(()))
                }
                changed = link.wanted.changed(), if up => changed.is_ok(),
                changed = outbox_changes.changed(), if up => changed.is_ok(),
                Some((id, chunk)) = link.chunks.recv(), if up => {
                    let _ = self.wire.publish(self.topics.tail(&id), json(&chunk), false).await;
                    true
                }
                () = tokio::time::sleep_until(wake), if up => true,
            };
            if !changed {
                return;
            }
        }
    }

    /// Notes that the report may have changed.
    fn due(&mut self, changed: Result<(), watch::error::RecvError>) -> bool {
        self.report_due = true;
        changed.is_ok()
    }

    fn next_wake(&self) -> Instant {
        let report = self.report_due.then_some(self.next_report);
        let events = self.events.map(|(_, again)| again);
        report.into_iter().chain(events).fold(self.next_heartbeat, Instant::min)
    }

    /// Says everything that has not been said.
    async fn speak(&mut self, link: &mut Link) -> Result<(), Stuck> {
        let state = self.state.borrow_and_update().clone();
        let LinkState::Up { connection, .. } = state else {
            self.connection = None;
            return Ok(());
        };
        if self.connection != Some(connection) {
            self.greet(link).await?;
            self.connection = Some(connection);
        }
        self.subscribe_wanted(link).await?;
        self.say_presence(link).await?;
        self.send_report(link).await?;
        self.send_events(link).await
    }

    /// A new connection: nothing has been said on it.
    async fn greet(&mut self, link: &mut Link) -> Result<(), Stuck> {
        self.said = None;
        self.events = None;
        self.report_due = true;
        let now = Instant::now();
        (self.next_report, self.next_heartbeat) = (now, now);
        self.subscribed = link.wanted.borrow_and_update().clone();
        let blobs = self.subscribed.iter().map(|digest| self.topics.blob(digest));
        let own = [
            self.topics.manifest(),
            self.topics.ack(),
            self.topics.tail_request(),
            self.topics.report_request(),
        ];
        self.wire.subscribe(own.into_iter().chain(blobs)).await
    }

    async fn subscribe_wanted(&mut self, link: &mut Link) -> Result<(), Stuck> {
        let wanted = link.wanted.borrow_and_update().clone();
        let add = wanted.difference(&self.subscribed).map(|digest| self.topics.blob(digest));
        self.wire.subscribe(add).await?;
        let remove = self.subscribed.difference(&wanted).map(|digest| self.topics.blob(digest));
        self.wire.unsubscribe(remove).await?;
        self.subscribed = wanted;
        Ok(())
    }

    async fn say_presence(&mut self, link: &mut Link) -> Result<(), Stuck> {
        let serving = link.accepted.borrow_and_update().as_ref().map(|accepted| accepted.serving);
        let now = Instant::now();
        if self.said == Some(serving) && now < self.next_heartbeat {
            return Ok(());
        }
        let presence =
            Presence { online: true, session: self.session.clone(), serving, report: self.reported };
        self.wire.publish(self.topics.presence(), json(&presence), true).await?;
        self.said = Some(serving);
        self.next_heartbeat = now + HEARTBEAT;
        Ok(())
    }

    async fn send_report(&mut self, link: &mut Link) -> Result<(), Stuck> {
        let now = Instant::now();
        if !self.report_due || now < self.next_report {
            return Ok(());
        }
        self.report_due = false;
        if !*link.ready.borrow_and_update() {
            return Ok(());
        }
        let encoded = compose(link);
        let digest = Digest::of(&encoded);
        if self.reported == Some(digest) {
            return Ok(());
        }
        self.wire.publish(self.topics.status(), encoded, true).await?;
        self.reported = Some(digest);
        self.next_report = now + REPORT_PAUSE;
        Ok(())
    }

    async fn send_events(&mut self, link: &Link) -> Result<(), Stuck> {
        let Some(batch) = link.outbox.next_batch() else {
            self.events = None;
            return Ok(());
        };
        let now = Instant::now();
        let first = batch.events.first().map_or(0, |event| event.seq);
        let waiting = self.events.is_some_and(|(last, again)| first <= last && now < again);
        if waiting {
            return Ok(());
        }
        let last = batch.events.last().map_or(0, |event| event.seq);
        self.wire.publish(self.topics.events(), json(&batch), false).await?;
        self.events = Some((last, now + EVENTS_DEADLINE));
        Ok(())
    }

    /// The node goes on purpose: said outright, without waiting for the will.
    pub(super) async fn farewell(&self) {
        if self.connection.is_some() {
            let gone = Presence {
                online: false,
                session: self.session.clone(),
                serving: None,
                report: self.reported,
            };
            let _ = self.wire.publish(self.topics.presence(), json(&gone), true).await;
        }
        let _ = self.wire.disconnect().await;
    }
}

/// The report as it would be sent now.
fn compose(link: &mut Link) -> Vec<u8> {
    let mut report = link.report.borrow_and_update().clone();
    report.serving = link.accepted.borrow().as_ref().map(|accepted| accepted.serving);
    report.refused = link.refusals.borrow_and_update().last.clone();
    report.accelerators = accelerators::reports(&link.accelerators.borrow_and_update(), &report.revisions);
    report.info.limitations.extend(link.specifications.borrow_and_update().iter().cloned());
    tombolo_agent_core::status::encode_within(&report, CHUNK_MAX)
}
