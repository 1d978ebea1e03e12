//! The real tools of languages: the same program by Go and cargo wherever the sources stand, the same packages by pip and uv,
//! the same image of a Dockerfile by buildah and podman.

use super::*;

/// A module of Go as `tombolo new` makes it.
fn gopher(shop: &Workshop, name: &str) -> PathBuf {
    let dir = shop.path(name);
    run(shop.tombolo(&["new", "--lang", "go", text(&dir)]));
    dir
}

/// `tombolo` with Go's toolchain, which may fetch nothing; what it compiled of its own library it finds where a person keeps it.
fn with_go(shop: &Workshop, arguments: &[&str]) -> Command {
    let mut command = shop.tombolo(arguments);
    let go = find("go").expect("it was asked for before");
    let path = format!("{}:/usr/bin:/bin", text(go.parent().expect("a program is in a directory")));
    command.env("PATH", path).env("GOPROXY", "off").env("GOFLAGS", "-mod=mod").env("GOTOOLCHAIN", "local");
    command.env("GOCACHE", gocache());
    command
}

fn gocache() -> PathBuf {
    let home = std::env::var_os("HOME").unwrap_or_default();
    std::env::var_os("GOCACHE").map_or_else(|| Path::new(&home).join(".cache/go-build"), PathBuf::from)
}

/// The program is the same from another place, by another name, at another time, and from a repository; one line is one layer.
#[tokio::test]
async fn go_builds_the_same_program_wherever_it_stands() {
    let Some(mut site) = Site::start().await else { return };
    if !has("go") {
        return;
    }
    let node = site.node(NodeOptions::named("press-7")).await;
    let shop = Workshop::new();
    let dir = gopher(&shop, "gopher");
    run(with_go(&shop, &["deploy", "--no-wait", text(&dir)]));
    answers(&node, "gopher", "Hello from gopher").await;

    let build = |dir: &Path| built(with_go(&shop, &["build", "-t", "gopher", text(dir)]));
    let (digest, sent) = build(&dir);
    assert_eq!(sent, 0, "everything is there");
    let other = shop.copy(&dir, "elsewhere/by another name");
    assert_eq!(build(&other), (digest.clone(), 0), "from another place, at another time");
    if has("git") {
        let mut git = Command::new("sh");
        let commit = "git init -q . && git add . && git -c user.name=a -c user.email=a@b commit -qm one";
        run({
            git.args(["-c", commit]).current_dir(&other);
            git
        });
        let url = format!("file://{}", text(&other));
        let repository = || built(with_go(&shop, &["build", "-t", "gopher", "--git", &url]));
        let (first, sent) = repository();
        assert!(sent <= 1, "the configuration, which names the commit: {sent}");
        assert_eq!(repository(), (first, 0), "whatever its checkout is called");
    }

    let source = fs::read_to_string(dir.join("main.go")).expect("a file");
    fs::write(dir.join("main.go"), source.replace("Hello from", "Greetings of")).expect("a file");
    let (changed, sent) = build(&dir);
    assert_ne!(changed, digest);
    assert_eq!(sent, 2, "the layer of the program, and the configuration");
    run(with_go(&shop, &["deploy", "--no-wait", text(&dir)]));
    answers(&node, "gopher", "Greetings of gopher").await;

    fs::write(dir.join("go.mod"), "module gopher\n\ngo 1.21\n\nrequire git.example/absent v1.2.3\n")
        .expect("a file");
    fs::write(dir.join("absent.go"), "package main\n\nimport _ \"git.example/absent\"\n").expect("a file");
    let (code, said) = refused(with_go(&shop, &["build", text(&dir)]));
    assert_eq!(code, Some(1));
    assert!(said.contains("git.example/absent") && said.contains("its messages are above"), "{said}");
}

/// The directory's path is not in the program.
#[tokio::test]
async fn cargo_builds_the_same_program_wherever_it_stands() {
    let Some(_site) = Site::start().await else { return };
    if !has("cargo") {
        return;
    }
    let shop = Workshop::new();
    let dir = shop.path("crab");
    run(shop.tombolo(&["new", "--lang", "rust", text(&dir)]));
    // A package of the directory's own copy of a registry, which says where it was compiled.
    let source = fs::read_to_string(dir.join("src/main.rs")).expect("a file");
    let source = source.replace("format!(\"Hello", "near::place(); format!(\"Hello");
    fs::write(dir.join("src/main.rs"), source).expect("a file");
    let manifest = fs::read_to_string(dir.join("Cargo.toml")).expect("a file");
    let manifest = manifest.replace("[dependencies]\n", "[dependencies]\nnear = \"0.1\"\n");
    fs::write(dir.join("Cargo.toml"), manifest).expect("a file");
    let sources = "[source.crates-io]\nreplace-with = \"own\"\n[source.own]\ndirectory = \"vendor\"\n";
    shop.project(
        "crab",
        &[
            (".cargo/config.toml", sources),
            (
                "vendor/near/Cargo.toml",
                "[package]\nname = \"near\"\nversion = \"0.1.0\"\nedition = \"2021\"\n",
            ),
            ("vendor/near/src/lib.rs", "pub fn place() { println!(\"{}\", file!()); }\n"),
            ("vendor/near/.cargo-checksum.json", "{\"files\": {}, \"package\": null}"),
        ],
    );
    let build = |dir: &Path, target: &str| {
        let mut build = shop.tombolo(&["build", "--no-push", text(dir)]);
        build.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        build.env("HOME", std::env::var_os("HOME").unwrap_or_default());
        build.env("CARGO_NET_OFFLINE", "true").env("CARGO_TARGET_DIR", shop.path(target));
        built(build).0
    };
    let other = shop.copy(&dir, "elsewhere/crab");
    assert_eq!(build(&dir, "target-1"), build(&other, "target-2"));
}

/// Of uv: what pip is told counts, lists of requirements name others beside them, and nothing of the moment is in the layer,
/// which is pip's own where packages have no scripts.
#[tokio::test]
async fn uv_and_pip_install_the_same() {
    let Some(_site) = Site::start().await else { return };
    if !has("uv") || !has("python3") || !has("pip3") {
        return;
    }
    let shop = Workshop::new();
    shop.make_wheel();
    let wheel = "greetings-1.0-py3-none-any.whl";
    let dir = shop.project(
        "greeter",
        &[
            ("main.py", SERVER),
            ("requirements.txt", "-r lists/all.txt\n"),
            ("lists/all.txt", "-c ours.txt\ngreetings\n"),
        ],
    );
    fs::write(dir.join("lists/ours.txt"), "greetings==1.0\n").expect("a file");
    let vendored =
        shop.project("vendored", &[("main.py", SERVER), ("requirements.txt", &format!("./{wheel}\n"))]);
    fs::copy(shop.path("wheels").join(wheel), vendored.join(wheel)).expect("a file");
    let build = |tool: &str, dir: &Path| {
        let mut build = shop.tombolo(&["build", "--no-push", "--no-cache", text(dir)]);
        if tool == "uv" {
            build.env("PATH", format!("{}:/usr/bin:/bin", text(&shop.only(&["uv"]))));
        }
        built(build).0
    };
    for dir in [&dir, &vendored] {
        let digest = build("pip", dir);
        assert_eq!(build("pip", dir), digest, "by pip again");
        assert_eq!(build("uv", dir), digest, "by uv");
        // The wheel's time, which uv would write down.
        let copy = shop.copy(dir, &format!("elsewhere/{}", dir.file_name().expect("a name").display()));
        fs::remove_dir_all(shop.path("cache")).expect("a directory");
        assert_eq!(build("uv", &copy), digest, "by uv, of another day");
    }
    assert!(walk(&shop.path("home/.cache/uv")) + walk(&shop.path("cache/uv")) > 0, "it was uv");
}

/// A Dockerfile by podman and buildah, the real ones: one image, whoever builds and whenever the files were made.
#[tokio::test]
async fn podman_and_buildah_build_the_same_image_of_a_dockerfile() {
    let Some(mut site) = Site::start().await else { return };
    if !has("podman") || !has("buildah") {
        return;
    }
    let node = site.node(NodeOptions::named("press-7")).await;
    let shop = Workshop::new();
    let dir = shop
        .project("docked", &[("Dockerfile", "FROM scratch\nCOPY hello /hello\nENTRYPOINT [\"/hello\"]\n")]);
    fs::copy(tombolo_test_hello(&shop), dir.join("hello")).expect("a file");
    let by = |tool: &str, arguments: &[&str]| {
        let mut command = shop.tombolo(arguments);
        command.env("PATH", shop.only(&[tool])).env("HOME", std::env::var_os("HOME").unwrap_or_default());
        command
    };
    run(by("podman", &["deploy", "--no-wait", text(&dir)]));
    answers(&node, "docked", "Hello World").await;
    let (digest, sent) = built(by("podman", &["build", "-t", "docked", text(&dir)]));
    assert_eq!(sent, 0, "everything is there");
    let other = shop.copy(&dir, "elsewhere/docked");
    for file in ["hello", "Dockerfile"] {
        chown(other.join(file), Some(NOBODY), Some(NOBODY)).expect("root gives files away");
    }
    assert_eq!(built(by("buildah", &["build", "-t", "docked", text(&other)])), (digest, 0));

    let broken = shop.project("broken", &[("Dockerfile", "FROM scratch\nCOPY absent /\n")]);
    for tool in ["podman", "buildah"] {
        let (code, said) = refused(by(tool, &["build", text(&broken)]));
        assert!(
            code == Some(1) && said.contains("absent") && said.contains("exit status: 125"),
            "{tool}: {said}"
        );
    }
}

/// buildah before podman before docker; without any of them a person is told what is missing.
#[tokio::test]
async fn programs_for_dockerfiles_have_their_order() {
    let Some(_site) = Site::start().await else { return };
    let shop = Workshop::new();
    let dir = shop.project("docked", &[("Dockerfile", "FROM scratch\n")]);
    let build = |path: &Path| {
        let mut command = shop.tombolo(&["build", "--no-push", text(&dir)]);
        command.env("PATH", path);
        refused(command)
    };
    let tools =
        shop.project("tools", &["docker", "podman", "buildah"].map(|name| (name, "#!/bin/sh\nexit 7\n")));
    for name in ["docker", "podman", "buildah"] {
        fs::set_permissions(tools.join(name), fs::Permissions::from_mode(0o755)).expect("a mode");
        let (code, said) = build(&tools);
        assert!(code == Some(1) && said.contains(&format!("/{name}: exit status: 7")), "{name}: {said}");
    }
    fs::create_dir(shop.path("none")).expect("a directory");
    let (code, said) = build(&shop.path("none"));
    assert!(code == Some(1) && said.contains("needs buildah, podman or docker"), "{said}");
    // With something else to build, that is built, and the other is mentioned.
    fs::write(dir.join("hello"), "#!").expect("a file");
    fs::set_permissions(dir.join("hello"), fs::Permissions::from_mode(0o755)).expect("a mode");
    let mut command = shop.tombolo(&["build", "--no-push", text(&dir)]);
    let output = command.env("PATH", shop.path("none")).output().expect("tombolo runs");
    good(&output);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("there is a Dockerfile too"), "{said}");
}
