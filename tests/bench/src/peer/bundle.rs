//! An OCI bundle with one static program, and how long a container runtime's command line takes until that answers.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client;

/// A bundle on the disk. The container shares the network of whoever starts it: that spares the runtime one namespace.
pub(crate) struct Bundle {
    dir: PathBuf,
    port: u16,
}

impl Bundle {
    pub(crate) fn create(dir: &Path, program: &[u8], port: u16) -> std::io::Result<Self> {
        let root = dir.join("rootfs");
        for inner in ["proc", "dev", "sys", "tmp"] {
            fs::create_dir_all(root.join(inner))?;
        }
        write_program(&root.join("program"), program)?;
        fs::write(dir.join("config.json"), serde_json::to_vec(&config(port))?)?;
        Ok(Self { dir: dir.to_owned(), port })
    }

    /// The program itself, to be run without any container.
    pub(crate) fn program(&self) -> PathBuf {
        self.dir.join("rootfs/program")
    }

    /// From the call of `runtime create` to the last byte of the first answer.
    pub(crate) fn time(&self, runtime: &Path, id: &str) -> Duration {
        let state = self.dir.join("state");
        let call = |arguments: &[&str]| {
            let mut command = Command::new(runtime);
            command.arg("--root").arg(&state).args(arguments);
            let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        let bundle = self.dir.display().to_string();
        let began = Instant::now();
        assert!(call(&["create", "--bundle", &bundle, id]), "{} cannot create", runtime.display());
        assert!(call(&["start", id]), "{} cannot start", runtime.display());
        client::until_answer((Ipv4Addr::LOCALHOST, self.port).into(), "localhost");
        let took = began.elapsed();
        assert!(call(&["delete", "--force", id]), "{} cannot delete", runtime.display());
        self.until_free();
        took
    }

    /// From fork and exec of the bare program to the last byte of its first answer.
    pub(crate) fn time_bare(&self) -> Duration {
        let began = Instant::now();
        let mut child = Command::new(self.program())
            .env_clear()
            .env("PORT", self.port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the program can be run");
        client::until_answer((Ipv4Addr::LOCALHOST, self.port).into(), "localhost");
        let took = began.elapsed();
        child.kill().and_then(|()| child.wait()).expect("the program can be ended");
        self.until_free();
        took
    }

    /// Until nobody listens on the port any more.
    fn until_free(&self) {
        let address: SocketAddr = (Ipv4Addr::LOCALHOST, self.port).into();
        while std::net::TcpStream::connect(address).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

pub(crate) fn write_program(path: &Path, program: &[u8]) -> std::io::Result<()> {
    fs::write(path, program)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// What `runc spec` gives, without a terminal and without a network namespace.
fn config(port: u16) -> Value {
    let capabilities = ["CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": ["/program"], "cwd": "/", "noNewPrivileges": true,
            "env": ["PATH=/".to_owned(), format!("PORT={port}")],
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/tmp", "tmpfs", &["nosuid", "nodev"]),
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys"],
            "readonlyPaths": ["/proc/sys", "/proc/bus"],
        },
    })
}
