//! A person without root, and one who makes mistakes.

use super::*;

/// Every language is built and pushed by a user who owns nothing but a cache.
#[tokio::test]
async fn nobody_builds_every_language() {
    let Some(_site) = Site::start().await else { return };
    let shop = Workshop::new();
    shop.make_wheel();
    let home = shop.path("nobody");
    fs::create_dir(&home).expect("a directory");
    chown(&home, Some(NOBODY), Some(NOBODY)).expect("root gives files away");
    let root = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let rustup = std::env::var_os("RUSTUP_HOME").map_or(root.join(".rustup"), PathBuf::from);
    let settings = |command: &mut Command, home: &Path| {
        command.env("XDG_CACHE_HOME", home.join("cache")).env("HOME", home).env_remove("XDG_RUNTIME_DIR");
        command
            .env("RUSTUP_HOME", &rustup)
            .env("CARGO_HOME", home.join("cargo"))
            .env("CARGO_NET_OFFLINE", "true");
        command
            .env("CARGO_TARGET_DIR", home.join("target"))
            .env("GOPROXY", "off")
            .env("npm_config_offline", "true");
    };
    let as_nobody = |mut command: Command| {
        settings(&mut command, &home);
        command.uid(NOBODY).gid(NOBODY).stdin(Stdio::null());
        command
    };
    // Where a tool is in root's own directory: by root's name, but with nothing that root may do.
    let bare = shop.path("bare");
    fs::create_dir(&bare).expect("a directory");
    let without_rights = |command: &Command| {
        let mut bound = Command::new("setpriv");
        bound.args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"]);
        bound.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
        for (name, value) in command.get_envs() {
            value.map(|value| bound.env(name, value));
        }
        settings(&mut bound, &bare);
        bound
    };
    let hello = tombolo_test_hello(&shop);
    for (lang, needs, question) in [
        ("python", "python3", "--version"),
        ("node", "node", "--version"),
        ("static", "python3", "--version"),
        ("rust", "rustc", "-vV"),
        ("go", "go", "version"),
        ("dockerfile", "buildah", "--version"),
        ("files", "sh", "-c:"),
    ] {
        // Without the wrappers of version managers, but with what is found beyond the usual places.
        let Some(tool) = ["/usr/bin", "/usr/local/bin"]
            .map(|dir| Path::new(dir).join(needs))
            .into_iter()
            .find(|path| path.is_file())
            .or_else(|| find(needs))
        else {
            skip(&format!("{needs} is not installed"));
            continue;
        };
        let mut asked = Command::new(&tool);
        if lang != "files" {
            asked.arg(question);
        }
        let works = |mut command: Command| command.output().is_ok_and(|output| output.status.success());
        let bound = without_rights(&asked);
        let by_nobody = works(as_nobody(asked));
        if !by_nobody && !works(bound) {
            skip(&format!("user {NOBODY} may not run {needs}"));
            continue;
        }
        let name = format!("by-nobody-{lang}");
        let dir = shop.path(&name);
        match lang {
            "dockerfile" => {
                let file = "FROM scratch\nCOPY hello /hello\nENTRYPOINT [\"/hello\"]\n";
                fs::copy(&hello, shop.project(&name, &[("Dockerfile", file)]).join("hello")).expect("a file");
            }
            "files" => {
                fs::copy(&hello, shop.project(&name, &[("+run", "")]).join("run")).expect("a file");
            }
            lang => drop(run(shop.tombolo(&["new", "--lang", lang, text(&dir)]))),
        }
        if lang == "python" {
            fs::write(dir.join("requirements.txt"), "greetings==1.0\n").expect("a file");
        }
        let tools = tool.parent().expect("a program is in a directory");
        let mut build = shop.tombolo(&["build", "-t", &name, text(&dir)]);
        build.env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", text(tools)));
        let build = if by_nobody { as_nobody(build) } else { without_rights(&build) };
        let (_, sent) = built(build);
        assert!(sent >= 1, "{lang}: the hub took it");
    }
}

/// Names that are hard to write down arrive as they are; what cannot be an image's is named.
#[tokio::test]
async fn odd_names_arrive_and_mistakes_are_named() {
    let Some(mut site) = Site::start().await else { return };
    if !has("python3") {
        return;
    }
    let node = site.node(NodeOptions::named("press-7")).await;
    let shop = Workshop::new();
    let server = SERVER
        .replace("import greetings\n", "")
        .replace("greetings.WORD", "' '.join(sorted(ascii(name) for name in os.listdir('/app/data dir')))");
    let dir = shop.project(
        "Ünusual  names_",
        &[
            ("main.py", &server),
            ("data dir/a b", ""),
            ("data dir/\u{e9}\u{1f980}", ""),
            ("data dir/new\nline", ""),
        ],
    );
    use std::os::unix::ffi::OsStrExt as _;
    let latin = std::ffi::OsStr::from_bytes(b"latin\xe9");
    fs::write(dir.join("data dir").join(latin), "").expect("a file");
    fs::write(dir.join("data dir").join("l".repeat(255)), "").expect("a file");
    let output =
        shop.tombolo(&["deploy", "--no-wait", "--name", "odd", text(&dir)]).output().expect("tombolo runs");
    good(&output);
    let long = "l".repeat(255);
    answers(&node, "odd", &format!(r"'\xe9\U0001f980' 'a b' 'latin\udce9' '{long}' 'new\nline'")).await;

    std::os::unix::fs::symlink("/etc/hostname", dir.join("out")).expect("a link");
    let output = shop.tombolo(&["build", "--no-push", text(&dir)]).output().expect("tombolo runs");
    good(&output);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("out leads to /etc/hostname, which is not in the image"), "{said}");
    fs::write(dir.join("go.mod"), "module a\n").expect("a file");
    let output =
        shop.tombolo(&["build", "--no-push", "--lang", "python", text(&dir)]).output().expect("tombolo runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("go.mod"), "it was said which: {said}");
    fs::write(dir.join("package.json"), "{\"main\": \"x.js\"}").expect("a file");
    fs::remove_file(dir.join("go.mod")).expect("a file");
    let output = shop
        .tombolo(&["build", "--no-push", "--base", "scratch", text(&dir)])
        .output()
        .expect("tombolo runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("as Node.js on"), "{said}");
    fs::write(dir.join("requirements.txt"), "").expect("a file");
    let output = shop
        .tombolo(&["build", "--no-push", "--base", "scratch", text(&dir)])
        .output()
        .expect("tombolo runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("there is a requirements.txt too: --language python takes that"), "{said}");

    nix::unistd::mkfifo(&dir.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let (code, said) = refused(shop.tombolo(&["build", "--no-push", "--lang", "python", text(&dir)]));
    assert!(code == Some(1) && said.contains("pipe") && said.contains("leave it out"), "{said}");
    fs::write(dir.join(".tomboloignore"), "pipe\n").expect("a file");
    run(shop.tombolo(&["build", "--no-push", "--lang", "python", text(&dir)]));
    let sparse = fs::File::create(dir.join("sparse")).expect("a file");
    sparse.set_len(9 << 30).expect("a hole");
    let (code, said) = refused(shop.tombolo(&["build", "--no-push", "--lang", "python", text(&dir)]));
    assert!(code == Some(1) && said.contains("more than 8 GiB"), "{said}");
}
