//! Which devices go well together: memory is of one GPU, sharers are spread over GPUs. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use tombolo_device_sdk::{DeviceId, Wanted, close_together};

use crate::gpu::Uuid;
use crate::share::Kind;
use crate::view::View;

type ByGpu<'a> = BTreeMap<&'a Uuid, Vec<&'a DeviceId>>;

pub(crate) fn prefer(resource: &str, wanted: &Wanted<'_>, view: &View) -> Vec<DeviceId> {
    let mut gpus = ByGpu::new();
    let mut kind = Kind::Whole;
    let mut of_mps = BTreeSet::new();
    for device in &wanted.available {
        let Some(part) = view.part(resource, device.id.as_str()) else { continue };
        kind = part.kind;
        gpus.entry(&part.gpu).or_default().push(&device.id);
        if part.kind.needs_mps() {
            of_mps.insert(&part.gpu);
        }
    }
    let chosen = match kind {
        // Of several they are refused: none of these is any good then.
        Kind::Memory { unit_mib, .. } => Some(of_one_gpu(wanted, &gpus, view, unit_mib).unwrap_or_default()),
        Kind::TimeSlice | Kind::Mps { .. } => {
            let (mps, others): (ByGpu<'_>, ByGpu<'_>) =
                gpus.into_iter().partition(|(gpu, _)| of_mps.contains(gpu));
            let mut kinds = [others, mps];
            kinds.sort_by_key(|gpus| Reverse(gpus.values().map(Vec::len).max()));
            // Those of both kinds are refused, too.
            Some(kinds.into_iter().find_map(|gpus| spread(wanted, gpus)).unwrap_or_default())
        }
        Kind::Whole => None,
    };
    chosen.unwrap_or_else(|| close_together(wanted))
}

/// Units of the fullest GPU that has enough of them, so that others stay free for those who want more; one whose memory is
/// taken by somebody outside comes last.
fn of_one_gpu(wanted: &Wanted<'_>, gpus: &ByGpu<'_>, view: &View, unit_mib: u64) -> Option<Vec<DeviceId>> {
    let bytes = u64::try_from(wanted.size).ok()?.checked_mul(unit_mib << 20)?;
    let enough = gpus
        .iter()
        .filter(|(_, units)| units.len() >= wanted.size)
        .filter(|(_, units)| wanted.must_include.iter().all(|must| units.contains(must)));
    let (_, units) = enough.min_by_key(|(gpu, units)| (view.free_bytes(gpu) < bytes, units.len()))?;
    let rest = units.iter().filter(|unit| !wanted.must_include.contains(*unit));
    Some(wanted.must_include.iter().chain(rest).take(wanted.size).map(|id| (*id).clone()).collect())
}

/// One of the GPU with most free places, then one of the next; none: there are not enough.
fn spread(wanted: &Wanted<'_>, mut gpus: ByGpu<'_>) -> Option<Vec<DeviceId>> {
    let places = || gpus.values().flatten();
    let has_all = wanted.must_include.iter().all(|must| places().any(|place| place == must));
    if !has_all || places().count() < wanted.size {
        return None;
    }
    let mut chosen: Vec<DeviceId> = wanted.must_include.iter().map(|id| (*id).clone()).collect();
    let mut taken: BTreeMap<&Uuid, usize> = BTreeMap::new();
    for (gpu, places) in &mut gpus {
        let before = places.len();
        places.retain(|id| !wanted.must_include.contains(id));
        taken.insert(gpu, before - places.len());
    }
    while chosen.len() < wanted.size {
        let free = gpus.iter_mut().filter(|(_, places)| !places.is_empty());
        let best = free.min_by_key(|(gpu, places)| (taken[*gpu], usize::MAX - places.len()));
        let Some((gpu, places)) = best else { break };
        *taken.entry(gpu).or_default() += 1;
        chosen.push(places.remove(0).clone());
    }
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tombolo_device_sdk::{Device, Health};

    use super::*;
    use crate::config::{Config, GpuConfig, Share};
    use crate::gpu::Gpu;
    use crate::share::offers;
    use crate::testing::gpu;

    /// What is preferred of those that `free` keeps, as the number of the GPU.
    fn chosen(
        share: Share,
        used: [u64; 2],
        free: impl Fn(&str) -> bool,
        must: &[&str],
        size: usize,
    ) -> Vec<String> {
        let mut gpus = [gpu(0), gpu(1)];
        for (gpu, used) in gpus.iter_mut().zip(used) {
            gpu.usage.memory_used_bytes = used;
        }
        let shares = vec![GpuConfig { selector: "*".into(), share }];
        chosen_of(gpus.to_vec(), shares, free, must, size)
    }

    fn chosen_of(
        gpus: Vec<Gpu>,
        shares: Vec<GpuConfig>,
        free: impl Fn(&str) -> bool,
        must: &[&str],
        size: usize,
    ) -> Vec<String> {
        let mut config = Config { gpu: shares, ..Config::default() };
        config.memory.unit_mib = 4096;
        let offers = offers(&gpus, &config);
        let (resource, devices) = offers.first_key_value().unwrap();
        let devices: Vec<_> = devices
            .keys()
            .filter(|id| free(id))
            .map(|id| Device { id: id.parse().unwrap(), health: Health::Healthy, numa: None })
            .collect();
        let must: Vec<DeviceId> = must.iter().map(|id| id.parse().unwrap()).collect();
        let must_include: BTreeSet<_> = must.iter().collect();
        let wanted = Wanted { available: devices.iter().collect(), must_include, size };
        let gpus = gpus.into_iter().map(|gpu| (gpu.uuid.clone(), gpu)).collect();
        let view = View { offers: offers.clone(), gpus, ..View::default() };
        prefer(resource, &wanted, &view).iter().map(|id| id.as_str()[4..5].to_owned()).collect()
    }

    const MEMORY: Share = Share::Memory { mps: false };
    const SLICES: Share = Share::TimeSlice { replicas: 4 };

    #[test]
    fn memory_is_of_the_fullest_gpu_that_has_enough() {
        let fuller = |id: &str| !id.starts_with("GPU-1") || id.ends_with("/0") || id.ends_with("/1");
        assert_eq!(chosen(MEMORY, [0, 0], fuller, &[], 2), ["1", "1"]);
        assert_eq!(chosen(MEMORY, [0, 0], fuller, &[], 3), ["0", "0", "0"]);
        let one_of_each = |id: &str| id.ends_with("/0");
        assert_eq!(chosen(MEMORY, [0, 0], one_of_each, &[], 2), [""; 0], "no GPU has two");
        assert_eq!(
            chosen(MEMORY, [0, 12 << 30], fuller, &[], 2),
            ["0", "0"],
            "the other is taken by somebody"
        );
        let must = format!("{}/4096Mi/2", gpu(0).uuid);
        assert_eq!(chosen(MEMORY, [0, 0], fuller, &[&must], 2), ["0", "0"]);
    }

    #[test]
    fn sharers_are_spread() {
        let all = |_: &str| true;
        assert_eq!(chosen(SLICES, [0, 0], all, &[], 2), ["0", "1"]);
        assert_eq!(chosen(SLICES, [0, 0], |id| id != format!("{}::3", gpu(0).uuid), &[], 1), ["1"]);
        let must = format!("{}::0", gpu(1).uuid);
        assert_eq!(chosen(SLICES, [0, 0], all, &[&must], 2), ["1", "0"]);
        assert_eq!(chosen(SLICES, [0, 0], all, &[], 8).len(), 8);
    }

    #[test]
    fn sharers_are_of_gpus_that_are_shared_in_the_same_way() {
        let (in_turns, by_mps) = (Share::TimeSlice { replicas: 3 }, Share::Mps { replicas: 2 });
        let chosen = |must: &[&str], size| {
            let of = |selector: &str, share| GpuConfig { selector: selector.into(), share };
            let shares = vec![of("1", by_mps), of("2", by_mps), of("*", in_turns)];
            chosen_of(vec![gpu(0), gpu(1), gpu(2)], shares, |_| true, must, size)
        };
        assert_eq!(chosen(&[], 1), ["0"]);
        assert_eq!(chosen(&[], 3), ["0", "0", "0"]);
        assert_eq!(chosen(&[], 4), ["1", "2", "1", "2"]);
        let must = format!("{}::1", gpu(2).uuid);
        assert_eq!(chosen(&[&must], 2), ["2", "1"]);
        assert_eq!(chosen(&[&must, &format!("{}::1", gpu(0).uuid)], 3), [""; 0]);
        assert_eq!(chosen(&[], 5), [""; 0], "nobody has as many of one kind");
    }
}
