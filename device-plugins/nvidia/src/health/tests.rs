//! What counts as a fault, and what makes it good again.

use super::*;
use crate::gpu::{Ecc, Mute, Usage};
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
        self.look_at(gpus, Vec::new());
    }

    /// Gives which of them are taken to be as they were.
    fn look_at(&mut self, gpus: Vec<Gpu>, mute: Vec<Mute>) -> Vec<Uuid> {
        let look = Look { driver_version: "570.1".into(), gpus, mute };
        self.health.look(&self.known, &look).into_iter().collect()
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

/// One that does not answer, with what it is known by.
fn mute(gpu: &Gpu, uuid: bool, why: &str) -> Mute {
    let uuid = uuid.then(|| gpu.uuid.clone());
    Mute { index: gpu.index, uuid, why: why.to_owned(), is_lost: false }
}

#[test]
fn a_call_that_fails_at_one_look_takes_nothing_away_and_is_no_good_look() {
    let gpus = vec![gpu(0), gpu(1)];
    let mut machine = Machine::new(gpus.clone());
    for is_named in [true, false] {
        let silent = || vec![mute(&gpus[0], is_named, "timeout")];
        assert_eq!(machine.look_at(vec![gpu(1)], silent()), [gpu(0).uuid]);
        assert!(machine.is_fine(&gpus[0]), "once");
        machine.look(gpus.clone());
        assert_eq!(machine.look_at(vec![gpu(1)], silent()), [gpu(0).uuid], "not twice in a row");
        assert_eq!(machine.look_at(vec![gpu(1)], silent()), []);
        assert_eq!(machine.health.fault(&gpus[0].uuid, None), Some("the GPU does not answer: timeout"));
        machine.look(gpus.clone());
        machine.look_at(vec![gpu(1)], silent());
        machine.look(gpus.clone());
        assert!(!machine.is_fine(&gpus[0]), "not two good looks in a row");
        machine.look(gpus.clone());
        assert!(machine.is_fine(&gpus[0]));
    }
    let lost = Mute { is_lost: true, ..mute(&gpus[0], true, "it fell off") };
    assert_eq!(machine.look_at(vec![gpu(1)], vec![lost]), []);
    assert!(!machine.is_fine(&gpus[0]), "what the driver says is lost is so at once");
}

#[test]
fn each_gpu_has_its_own_reason() {
    let gpus = vec![gpu(0), gpu(1), gpu(2)];
    let mut machine = Machine::new(gpus.clone());
    let lost = |gpu, is_named, why| Mute { is_lost: true, ..mute(gpu, is_named, why) };
    machine.look_at(Vec::new(), vec![lost(&gpus[0], false, "reset"), lost(&gpus[1], true, "lost")]);
    let fault = |gpu: &Gpu| machine.health.fault(&gpu.uuid, None).unwrap().to_owned();
    assert_eq!(fault(&gpus[0]), "the GPU does not answer: reset");
    assert_eq!(fault(&gpus[1]), "the GPU does not answer: lost");
    assert_eq!(fault(&gpus[2]), "the driver does not list the GPU any more");
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
