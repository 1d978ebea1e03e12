//! An image made for measuring: layers of files that compress about as programs and data do, different at every call.

use serde_json::{Value, json};
use tombolo_harness::{Function, Node, Site};
use tombolo_oci::build::{BuildOptions, BuiltImage, FileEntry, Source, build_directory};
use tombolo_oci::image::{Config, MAX_DOCUMENT, OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST};
use tombolo_oci::{Client, Endpoint, Platform, RunConfig, Scheme, Store};

/// Where the harness' hub has its registry.
const REGISTRY: &str = "10.99.0.1:7080";

/// Bytes of one file.
const FILE_BYTES: usize = 250_000;

/// An image that the hub has.
pub(super) struct Image {
    /// For peers.
    pub(super) address: String,
    /// Compressed bytes of its layers.
    pub(super) bytes: u64,
    reference: String,
    diff_ids: Vec<String>,
}

impl Image {
    /// Makes one and pushes it.
    pub(super) async fn push(_site: &Site, layers: usize, layer_bytes: usize) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(dir.path()).expect("a store");
        let (built, diff_ids) = build(&store, layers, layer_bytes);
        let endpoint =
            Endpoint { scheme: Scheme::Http, address: REGISTRY.into(), auth: None, server_name: None };
        let client = Client::new(endpoint).expect("a client");
        let (repository, tag) = ("default/large".parse().expect("a name"), "v1".parse().expect("a tag"));
        let digest = client.push(&store, &repository, &tag, &built).await.expect("the hub takes an image");
        Self {
            address: format!("{REGISTRY}/default/large:v1"),
            bytes: built.size,
            reference: format!("hub.tombolo/default/large@{digest}"),
            diff_ids,
        }
    }

    /// A Service of it. Nobody starts it: there is no program in it.
    pub(super) fn service(&self) -> Value {
        Function::hello("large").service(&self.reference)
    }

    /// Whether all of it is unpacked on the node.
    pub(super) fn is_on(&self, node: &Node) -> bool {
        let layers = node.state_dir().join("images/layers");
        self.diff_ids.iter().all(|diff_id| {
            let hex = diff_id.trim_start_matches("sha256:");
            layers.join(hex).join("unpacked").is_file()
        })
    }
}

fn build(store: &Store, layers: usize, layer_bytes: usize) -> (BuiltImage, Vec<String>) {
    let mut random = Random(u64::from(std::process::id()) << 20 | layer_bytes as u64);
    let (mut descriptors, mut digests, mut diff_ids, mut size) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for layer in 0..layers {
        let file = |number: usize| FileEntry {
            path: format!("opt/layer-{layer}/file-{number}"),
            executable: false,
            content: random.content(FILE_BYTES),
        };
        let files = (0..layer_bytes / FILE_BYTES).map(file).collect();
        let (config, platform) = (RunConfig::default(), Platform::host());
        let options = BuildOptions { source: Source::Files(files), config, platform };
        let built = build_directory(&options, store).expect("a layer");
        let config = store.read_blob(&built.config, MAX_DOCUMENT).expect("its configuration");
        let config = Config::parse(&built.config, &config).expect("a configuration");
        diff_ids.extend(config.diff_ids.iter().map(ToString::to_string));
        size += built.size;
        for digest in built.layers {
            let size = store.blob_size(&digest).expect("it was just made");
            descriptors.push(json!({"mediaType": OCI_LAYER_GZIP, "digest": digest, "size": size}));
            digests.push(digest);
        }
    }
    let Platform { os, architecture, .. } = Platform::host();
    let config = json!({"os": os, "architecture": architecture, "config": {"Entrypoint": ["/none"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string();
    let config_digest = store.put(config.as_bytes()).expect("a configuration");
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": descriptors,
        "config": {"mediaType": OCI_CONFIG, "digest": config_digest, "size": config.len()}});
    let manifest = store.put(manifest.to_string().as_bytes()).expect("a manifest");
    (BuiltImage { manifest, config: config_digest, layers: digests, size }, diff_ids)
}

/// Numbers that look random, the same for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// Runs of words with noise in between: about half of it is left by gzip.
    fn content(&mut self, bytes: usize) -> Vec<u8> {
        const WORDS: [&[u8]; 8] = [
            b"function ",
            b"return ",
            b"\x00\x00\x00\x00\x00\x00",
            b"import ",
            b"self.",
            b"tombolo",
            b"/usr/lib/",
            b"\x48\x89\xe5",
        ];
        let mut content = Vec::with_capacity(bytes + 16);
        while content.len() < bytes {
            match self.next() % 3 {
                0 => content.extend_from_slice(&self.next().to_le_bytes()[..4]),
                word => content.extend_from_slice(WORDS[(self.next() + word) as usize % WORDS.len()]),
            }
        }
        content.truncate(bytes);
        content
    }
}
