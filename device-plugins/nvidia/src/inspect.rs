//! How GPUs are, from the view, in the words of the accelerator service. Asks no hardware.

use tombolo_device_sdk::{DeviceIdError, Health, Inspection, MemoryErrors};

use crate::gpu::{Gpu, Usage};
use crate::view::View;

/// Every GPU that was seen. Of one that does not answer only what does not change is told, and its errors.
pub(crate) fn inspections(view: &View) -> Result<Vec<Inspection>, DeviceIdError> {
    view.gpus.values().map(|gpu| inspection(view, gpu)).collect()
}

fn inspection(view: &View, gpu: &Gpu) -> Result<Inspection, DeviceIdError> {
    let measured = view.measured(gpu);
    let usage = measured.cloned().unwrap_or(Usage { ecc: gpu.usage.ecc, ..Usage::default() });
    // A GPU that shares the machine's memory has none of its own.
    let memory_bytes = (gpu.memory_bytes > 0).then_some(gpu.memory_bytes);
    let parts = gpu.instances.iter().flatten().map(|instance| instance.uuid.0.parse());
    let health = match view.faults.get(&gpu.uuid) {
        Some(why) => Health::Unhealthy { why: why.clone() },
        None => Health::Healthy,
    };
    Ok(Inspection {
        device: gpu.uuid.0.parse()?,
        model: gpu.name.clone(),
        health,
        parts: parts.collect::<Result<_, _>>()?,
        memory_bytes,
        memory_used_bytes: memory_bytes.and(measured).map(|usage| usage.memory_used_bytes),
        utilisation_percent: usage.processor_percent,
        memory_utilisation_percent: usage.memory_percent,
        temperature_celsius: usage.temperature_celsius.and_then(|degrees| i32::try_from(degrees).ok()),
        power_milliwatts: usage.power_milliwatts,
        memory_errors: usage
            .ecc
            .map(|ecc| MemoryErrors { corrected: ecc.corrected, uncorrected: ecc.uncorrected }),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::gpu::Ecc;
    use crate::testing::{cut, gpu};

    #[test]
    fn what_is_measured_is_told_of_those_that_answer() {
        let usage = Usage {
            memory_used_bytes: 5,
            processor_percent: Some(40),
            temperature_celsius: Some(61),
            power_milliwatts: Some(70_500),
            ecc: Some(Ecc { corrected: 3, uncorrected: 0 }),
            ..Usage::default()
        };
        let all = [Gpu { usage: usage.clone(), ..gpu(0) }, Gpu { usage, ..cut(1) }];
        let uuid = |index: usize| all[index].uuid.clone();
        let mut view = View {
            gpus: BTreeMap::from(all.clone().map(|gpu| (gpu.uuid.clone(), gpu))),
            faults: BTreeMap::from([(uuid(1), "it is hot".to_owned())]),
            answering: BTreeSet::from([uuid(0), uuid(1)]),
            ..View::default()
        };
        let told = inspections(&view).unwrap();
        assert_eq!((told[0].health.clone(), told[0].parts.len()), (Health::Healthy, 0));
        assert_eq!((told[0].memory_bytes, told[0].memory_used_bytes), (Some(16 << 30), Some(5)));
        assert_eq!((told[0].utilisation_percent, told[0].memory_utilisation_percent), (Some(40), None));
        assert_eq!((told[0].temperature_celsius, told[0].power_milliwatts), (Some(61), Some(70_500)));
        let parts: Vec<&str> = told[1].parts.iter().map(|part| part.as_str()).collect();
        let instances = all[1].instances.as_ref().unwrap();
        assert_eq!(parts, [instances[0].uuid.0.as_str(), instances[1].uuid.0.as_str()]);
        assert_eq!(told[1].health, Health::Unhealthy { why: "it is hot".to_owned() });
        view.answering.clear();
        let old = inspections(&view).unwrap();
        assert_eq!((old[0].memory_bytes, old[0].memory_used_bytes), (Some(16 << 30), None));
        assert_eq!((old[0].utilisation_percent, old[0].temperature_celsius), (None, None));
        assert_eq!(old[0].memory_errors, Some(MemoryErrors { corrected: 3, uncorrected: 0 }));
    }
}
