//! Functions that share a GPU by declared memory: the NVIDIA plugin's own program, a driver that a script plays, and real
//! processes of which that says what they hold.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};
use tombolo_fake_nvml::script::{Gpu, Process as Holder, Script, VARIABLE};
use tombolo_harness::{Function, Node, NodeOptions, Process, Site, program, until};

const MEMORY: &str = "tombolo.dev/gpu-memory";

const GPUS: [&str; 2] =
    ["GPU-00000000-0000-0000-0000-000000000000", "GPU-11111111-0000-0000-0000-000000000000"];

const MIB: u64 = 1 << 20;

/// MiB: of one unit, and what an agent takes for the driver's by default.
const UNIT: u64 = 64;
const CONTEXT: u64 = 640;

/// A node with GPUs of so many units each.
struct Bench {
    _plugin: Process,
    node: Node,
    site: Site,
}

impl Bench {
    async fn start(units: &[u64]) -> Option<Self> {
        let mut site = Site::start().await?;
        let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
        let gpu = |(minor, units): (u32, &u64)| Gpu {
            uuid: GPUS[minor as usize].into(),
            name: "A test's".into(),
            minor,
            bus_id: format!("00000000:0{minor}:00.0"),
            memory_total: units * UNIT * MIB,
            ..Gpu::default()
        };
        let script = Script { gpus: (0..).zip(units).map(gpu).collect(), ..Script::default() };
        script.write(&node.dir().join("script.json")).expect("a file");
        let plugin = Self::start_plugin(&node, units.len());
        let bench = Self { _plugin: plugin, node, site };
        let all: u64 = units.iter().sum();
        until("the GPUs' memory at the hub", 30, || async {
            let node = bench.site.hub.api.node("press-7").await.map_err(|error| error.to_string())?;
            let found = node["status"]["allocatable"][MEMORY].as_str().unwrap_or("0").to_owned();
            if found == all.to_string() { Ok(()) } else { Err(node["status"].to_string()) }
        })
        .await;
        Some(bench)
    }

    fn start_plugin(node: &Node, gpus: usize) -> Process {
        let dir = node.dir().display();
        let dev = node.dir().join("dev");
        for place in [dev.clone(), node.dir().join("root")] {
            fs::create_dir_all(place).expect("a directory");
        }
        let names = (0..gpus).map(|gpu| format!("nvidia{gpu}"));
        for name in names.chain(["nvidiactl", "nvidia-uvm"].map(str::to_owned)) {
            // `/dev/full` under another name.
            mknod(&dev.join(name), SFlag::S_IFCHR, Mode::from_bits_truncate(0o660), makedev(1, 7))
                .expect("root may make device nodes");
        }
        let config = node.dir().join("nvidia.toml");
        let library: PathBuf = program("libtombolo_fake_nvml.so");
        let text = format!(
            "library = \"{}\"\nlook_interval_s = 1\n[paths]\nroot = \"{dir}/root\"\ndev = \"{dir}/dev\"\n\
             [cdi]\ndirectory = \"{dir}/cdi\"\n[memory]\nunit_mib = {UNIT}\nreserved_mib = 0\n\
             [[gpu]]\nmatch = \"*\"\nshare = \"memory\"\n",
            library.display(),
        );
        fs::write(&config, text).expect("a file");
        let mut command = Command::new(program("tombolo-device-plugin-nvidia"));
        command.arg("--config").arg(config).arg("--directory").arg(node.plugin_directory());
        command.env(VARIABLE, node.dir().join("script.json"));
        node.start_beside("plugin", command).expect("a plugin starts")
    }

    /// Has the driver say that the only instances of these functions hold so many MiB of the first GPU.
    async fn hold(&self, holders: &[(&str, u64)]) {
        let mut processes = Vec::new();
        for (service, mib) in holders {
            processes.push((self.instance(service).await.1, *mib));
        }
        self.hold_pids(&processes);
    }

    /// The same of these processes.
    fn hold_pids(&self, holders: &[(i64, u64)]) {
        let holder = |(pid, mib): &(i64, u64)| {
            let pid = u32::try_from(*pid).expect("the number of a process");
            Holder { pid, memory: mib * MIB, ..Holder::default() }
        };
        self.change(|gpus| gpus[0].processes = holders.iter().map(holder).collect());
    }

    fn change(&self, change: impl FnOnce(&mut [Gpu])) {
        let path = self.node.dir().join("script.json");
        let mut script = Script::read(&path).expect("it was written");
        change(&mut script.gpus);
        script.write(&path).expect("a file");
    }

    /// The first GPU in the node's status at the hub, once `is_so`.
    async fn told(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        until(what, 90, || async {
            let node = self.site.hub.api.node("press-7").await.map_err(|error| error.to_string())?;
            let told = &node["status"]["accelerators"][0];
            if is_so(told) { Ok(told.clone()) } else { Err(told.to_string()) }
        })
        .await
    }

    /// The only instance of a function, and its process.
    async fn instance(&self, service: &str) -> (String, i64) {
        until(&format!("one instance of {service}"), 60, || async {
            let found = self.node.instances(service).await?;
            match found.iter().next() {
                Some((id, pid)) if found.len() == 1 => Ok((id.clone(), *pid)),
                _ => Err(format!("{found:?}")),
            }
        })
        .await
    }

    async fn says(&self, service: &str, words: &str) {
        until(&format!("{words} in {service}'s status"), 60, || async {
            let told = self.site.hub.api.told(service).await.map_err(|error| error.to_string())?;
            if told.contains(words) { Ok(()) } else { Err(told) }
        })
        .await;
    }

    async fn measured(&self, line: &str) {
        until(line, 60, || async {
            let text = self.node.metrics().await?;
            let of_memory = |text: &str| {
                text.lines().filter(|line| line.contains("accelerator")).collect::<Vec<_>>().join("\n")
            };
            if text.lines().any(|each| each == line) { Ok(()) } else { Err(of_memory(&text)) }
        })
        .await;
    }
}

fn declaring(name: &str, units: u32) -> Function {
    Function::subject(name).env("MODE", "polite").limit(MEMORY, &units.to_string())
}

#[tokio::test]
async fn who_takes_more_of_a_gpu_than_declared_is_stopped_and_nobody_else() {
    let Some(bench) = Bench::start(&[6]).await else { return };
    let hub = &bench.site.hub;
    hub.deploy(&declaring("greedy", 2).annotation("tombolo.dev/gpu-memory-overuse-grace", "1s")).await;
    hub.deploy(&declaring("modest", 2)).await;
    hub.deploy(&declaring("watched", 2).annotation("tombolo.dev/gpu-memory-overuse", "warn")).await;
    let (first, _) = bench.instance("greedy").await;
    let others = [bench.instance("modest").await, bench.instance("watched").await];
    let most = 2 * UNIT + CONTEXT;
    bench.hold(&[("greedy", most + 1), ("modest", most), ("watched", most + 1)]).await;
    bench.says("greedy", "AcceleratorMemoryExceeded").await;
    bench.measured("tombolo_accelerator_memory_exceeded_total{action=\"stopped\"} 1").await;
    bench.measured("tombolo_accelerator_memory_exceeded_total{action=\"warned\"} 1").await;
    let modest = &others[0].0;
    let labels = format!(
        "namespace=\"default\",revision=\"modest-00001\",instance=\"{modest}\",accelerator=\"{}\"",
        GPUS[0]
    );
    bench.measured(&format!("tombolo_instance_accelerator_memory_bytes{{{labels}}} {}", most * MIB)).await;
    until("another instance of greedy", 60, || async {
        let found = bench.node.instances("greedy").await?;
        if found.len() == 1 && !found.contains_key(&first) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    // That one keeps to what it declared.
    bench.hold(&[("greedy", most), ("modest", most), ("watched", most + 1)]).await;
    until("an answer of greedy", 60, || bench.node.answer("greedy", "/")).await;
    assert_eq!([bench.instance("modest").await, bench.instance("watched").await], others);
    bench.measured("tombolo_accelerator_memory_exceeded_total{action=\"stopped\"} 1").await;
}

#[tokio::test]
async fn memory_that_is_free_on_no_single_gpu_is_waited_for_and_said() {
    let Some(bench) = Bench::start(&[5, 4]).await else { return };
    let hub = &bench.site.hub;
    hub.deploy(&declaring("first", 3)).await;
    hub.deploy(&declaring("second", 3)).await;
    // The smaller GPU first, since the larger one is good for more.
    for (service, gpu) in [("first", GPUS[1]), ("second", GPUS[0])] {
        let env = until("its environment", 30, || bench.node.answer(service, "/env")).await;
        assert!(env.contains("TOMBOLO_GPU_MEMORY_MIB=192\n"), "{env}");
        let (_, pid) = bench.instance(service).await;
        let minor = GPUS.iter().position(|uuid| *uuid == gpu).expect("one of them");
        assert!(
            fs::exists(format!("/proc/{pid}/root/dev/nvidia{minor}")).expect("root may look"),
            "{service}"
        );
    }
    hub.deploy_unready(&declaring("third", 3)).await;
    bench.says("third", "of which 3 are free here, 2 at most on one accelerator").await;
    bench.site.hub.api.delete_service("first").await.expect("it can be deleted");
    until("the third to answer", 60, || bench.node.answer("third", "/")).await;
    hub.deploy_unready(&declaring("fourth", 6)).await;
    bench.says("fourth", "the largest piece is 5 (of 9 in all), on node press-7").await;
}

#[tokio::test]
async fn an_agent_that_starts_again_sees_who_has_taken_too_much() {
    let Some(mut bench) = Bench::start(&[4]).await else { return };
    bench.site.hub.deploy(&declaring("greedy", 2)).await;
    bench.site.hub.deploy(&declaring("modest", 2)).await;
    let (greedy, modest) = (bench.instance("greedy").await, bench.instance("modest").await);
    bench.hold(&[("modest", UNIT)]).await;
    bench.node.kill_agent();
    bench.hold_pids(&[(greedy.1, 2 * UNIT + CONTEXT + 1), (modest.1, UNIT)]);
    bench.node.start_agent().expect("the agent starts again");
    bench.says("greedy", "AcceleratorMemoryExceeded").await;
    until("greedy's instance to end", 60, || async {
        let found = bench.node.instances("greedy").await?;
        if found.contains_key(&greedy.0) { Err(format!("{found:?}")) } else { Ok(()) }
    })
    .await;
    assert_eq!(bench.instance("modest").await, modest);
}

#[tokio::test]
async fn what_gpus_do_is_in_the_nodes_status_at_the_hub_and_costs_few_messages() {
    /// Reports of figures in less than a minute, and presences: both come once in a minute or more.
    const FEW: u64 = 2;
    let Some(bench) = Bench::start(&[6, 4]).await else { return };
    bench.site.hub.deploy(&declaring("holder", 2)).await;
    let (instance, pid) = bench.instance("holder").await;
    bench.change(|gpus| {
        gpus[0].memory_used = 200 * MIB;
        gpus[0].utilisation = (40, 11);
        gpus[0].temperature = 61;
        gpus[0].power_milliwatts = 70_500;
        gpus[0].ecc = Some((3, 0));
    });
    bench.hold_pids(&[(pid, 3 * UNIT)]);
    let told = bench
        .told("what is held and measured", |told| {
            told["held"].is_array()
                && told["temperatureCelsius"] == 61
                && told["memoryErrors"]["corrected"] == 3
        })
        .await;
    let held = json!([{"namespace": "default", "revision": "holder-00001", "instance": instance, "bytes": 3 * UNIT * MIB}]);
    let expected = json!({"id": GPUS[0], "model": "A test's", "memoryBytes": 6 * UNIT * MIB, "memoryUsedBytes": 200 * MIB,
        "utilisationPercent": 40, "memoryUtilisationPercent": 11, "temperatureCelsius": 61, "powerWatts": 70,
        "memoryErrors": {"corrected": 3, "uncorrected": 0}, "held": held});
    assert_eq!(told, expected);

    // Everything that moves does so all the time.
    let counted = bench.node.traffic().await.expect("the agent counts its messages");
    for step in 0..80_u32 {
        bench.change(|gpus| {
            gpus[0].utilisation = (step * 37 % 100, step * 17 % 100);
            gpus[0].temperature = 40 + step * 11 % 50;
            gpus[0].power_milliwatts = 40_000 + step * 7_000 % 90_000;
            gpus[0].memory_used = u64::from(200 + step % 2 * 100) * MIB;
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let sent = bench.node.traffic().await.expect("the agent counts its messages").sent - counted.sent;
    assert!(sent <= FEW, "{sent} messages in 40 s because figures moved");

    // What matters does not wait for that.
    bench.change(|gpus| gpus[0].ecc = Some((3, 1)));
    bench.told("the memory's error", |told| told["memoryErrors"]["uncorrected"] == 1).await;
    bench.change(|gpus| gpus[0].is_lost = true);
    let lost = bench.told("the fault", |told| told["fault"].is_string()).await;
    assert_eq!((&lost["temperatureCelsius"], &lost["memoryBytes"]), (&Value::Null, &json!(6 * UNIT * MIB)));
}
