//! The router alone, in front of one program on this machine, to be measured beside another proxy.
//!
//! `proxy LISTEN UPSTREAM_PORT [cc]`: serves every request for host `bench` from 127.0.0.1:UPSTREAM_PORT. It knows no nodes,
//! containers or hubs: the instance's network namespace is its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tombolo_agent_core::routes::{Backend, Endpoint, HostRoutes, RouteTable, Split};
use tombolo_agent_core::supervision::InstanceId;
use tombolo_api::RevisionKey;
use tombolo_router::{Dialer, Meter, Router};

const THREADS: usize = 2;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: proxy LISTEN UPSTREAM_PORT [CONTAINER_CONCURRENCY]";
    let listen = arguments.next().ok_or(usage)?.parse()?;
    let port: u16 = arguments.next().ok_or(usage)?.parse()?;
    let container_concurrency = arguments.next().map_or(Ok(0), |limit| limit.parse())?;
    let id = InstanceId("i1".to_owned());
    let key = RevisionKey::new("default", "bench");
    let backend = Backend {
        ready: vec![Endpoint { instance: id.clone(), port }],
        standby: Vec::new(),
        unavailable: None,
        awaits: None,
        h2c: false,
        container_concurrency,
        timeout_ms: 300_000,
        response_start_timeout_ms: 300_000,
        idle_timeout_ms: 0,
    };
    let splits = vec![Split { percent: 100, revision: key.clone() }];
    let host = HostRoutes { splits, ..HostRoutes::default() };
    let table = RouteTable {
        hosts: BTreeMap::from([("bench".into(), Arc::new(host))]),
        revisions: BTreeMap::from([(key, Arc::new(backend))]),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    runtime.block_on(async {
        let dialer = Dialer::start()?;
        dialer.add(id, File::open("/proc/self/ns/net")?.into());
        let (_tables, followed) = watch::channel(Arc::new(table));
        let router = Router::bind(listen, followed, mpsc::channel(1).0, dialer, Arc::new(Meter::new()))?;
        router.run(std::future::pending::<()>()).await;
        Ok(())
    })
}
