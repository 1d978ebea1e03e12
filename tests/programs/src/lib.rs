//! The programs that tests run in containers, as bytes: static ones, which need nothing in their image. Knows no test.

/// `examples/hello`: greets, and names its revision.
pub const HELLO: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello"));

/// `subject.rs`: a server that looks around from inside, and misbehaves.
pub const SUBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/subject"));

/// `guest.rs`: does what its arguments say and prints what it finds.
pub const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest"));

/// `grpc`: answers gRPC calls.
pub const GRPC: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/grpc"));

/// `examples/camera-defects`: looks through a camera and says whether there is a defect.
pub const CAMERA_DEFECTS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/camera-defects"));
