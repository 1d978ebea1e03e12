//! Follows what plugins tell of the memory that processes hold on accelerators: one stream for each plugin that has such a
//! service, for as long as it is there. Decides nothing, and knows no instance.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tombolo_agent_core::devices::ResourceName;

use crate::accelerator::{Accelerator, AcceleratorError, Held};
use crate::allocate::Allocator;

/// Pause before a plugin whose driver does not answer is asked again.
const PAUSE: Duration = Duration::from_secs(5);

/// Messages that wait to be taken in; each plugin sends one a second at most.
const TOLD_MAX: usize = 16;

/// Processes that one plugin may tell of, far more than use accelerators.
const PROCESSES_MAX: usize = 4096;

/// What plugins tell that processes hold, by resource. Plugins of several resources tell all of it for each.
pub type Told = BTreeMap<ResourceName, Vec<Held>>;

/// What one stream says; nothing: it is not known any more.
struct Said {
    resource: ResourceName,
    number: u64,
    held: Option<Vec<Held>>,
}

impl Allocator {
    /// Passes on what plugins tell until nobody wants to know, or no plugin can register any more.
    pub async fn follow_usage(self, told: watch::Sender<Arc<Told>>) {
        let mut connected = self.connected.clone();
        let (sender, mut said) = mpsc::channel(TOLD_MAX);
        let mut streams = JoinSet::new();
        let mut followed: BTreeMap<ResourceName, (u64, AbortHandle)> = BTreeMap::new();
        loop {
            let now = connected.borrow_and_update().clone();
            followed.retain(|name, (number, stream)| {
                let stays = now.get(name).is_some_and(|(current, _)| current == number);
                if !stays {
                    stream.abort();
                    forget(&told, name);
                }
                stays
            });
            for (name, (number, plugin)) in now.iter() {
                if followed.contains_key(name) {
                    continue;
                }
                let stream = follow(name.clone(), *number, plugin.accelerator(), sender.clone());
                followed.insert(name.clone(), (*number, streams.spawn(stream)));
            }
            tokio::select! {
                changed = connected.changed() => if changed.is_err() { return },
                Some(Said { resource, number, held }) = said.recv() => {
                    // One that was given up may still have said something.
                    if followed.get(&resource).is_some_and(|(current, _)| *current == number) {
                        match held {
                            Some(held) => told.send_modify(|told| drop(Arc::make_mut(told).insert(resource, held))),
                            None => forget(&told, &resource),
                        }
                    }
                }
                Some(_) = streams.join_next() => {}
                () = told.closed() => return,
            }
        }
    }
}

fn forget(told: &watch::Sender<Arc<Told>>, resource: &ResourceName) {
    told.send_if_modified(|told| {
        told.contains_key(resource) && Arc::make_mut(told).remove(resource).is_some()
    });
}

/// One plugin's stream, begun again when it ends; until the plugin says that it never tells.
async fn follow(resource: ResourceName, number: u64, accelerator: Accelerator, said: mpsc::Sender<Said>) {
    loop {
        let why = match accelerator.usage().await {
            Ok(mut usage) => loop {
                match usage.next().await {
                    Ok(mut held) => {
                        if held.len() > PROCESSES_MAX {
                            tracing::warn!(%resource, processes = held.len(), "more processes than the {PROCESSES_MAX} that are looked at");
                            held.truncate(PROCESSES_MAX);
                        }
                        let told = Said { resource: resource.clone(), number, held: Some(held) };
                        if said.send(told).await.is_err() {
                            return;
                        }
                    }
                    Err(why) => break why,
                }
            },
            Err(why) => why,
        };
        tracing::debug!(%resource, %why, "what processes hold is not told");
        // Whoever follows may have gone, and then nobody wants to know.
        let _ = said.send(Said { resource: resource.clone(), number, held: None }).await;
        if matches!(why, AcceleratorError::Cannot(_)) {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
