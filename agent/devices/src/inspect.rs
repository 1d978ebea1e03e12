//! What a plugin says of one accelerator, as the node's report has it. Must not know how often that is told.

use tombolo_api::report::{AcceleratorReport, MemoryErrors};
use tombolo_device_api::accelerator::v1::{Inspection, MemoryErrors as Errors};

/// Longest texts of a plugin that are passed on, bytes: of ids, which would name nothing if they were cut, and of others.
const ID_MAX: usize = 253;
const TEXT_MAX: usize = 256;

/// Instances of one accelerator; the most that NVIDIA cuts a GPU into is seven.
const PARTS_MAX: usize = 64;

/// `None`: it has no name that could be told.
pub(crate) fn report(inspection: Inspection) -> Option<AcceleratorReport> {
    let is_name = |id: &String| (1..=ID_MAX).contains(&id.len());
    let errors = |Errors { corrected, uncorrected }| MemoryErrors { corrected, uncorrected };
    Some(AcceleratorReport {
        id: Some(inspection.device_id).filter(is_name)?,
        model: shortened(inspection.model),
        fault: shortened(inspection.fault),
        parts: inspection.part_ids.into_iter().filter(is_name).take(PARTS_MAX).collect(),
        memory_bytes: inspection.memory_bytes,
        memory_used_bytes: inspection.memory_used_bytes,
        utilisation_percent: inspection.utilisation_percent,
        memory_utilisation_percent: inspection.memory_utilisation_percent,
        temperature_celsius: inspection.temperature_celsius,
        power_watts: inspection.power_milliwatts.map(|milliwatts| milliwatts / 1000),
        memory_errors: inspection.memory_errors.map(errors),
        held: Vec::new(),
    })
}

fn shortened(mut text: String) -> String {
    if text.len() > TEXT_MAX {
        let end = (0..=TEXT_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_not_believed_any_length() {
        let said = |id: &str, fault: &str| Inspection {
            device_id: id.into(),
            fault: fault.into(),
            part_ids: vec!["MIG-1".into(), String::new()],
            power_milliwatts: Some(70_999),
            ..Inspection::default()
        };
        let told = report(said("GPU-1", "it is hot")).unwrap();
        assert_eq!((told.id.as_str(), told.fault.as_str(), told.parts.len()), ("GPU-1", "it is hot", 1));
        assert_eq!((told.power_watts, told.temperature_celsius, told.memory_errors), (Some(70), None, None));
        assert_eq!(report(said("GPU-1", &"ü".repeat(1000))).unwrap().fault.chars().count(), TEXT_MAX / 2 + 1);
        assert_eq!(report(said("", "")), None);
        assert_eq!(report(said(&"x".repeat(ID_MAX + 1), "")), None);
    }
}
