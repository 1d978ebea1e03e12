//! What processes hold on GPUs, as the plugin's socket tells it.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;

use tombolo_device_api::accelerator::v1::{DescribeRequest, UsageRequest, UsageResponse};
use tombolo_fake_kubelet::SOON;
use tombolo_fake_nvml::script::{Does, Failing, Gpu, Process, UNKNOWN};
use tonic::{Code, Status, Streaming};

use crate::machine::{Machine, fake, gpu, mig, until, uuid};

async fn next(usage: &mut Streaming<UsageResponse>) -> Result<BTreeSet<(u32, String, Option<u64>)>, Status> {
    let message = tokio::time::timeout(SOON, usage.message()).await.expect("the usage comes")?;
    let processes = message.expect("the plugin runs").processes;
    Ok(processes.into_iter().map(|process| (process.pid, process.device_id, process.bytes)).collect())
}

fn process(pid: u32, memory: u64, does: Does) -> Process {
    Process { pid, memory, does, ..Process::default() }
}

#[tokio::test]
async fn usage_follows_what_the_driver_tells() {
    let drawing = process(8, 20, Does::Draw);
    let first =
        Gpu { processes: vec![process(7, 10, Does::Compute), drawing, process(9, 30, Does::Both)], ..gpu(0) };
    // That number is the library's word for not told.
    let second = Gpu { processes: vec![process(7, u64::MAX, Does::Compute)], ..gpu(1) };
    let mut machine = Machine::new(vec![first, second]);
    machine.start("").await;
    let mut client = machine.accelerator("nvidia.com/gpu").await;
    let mut usage = client.usage(UsageRequest {}).await.unwrap().into_inner();
    let on = |pid, gpu, bytes| (pid, uuid(gpu), bytes);
    let all = [on(7, 0, Some(10)), on(8, 0, Some(20)), on(9, 0, Some(30)), on(7, 1, None)];
    assert_eq!(next(&mut usage).await.unwrap(), BTreeSet::from(all));
    machine.change(|script| {
        script.gpus[0].processes.truncate(1);
        script.gpus[0].processes[0].memory = 11;
        script.gpus[1].is_lost = true;
    });
    assert_eq!(next(&mut usage).await.unwrap(), BTreeSet::from([on(7, 0, Some(11))]));
    machine.change(|script| script.is_loaded = false);
    assert_eq!(next(&mut usage).await.unwrap_err().code(), Code::Unavailable);
    machine.change(|script| script.is_loaded = true);
    let mut again = client.usage(UsageRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut again).await.unwrap(), BTreeSet::from([on(7, 0, Some(11))]));
}

#[tokio::test]
async fn of_a_gpu_that_cannot_be_asked_it_is_not_told_that_nobody_holds_it() {
    let holding = |number| Gpu { processes: vec![process(7, 10, Does::Compute)], ..gpu(number) };
    let mut machine = Machine::new(vec![holding(0), holding(1)]);
    machine.start("").await;
    let mut client = machine.accelerator("nvidia.com/gpu").await;
    let mut usage = client.usage(UsageRequest {}).await.unwrap().into_inner();
    let on = |gpu| (7, uuid(gpu), Some(10));
    assert_eq!(next(&mut usage).await.unwrap(), BTreeSet::from([on(0), on(1)]));
    let failing = Failing::new("nvmlDeviceGetComputeRunningProcesses_v3", UNKNOWN);
    machine.change(|script| script.gpus[1].failing.push(failing));
    assert_eq!(next(&mut usage).await.unwrap_err().code(), Code::Unavailable);
    // Once that has lasted, the GPU must not be used, and keeps no other from being told.
    machine.measured(&format!("tombolo_gpu_healthy{{gpu=\"{}\"}} 0", uuid(1))).await;
    let mut again = client.usage(UsageRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut again).await.unwrap(), BTreeSet::from([on(0)]));
}

#[tokio::test]
async fn usage_is_told_again_when_the_library_has_been_exchanged() {
    let one = Gpu { processes: vec![process(7, 10, Does::Compute)], ..gpu(0) };
    let mut machine = Machine::new(vec![one]);
    let library = machine.host("libnvidia-ml.so.1");
    symlink(fake("nvml"), &library).unwrap();
    machine.start(&format!("library = {library:?}\n")).await;
    let mut client = machine.accelerator("nvidia.com/gpu").await;
    let mut usage = client.usage(UsageRequest {}).await.unwrap().into_inner();
    let all = BTreeSet::from([(7, uuid(0), Some(10))]);
    assert_eq!(next(&mut usage).await.unwrap(), all);
    std::fs::remove_file(&library).unwrap();
    machine.change(|script| script.is_loaded = false);
    assert_eq!(next(&mut usage).await.unwrap_err().code(), Code::Unavailable);
    machine.log("there is no NVIDIA driver on this machine").await;
    let mut usage = client.usage(UsageRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut usage).await.unwrap_err().code(), Code::Unavailable, "not never");
    let description = client.describe(DescribeRequest {}).await.unwrap().into_inner();
    assert!(description.tells_memory, "though not now: {description:?}");
    symlink(fake("nvml"), &library).unwrap();
    machine.change(|script| script.is_loaded = true);
    until("the driver is there", || machine.logged("the driver is there") == 2).await;
    let mut again = client.usage(UsageRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut again).await.unwrap(), all);
}

#[tokio::test]
async fn processes_on_instances_are_told_by_instance() {
    let on_instance =
        |pid, gpu_instance| Process { gpu_instance: Some(gpu_instance), ..process(pid, 5, Does::Compute) };
    let cut = Gpu {
        mig: Some(vec![mig(0, 7), mig(1, 8)]),
        processes: vec![on_instance(7, 7), on_instance(8, 8), on_instance(9, 8)],
        ..gpu(0)
    };
    let mut machine = Machine::new(vec![cut]);
    machine.start("").await;
    let mut client = machine.accelerator("nvidia.com/mig-1g.2gb").await;
    let mut usage = client.usage(UsageRequest {}).await.unwrap().into_inner();
    let on = |pid, instance: u32| (pid, mig(instance, 0).uuid, Some(5));
    assert_eq!(next(&mut usage).await.unwrap(), BTreeSet::from([on(7, 0), on(8, 1), on(9, 1)]));
}

#[tokio::test]
async fn a_gpu_that_does_not_tell_is_one_that_cannot() {
    let mut machine = Machine::new(vec![Gpu { is_plain: true, ..gpu(0) }]);
    machine.start("").await;
    let mut client = machine.accelerator("nvidia.com/gpu").await;
    let description = client.describe(DescribeRequest {}).await.unwrap().into_inner();
    assert!(description.can_suspend && !description.tells_memory, "{description:?}");
    let mut usage = client.usage(UsageRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut usage).await.unwrap_err().code(), Code::Unimplemented);
}
