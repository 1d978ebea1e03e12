//! What the README says one can type.

use super::*;

const README: &str = include_str!("../../../README.md");

/// The commands below a line of the README, as arguments of `tombolo`.
fn commands(title: &str) -> Vec<Vec<&'static str>> {
    let (_, rest) = README.split_once(title).expect("the README says it");
    let lines = rest.lines().skip_while(|line| line.is_empty()).map_while(|line| line.strip_prefix("    "));
    let of_tombolo = lines.map(|line| line.strip_prefix("target/release/tombolo ").expect("it runs tombolo"));
    of_tombolo.map(|line| line.split(' ').collect()).collect()
}

/// The example as it is in the tree, then a tenth of its requests to the next revision, then all.
#[tokio::test]
async fn the_readmes_canary_in_three_commands() {
    let Some(mut site) = Site::start().await else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are in the tree");
    if !root.join("examples/hello").exists() {
        return skip("the tree is not on this machine");
    }
    if !has("cargo") {
        return;
    }
    let node = site.node(NodeOptions::named("press-7").idle_timeout_s(600)).await;
    let shop = Workshop::new();
    let tombolo = |arguments: &[&str]| {
        let mut command = shop.tombolo(arguments);
        // Of cargo and rustc, where the user has them.
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", std::env::var_os("HOME").unwrap_or_default());
        command.env("CARGO_TARGET_DIR", shop.path("target")).env("CARGO_NET_OFFLINE", "true");
        command.current_dir(root);
        run(command)
    };
    let share = async |count: usize| {
        let mut of_canary = 0;
        for _ in 0..count {
            let answer = node.answer("hello", "/").await.expect("an answer");
            of_canary += usize::from(answer == "Hello v2 from hello-00002!\n");
        }
        of_canary
    };
    let [first, canary, whole] = &commands("A canary in three commands:")[..] else {
        panic!("three commands")
    };
    tombolo(first);
    answers(&node, "hello", "Hello World from hello-00001!").await;
    tombolo(canary);
    until("the canary's own host", 60, || async {
        match node.ask_host("canary-hello.default.localhost", "/", &[]).await.answer? {
            (200, body) if body == "Hello v2 from hello-00002!\n" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let of_canary = share(400).await;
    assert!((10..80).contains(&of_canary), "{of_canary} of 400 requests");
    tombolo(whole);
    until("all of it on the canary", 60, || async {
        match share(50).await {
            50 => Ok(()),
            fewer => Err(fewer),
        }
    })
    .await;
    tombolo(&["traffic", "hello", "hello-00001=100"]);
    answers(&node, "hello", "Hello World from hello-00001!").await;
}
