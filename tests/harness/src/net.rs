//! Network namespaces and the links between them, made by netlink: no `ip` program is needed.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use futures_util::TryStreamExt as _;
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth};

/// A network namespace; it ends with the last process in it and this handle.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl Netns {
    /// A new one, loopback up.
    pub fn create() -> Result<Self> {
        let made = std::thread::spawn(|| -> Result<Self> {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
            Ok(Self { file: File::open("/proc/thread-self/ns/net")? })
        });
        let netns = made.join().expect("making a namespace does not panic")?;
        netns.configure(async |handle: Handle| up(&handle, "lo").await)?;
        Ok(netns)
    }

    /// The calling thread's own.
    pub fn current() -> Result<Self> {
        Ok(Self { file: File::open("/proc/thread-self/ns/net")? })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Runs `act` with a netlink handle inside this namespace.
    pub(crate) fn configure<T: Send>(&self, act: impl AsyncFnOnce(Handle) -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let (connection, handle, _) = rtnetlink::new_connection().context("opening netlink")?;
                    tokio::spawn(connection);
                    act(handle).await
                })
            });
            worker.join().expect("netlink work does not panic")
        })
    }

    /// Brings a link of this namespace up or down.
    pub fn set_link(&self, name: &str, is_up: bool) -> Result<()> {
        self.configure(
            async |handle: Handle| if is_up { up(&handle, name).await } else { down(&handle, name).await },
        )
    }
}

/// Moves the calling thread, and what it starts from now on, into a network namespace of its own.
pub(crate) fn isolate() -> Result<Netns> {
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
    let netns = Netns::current()?;
    netns.configure(async |handle: Handle| up(&handle, "lo").await)?;
    Ok(netns)
}

/// A bridge in `netns` with an address.
pub(crate) fn bridge(netns: &Netns, name: &str, address: Ipv4Addr) -> Result<()> {
    netns.configure(async |handle: Handle| {
        handle.link().add(LinkBridge::new(name).build()).execute().await.context("making a bridge")?;
        assign(&handle, name, address, 24).await?;
        up(&handle, name).await
    })
}

/// One end of a link.
pub(crate) struct End<'a> {
    pub(crate) netns: &'a Netns,
    pub(crate) name: &'a str,
    pub(crate) address: Option<(Ipv4Addr, u8)>,
    /// The bridge it is plugged into.
    pub(crate) bridge: Option<&'a str>,
}

/// A veth pair between two namespaces.
pub(crate) fn link(near: &End<'_>, far: &End<'_>) -> Result<()> {
    near.netns.configure(async |handle: Handle| {
        handle
            .link()
            .add(LinkVeth::new(near.name, far.name).build())
            .execute()
            .await
            .context("making a veth pair")?;
        let index = index_of(&handle, far.name).await?;
        let moved = LinkUnspec::new_with_index(index).setns_by_fd(far.netns.file().as_raw_fd()).build();
        handle.link().set(moved).execute().await.context("moving a veth end")
    })?;
    for end in [near, far] {
        end.netns.configure(async |handle: Handle| {
            if let Some((address, prefix)) = end.address {
                assign(&handle, end.name, address, prefix).await?;
            }
            if let Some(bridge) = end.bridge {
                let (index, bridge) = (index_of(&handle, end.name).await?, index_of(&handle, bridge).await?);
                let plugged = LinkUnspec::new_with_index(index).controller(bridge).build();
                handle.link().set(plugged).execute().await.context("plugging into a bridge")?;
            }
            up(&handle, end.name).await
        })?;
    }
    Ok(())
}

async fn index_of(handle: &Handle, name: &str) -> Result<u32> {
    let found = handle.link().get().match_name(name.to_owned()).execute().try_next().await;
    Ok(found
        .with_context(|| format!("link {name}"))?
        .with_context(|| format!("there is no link {name}"))?
        .header
        .index)
}

async fn assign(handle: &Handle, name: &str, address: Ipv4Addr, prefix: u8) -> Result<()> {
    let index = index_of(handle, name).await?;
    handle
        .address()
        .add(index, IpAddr::V4(address), prefix)
        .execute()
        .await
        .with_context(|| format!("address of {name}"))
}

async fn up(handle: &Handle, name: &str) -> Result<()> {
    let index = index_of(handle, name).await?;
    handle
        .link()
        .set(LinkUnspec::new_with_index(index).up().build())
        .execute()
        .await
        .with_context(|| format!("{name} up"))
}

async fn down(handle: &Handle, name: &str) -> Result<()> {
    let index = index_of(handle, name).await?;
    handle
        .link()
        .set(LinkUnspec::new_with_index(index).down().build())
        .execute()
        .await
        .with_context(|| format!("{name} down"))
}
