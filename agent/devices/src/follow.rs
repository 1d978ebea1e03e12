//! Follows what plugins tell of accelerators and of the processes on them: for each matter one stream of each plugin that has such a
//! service, for as long as it is there. Decides nothing, and knows no instance.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tombolo_agent_core::devices::ResourceName;
use tombolo_api::report::AcceleratorReport;
use tombolo_device_api::accelerator::v1::{InspectResponse, UsageResponse};

use crate::accelerator::{Accelerator, AcceleratorError, Held, Stream};
use crate::allocate::Allocator;

/// Pause before a plugin whose driver does not answer is asked again.
const PAUSE: Duration = Duration::from_secs(5);

/// Messages that wait to be taken in; each plugin sends one a second at most.
const TOLD_MAX: usize = 16;

/// What plugins tell, by resource. Plugins of several resources tell all of it for each.
pub type Told<T> = BTreeMap<ResourceName, Vec<T>>;

/// Something that plugins tell of.
pub trait Matter: Clone + Send + Sync + 'static {
    type Message: Send;
    const WHAT: &'static str;
    /// One plugin may tell of, far more than there are.
    const MOST: usize;

    fn begin(
        accelerator: &Accelerator,
    ) -> impl Future<Output = Result<Stream<Self>, AcceleratorError>> + Send;

    fn read(message: Self::Message) -> Vec<Self>;
}

impl Matter for Held {
    type Message = UsageResponse;
    const WHAT: &'static str = "what processes hold";
    const MOST: usize = 4096;

    async fn begin(accelerator: &Accelerator) -> Result<Stream<Self>, AcceleratorError> {
        accelerator.usage().await
    }

    fn read(message: UsageResponse) -> Vec<Self> {
        message.processes.into_iter().map(Self::from).collect()
    }
}

impl Matter for AcceleratorReport {
    type Message = InspectResponse;
    const WHAT: &'static str = "how accelerators are";
    const MOST: usize = 64;

    async fn begin(accelerator: &Accelerator) -> Result<Stream<Self>, AcceleratorError> {
        accelerator.inspect().await
    }

    fn read(message: InspectResponse) -> Vec<Self> {
        message.accelerators.into_iter().filter_map(crate::inspect::report).collect()
    }
}

/// What one stream says; nothing: it is not known any more.
struct Said<T> {
    resource: ResourceName,
    number: u64,
    told: Option<Vec<T>>,
}

impl Allocator {
    /// Passes on what plugins tell of the memory that processes hold, until nobody wants to know, or no plugin can register any more.
    pub async fn follow_usage(self, told: watch::Sender<Arc<Told<Held>>>) {
        self.follow(told).await;
    }

    /// The same of accelerators themselves. No processes are named there.
    pub async fn follow_accelerators(self, told: watch::Sender<Arc<Told<AcceleratorReport>>>) {
        self.follow(told).await;
    }

    async fn follow<T: Matter>(self, told: watch::Sender<Arc<Told<T>>>) {
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
                Some(Said { resource, number, told: all }) = said.recv() => {
                    // One that was given up may still have said something.
                    if followed.get(&resource).is_some_and(|(current, _)| *current == number) {
                        match all {
                            Some(all) => told.send_modify(|told| drop(Arc::make_mut(told).insert(resource, all))),
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

fn forget<T: Clone>(told: &watch::Sender<Arc<Told<T>>>, resource: &ResourceName) {
    told.send_if_modified(|told| {
        told.contains_key(resource) && Arc::make_mut(told).remove(resource).is_some()
    });
}

/// One plugin's stream, begun again when it ends; until the plugin says that it never tells.
async fn follow<T: Matter>(
    resource: ResourceName,
    number: u64,
    accelerator: Accelerator,
    said: mpsc::Sender<Said<T>>,
) {
    loop {
        let why = match T::begin(&accelerator).await {
            Ok(mut stream) => loop {
                match stream.next().await {
                    Ok(mut all) => {
                        if all.len() > T::MOST {
                            let (told, most) = (all.len(), T::MOST);
                            tracing::warn!(%resource, told, most, "a plugin tells more than is looked at of {}", T::WHAT);
                            all.truncate(most);
                        }
                        let told = Said { resource: resource.clone(), number, told: Some(all) };
                        if said.send(told).await.is_err() {
                            return;
                        }
                    }
                    Err(why) => break why,
                }
            },
            Err(why) => why,
        };
        tracing::debug!(%resource, %why, "{} is not told", T::WHAT);
        // Whoever follows may have gone, and then nobody wants to know.
        let _ = said.send(Said { resource: resource.clone(), number, told: None }).await;
        if matches!(why, AcceleratorError::Cannot(_)) {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
