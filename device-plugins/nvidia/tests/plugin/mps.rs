//! The MPS control daemon, played by a script of its name that does what a plugin can see of it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tombolo_device_api::{HEALTHY, UNHEALTHY};

use crate::machine::{Machine, gpu, until, uuid};

const DAEMON: &str = r#"#!/bin/sh
echo "$* $CUDA_VISIBLE_DEVICES $CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" >> "$CUDA_MPS_LOG_DIRECTORY/started"
[ ! -e "$CUDA_MPS_LOG_DIRECTORY/broken" ] || exit 3
echo $$ > "$CUDA_MPS_PIPE_DIRECTORY/nvidia-cuda-mps-control.pid"
: > "$CUDA_MPS_PIPE_DIRECTORY/control"
while :; do sleep 0.1; done
"#;

/// A machine whose GPUs are shared through the daemon.
struct Shared {
    machine: Machine,
}

impl Shared {
    fn new() -> Self {
        let machine = Machine::new(vec![gpu(0), gpu(1)]);
        machine.put("nvidia-cuda-mps-control", DAEMON);
        let program = machine.host("nvidia-cuda-mps-control");
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
        Self { machine }
    }

    async fn start(&mut self) {
        let program = self.machine.host("nvidia-cuda-mps-control");
        let config = format!(
            "[[gpu]]\nmatch = \"*\"\nshare = \"mps\"\nreplicas = 1\n\
             [mps]\ncommand = [{program:?}, \"-f\"]\nthread_percentage = 60\n"
        );
        self.machine.start(&config).await;
    }

    fn logs(&self) -> PathBuf {
        self.machine.host("root/var/log/nvidia-mps")
    }

    /// What the daemon was started with, each time.
    fn starts(&self) -> Vec<String> {
        let text = fs::read_to_string(self.logs().join("started")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn daemon(&self) -> Option<Pid> {
        let file = self.machine.host("root/tmp/nvidia-mps/nvidia-cuda-mps-control.pid");
        fs::read_to_string(file).ok()?.trim().parse().ok().map(Pid::from_raw)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(pid) = self.daemon() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

#[tokio::test]
async fn the_mps_daemon_is_started_again_when_it_ends_and_outlives_the_plugin() {
    let mut shared = Shared::new();
    shared.start().await;
    let places = [0, 1].map(|number| format!("{}::0", uuid(number)));
    let all = |health: &'static str| [(places[0].as_str(), health), (places[1].as_str(), health)];
    let mut plugin = shared.machine.kubelet().plugin("nvidia.com/gpu.shared").await;
    plugin.list(&all(HEALTHY)).await;
    assert_eq!(shared.starts(), [format!("-f {},{} 60", uuid(0), uuid(1))]);
    let given = plugin.allocate(&[&places[0], &places[1]]).await.unwrap();
    assert_eq!(given.envs["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"], "0=16384M,1=16384M");
    assert_eq!(given.cdi_devices.len(), 2);
    let first = shared.daemon().unwrap();
    kill(first, Signal::SIGKILL).unwrap();
    plugin.list(&all(UNHEALTHY)).await;
    plugin.list(&all(HEALTHY)).await;
    let second = shared.daemon().unwrap();
    assert_ne!(first, second);
    shared.machine.stop().await;
    assert_eq!(kill(second, None), Ok(()), "programs that share GPUs go on");
    // The next plugin sees the machine's processes.
    symlink(format!("/proc/{second}"), shared.machine.host(&format!("proc/{second}"))).unwrap();
    shared.start().await;
    let mut plugin = shared.machine.kubelet().plugin("nvidia.com/gpu.shared").await;
    plugin.list(&all(HEALTHY)).await;
    assert_eq!((shared.daemon(), shared.starts().len()), (Some(second), 2));
}

#[tokio::test]
async fn an_mps_daemon_that_does_not_start_is_told() {
    let mut shared = Shared::new();
    fs::create_dir_all(shared.logs()).unwrap();
    fs::write(shared.logs().join("broken"), "").unwrap();
    shared.start().await;
    let place = [0, 1].map(|number| format!("{}::0", uuid(number)));
    let mut plugin = shared.machine.kubelet().plugin("nvidia.com/gpu.shared").await;
    plugin.list(&[(&place[0], UNHEALTHY), (&place[1], UNHEALTHY)]).await;
    until("it is tried again", || shared.starts().len() >= 2).await;
    shared.machine.log("it ended (exit status: 3); what it logged is in").await;
    fs::remove_file(shared.logs().join("broken")).unwrap();
    plugin.list(&[(&place[0], HEALTHY), (&place[1], HEALTHY)]).await;
}
