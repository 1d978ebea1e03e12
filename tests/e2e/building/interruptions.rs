//! A person who breaks a build off: the programs it runs end, and nothing is left of it.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tombolo_harness::Process;

use super::*;

/// Both signals, in the middle of a compiler that would take its time; and in the middle of a push.
#[tokio::test]
async fn a_build_that_is_broken_off_leaves_nothing() {
    let Some(site) = Site::start().await else { return };
    let shop = Workshop::new();
    for name in ["tmp", "cache"] {
        fs::create_dir(shop.path(name)).expect("a directory");
    }
    // In place of a toolchain: it begins to write, and does not come to an end.
    let slow = format!(
        "#!/bin/sh\nwhile [ \"$1\" != -o ]; do shift; done\necho half > \"$2\"\necho $$ > {0}.new\nmv {0}.new {0}\nexec sleep 1000\n",
        text(&shop.path("pid"))
    );
    let tools = shop.project("tools", &[("+go", &slow)]);
    let dir = shop.project("gopher", &[("go.mod", "module gopher\n"), ("main.go", "package main\n")]);
    let start = |command: &str, cache: &str| {
        let mut build = shop.tombolo(&[command, text(&dir)]);
        build.env("PATH", format!("{}:/usr/bin:/bin", text(&tools))).env("TMPDIR", shop.path("tmp"));
        match cache {
            "none" => drop(build.env("XDG_CACHE_HOME", "/proc/none").env("HOME", "/proc/none")),
            _ => drop(build.env("XDG_CACHE_HOME", shop.path(cache))),
        }
        Process::start("a build", build, None, &shop.path("log")).expect("it starts")
    };
    let left = || walk(&shop.path("tmp")) + walk(&shop.path("cache/tombolo/build/tmp"));
    for (command, signal, code, cache) in [
        ("build", Signal::SIGINT, 130, "cache"),
        ("deploy", Signal::SIGTERM, 143, "cache"),
        ("build", Signal::SIGINT, 130, "none"),
    ] {
        let _ = fs::remove_file(shop.path("pid"));
        let mut build = start(command, cache);
        let pid = until("the compiler to run", 20, || async {
            let text = fs::read_to_string(shop.path("pid")).map_err(|error| error.to_string())?;
            text.trim().parse::<i32>().map_err(|error| error.to_string())
        })
        .await;
        assert!(left() > 0, "it has begun to write");
        kill(Pid::from_raw(build.pid()), signal).expect("it runs");
        assert_eq!(build.wait(20).expect("it ends").code(), Some(code), "{}", build.last_words());
        until("the compiler to be gone", 10, || async {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if line.is_empty() { Ok(()) } else { Err(String::from_utf8_lossy(&line).into_owned()) }
        })
        .await;
        assert_eq!(left(), 0, "{command}: nothing is left");
        assert!(build.last_words().contains("error: broken off"), "{}", build.last_words());
    }
    drop(site);
}
