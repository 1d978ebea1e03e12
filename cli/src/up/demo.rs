//! The example function of `up --demo`: embedded in the command, deployed as anybody would deploy it, and asked.

use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::build::{Image, Registry};
use crate::deploy::{self, Change};
use crate::hub::Hub;
use crate::output;
use crate::probe::{self, Answering, Curl};
use crate::ready::{self, Wanted};
use crate::steps::Steps;

/// `examples/hello`, compiled statically for this machine with the command itself.
const HELLO: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello"));

const NAMESPACE: &str = "default";
const NAME: &str = "hello";

/// Far above what it takes on a slow machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// Deploys the example and waits until it answers.
pub(super) async fn deploy(hub: &Hub, steps: Steps) -> anyhow::Result<Answering> {
    let mut image = Image::of_program(NAME, HELLO)?;
    let image = deploy::pushed(&Registry::of(hub)?, steps, NAMESPACE, NAME, &mut image).await?;
    let change = Change { image, image_has_command: true, ..Change::default() };
    let stored = deploy::applied(hub, steps, NAMESPACE, NAME, &change).await?;
    ready::wait(hub, steps, &Wanted::new(&stored, DEADLINE)).await
}

/// Makes one request and prints the answer.
pub(super) async fn ask(answering: &Answering) -> anyhow::Result<()> {
    let router = answering.router.context("the router cannot be reached")?;
    let answer = probe::ask(router, &answering.url, DEADLINE).await?;
    if answer.status != 200 {
        bail!("{} answered {}: {}", answering.url, answer.status, answer.excerpt());
    }
    output::print(&String::from_utf8_lossy(&answer.body))
}

/// What a person may do now.
pub(super) fn invitation(answering: &Answering) -> String {
    format!("URL:   {}\nTry:   {}\n", answering.url, Curl(answering))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_example_is_a_program_that_needs_no_loader() {
        assert_eq!(&HELLO[..4], b"\x7fELF");
        // The interpreter's path stands in the file where there is one.
        assert!(!HELLO.windows(b"/lib64/ld-linux".len()).any(|window| window == b"/lib64/ld-linux"));
    }

    #[test]
    fn a_person_is_told_url_and_command() {
        let router = Some("127.0.0.1:8080".parse().unwrap());
        let text = invitation(&Answering { url: "http://hello.default.localhost:8080".into(), router });
        assert_eq!(
            text,
            "URL:   http://hello.default.localhost:8080\nTry:   curl http://hello.default.localhost:8080\n"
        );
    }
}
