//! GPUs as tests need them.

use crate::gpu::{Gpu, Instance, Place, Usage, Uuid};

/// A GPU with 16 GiB; its UUID begins with its number.
pub(crate) fn gpu(number: u32) -> Gpu {
    Gpu {
        index: number,
        uuid: Uuid(format!("GPU-{number}cf8db2d-06c0-7d70-1a51-e59b25b2c16c")),
        name: "NVIDIA Test".into(),
        minor: number,
        nodes: None,
        bus: format!("0000:0{number}:00.0"),
        memory_bytes: 16 << 30,
        instances: None,
        usage: Usage::default(),
    }
}

/// One that is cut in two.
pub(crate) fn cut(number: u32) -> Gpu {
    let instance = |index: u32, profile: &str| Instance {
        index,
        uuid: Uuid(format!("MIG-{number}{index}f8db2d-06c0-7d70-1a51-e59b25b2c16c")),
        place: Place { gpu_instance: 7 + index, compute_instance: 0 },
        profile: profile.into(),
    };
    Gpu { instances: Some(vec![instance(0, "1g.10gb"), instance(1, "2g.20gb")]), ..gpu(number) }
}
