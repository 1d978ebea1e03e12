//! The plugin as a process, on real sockets, with a fake of the driver's library and of the kubelet.

#![allow(clippy::unwrap_used)]

mod inspect;
mod machine;
mod mps;
mod nodes;
mod suspend;
mod usage;

use std::collections::{BTreeMap, BTreeSet};

use tombolo_device_api::v1beta1::Empty;
use tombolo_fake_kubelet::SOON;
use tombolo_fake_nvml::script::{Event, Failing, Gpu, Mig, Process, UNKNOWN};

use machine::{Machine, gpu, mig, uuid};

const HEALTHY: &str = "Healthy";
const UNHEALTHY: &str = "Unhealthy";

#[tokio::test]
async fn gpus_are_offered_and_a_container_gets_one_by_cdi() {
    let mut machine = Machine::new(vec![gpu(0), gpu(1)]);
    machine.install_driver();
    machine.start("").await;
    let mut plugin = machine.kubelet().plugin("nvidia.com/gpu").await;
    plugin.list(&[(&uuid(0), HEALTHY), (&uuid(1), HEALTHY)]).await;
    let given = plugin.allocate(&[&uuid(1)]).await.unwrap();
    let names: Vec<_> = given.cdi_devices.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(names, [format!("nvidia.tombolo.dev/gpu={}", uuid(1))]);
    // What whoever makes the container does with it.
    let config = machine.container(&names);
    let devices = config["linux"]["devices"].as_array().unwrap();
    let nodes: Vec<_> = devices.iter().map(|node| node["path"].as_str().unwrap()).collect();
    assert_eq!(nodes, ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia1"]);
    let mounts = config["mounts"].as_array().unwrap();
    let places: Vec<_> = mounts.iter().map(|mount| mount["destination"].as_str().unwrap()).collect();
    for place in ["/usr/lib64/libcuda.so.1", "/usr/lib64/libnvidia-ml.so.1", "/usr/bin/nvidia-smi"] {
        assert!(places.contains(&place), "{place} among {places:?}");
    }
    for name in ["0", "1", "all"] {
        machine.container(&[&format!("nvidia.tombolo.dev/gpu={name}")]);
    }
    machine.stop().await;
    assert!(machine.host("cdi/tombolo-nvidia.json").exists(), "containers outlive the plugin");
}

#[tokio::test]
async fn the_list_says_which_numa_node_a_gpu_is_attached_to() {
    let mut machine = Machine::new(vec![gpu(0), gpu(1), gpu(2)]);
    // -1: the kernel does not know.
    for (number, node) in [(0, "1"), (1, "0"), (2, "-1")] {
        machine.put(&format!("sys/bus/pci/devices/0000:0{number}:00.0/numa_node"), &format!("{node}\n"));
    }
    machine.start("[[gpu]]\nmatch = \"1\"\nshare = \"time-slice\"\nreplicas = 1\n").await;
    let mut found = BTreeMap::new();
    for resource in ["nvidia.com/gpu", "nvidia.com/gpu.shared"] {
        let mut client = machine.kubelet().plugin(resource).await.client;
        let mut lists = client.list_and_watch(Empty {}).await.unwrap().into_inner();
        let list = tokio::time::timeout(SOON, lists.message()).await.unwrap().unwrap().unwrap();
        for device in list.devices {
            let nodes = device.topology.into_iter().flat_map(|topology| topology.nodes);
            found.insert(device.id, nodes.map(|node| node.id).collect::<Vec<_>>());
        }
    }
    let expected = [(uuid(0), vec![1]), (format!("{}::0", uuid(1)), vec![0]), (uuid(2), vec![])];
    assert_eq!(found, BTreeMap::from(expected));
}

#[tokio::test]
async fn what_nvidias_tools_say_of_the_same_gpus_is_no_conflict() {
    let mut machine = Machine::new(vec![gpu(0)]);
    let edits = "{\"deviceNodes\": [{\"path\": \"/dev/nvidia0\", \"hostPath\": \"/dev/null\"}]}";
    let device = |name: &str| format!("{{\"name\": {name:?}, \"containerEdits\": {edits}}}");
    let devices = ["0", &uuid(0), "all"].map(device).join(", ");
    let spec =
        format!("{{\"cdiVersion\": \"0.5.0\", \"kind\": \"nvidia.com/gpu\", \"devices\": [{devices}]}}");
    machine.put("cdi/nvidia.yaml", &spec);
    machine.start("").await;
    let mut plugin = machine.kubelet().plugin("nvidia.com/gpu").await;
    plugin.list(&[(&uuid(0), HEALTHY)]).await;
    let given = plugin.allocate(&[&uuid(0)]).await.unwrap();
    // Both are there for whoever makes containers.
    machine.container(&[given.cdi_devices[0].name.as_str()]);
    for name in ["0", &uuid(0), "all"] {
        machine.container(&[&format!("nvidia.com/gpu={name}")]);
    }
}

#[tokio::test]
async fn a_critical_error_takes_a_gpu_away_until_it_is_good_again() {
    let mut machine = Machine::new(vec![gpu(0), gpu(1)]);
    machine.start("look_interval_s = 2\n[health]\nrecovery_looks = 3\n").await;
    let mut plugin = machine.kubelet().plugin("nvidia.com/gpu").await;
    plugin.list(&[(&uuid(0), HEALTHY), (&uuid(1), HEALTHY)]).await;
    machine.heard_from(&[0, 1]).await;
    // A program's own fault first: it is heard, and changes nothing.
    machine.change(|script| script.events.push(Event { uuid: uuid(0), xid: 31, ..Event::default() }));
    machine.log("xid=31").await;
    machine.change(|script| script.events.push(Event { uuid: uuid(1), xid: 79, ..Event::default() }));
    let first = plugin.next_list().await.unwrap();
    assert_eq!((first[&uuid(0)].as_str(), first[&uuid(1)].as_str()), (HEALTHY, UNHEALTHY));
    plugin.list(&[(&uuid(0), HEALTHY), (&uuid(1), HEALTHY)]).await;
}

#[tokio::test]
async fn a_gpu_that_tells_little_is_offered_and_keeps_no_other_from_being_heard() {
    let mut machine = Machine::new(vec![gpu(0), Gpu { is_plain: true, ..gpu(1) }]);
    machine.start("look_interval_s = 2\n[health]\nrecovery_looks = 100\n").await;
    let mut plugin = machine.kubelet().plugin("nvidia.com/gpu").await;
    plugin.list(&[(&uuid(0), HEALTHY), (&uuid(1), HEALTHY)]).await;
    machine.heard_from(&[0]).await;
    machine.change(|script| script.events.push(Event { uuid: uuid(0), xid: 79, ..Event::default() }));
    plugin.list(&[(&uuid(0), UNHEALTHY), (&uuid(1), HEALTHY)]).await;
}

#[tokio::test]
async fn a_gpu_that_fell_off_the_bus_takes_no_other_with_it() {
    let mut machine = Machine::new(vec![gpu(0), gpu(1)]);
    machine.start("").await;
    let mut plugin = machine.kubelet().plugin("nvidia.com/gpu").await;
    plugin.list(&[(&uuid(0), HEALTHY), (&uuid(1), HEALTHY)]).await;
    machine.change(|script| script.gpus[0].is_lost = true);
    plugin.list(&[(&uuid(0), UNHEALTHY), (&uuid(1), HEALTHY)]).await;
    // Nor from a container that is to have all there are.
    std::fs::remove_file(machine.host("dev/nvidia0")).unwrap();
    let config = machine.container(&["nvidia.tombolo.dev/gpu=all"]);
    let nodes = config["linux"]["devices"].as_array().unwrap();
    assert!(nodes.iter().any(|node| node["path"] == "/dev/nvidia1"), "{nodes:?}");
    machine.device("nvidia0");
    machine.change(|script| script.gpus[0].is_lost = false);
    plugin.list(&[(&uuid(0), HEALTHY), (&uuid(1), HEALTHY)]).await;
    machine.device("nvidia2");
    machine.change(|script| script.gpus.push(gpu(2)));
    plugin.list(&[(&uuid(0), HEALTHY), (&uuid(1), HEALTHY), (&uuid(2), HEALTHY)]).await;
    machine.change(|script| drop(script.gpus.remove(0)));
    plugin.list(&[(&uuid(0), UNHEALTHY), (&uuid(1), HEALTHY), (&uuid(2), HEALTHY)]).await;
}

#[tokio::test]
async fn critical_errors_are_heard_beside_a_gpu_that_is_lost_and_of_it_when_it_is_back() {
    let mut machine = Machine::new(vec![gpu(0), gpu(1)]);
    machine.start("").await;
    let mut plugin = machine.kubelet().plugin("nvidia.com/gpu").await;
    plugin.list(&[(&uuid(0), HEALTHY), (&uuid(1), HEALTHY)]).await;
    machine.heard_from(&[0, 1]).await;
    machine.change(|script| script.gpus[0].is_lost = true);
    plugin.list(&[(&uuid(0), UNHEALTHY), (&uuid(1), HEALTHY)]).await;
    machine.heard_from(&[1]).await;
    machine.device("nvidia2");
    machine.change(|script| {
        script.gpus.push(gpu(2));
        script.gpus[0].is_lost = false;
    });
    plugin.list(&[(&uuid(0), HEALTHY), (&uuid(1), HEALTHY), (&uuid(2), HEALTHY)]).await;
    machine.heard_from(&[0, 2]).await;
    machine.change(|script| script.events.push(Event { uuid: uuid(0), xid: 79, ..Event::default() }));
    plugin.list(&[(&uuid(0), UNHEALTHY), (&uuid(1), HEALTHY), (&uuid(2), HEALTHY)]).await;
}

#[tokio::test]
async fn what_a_gpu_does_not_tell_for_a_while_is_not_taken_for_gone() {
    let cut = Gpu { mig: Some(vec![mig(1, 7)]), ..gpu(1) };
    let mut machine = Machine::new(vec![gpu(0), cut]);
    machine
        .start("[memory]\nunit_mib = 8192\nreserved_mib = 0\n[[gpu]]\nmatch = \"*\"\nshare = \"memory\"\n")
        .await;
    let mut memory = machine.kubelet().plugin("tombolo.dev/gpu-memory").await;
    let units = [0, 1].map(|number| format!("{}/8192Mi/{number}", uuid(0)));
    let both = |health: &'static str| [(units[0].as_str(), health), (units[1].as_str(), health)];
    memory.list(&both(HEALTHY)).await;
    let mut instances = machine.kubelet().plugin("nvidia.com/mig-1g.2gb").await;
    let instance = mig(1, 7).uuid;
    instances.list(&[(&instance, HEALTHY)]).await;
    machine.change(|script| {
        script.gpus[0].failing.push(Failing::new("nvmlDeviceGetMemoryInfo_v2", UNKNOWN));
        script.gpus[1].failing.push(Failing::new("nvmlDeviceGetMigMode", UNKNOWN));
    });
    // The next that is told, at once: all that there was.
    let next = memory.next_list().await.unwrap();
    let next: Vec<_> = next.iter().map(|(id, health)| (id.as_str(), health.as_str())).collect();
    assert_eq!(next, both(UNHEALTHY));
    instances.list(&[(&instance, UNHEALTHY)]).await;
    machine.change(|script| script.gpus.iter_mut().for_each(|gpu| gpu.failing.clear()));
    memory.list(&both(HEALTHY)).await;
    instances.list(&[(&instance, HEALTHY)]).await;
    // A figure that nothing depends on is no reason.
    machine.change(|script| {
        script.gpus[0].failing.push(Failing::new("nvmlDeviceGetTemperature", UNKNOWN));
        script.gpus[0].memory_used = 5;
    });
    machine.measured(&format!("tombolo_gpu_memory_used_bytes{{gpu=\"{}\"}} 5", uuid(0))).await;
}

#[tokio::test]
async fn without_a_driver_it_waits_and_says_so_once() {
    let mut machine = Machine::new(vec![gpu(0)]);
    machine.change(|script| script.is_loaded = false);
    machine.start("").await;
    machine.log("the NVIDIA driver does not work").await;
    machine.log_times("still no GPUs to serve", 3).await;
    assert_eq!(machine.logged("waiting for a driver"), 1);
    assert!(!machine.kubelet().registered_again("nvidia.com/gpu"));
    machine.change(|script| script.is_loaded = true);
    let mut plugin = machine.kubelet().plugin("nvidia.com/gpu").await;
    plugin.list(&[(&uuid(0), HEALTHY)]).await;
    // An unloaded driver takes the GPU out of use, and a loaded one brings it back.
    machine.change(|script| script.is_loaded = false);
    plugin.list(&[(&uuid(0), UNHEALTHY)]).await;
    machine.change(|script| script.is_loaded = true);
    plugin.list(&[(&uuid(0), HEALTHY)]).await;
}

#[tokio::test]
async fn without_a_library_it_is_idle() {
    let mut machine = Machine::new(Vec::new());
    machine.start("library = \"/nowhere/libnvidia-ml.so.1\"\n").await;
    machine.log("there is no NVIDIA driver on this machine").await;
    assert!(machine.is_running());
    machine.stop().await;
}

#[tokio::test]
async fn memory_is_shared_in_units_of_one_gpu() {
    let mut machine = Machine::new(vec![gpu(0), gpu(1)]);
    machine
        .start("[memory]\nunit_mib = 4096\nreserved_mib = 0\n[[gpu]]\nmatch = \"*\"\nshare = \"memory\"\n")
        .await;
    let mut plugin = machine.kubelet().plugin("tombolo.dev/gpu-memory").await;
    let unit = |gpu: u32, number: u32| format!("{}/4096Mi/{number}", uuid(gpu));
    let all: Vec<_> = (0..2).flat_map(|gpu| (0..4).map(move |number| unit(gpu, number))).collect();
    let list = plugin.next_list().await.unwrap();
    assert_eq!(list.keys().collect::<Vec<_>>(), all.iter().collect::<Vec<_>>());
    // The first GPU has one unit left, the second all.
    let left: Vec<_> = all.iter().skip(3).map(String::as_str).collect();
    assert_eq!(plugin.prefer(&left, &[], 1).await.unwrap(), [unit(0, 3)]);
    let preferred = plugin.prefer(&left, &[], 2).await.unwrap();
    assert!(preferred.iter().all(|id| id.starts_with(&uuid(1))), "{preferred:?}");
    let ids: Vec<_> = preferred.iter().map(String::as_str).collect();
    let given = plugin.allocate(&ids).await.unwrap();
    assert_eq!(given.envs["TOMBOLO_GPU_MEMORY_MIB"], "8192");
    assert_eq!(given.cdi_devices.len(), 1);
    let refused = plugin.allocate(&[&unit(0, 3), &unit(1, 0)]).await.unwrap_err();
    assert!(refused.message().contains("of 2 GPUs"), "{refused}");
}

#[tokio::test]
async fn each_gpu_is_shared_in_its_own_way() {
    let mut machine = Machine::new(vec![gpu(0), gpu(1), gpu(2)]);
    let pipes = machine.host("root/tmp/nvidia-mps");
    machine
        .start(&format!(
            "[[gpu]]\nmatch = \"0\"\nshare = \"time-slice\"\nreplicas = 2\n\
             [[gpu]]\nmatch = \"{}\"\nshare = \"mps\"\nreplicas = 2\n[mps]\ncommand = []\n",
            uuid(1)
        ))
        .await;
    let mut whole = machine.kubelet().plugin("nvidia.com/gpu").await;
    whole.list(&[(&uuid(2), HEALTHY)]).await;
    let mut shared = machine.kubelet().plugin("nvidia.com/gpu.shared").await;
    let place = |gpu: u32, number: u32| format!("{}::{number}", uuid(gpu));
    let list = |mps| [(place(0, 0), HEALTHY), (place(0, 1), HEALTHY), (place(1, 0), mps), (place(1, 1), mps)];
    let wanted = |list: [(String, &'static str); 4]| list.map(|(id, health)| (id.leak() as &str, health));
    shared.list(&wanted(list(UNHEALTHY))).await;
    std::fs::create_dir_all(&pipes).unwrap();
    std::fs::write(pipes.join("control"), "").unwrap();
    shared.list(&wanted(list(HEALTHY))).await;
    let given = shared.allocate(&[&place(1, 0)]).await.unwrap();
    assert_eq!(given.envs["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"], "50");
    assert_eq!(given.envs["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"], "0=8192M");
    assert!(given.mounts.iter().any(|mount| mount.container_path == "/tmp/nvidia-mps"));
    assert!(shared.allocate(&[&place(0, 0)]).await.unwrap().envs.is_empty());
    let refused = shared.allocate(&[&place(0, 0), &place(1, 0)]).await.unwrap_err();
    assert!(refused.message().contains("shared through MPS and some in turns"), "{refused}");
    let all = [place(0, 0), place(0, 1), place(1, 0), place(1, 1)];
    let preferred = shared.prefer(&all.each_ref().map(String::as_str), &[&all[3]], 2).await.unwrap();
    assert_eq!(preferred.into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([place(1, 0), place(1, 1)]));
}

#[tokio::test]
async fn a_gpu_that_is_cut_gives_its_instances_instead() {
    let mut machine = Machine::new(vec![gpu(0)]);
    machine.put("proc/driver/nvidia/capabilities/gpu0/mig/gi7/access", "DeviceFileMinor: 66\n");
    machine.put("proc/driver/nvidia/capabilities/gpu0/mig/gi7/ci0/access", "DeviceFileMinor: 67\n");
    machine.device("nvidia-caps/nvidia-cap66");
    machine.device("nvidia-caps/nvidia-cap67");
    machine.start("look_interval_s = 2\n[health]\nrecovery_looks = 100\n").await;
    let mut whole = machine.kubelet().plugin("nvidia.com/gpu").await;
    whole.list(&[(&uuid(0), HEALTHY)]).await;
    let cut = vec![mig(0, 7), mig(1, 8)];
    let names: Vec<_> = cut.iter().map(|mig| mig.uuid.clone()).collect();
    machine.change(|script| script.gpus[0].mig = Some(cut));
    let mut instances = machine.kubelet().plugin("nvidia.com/mig-1g.2gb").await;
    instances.list(&[(&names[0], HEALTHY), (&names[1], HEALTHY)]).await;
    let mut last = Some(BTreeMap::from([("before".to_owned(), String::new())]));
    while last.as_ref().is_some_and(|list| !list.is_empty()) {
        last = whole.next_list().await;
    }
    let given = instances.allocate(&[&names[0]]).await.unwrap();
    assert_eq!(given.cdi_devices[0].name, format!("nvidia.tombolo.dev/gpu={}", names[0]));
    for name in [given.cdi_devices[0].name.as_str(), "nvidia.tombolo.dev/gpu=0:0"] {
        let config = machine.container(&[name]);
        let nodes = config["linux"]["devices"].as_array().unwrap();
        let nodes: Vec<_> = nodes.iter().map(|node| node["path"].as_str().unwrap()).collect();
        assert_eq!(
            nodes[2..],
            ["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap66", "/dev/nvidia-caps/nvidia-cap67"]
        );
    }
    machine.heard_from(&[0]).await;
    let event = Event { uuid: uuid(0), xid: 94, gpu_instance: Some(8), compute_instance: Some(0) };
    machine.change(|script| script.events.push(event));
    instances.list(&[(&names[0], HEALTHY), (&names[1], UNHEALTHY)]).await;
}

#[tokio::test]
async fn an_instance_with_the_media_engines_is_another_resource() {
    let media = Mig { has_ofa: true, ..mig(1, 8) };
    let mut machine = Machine::new(vec![Gpu { mig: Some(vec![mig(0, 7), media]), ..gpu(0) }]);
    machine.start("").await;
    for (resource, number) in [("nvidia.com/mig-1g.2gb", 0), ("nvidia.com/mig-1g.2gb.me", 1)] {
        let mut plugin = machine.kubelet().plugin(resource).await;
        plugin.list(&[(&mig(number, 0).uuid, HEALTHY)]).await;
    }
}

#[tokio::test]
async fn what_gpus_do_is_measured() {
    let one = Gpu {
        utilisation: (40, 20),
        temperature: 61,
        power_milliwatts: 70_500,
        memory_used: 3 << 30,
        ecc: Some((2, 0)),
        processes: vec![Process { pid: 4711, memory: 1 << 30, ..Process::default() }],
        ..gpu(0)
    };
    let mut machine = Machine::new(vec![one]);
    machine.start("").await;
    let mut plugin = machine.kubelet().plugin("nvidia.com/gpu").await;
    plugin.list(&[(&uuid(0), HEALTHY)]).await;
    let shown = |name: &str, more: &str, value: &str| format!("{name}{{gpu=\"{}\"{more}}} {value}", uuid(0));
    for line in [
        shown("tombolo_gpu_utilisation_percent", "", "40"),
        shown("tombolo_gpu_memory_utilisation_percent", "", "20"),
        shown("tombolo_gpu_temperature_celsius", "", "61"),
        shown("tombolo_gpu_power_watts", "", "70.5"),
        shown("tombolo_gpu_memory_used_bytes", "", "3221225472"),
        shown("tombolo_gpu_ecc_errors", ",kind=\"corrected\"", "2"),
        shown("tombolo_gpu_process_memory_bytes", ",pid=\"4711\"", "1073741824"),
    ] {
        machine.measured(&line).await;
    }
    machine.change(|script| script.gpus[0].processes[0].memory = 2 << 30);
    machine.measured(&shown("tombolo_gpu_process_memory_bytes", ",pid=\"4711\"", "2147483648")).await;
}

#[tokio::test]
async fn a_specification_that_cannot_be_written_fails_the_start_and_says_why() {
    let mut machine = Machine::new(vec![gpu(0)]);
    machine.put("cdi", "a file where the directory should be");
    machine.start("").await;
    let mut plugin = machine.kubelet().plugin("nvidia.com/gpu").await;
    plugin.list(&[(&uuid(0), HEALTHY)]).await;
    let refused = plugin.allocate(&[&uuid(0)]).await.unwrap_err();
    assert!(refused.message().contains("cannot write"), "{refused}");
}

#[tokio::test]
async fn a_board_with_its_own_gpu_is_served_by_its_lists() {
    let mut machine = Machine::new(Vec::new());
    machine.put("root/etc/nv_tegra_release", "# R36");
    machine.put("proc/meminfo", "MemTotal:        8388608 kB\n");
    let lists = "root/etc/nvidia-container-runtime/host-files-for-container.d";
    machine.put(&format!("{lists}/devices.csv"), "dev, /dev/nvmap\ndev, /dev/nvhost-gpu\n");
    machine.put(&format!("{lists}/drivers.csv"), "lib, /usr/lib/tegra/libcuda.so.1.1\n");
    machine.put("root/usr/lib/tegra/libcuda.so.1.1", "");
    machine.device("nvmap");
    machine
        .start(
            "library = \"/nowhere/libnvidia-ml.so.1\"\n[memory]\nunit_mib = 1024\nreserved_mib = 4096\n\
             [[gpu]]\nmatch = \"0\"\nshare = \"memory\"\n",
        )
        .await;
    let mut plugin = machine.kubelet().plugin("tombolo.dev/gpu-memory").await;
    let list = plugin.next_list().await.unwrap();
    assert_eq!(list.len(), 4, "the machine's memory, less what is not the GPU's: {list:?}");
    let given = plugin.allocate(&["tegra/1024Mi/0"]).await.unwrap();
    let config = machine.container(&[given.cdi_devices[0].name.as_str()]);
    assert_eq!(config["linux"]["devices"][0]["path"], "/dev/nvmap");
    assert_eq!(config["mounts"][0]["destination"], "/usr/lib/tegra/libcuda.so.1.1");
}
