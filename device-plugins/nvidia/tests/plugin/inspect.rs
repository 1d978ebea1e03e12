//! How GPUs are, as the plugin's socket tells it.

use tombolo_device_api::accelerator::v1::{InspectRequest, InspectResponse, Inspection, MemoryErrors};
use tombolo_fake_kubelet::SOON;
use tombolo_fake_nvml::script::{Event, Gpu};
use tonic::Streaming;

use crate::machine::{Machine, gpu, mig, uuid};

async fn next(told: &mut Streaming<InspectResponse>) -> Vec<Inspection> {
    let message = tokio::time::timeout(SOON, told.message()).await.expect("it is told");
    message.expect("it goes on").expect("the plugin runs").accelerators
}

/// The first message in which `is_so`.
async fn until(
    told: &mut Streaming<InspectResponse>,
    is_so: impl Fn(&[Inspection]) -> bool,
) -> Vec<Inspection> {
    loop {
        let accelerators = next(told).await;
        if is_so(&accelerators) {
            return accelerators;
        }
    }
}

#[tokio::test]
async fn what_the_driver_measures_is_told_and_what_is_amiss_at_once() {
    let busy = Gpu {
        memory_used: 3 << 30,
        utilisation: (40, 11),
        temperature: 61,
        power_milliwatts: 70_500,
        ecc: Some((3, 0)),
        ..gpu(0)
    };
    let plain = Gpu { is_plain: true, mig: Some(vec![mig(1, 7)]), ..gpu(1) };
    let mut machine = Machine::new(vec![busy, plain]);
    machine.start("").await;
    let mut client = machine.accelerator("nvidia.com/gpu").await;
    let mut told = client.inspect(InspectRequest {}).await.unwrap().into_inner();
    let both = until(&mut told, |all| all.len() == 2).await;
    let expected = Inspection {
        device_id: uuid(0),
        model: "NVIDIA Test".into(),
        fault: String::new(),
        part_ids: Vec::new(),
        memory_bytes: Some(16 << 30),
        memory_used_bytes: Some(3 << 30),
        utilisation_percent: Some(40),
        memory_utilisation_percent: Some(11),
        temperature_celsius: Some(61),
        power_milliwatts: Some(70_500),
        memory_errors: Some(MemoryErrors { corrected: 3, uncorrected: 0 }),
    };
    assert_eq!(both[0], expected);
    assert_eq!((both[1].part_ids.clone(), both[1].utilisation_percent), (vec![mig(1, 7).uuid], None));
    assert_eq!((both[1].power_milliwatts, both[1].memory_errors), (None, None), "it does not tell");

    machine.heard_from(&[0]).await;
    machine.change(|script| script.events.push(Event { uuid: uuid(0), xid: 79, ..Event::default() }));
    let faulty = until(&mut told, |all| !all[0].fault.is_empty()).await;
    assert!(faulty[0].fault.contains("Xid 79"), "{}", faulty[0].fault);
    machine.change(|script| {
        script.gpus[0].ecc = Some((3, 1));
        script.gpus[0].temperature = 99;
    });
    let worse =
        until(&mut told, |all| all[0].memory_errors.is_some_and(|errors| errors.uncorrected == 1)).await;
    assert_eq!(worse[0].temperature_celsius, Some(99), "with all that is measured then");
    machine.change(|script| script.gpus[0].is_lost = true);
    let lost = until(&mut told, |all| all[0].temperature_celsius.is_none()).await;
    assert_eq!((lost[0].memory_bytes, lost[0].memory_used_bytes), (Some(16 << 30), None));
    assert!(!lost[0].fault.is_empty());
}
