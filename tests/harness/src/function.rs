//! Functions that tests deploy: which program, in which image, with which Service around it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tombolo_api::Digest;
use tombolo_oci::{
    BuildOptions, Client, Endpoint, FileEntry, HUB_HOST, Platform, RunConfig, Scheme, Source, Store,
    build_directory,
};
use tombolo_test_programs::{CAMERA_DEFECTS, GRPC, HELLO, SUBJECT};

use crate::site::{HUB, Hub};
use crate::until;

/// A function to deploy as a Service of its name.
#[derive(Clone, Debug)]
pub struct Function {
    name: String,
    program: &'static [u8],
    /// The whole image, with the path of its program in it, instead of that.
    directory: Option<(PathBuf, String)>,
    /// Name of its port, which says what it speaks there; none: HTTP/1.1.
    port: Option<&'static str>,
    content: String,
    architecture: Option<String>,
    env: BTreeMap<String, String>,
    selector: BTreeMap<String, String>,
    limits: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    service_annotations: BTreeMap<String, String>,
    probes: BTreeMap<String, Value>,
    concurrency: u32,
    timeouts: BTreeMap<&'static str, u64>,
}

impl Function {
    /// Greets, and names its revision.
    pub fn hello(name: &str) -> Self {
        Self::of(name, HELLO)
    }

    /// Does what its requests ask for.
    pub fn subject(name: &str) -> Self {
        Self::of(name, SUBJECT)
    }

    /// Answers gRPC calls.
    pub fn grpc(name: &str) -> Self {
        Self { port: Some("h2c"), ..Self::of(name, GRPC) }
    }

    /// Looks through the camera that it is given.
    pub fn camera_defects(name: &str) -> Self {
        Self::of(name, CAMERA_DEFECTS)
    }

    fn of(name: &str, program: &'static [u8]) -> Self {
        Self {
            name: name.into(),
            program,
            directory: None,
            port: None,
            content: String::new(),
            architecture: None,
            env: BTreeMap::new(),
            selector: BTreeMap::new(),
            limits: BTreeMap::new(),
            annotations: BTreeMap::new(),
            service_annotations: BTreeMap::new(),
            probes: BTreeMap::new(),
            concurrency: 0,
            timeouts: BTreeMap::new(),
        }
    }

    /// The program at `entrypoint` in an image of everything below a directory.
    pub fn directory(name: &str, image: &Path, entrypoint: &str) -> Self {
        Self { directory: Some((image.to_owned(), entrypoint.to_owned())), ..Self::of(name, &[]) }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A file in the image: another content is another image.
    #[must_use]
    pub fn content(mut self, content: &str) -> Self {
        self.content = content.into();
        self
    }

    /// A file of so many bytes that no compression makes less than two thirds of; another seed is another image.
    #[must_use]
    pub fn noise(mut self, bytes: usize, seed: u32) -> Self {
        let mut state = seed;
        let letters = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from(b' ' + (state >> 24) as u8 % 95)
        });
        self.content = letters.take(bytes).collect();
        self
    }

    /// What the image says it is for.
    #[must_use]
    pub fn architecture(mut self, architecture: &str) -> Self {
        self.architecture = Some(architecture.into());
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// A label that nodes must have.
    #[must_use]
    pub fn selector(mut self, key: &str, value: &str) -> Self {
        self.selector.insert(key.into(), value.into());
        self
    }

    #[must_use]
    pub fn limit(mut self, resource: &str, amount: &str) -> Self {
        self.limits.insert(resource.into(), amount.into());
        self
    }

    /// A limit of so many fifths of this machine's memory: with three, one instance fits a node and not two.
    #[must_use]
    pub fn memory_fifths(self, count: u64) -> Self {
        let info = std::fs::read_to_string("/proc/meminfo").expect("the kernel tells its memory");
        let total = info.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok());
        let total_kib = total.expect("MemTotal comes first");
        self.limit("memory", &format!("{}Ki", total_kib * count / 5))
    }

    /// An annotation of the revision's template.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }

    /// An annotation of the Service itself, which its Route gets too.
    #[must_use]
    pub fn service_annotation(mut self, key: &str, value: &str) -> Self {
        self.service_annotations.insert(key.into(), value.into());
        self
    }

    /// `livenessProbe`, `readinessProbe` or `startupProbe`.
    #[must_use]
    pub fn probe(mut self, field: &str, probe: Value) -> Self {
        self.probes.insert(field.into(), probe);
        self
    }

    /// The static program in its image.
    pub fn program(&self) -> &'static [u8] {
        self.program
    }

    /// Requests that one instance takes at a time.
    #[must_use]
    pub fn concurrency(mut self, requests: u32) -> Self {
        self.concurrency = requests;
        self
    }

    /// How long a request may take.
    #[must_use]
    pub fn timeout_s(self, seconds: u64) -> Self {
        self.timeout("timeoutSeconds", seconds)
    }

    /// `timeoutSeconds`, `responseStartTimeoutSeconds` or `idleTimeoutSeconds`.
    #[must_use]
    pub fn timeout(mut self, field: &'static str, seconds: u64) -> Self {
        self.timeouts.insert(field, seconds);
        self
    }

    /// The Service that runs `image` as this function.
    pub fn service(&self, image: &str) -> Value {
        let env: Vec<Value> =
            self.env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        let mut container = json!({"image": image});
        for (field, probe) in &self.probes {
            container[field] = probe.clone();
        }
        if let Some(name) = self.port {
            container["ports"] = json!([{"name": name, "containerPort": 8080}]);
        }
        if !env.is_empty() {
            container["env"] = env.into();
        }
        if !self.limits.is_empty() {
            container["resources"] = json!({"limits": self.limits});
        }
        let mut spec = json!({"containers": [container], "containerConcurrency": self.concurrency});
        for (field, seconds) in &self.timeouts {
            spec[*field] = json!(seconds);
        }
        if !self.selector.is_empty() {
            spec["nodeSelector"] = json!(self.selector);
        }
        json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": self.name, "annotations": self.service_annotations},
            "spec": {"template": {"metadata": {"annotations": self.annotations}, "spec": spec}}})
    }

    /// Builds the image and pushes it to the hub's registry. Returns its name by digest.
    pub async fn push(&self) -> String {
        let repository = format!("default/{}", self.name);
        let digest = self.push_to(&format!("{HUB}:7080"), &repository, "latest").await;
        format!("{HUB_HOST}/{repository}@{digest}")
    }

    /// Builds the image and pushes it under a tag to a registry at `address` that speaks plain HTTP.
    pub async fn push_to(&self, address: &str, repository: &str, tag: &str) -> Digest {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(dir.path()).expect("a store in it");
        let host = Platform::host();
        let files = vec![
            FileEntry { path: "program".into(), executable: true, content: self.program.to_vec() },
            FileEntry {
                path: "content".into(),
                executable: false,
                content: self.content.clone().into_bytes(),
            },
        ];
        let (source, entrypoint) = match &self.directory {
            Some((directory, entrypoint)) => (Source::Directory(directory.clone()), entrypoint.clone()),
            None => (Source::Files(files), "/program".into()),
        };
        let options = BuildOptions {
            source,
            config: RunConfig { entrypoint: vec![entrypoint], ..RunConfig::default() },
            platform: Platform {
                architecture: self.architecture.clone().unwrap_or(host.architecture.clone()),
                ..host
            },
        };
        let image = build_directory(&options, &store).expect("an image can be built");
        let endpoint =
            Endpoint { scheme: Scheme::Http, address: address.into(), auth: None, server_name: None };
        let client = Client::new(endpoint).expect("a client can be made");
        let (path, tag) = (repository.parse().expect("a repository"), tag.parse().expect("a tag"));
        client.push(&store, &path, &tag, &image).await.expect("the registry takes an image")
    }
}

impl Hub {
    /// Pushes the image, creates or changes the Service, waits until it is ready. Returns the image's name.
    pub async fn deploy(&self, function: &Function) -> String {
        let (image, generation) = self.write(function).await;
        until(&format!("service {} to be ready", function.name), 40, || async {
            let ready = self.api.ready_service(&function.name).await?;
            if ready["metadata"]["generation"] == generation { Ok(()) } else { Err(ready) }
        })
        .await;
        image
    }

    /// [`Hub::deploy`] without waiting.
    pub async fn deploy_unready(&self, function: &Function) -> String {
        self.write(function).await.0
    }

    async fn write(&self, function: &Function) -> (String, Value) {
        let image = function.push().await;
        let mut service = function.service(&image);
        let stored = match self.api.service(&function.name).await {
            Ok(_) => {
                // What the hub keeps in the metadata stays; the template is replaced.
                service["metadata"].as_object_mut().map(|metadata| metadata.remove("name"));
                self.api.patch_service(&function.name, &service).await
            }
            Err(_) => self.api.create_service(&service).await,
        };
        let stored = stored.expect("the hub takes a service");
        (image, stored["metadata"]["generation"].clone())
    }
}
