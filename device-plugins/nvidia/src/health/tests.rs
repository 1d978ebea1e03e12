//! What counts as a fault, and what makes it good again.

use super::*;
use crate::gpu::{Ecc, Usage};
use crate::testing::{cut, gpu};

struct Machine {
    known: BTreeMap<Uuid, Gpu>,
    health: Health,
}

impl Machine {
    fn new(gpus: Vec<Gpu>) -> Self {
        let known = gpus.into_iter().map(|gpu| (gpu.uuid.clone(), gpu)).collect();
        let config = HealthConfig { recovery_looks: 2, ..HealthConfig::default() };
        Self { known, health: Health::new(config) }
    }

    fn look(&mut self, gpus: Vec<Gpu>) {
        let look = Look { driver_version: "570.1".into(), gpus, mute: Vec::new() };
        self.health.look(&self.known, &look);
    }

    fn report(&mut self, gpu: &Gpu, number: u64, place: Option<Place>) -> bool {
        self.health.report(&Xid { gpu: gpu.uuid.clone(), number, place })
    }

    fn is_fine(&self, gpu: &Gpu) -> bool {
        self.health.fault(&gpu.uuid, None).is_none()
    }
}

#[test]
fn a_critical_error_counts_until_enough_good_looks() {
    let gpus = vec![gpu(0), gpu(1)];
    let mut machine = Machine::new(gpus.clone());
    machine.look(gpus.clone());
    assert!(machine.is_fine(&gpus[0]));
    assert!(machine.report(&gpus[0], 79, None));
    assert!(machine.health.fault(&gpus[0].uuid, None).unwrap().contains("Xid 79"));
    assert!(machine.is_fine(&gpus[1]), "only of its own GPU");
    machine.look(gpus.clone());
    assert!(!machine.is_fine(&gpus[0]));
    assert!(machine.report(&gpus[0], 79, None), "and the looks are counted anew");
    machine.look(gpus.clone());
    assert!(!machine.is_fine(&gpus[0]));
    machine.look(gpus.clone());
    assert!(machine.is_fine(&gpus[0]));
}

#[test]
fn errors_of_programs_do_not_count() {
    let one = gpu(0);
    let mut machine = Machine::new(vec![one.clone()]);
    for number in [13, 31, 43, 45, 68, 109] {
        assert!(!machine.report(&one, number, None), "{number}");
        assert!(machine.is_fine(&one));
    }
    assert_eq!(machine.health.counts()[&(one.uuid.clone(), 31)], 1);
}

#[test]
fn a_gpu_that_is_gone_is_unhealthy_until_it_is_back() {
    let gpus = vec![gpu(0), gpu(1)];
    let mut machine = Machine::new(gpus.clone());
    machine.look(vec![gpu(1)]);
    assert!(!machine.is_fine(&gpus[0]) && machine.is_fine(&gpus[1]));
    machine.look(gpus.clone());
    machine.look(vec![gpu(1)]);
    machine.look(gpus.clone());
    assert!(!machine.is_fine(&gpus[0]), "not two good looks in a row");
    machine.look(gpus.clone());
    assert!(machine.is_fine(&gpus[0]));
}

#[test]
fn after_a_memory_error_only_a_reset_helps() {
    let with_errors = |uncorrected| Gpu {
        usage: Usage { ecc: Some(Ecc { corrected: 9, uncorrected }), ..Usage::default() },
        ..gpu(0)
    };
    let reported = |number| {
        let mut machine = Machine::new(vec![gpu(0)]);
        machine.report(&gpu(0), number, None);
        for _ in 0..5 {
            machine.look(vec![with_errors(1)]);
        }
        machine
    };
    assert!(reported(62).is_fine(&gpu(0)), "an error of something else");
    for number in MEMORY_XIDS {
        let mut machine = reported(number);
        assert!(!machine.is_fine(&gpu(0)), "Xid {number}");
        // It does not answer while it is reset, and still has them when that did not help.
        machine.look(vec![]);
        machine.look(vec![with_errors(1)]);
        machine.look(vec![with_errors(0)]);
        assert!(!machine.is_fine(&gpu(0)), "Xid {number}");
        machine.look(vec![with_errors(0)]);
        assert!(machine.is_fine(&gpu(0)), "Xid {number}");
    }
}

#[test]
fn an_error_of_an_instance_is_of_that_instance_only() {
    let whole = cut(0);
    let mut machine = Machine::new(vec![whole.clone()]);
    let places: Vec<_> = whole.instances.iter().flatten().map(|instance| instance.place).collect();
    machine.report(&whole, 94, Some(places[0]));
    let is_fine = |machine: &Machine, place| machine.health.fault(&whole.uuid, Some(place)).is_none();
    assert!(!is_fine(&machine, places[0]) && is_fine(&machine, places[1]));
    assert!(!machine.is_fine(&whole), "the whole is no better than its part");
    machine.report(&whole, 79, None);
    assert!(!is_fine(&machine, places[1]));
}
