//! What an agent decides, as pure functions of what it knows: no clock, no files, no sockets, no tokio.

pub mod routes;
pub mod supervision;
