//! A machine for the plugin: a script for the driver, directories of its own for what it looks at, and a kubelet.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tombolo_cdi::{Cache, QualifiedName};
use tombolo_device_api::accelerator::v1::accelerator_client::AcceleratorClient;
use tombolo_device_api::connect;
use tombolo_fake_checkpoint::script as checkpoint;
use tombolo_fake_kubelet::{FakeKubelet, SOON};
use tombolo_fake_nvml::script::{Event, Gpu, Mig, Script, VARIABLE};
use tonic::transport::Channel;

const VERSION: &str = "570.86.15";

/// How often is looked whether what is waited for is there.
const LOOK: Duration = Duration::from_millis(20);

pub(crate) struct Machine {
    root: tempfile::TempDir,
    kubelet: Option<FakeKubelet>,
    child: Option<Child>,
    log: Arc<Mutex<Vec<String>>>,
}

pub(crate) fn uuid(number: u32) -> String {
    format!("GPU-{number}cf8db2d-06c0-7d70-1a51-e59b25b2c16c")
}

/// Where one of the fake libraries is.
pub(crate) fn fake(part: &str) -> PathBuf {
    let directory = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    directory.join(format!("libtombolo_fake_{part}.so"))
}

/// A GPU with 16 GiB.
pub(crate) fn gpu(number: u32) -> Gpu {
    Gpu {
        uuid: uuid(number),
        name: "NVIDIA Test".into(),
        minor: number,
        bus_id: format!("00000000:0{number}:00.0"),
        memory_total: 16 << 30,
        ..Gpu::default()
    }
}

pub(crate) fn mig(number: u32, gpu_instance: u32) -> Mig {
    Mig {
        uuid: format!("MIG-{number}cf8db2d-06c0-7d70-1a51-e59b25b2c16c"),
        gpu_instance,
        compute_instance: 0,
        gpu_slices: 1,
        compute_slices: 1,
        memory_mib: 2048,
        has_ofa: false,
    }
}

impl Machine {
    pub(crate) fn new(gpus: Vec<Gpu>) -> Self {
        let root = tempfile::tempdir().unwrap();
        for directory in ["plugins", "root", "dev", "proc", "sys"] {
            fs::create_dir(root.path().join(directory)).unwrap();
        }
        let machine = Self { root, kubelet: None, child: None, log: Arc::default() };
        for index in 0..gpus.len() {
            machine.device(&format!("nvidia{index}"));
        }
        machine.device("nvidiactl");
        machine.device("nvidia-uvm");
        Script { gpus, ..Script::default() }.write(&machine.host("script.json")).unwrap();
        machine
    }

    /// A path of this machine.
    pub(crate) fn host(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    pub(crate) fn put(&self, path: &str, text: &str) {
        let path = self.host(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A device node, which is a harmless one by another name.
    pub(crate) fn device(&self, name: &str) {
        let path = self.host("dev").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink("/dev/null", path).unwrap();
    }

    pub(crate) fn install_driver(&self) {
        for name in ["libcuda", "libnvidia-ml"] {
            self.put(&format!("root/usr/lib64/{name}.so.{VERSION}"), "");
            let link = self.host(&format!("root/usr/lib64/{name}.so.1"));
            symlink(format!("{name}.so.{VERSION}"), link).unwrap();
        }
        self.put("root/usr/bin/nvidia-smi", "");
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Script)) {
        let path = self.host("script.json");
        let mut script = Script::read(&path).unwrap();
        change(&mut script);
        script.write(&path).unwrap();
    }

    /// Starts a kubelet and the plugin. `config` is added to what a test needs; what it says goes first.
    pub(crate) async fn start(&mut self, config: &str) {
        self.kubelet = Some(FakeKubelet::start(&self.host("plugins")).await);
        let path = |name: &str| self.host(name).display().to_string();
        let mut text = String::new();
        for (key, line) in [
            ("library", format!("library = {:?}\n", fake("nvml").display().to_string())),
            ("cuda_library", format!("cuda_library = {:?}\n", fake("checkpoint").display().to_string())),
            ("look_interval_s", "look_interval_s = 1\n".to_owned()),
        ] {
            if !config.lines().any(|line| line.split_once(" = ").is_some_and(|(name, _)| name == key)) {
                text += &line;
            }
        }
        text += config;
        text += &format!(
            "[paths]\nroot = {:?}\ndev = {:?}\nproc = {:?}\nsys = {:?}\n",
            path("root"),
            path("dev"),
            path("proc"),
            path("sys")
        );
        text += &format!("[cdi]\ndirectory = {:?}\n", path("cdi"));
        if !config.contains("[nodes]") {
            text += "[nodes]\ncommand = []\n";
        }
        fs::write(self.host("nvidia.toml"), text).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_tombolo-device-plugin-nvidia"))
            .args([
                "--config",
                &path("nvidia.toml"),
                "--directory",
                &path("plugins"),
                "--metrics",
                "127.0.0.1:0",
                "--log",
                "tombolo_device_plugin_nvidia=debug,info",
            ])
            .env(VARIABLE, self.host("script.json"))
            .env(checkpoint::VARIABLE, self.host("checkpoint.json"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::clone(&self.log);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                eprintln!("{line}");
                log.lock().unwrap().push(line);
            }
        });
        self.child = Some(child);
    }

    /// Reads what the driver was asked to move, and changes what it answers.
    pub(crate) fn checkpoint<T>(&self, change: impl FnOnce(&mut checkpoint::Script) -> T) -> T {
        checkpoint::Script::change(&self.host("checkpoint.json"), change).unwrap()
    }

    /// What the plugin can do with processes, by the socket of `resource`.
    pub(crate) async fn accelerator(&mut self, resource: &str) -> AcceleratorClient<Channel> {
        let endpoint = self.kubelet().registered(resource).await.endpoint;
        let socket = self.host("plugins").join(endpoint);
        AcceleratorClient::new(connect(&socket, SOON).await.unwrap())
    }

    pub(crate) fn kubelet(&mut self) -> &mut FakeKubelet {
        self.kubelet.as_mut().unwrap()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().unwrap().try_wait().unwrap().is_none()
    }

    /// Ends the plugin as a service manager does.
    pub(crate) async fn stop(&mut self) {
        // Signals are taken before that.
        self.log("metrics are served").await;
        let mut child = self.child.take().unwrap();
        let status = Command::new("kill").arg(child.id().to_string()).status().unwrap();
        assert!(status.success());
        let mut ended = None;
        until("the plugin ends", || {
            ended = child.try_wait().unwrap();
            ended.is_some()
        })
        .await;
        assert!(ended.unwrap().success());
    }

    pub(crate) fn logged(&self, words: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(words)).count()
    }

    pub(crate) async fn log(&self, words: &str) {
        self.log_times(words, 1).await;
    }

    pub(crate) async fn log_times(&self, words: &str, times: usize) {
        until(words, || self.logged(words) >= times).await;
    }

    /// Waits until critical errors of these GPUs are listened for: one that programs cause is heard.
    pub(crate) async fn heard_from(&self, gpus: &[u32]) {
        for number in gpus {
            let heard = format!("gpu={} xid=45", uuid(*number));
            let before = self.logged(&heard);
            until("critical errors are heard", || {
                let event = Event { uuid: uuid(*number), xid: 45, ..Event::default() };
                self.change(|script| script.events.push(event));
                self.logged(&heard) > before
            })
            .await;
        }
    }

    /// The specification of a container with these devices.
    pub(crate) fn container(&self, names: &[&str]) -> Value {
        let cache = Cache::read(&[self.host("cdi")]);
        assert!(cache.errors().is_empty(), "{:?}", cache.errors());
        let names: Vec<QualifiedName> = names.iter().map(|name| name.parse().unwrap()).collect();
        let mut config = json!({ "process": { "env": [] } });
        cache.apply(&mut config, &names).unwrap();
        config
    }

    /// Waits until the plugin shows this line.
    pub(crate) async fn measured(&self, line: &str) {
        self.log("metrics are served").await;
        let address = {
            let log = self.log.lock().unwrap();
            let told = log.iter().find(|line| line.contains("metrics are served")).unwrap();
            told.split("address=").nth(1).unwrap().trim().to_owned()
        };
        until(line, || {
            let mut stream = TcpStream::connect(&address).unwrap();
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text.lines().any(|each| each == line)
        })
        .await;
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(LOOK).await;
    }
}
