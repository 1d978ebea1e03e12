//! What is measured of GPUs, in Prometheus' text format, from the view.

use std::fmt::Write as _;

use crate::gpu::Gpu;
use crate::view::View;

/// Name, type, what it is, and its values of one GPU.
type Family = (&'static str, &'static str, &'static str, fn(&View, &Gpu, &mut Values));

const FAMILIES: [Family; 11] = [
    ("tombolo_gpu_info", "gauge", "A GPU that was seen, by its UUID.", |view, gpu, values| {
        let (index, name, bus) = (gpu.index, escaped(&gpu.name), &gpu.bus);
        let driver = escaped(view.driver_version.as_deref().unwrap_or_default());
        let more = format!(",index=\"{index}\",name=\"{name}\",bus=\"{bus}\",driver=\"{driver}\"");
        values.add(gpu, &more, 1);
    }),
    ("tombolo_gpu_healthy", "gauge", "Whether the GPU may be given to programs.", |view, gpu, values| {
        values.add(gpu, "", u8::from(!view.faults.contains_key(&gpu.uuid)));
    }),
    (
        "tombolo_gpu_utilisation_percent",
        "gauge",
        "Time in which some program ran on the processors.",
        |view, gpu, values| {
            values.add_known(gpu, view.measured(gpu).and_then(|usage| usage.processor_percent))
        },
    ),
    (
        "tombolo_gpu_memory_utilisation_percent",
        "gauge",
        "Time in which memory was read or written.",
        |view, gpu, values| values.add_known(gpu, view.measured(gpu).and_then(|usage| usage.memory_percent)),
    ),
    ("tombolo_gpu_memory_total_bytes", "gauge", "Memory of the GPU.", |_, gpu, values| {
        values.add(gpu, "", gpu.memory_bytes);
    }),
    (
        "tombolo_gpu_memory_used_bytes",
        "gauge",
        "Memory that programs and the driver have taken.",
        |view, gpu, values| values.add_known(gpu, view.measured(gpu).map(|usage| usage.memory_used_bytes)),
    ),
    ("tombolo_gpu_temperature_celsius", "gauge", "Temperature of the chip.", |view, gpu, values| {
        values.add_known(gpu, view.measured(gpu).and_then(|usage| usage.temperature_celsius));
    }),
    ("tombolo_gpu_power_watts", "gauge", "Power that the GPU draws.", |view, gpu, values| {
        let milliwatts = view.measured(gpu).and_then(|usage| usage.power_milliwatts);
        values.add_known(gpu, milliwatts.map(|milliwatts| f64::from(milliwatts) / 1000.0));
    }),
    (
        "tombolo_gpu_ecc_errors",
        "gauge",
        "Errors of the memory since the driver was loaded.",
        |_, gpu, values| {
            if let Some(ecc) = gpu.usage.ecc {
                values.add(gpu, ",kind=\"corrected\"", ecc.corrected);
                values.add(gpu, ",kind=\"uncorrected\"", ecc.uncorrected);
            }
        },
    ),
    (
        "tombolo_gpu_process_memory_bytes",
        "gauge",
        "Memory that a process of the host has taken.",
        |view, gpu, values| {
            for process in view.measured(gpu).into_iter().flat_map(|usage| &usage.processes) {
                let instance = process.place.map(|place| format!(",gpu_instance=\"{}\"", place.gpu_instance));
                let more = format!(",pid=\"{}\"{}", process.pid, instance.unwrap_or_default());
                if let Some(bytes) = process.memory_bytes {
                    values.add(gpu, &more, bytes);
                }
            }
        },
    ),
    (
        "tombolo_gpu_xid_errors_total",
        "counter",
        "Critical errors that the driver reported.",
        |view, gpu, values| {
            for ((uuid, number), count) in &view.xids {
                if *uuid == gpu.uuid {
                    values.add(gpu, &format!(",xid=\"{number}\""), count);
                }
            }
        },
    ),
];

/// Appends all that is known; what a GPU does not tell, or not now, is left out. Errors stay counted.
pub(crate) fn append(text: &mut String, view: &View) {
    for (name, kind, help, of_gpu) in FAMILIES {
        let mut values = Values::default();
        for gpu in view.gpus.values() {
            of_gpu(view, gpu, &mut values);
        }
        if !values.0.is_empty() {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        }
        for (labels, value) in values.0 {
            let _ = writeln!(text, "{name}{{{labels}}} {value}");
        }
    }
}

#[derive(Default)]
struct Values(Vec<(String, String)>);

impl Values {
    fn add(&mut self, gpu: &Gpu, more: &str, value: impl ToString) {
        self.0.push((format!("gpu=\"{}\"{more}", gpu.uuid), value.to_string()));
    }

    fn add_known(&mut self, gpu: &Gpu, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.add(gpu, "", value);
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::gpu::{Ecc, Place, Process, Usage};
    use crate::testing::gpu;

    #[test]
    fn what_is_known_is_shown_and_nothing_else() {
        let place = Some(Place { gpu_instance: 2, compute_instance: 0 });
        let usage = Usage {
            memory_used_bytes: 5,
            processor_percent: Some(40),
            temperature_celsius: Some(61),
            power_milliwatts: Some(70_500),
            ecc: Some(Ecc { corrected: 3, uncorrected: 0 }),
            processes: vec![
                Process { pid: 7, memory_bytes: Some(4), place },
                Process { pid: 8, memory_bytes: None, place: None },
            ],
            ..Usage::default()
        };
        let one = Gpu { usage, name: "a \"b\"".into(), ..gpu(0) };
        let uuid = one.uuid.clone();
        let mut view = View {
            driver_version: Some("570.1".into()),
            gpus: BTreeMap::from([(uuid.clone(), one)]),
            faults: BTreeMap::from([(uuid.clone(), "why".into())]),
            answering: BTreeSet::from([uuid.clone()]),
            xids: BTreeMap::from([((uuid.clone(), 31), 2)]),
            ..View::default()
        };
        let mut text = String::new();
        append(&mut text, &view);
        for line in [
            "tombolo_gpu_info{gpu=\"U\",index=\"0\",name=\"a \\\"b\\\"\",bus=\"0000:00:00.0\",driver=\"570.1\"} 1",
            "tombolo_gpu_healthy{gpu=\"U\"} 0",
            "tombolo_gpu_utilisation_percent{gpu=\"U\"} 40",
            "tombolo_gpu_memory_total_bytes{gpu=\"U\"} 17179869184",
            "tombolo_gpu_memory_used_bytes{gpu=\"U\"} 5",
            "tombolo_gpu_temperature_celsius{gpu=\"U\"} 61",
            "tombolo_gpu_power_watts{gpu=\"U\"} 70.5",
            "tombolo_gpu_ecc_errors{gpu=\"U\",kind=\"corrected\"} 3",
            "tombolo_gpu_process_memory_bytes{gpu=\"U\",pid=\"7\",gpu_instance=\"2\"} 4",
            "tombolo_gpu_xid_errors_total{gpu=\"U\",xid=\"31\"} 2",
        ] {
            let line = line.replace('U', &uuid.0);
            assert!(text.lines().any(|each| each == line), "{line} in\n{text}");
        }
        assert!(!text.contains("memory_utilisation"), "not told by this GPU");
        assert!(!text.contains("pid=\"8\""), "not told of this process");
        // What was measured of one that does not answer any more is old.
        view.answering.clear();
        let mut text = String::new();
        append(&mut text, &view);
        for name in ["utilisation_percent", "memory_used", "temperature", "power", "process_memory"] {
            assert!(!text.contains(name), "{name} in\n{text}");
        }
        for name in ["info", "healthy", "memory_total_bytes", "ecc_errors", "xid_errors_total"] {
            assert!(text.contains(&format!("tombolo_gpu_{name}{{")), "{name} in\n{text}");
        }
    }
}
