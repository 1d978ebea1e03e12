//! Processes that are suspended and resumed by the plugin's socket, with a fake of the driver that does it.

use std::time::Duration;

use tombolo_device_api::accelerator::v1::accelerator_client::AcceleratorClient;
use tombolo_device_api::accelerator::v1::{DescribeRequest, Description, ResumeRequest, SuspendRequest};
use tombolo_fake_checkpoint::script::{Call, Failing, Process, State};
use tombolo_fake_nvml::script::{self as nvml, Gpu};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::machine::{Machine, fake, gpu, until, uuid};

const GIB: u64 = 1 << 30;

/// Long enough to show that nothing comes of itself.
const QUIET: Duration = Duration::from_millis(700);

const STATE: &str = "cuCheckpointProcessGetState";
const LOCK: &str = "cuCheckpointProcessLock";
const CHECKPOINT: &str = "cuCheckpointProcessCheckpoint";
const RESTORE: &str = "cuCheckpointProcessRestore";
const UNLOCK: &str = "cuCheckpointProcessUnlock";

/// A machine whose first GPU has these processes on it, with so many GiB of its 16.
fn machine(processes: &[(u32, u64)]) -> Machine {
    let on_gpu =
        |(pid, gib): &(u32, u64)| nvml::Process { pid: *pid, memory: gib * GIB, ..nvml::Process::default() };
    let one = Gpu {
        memory_used: processes.iter().map(|(_, gib)| gib * GIB).sum(),
        processes: processes.iter().map(on_gpu).collect(),
        ..gpu(0)
    };
    let machine = Machine::new(vec![one, gpu(1)]);
    machine.checkpoint(|script| {
        script.processes = processes
            .iter()
            .map(|(pid, gib)| Process { pid: *pid, state: State::Running, bytes: gib * GIB, gpu: uuid(0) })
            .collect();
    });
    machine
}

/// Lets `name` answer `code` for `pid`.
fn fail(machine: &Machine, name: &str, pid: u32, code: i32) {
    machine.checkpoint(|script| script.failing.push(Failing { call: Call::new(name, Some(pid)), code }));
}

fn states(machine: &Machine) -> Vec<State> {
    machine.checkpoint(|script| script.processes.iter().map(|process| process.state).collect())
}

/// The calls since this was asked last, those that only ask left out.
fn moves(machine: &Machine) -> Vec<(String, u32)> {
    let calls = machine.checkpoint(|script| std::mem::take(&mut script.calls));
    let moves = calls.into_iter().filter(|call| call.name != STATE);
    moves.filter_map(|call| Some((call.name, call.pid?))).collect()
}

fn these(moves: &[(&str, u32)]) -> Vec<(String, u32)> {
    moves.iter().map(|(name, pid)| ((*name).to_owned(), *pid)).collect()
}

async fn describe(client: &AcceleratorClient<Channel>) -> Description {
    client.clone().describe(DescribeRequest {}).await.unwrap().into_inner()
}

async fn suspend(
    client: &AcceleratorClient<Channel>,
    pids: &[u32],
) -> Result<(Vec<u32>, Option<u64>), Status> {
    let answer = client.clone().suspend(SuspendRequest { pids: pids.to_vec() }).await?.into_inner();
    Ok((answer.moved_pids, answer.freed_bytes))
}

async fn resume(client: &AcceleratorClient<Channel>, pids: &[u32]) -> Result<Vec<u32>, Status> {
    Ok(client.clone().resume(ResumeRequest { pids: pids.to_vec() }).await?.into_inner().resumed_pids)
}

#[tokio::test]
async fn processes_leave_the_gpu_and_come_back() {
    let mut machine = machine(&[(11, 3), (12, 2)]);
    machine.start("").await;
    let client = machine.accelerator("nvidia.com/gpu").await;
    assert_eq!(machine.checkpoint(|script| script.calls.clone()), [], "not before it is asked for");
    let description = describe(&client).await;
    assert!(description.can_suspend && description.tells_memory, "{description:?}");
    assert_eq!(description.cannot_suspend_because, "");
    // 13 is a process of the container that has nothing on a GPU.
    assert_eq!(suspend(&client, &[11, 12, 13]).await.unwrap(), (vec![11, 12], Some(5 * GIB)));
    assert_eq!(states(&machine), [State::Checkpointed, State::Checkpointed]);
    assert_eq!(moves(&machine), these(&[(LOCK, 11), (LOCK, 12), (CHECKPOINT, 11), (CHECKPOINT, 12)]));
    machine.change(|script| assert_eq!(script.gpus[0].memory_used, 0));
    assert_eq!(suspend(&client, &[11, 12, 13]).await.unwrap(), (vec![11, 12], Some(0)), "they are already");
    assert_eq!(moves(&machine), []);
    assert_eq!(resume(&client, &[11, 12, 13]).await.unwrap(), [11, 12]);
    assert_eq!(states(&machine), [State::Running, State::Running]);
    assert_eq!(moves(&machine), these(&[(RESTORE, 11), (RESTORE, 12), (UNLOCK, 11), (UNLOCK, 12)]));
    machine.change(|script| assert_eq!(script.gpus[0].memory_used, 5 * GIB));
    assert_eq!(resume(&client, &[11, 12]).await.unwrap(), [11, 12], "they are already");
    assert_eq!(moves(&machine), []);
    assert_eq!(suspend(&client, &[13]).await.unwrap(), (vec![], Some(0)));
}

#[tokio::test]
async fn a_failure_in_the_middle_leaves_all_as_they_were() {
    let mut machine = machine(&[(11, 3), (12, 2), (13, 1)]);
    machine.start("").await;
    let client = machine.accelerator("nvidia.com/gpu").await;
    fail(&machine, CHECKPOINT, 12, 999);
    let refused = suspend(&client, &[11, 12, 13]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert_eq!(refused.message(), format!("{CHECKPOINT} failed at process 12: CUDA_ERROR_UNKNOWN"));
    assert_eq!(states(&machine), [State::Running; 3]);
    machine.change(|script| assert_eq!(script.gpus[0].memory_used, 6 * GIB));
    let done = [(LOCK, 11), (LOCK, 12), (LOCK, 13), (CHECKPOINT, 11), (CHECKPOINT, 12)];
    let undone = [(RESTORE, 11), (UNLOCK, 11), (UNLOCK, 12), (UNLOCK, 13)];
    assert_eq!(moves(&machine), these(&[done.as_slice(), undone.as_slice()].concat()));
    // One that does not come to rest.
    fail(&machine, LOCK, 12, 600);
    let refused = suspend(&client, &[11, 12, 13]).await.unwrap_err();
    assert!(refused.message().contains("process 12: CUDA_ERROR_NOT_READY (what it does"), "{refused}");
    assert_eq!(moves(&machine), these(&[(LOCK, 11), (LOCK, 12), (UNLOCK, 11)]));
    // What cannot be undone is told.
    machine.checkpoint(|script| script.failing.clear());
    fail(&machine, CHECKPOINT, 13, 999);
    fail(&machine, RESTORE, 11, 999);
    let refused = suspend(&client, &[11, 12, 13]).await.unwrap_err();
    let words = format!("process 13: CUDA_ERROR_UNKNOWN; and then {RESTORE} failed at process 11");
    assert!(refused.message().contains(&words), "{refused}");
    assert_eq!(states(&machine), [State::Checkpointed, State::Running, State::Running]);
    machine.checkpoint(|script| script.failing.clear());
    assert_eq!(resume(&client, &[11, 12, 13]).await.unwrap(), [11, 12, 13]);
    assert_eq!(states(&machine), [State::Running; 3]);
}

#[tokio::test]
async fn what_the_driver_cannot_move_is_not_to_be_tried_again() {
    let mut machine = machine(&[(11, 3), (12, 2)]);
    machine.start("").await;
    let client = machine.accelerator("nvidia.com/gpu").await;
    for call in [STATE, LOCK, CHECKPOINT] {
        fail(&machine, call, 12, 801);
        let cannot = suspend(&client, &[11, 12]).await.unwrap_err();
        assert_eq!(cannot.code(), Code::Unimplemented, "{cannot}");
        assert_eq!(cannot.message(), format!("{call} failed at process 12: CUDA_ERROR_NOT_SUPPORTED"));
        assert_eq!(states(&machine), [State::Running; 2]);
        machine.checkpoint(|script| script.failing.clear());
    }
    // Not when one of them is not as it was.
    fail(&machine, CHECKPOINT, 12, 801);
    fail(&machine, RESTORE, 11, 999);
    assert_eq!(suspend(&client, &[11, 12]).await.unwrap_err().code(), Code::FailedPrecondition);
    // Nor what was moved once: it is to come back, or to end.
    machine.checkpoint(|script| script.failing.clear());
    assert_eq!(suspend(&client, &[11, 12]).await.unwrap().0, [11, 12]);
    fail(&machine, RESTORE, 11, 801);
    assert_eq!(resume(&client, &[11, 12]).await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn who_finds_no_room_on_the_gpu_stays_suspended() {
    let mut machine = machine(&[(11, 5), (12, 6)]);
    machine.start("").await;
    let client = machine.accelerator("nvidia.com/gpu").await;
    suspend(&client, &[11, 12]).await.unwrap();
    moves(&machine);
    machine.change(|script| script.gpus[0].memory_used = 8 * GIB);
    let refused = resume(&client, &[11, 12]).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("process 12: CUDA_ERROR_OUT_OF_MEMORY"), "{refused}");
    assert_eq!(states(&machine), [State::Checkpointed; 2]);
    assert_eq!(moves(&machine), these(&[(RESTORE, 11), (RESTORE, 12), (CHECKPOINT, 11)]));
    machine.change(|script| assert_eq!(script.gpus[0].memory_used, 8 * GIB, "it holds nothing"));
    machine.change(|script| script.gpus[0].memory_used = 0);
    assert_eq!(resume(&client, &[11, 12]).await.unwrap(), [11, 12]);
    assert_eq!(states(&machine), [State::Running; 2]);
}

#[tokio::test]
async fn what_was_left_half_way_is_taken_on() {
    let mut machine = machine(&[(11, 3), (12, 2), (13, 1)]);
    machine.start("").await;
    let client = machine.accelerator("nvidia.com/gpu").await;
    // A plugin died between two calls.
    machine.checkpoint(|script| script.processes[0].state = State::Locked);
    assert_eq!(suspend(&client, &[11, 12]).await.unwrap().0, [11, 12]);
    assert_eq!(states(&machine), [State::Checkpointed, State::Checkpointed, State::Running]);
    machine.checkpoint(|script| script.processes[2].state = State::Locked);
    assert_eq!(resume(&client, &[11, 12, 13]).await.unwrap(), [11, 12, 13]);
    assert_eq!(states(&machine), [State::Running; 3]);
    // One that the driver lost, and one that it does not know though it holds memory.
    machine.checkpoint(|script| script.processes[1].state = State::Failed);
    let refused = suspend(&client, &[11, 12]).await.unwrap_err();
    assert!(refused.message().contains("process 12 is lost"), "{refused}");
    fail(&machine, STATE, 13, 801);
    let refused = suspend(&client, &[11, 13]).await.unwrap_err();
    assert_eq!(refused.message(), format!("{STATE} failed at process 13: CUDA_ERROR_NOT_SUPPORTED"));
    assert_eq!(states(&machine)[0], State::Running);
}

#[tokio::test]
async fn callers_at_once_take_turns_for_a_process() {
    let mut machine = machine(&[(11, 3), (12, 2), (13, 1)]);
    machine.start("[[gpu]]\nmatch = \"1\"\nshare = \"time-slice\"\nreplicas = 2\n").await;
    let whole = machine.accelerator("nvidia.com/gpu").await;
    let shared = machine.accelerator("nvidia.com/gpu.shared").await;
    let held_up = Call::new(CHECKPOINT, Some(11));
    machine.checkpoint(|script| script.held_up.push(held_up.clone()));
    let first = tokio::spawn(async move { suspend(&whole, &[11, 12]).await });
    until("the first is under way", || machine.checkpoint(|script| script.calls.contains(&held_up))).await;
    let mut second = tokio::spawn({
        let shared = shared.clone();
        async move { resume(&shared, &[12]).await }
    });
    assert!(tokio::time::timeout(QUIET, &mut second).await.is_err(), "it waits for its turn");
    // Another process is nobody's turn.
    assert_eq!(suspend(&shared, &[13]).await.unwrap(), (vec![13], Some(GIB)));
    machine.checkpoint(|script| script.held_up.clear());
    assert_eq!(first.await.unwrap().unwrap().0, [11, 12]);
    assert_eq!(second.await.unwrap().unwrap(), [12]);
    assert_eq!(states(&machine), [State::Checkpointed, State::Running, State::Checkpointed]);
}

#[tokio::test]
async fn a_driver_without_the_calls_says_so() {
    let without_calls = fake("nvml").display().to_string();
    for (library, why) in [
        (without_calls.as_str(), "it has no cuInit, and needs to be 570 or newer"),
        ("/nowhere/libcuda.so.1", "/nowhere/libcuda.so.1 cannot be loaded"),
    ] {
        let mut machine = machine(&[(11, 3)]);
        machine.start(&format!("cuda_library = {library:?}\n")).await;
        let client = machine.accelerator("nvidia.com/gpu").await;
        let description = describe(&client).await;
        assert!(!description.can_suspend && description.tells_memory);
        assert!(description.cannot_suspend_because.contains(why), "{description:?}");
        let refused = suspend(&client, &[11]).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
        assert!(refused.message().contains(why), "{refused}");
        assert_eq!(resume(&client, &[11]).await.unwrap_err().code(), Code::Unimplemented);
    }
}

#[tokio::test]
async fn a_driver_may_become_able() {
    let mut machine = machine(&[(11, 3)]);
    machine.checkpoint(|script| script.cuda_version = 12_040);
    machine.start("").await;
    let client = machine.accelerator("nvidia.com/gpu").await;
    let why = describe(&client).await.cannot_suspend_because;
    assert!(why.contains("it is of CUDA 12.4, and needs to be 570 or newer"), "{why}");
    machine.checkpoint(|script| {
        script.cuda_version = 13_000;
        script.failing.push(Failing { call: Call::new("cuInit", None), code: 100 });
    });
    let refused = suspend(&client, &[11]).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("cuInit: CUDA_ERROR_NO_DEVICE"), "{refused}");
    machine.checkpoint(|script| script.failing.clear());
    assert!(describe(&client).await.can_suspend);
    assert_eq!(suspend(&client, &[11]).await.unwrap(), (vec![11], Some(3 * GIB)));
}

#[tokio::test]
async fn the_hosts_library_is_found_from_a_container() {
    let mut machine = machine(&[(11, 3)]);
    machine.put("root/usr/lib64/libcuda.so.1", "");
    std::fs::copy(fake("checkpoint"), machine.host("root/usr/lib64/libcuda.so.1")).unwrap();
    machine.start("cuda_library = \"libcuda.so.1\"\n").await;
    let client = machine.accelerator("nvidia.com/gpu").await;
    assert_eq!(suspend(&client, &[11]).await.unwrap(), (vec![11], Some(3 * GIB)));
}
