//! A bad link between the hub and a node: slow, lossy, and cut again and again.

use std::cell::Cell;
use std::process::Command;
use std::time::Duration;

use tombolo_harness::Node;

/// The hub's end of the first node's link, in the site's namespace.
const HUB_END: &str = "wan1";

/// Between two cuts, and how long each lasts.
const CUT_EVERY: Duration = Duration::from_secs(28);
const CUT_FOR: Duration = Duration::from_secs(2);

/// A link that was made bad.
pub(super) struct BadLink {
    cuts: Cell<u32>,
}

impl BadLink {
    /// One megabit a second towards the node, and one packet of twenty lost on its way there. `None`: the tools are not here.
    pub(super) fn make(node: &Node) -> Option<Self> {
        let shape = format!("qdisc add dev {HUB_END} root tbf rate 1mbit burst 16kb latency 200ms");
        let shaped = Command::new("tc").args(shape.split(' ')).status().ok()?;
        let rules = "add table inet bad\nadd chain inet bad in { type filter hook prerouting priority 0; }\n\
                     add rule inet bad in iifname uplink numgen random mod 100 < 5 drop\n";
        let file = node.dir().join("bad-link.nft");
        std::fs::write(&file, rules).ok()?;
        let mut nft = Command::new("nft");
        nft.arg("-f").arg(&file);
        let dropped = node.start_beside("nft", nft).ok()?.wait(20).ok()?;
        (shaped.success() && dropped.success()).then_some(Self { cuts: Cell::new(0) })
    }

    /// Takes the link down every half minute, for ever.
    pub(super) async fn cut_again_and_again(&self, node: &Node) {
        loop {
            tokio::time::sleep(CUT_EVERY).await;
            node.cut_link();
            self.cuts.set(self.cuts.get() + 1);
            tokio::time::sleep(CUT_FOR).await;
            node.restore_link();
        }
    }

    pub(super) fn cuts(&self) -> u32 {
        self.cuts.get()
    }
}
