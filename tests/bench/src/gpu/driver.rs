//! What the driver takes to move a process's state, as the plugin does it at a call: the call itself is a message on a Unix socket.

use std::path::Path;
use std::time::{Duration, Instant};

use tombolo_device_api::accelerator::v1::accelerator_client::AcceleratorClient;
use tombolo_device_api::accelerator::v1::{DescribeRequest, ResumeRequest, SuspendRequest};
use tonic::transport::Channel;

/// The plugin's socket for what functions declare.
const SOCKET: &str = "tombolo.dev_gpu-memory.sock";

/// How long the plugin may take to answer.
const CONNECT: Duration = Duration::from_secs(10);

pub(super) struct Mover {
    client: AcceleratorClient<Channel>,
}

impl Mover {
    /// Or why nothing can be moved here.
    pub(super) async fn connect(plugins: &Path) -> Result<Self, String> {
        let channel = tombolo_device_api::connect(&plugins.join(SOCKET), CONNECT).await;
        let mut client = AcceleratorClient::new(channel.expect("the plugin answers"));
        let described =
            client.describe(DescribeRequest {}).await.expect("the plugin says what it can").into_inner();
        if described.can_suspend { Ok(Self { client }) } else { Err(described.cannot_suspend_because) }
    }

    pub(super) async fn suspend(&mut self, pid: i32) {
        let request = SuspendRequest { pids: vec![pid.unsigned_abs()] };
        self.client.suspend(request).await.expect("the bare program can be suspended");
    }

    pub(super) async fn resume(&mut self, pid: i32) -> Duration {
        let request = ResumeRequest { pids: vec![pid.unsigned_abs()] };
        let began = Instant::now();
        self.client.resume(request).await.expect("the bare program can be resumed");
        began.elapsed()
    }
}
