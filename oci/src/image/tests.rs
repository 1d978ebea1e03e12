//! Documents of OCI and Docker, and which platform gets what.

use super::*;

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn platform(text: &str) -> Platform {
    let mut parts = text.split('/').map(str::to_owned);
    Platform { os: parts.next().unwrap(), architecture: parts.next().unwrap(), variant: parts.next() }
}

fn manifest(layers: usize) -> String {
    let layer = |number| {
        format!(
            r#"{{"mediaType":"{OCI_LAYER_GZIP}","digest":"{}","size":{number}}}"#,
            digest(&format!("l{number}"))
        )
    };
    let layers: Vec<_> = (0..layers).map(layer).collect();
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"{OCI_CONFIG}","digest":"{}","size":9}},"layers":[{}]}}"#,
        digest("config"),
        layers.join(",")
    )
}

#[test]
fn documents_are_told_apart() {
    let parse = |text: &str| Document::parse(&digest("d"), text.as_bytes());
    let Document::Manifest(read) = parse(&manifest(2)).unwrap() else { panic!("not a manifest") };
    assert_eq!((read.config.digest, read.layers[1].size), (digest("config"), 1));
    let docker = manifest(1).replace(OCI_MANIFEST, DOCKER_MANIFEST);
    assert!(matches!(parse(&docker), Ok(Document::Manifest(_))));
    let entry = |platform: &str| {
        let (os, architecture) = platform.split_once('/').unwrap();
        format!(
            r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":1,"platform":{{"os":"{os}","architecture":"{architecture}"}}}}"#,
            digest(platform)
        )
    };
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{},{}]}}"#,
        entry("linux/amd64"),
        entry("linux/arm64")
    );
    let Document::Index(entries) = parse(&index).unwrap() else { panic!("not an index") };
    assert_eq!(choose(&entries, &platform("linux/arm64")).unwrap().manifest.digest, digest("linux/arm64"));
    let error = choose(&entries, &platform("linux/s390x")).unwrap_err().to_string();
    assert!(error.contains("linux/amd64, linux/arm64") && error.contains("linux/s390x"), "{error}");
    let both = manifest(1).replacen('{', r#"{"manifests":[],"#, 1);
    for bad in ["", "{}", "[]", r#"{"schemaVersion":1,"fsLayers":[]}"#, &both, &manifest(MAX_LAYERS + 1)] {
        assert!(matches!(parse(bad), Err(ImageError::Malformed { .. })), "{bad:.80}");
    }
}

#[test]
fn variants_order_by_their_number() {
    for (node, image, runs) in [
        ("linux/amd64", "linux/amd64", true),
        ("linux/amd64", "linux/arm64", false),
        ("windows/amd64", "linux/amd64", false),
        ("linux/arm/v7", "linux/arm/v6", true),
        ("linux/arm/v6", "linux/arm/v7", false),
        ("linux/arm64", "linux/arm64/v8", true),
        ("linux/amd64", "linux/amd64/v3", false),
        ("linux/amd64/v3", "linux/amd64", true),
    ] {
        assert_eq!(platform(node).runs(&platform(image)).is_some(), runs, "{image} on {node}");
    }
    let entry = |text: &str| Entry {
        manifest: Blob { digest: digest(text), size: 1 },
        platform: Some(platform(text)),
    };
    let entries = [entry("linux/arm/v5"), entry("linux/arm/v7"), entry("linux/arm/v6")];
    assert_eq!(choose(&entries, &platform("linux/arm/v7")).unwrap(), &entries[1]);
    assert_eq!(choose(&entries, &platform("linux/arm/v6")).unwrap(), &entries[2]);
}

#[test]
fn a_configuration_has_to_go_with_its_manifest() {
    let text = |diff_ids: &str| {
        format!(
            r#"{{"os":"linux","architecture":"amd64","config":{{"Entrypoint":["/a"],"Env":["X=1"],"User":"7"}},"rootfs":{{"type":"layers","diff_ids":[{diff_ids}]}}}}"#
        )
    };
    let one = format!("\"{}\"", digest("x"));
    let config = Config::parse(&digest("c"), text(&one).as_bytes()).unwrap();
    assert_eq!((config.run.entrypoint.as_slice(), config.run.user.as_str()), (&["/a".to_owned()][..], "7"));
    let blob = Blob { digest: digest("l"), size: 1 };
    let (with_one, with_two) =
        (Manifest { config: blob, layers: vec![blob] }, Manifest { config: blob, layers: vec![blob, blob] });
    let node = platform("linux/amd64");
    config.check(&digest("m"), &with_one, &node).unwrap();
    assert!(matches!(config.check(&digest("m"), &with_two, &node), Err(ImageError::Malformed { .. })));
    let other = config.check(&digest("m"), &with_one, &platform("linux/arm64"));
    assert!(matches!(other, Err(ImageError::Platform { .. })));
    assert!(Config::parse(&digest("c"), text("\"sha256:1\"").as_bytes()).is_err());
}

#[test]
fn a_damaged_document_counts_as_missing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let document = store.put(manifest(1).as_bytes()).unwrap();
    std::fs::write(store.blob_path(&document), b"damage").unwrap();
    assert_eq!(summary(&store, &document, &Platform::host()).unwrap(), None);
    assert!(!store.contains(&document));
}
