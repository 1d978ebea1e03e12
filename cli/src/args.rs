//! The command line as it is typed: every command, flag and default. Says nothing of what a command does.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

mod bundle;

pub(crate) use bundle::{Bundle, BundleCommand, BundleCreate};

use crate::build::Language;
use crate::tls::Trust;

/// Where the hub's API answers when nothing else is said; what `tombolo up` and `tombolo-hub` listen on.
pub(crate) const DEFAULT_HUB: &str = "http://127.0.0.1:7080";

const EXIT_CODES: &str = "Exit codes: 0 done, 1 refused or failed, 2 wrong use, 3 the hub cannot be reached, \
                          4 not done within the time allowed, 128 and its number where a signal ended a build.";

/// Deploy functions to edge nodes, look at them, run a hub and an agent on this machine.
#[derive(Debug, Parser)]
#[command(name = "tombolo", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// The hub's API [default: http://127.0.0.1:7080]
    #[arg(long, global = true, env = "TOMBOLO_HUB", value_name = "URL", hide_env_values = true)]
    pub(crate) hub: Option<String>,
    /// Certificates of the authorities to believe, as PEM, where hub or registry speak TLS [default: this machine's]
    #[arg(long, global = true, env = "TOMBOLO_CA_FILE", value_name = "FILE", hide_env_values = true)]
    pub(crate) ca_file: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a hub and an agent on this machine until Ctrl-C
    Up(Up),
    /// Make a project that can be deployed as it is
    New(New),
    /// Build an image from a directory or a git repository, and push it to the hub
    Build(Build),
    /// Build an image from a directory or a git repository, or take an existing one, and run it as a service
    Deploy(Deploy),
    /// Create or change the resources written in a file
    Apply(Apply),
    /// Create a namespace
    Create(Create),
    /// List resources
    Get(Get),
    /// Show one resource in detail
    Describe(Describe),
    /// Delete resources
    Delete(Delete),
    /// Show how requests are shared between a service's revisions, or change it
    Traffic(Traffic),
    /// Print what a service's instances wrote to standard output and error
    Logs(Logs),
    /// Carry what nodes should run to where no network leads
    Bundle(Bundle),
    /// Print the version of this command, and with --hub that of the hub
    Version,
    /// Print a completion script for a shell
    Completion { shell: clap_complete::Shell },
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Deploy the example function `hello` as soon as everything runs
    #[arg(long)]
    pub(crate) demo: bool,
    /// Deploy the example, make one request, print the answer, stop everything, exit
    #[arg(long)]
    pub(crate) once: bool,
    /// Where hub and agent keep what they know between runs
    #[arg(long, value_name = "DIR", default_value = "/var/lib/tombolo-up")]
    pub(crate) state_dir: PathBuf,
    /// Where sockets and mounts of this run live; removed at the end
    #[arg(long, value_name = "DIR", default_value = "/run/tombolo-up")]
    pub(crate) run_dir: PathBuf,
    /// The node's name, fixed by the first run [default: this machine's host name]
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// Address on which everything below listens unless it says otherwise; 0.0.0.0 lets other machines in
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub(crate) bind: std::net::IpAddr,
    /// Port of the services' URLs; 0 picks a free one
    #[arg(long, value_name = "PORT", default_value_t = 8080, conflicts_with = "router_listen")]
    pub(crate) http_port: u16,
    /// Address of the router, which answers for the services [default: BIND:8080]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) router_listen: Option<SocketAddr>,
    /// Address of the hub's API and registry [default: BIND:7080]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) api_listen: Option<SocketAddr>,
    /// Address on which the hub enrols nodes and gives them images [default: BIND:7443]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) node_listen: Option<SocketAddr>,
    /// Address of the hub's MQTT broker [default: BIND:7883]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) mqtt_listen: Option<SocketAddr>,
    /// Address of the agent's health endpoints [default: BIND:7081]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) admin_listen: Option<SocketAddr>,
}

#[derive(Debug, Args)]
pub(crate) struct New {
    /// rust, python, node, go, or static for web pages
    #[arg(long, value_enum, alias = "language")]
    pub(crate) lang: Template,
    /// The directory to make; its last part is the project's name
    #[arg(value_name = "NAME")]
    pub(crate) directory: PathBuf,
}

/// What a new project is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Template {
    Rust,
    Python,
    Node,
    Go,
    Static,
}

/// How an image is built, wherever it goes.
#[derive(Debug, Default, Args)]
pub(crate) struct Building {
    /// The image below: NAME[:TAG] at the hub, HOST/NAME[:TAG] of another registry, `scratch`, or `host`, which is made of
    /// this machine's own interpreter and libraries [default: by language, see docs/building.md]
    #[arg(long, value_name = "IMAGE")]
    pub(crate) base: Option<String>,
    /// What the project is written in, if its files do not tell
    #[arg(long, value_enum, alias = "lang")]
    pub(crate) language: Option<Language>,
    /// Make every layer anew
    #[arg(long)]
    pub(crate) no_cache: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Build {
    /// The project's directory [default: this one]
    #[arg(value_name = "DIR", conflicts_with = "git")]
    pub(crate) source: Option<String>,
    /// Build from a git repository: URL, URL#REVISION or URL#REVISION:DIRECTORY
    #[arg(long, value_name = "URL")]
    pub(crate) git: Option<String>,
    /// Name of the image at the hub, as [NAMESPACE/]NAME[:TAG], or at another registry, as HOST/NAME[:TAG]
    /// [default: default/DIR:latest]
    #[arg(long, short, value_name = "NAME")]
    pub(crate) tag: Option<String>,
    /// Push to the registry (what happens anyway without -o)
    #[arg(long, conflicts_with = "no_push")]
    pub(crate) push: bool,
    /// Speak to another registry without encryption, as is done anyway where it is this machine's
    #[arg(long)]
    pub(crate) plain_http: bool,
    /// Build only
    #[arg(long)]
    pub(crate) no_push: bool,
    /// Write the image as an OCI layout into this directory
    #[arg(long, short = 'o', value_name = "DIR")]
    pub(crate) layout: Option<PathBuf>,
    /// Print what was built as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) building: Building,
    /// Command to run in the image, instead of the one found
    #[arg(last = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// A project's directory or the name of an image
    #[arg(value_name = "DIR|IMAGE", required_unless_present = "git", conflicts_with = "git")]
    pub(crate) source: Option<String>,
    /// Build from a git repository: URL, URL#REVISION or URL#REVISION:DIRECTORY
    #[arg(long, value_name = "URL")]
    pub(crate) git: Option<String>,
    #[command(flatten)]
    pub(crate) building: Building,
    /// Name of the service [default: the directory's or image's name]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Namespace of the service, made if it is not there
    #[arg(long, short, default_value = "default", value_name = "NS")]
    pub(crate) namespace: String,
    /// Environment variable, added to those the service has; `K-` takes K away. May be repeated
    #[arg(long, short, value_name = "K=V")]
    pub(crate) env: Vec<String>,
    /// What it gets of a resource at most, such as memory=256Mi, or nvidia.com/gpu=1 for a device; `K-` takes the limit away.
    /// May be repeated
    #[arg(long, value_name = "K=V")]
    pub(crate) limit: Vec<String>,
    /// Annotation of its revisions, such as tombolo.dev/idle-tier=frozen; `K-` takes K away. May be repeated
    #[arg(long, short, value_name = "K=V")]
    pub(crate) annotation: Vec<String>,
    /// Port the program listens on; it is told by $PORT
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
    /// Share of the requests, as TARGET=PERCENT; the target is a revision, a tag or @latest. What serves now keeps the
    /// rest. May be repeated
    #[arg(long, value_name = "TARGET=PERCENT")]
    pub(crate) traffic: Vec<String>,
    /// Give a revision a host of its own, as TARGET=TAG; @latest is the one deployed now. May be repeated
    #[arg(long, value_name = "TARGET=TAG")]
    pub(crate) tag: Vec<String>,
    /// Shift the requests to the new revision gradually over this time, such as 30s or 5m
    #[arg(long, value_name = "DURATION")]
    pub(crate) rollout_duration: Option<String>,
    /// Requests that one instance may work on at once; 0 is any number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub(crate) concurrency: Option<u32>,
    /// Instances that run even when nobody asks
    #[arg(long, value_name = "N")]
    pub(crate) min_scale: Option<u32>,
    /// Instances at most; 0 is any number
    #[arg(long, value_name = "N")]
    pub(crate) max_scale: Option<u32>,
    /// Return once the service answers (what happens anyway, see --no-wait)
    #[arg(long, conflicts_with = "no_wait")]
    pub(crate) wait: bool,
    /// Return as soon as the hub has accepted the service
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// How long to wait, seconds
    #[arg(long, value_name = "S", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout: u64,
    /// Command to run in the image, instead of the one found or the image's own
    #[arg(last = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Traffic {
    /// Name of the service
    pub(crate) name: String,
    /// TARGET=PERCENT; the target is a revision, a tag or @latest. The only other one that gets requests gets the rest
    #[arg(value_name = "TARGET=PERCENT")]
    pub(crate) shares: Vec<String>,
    /// Give a revision a host of its own, as TARGET=TAG. May be repeated
    #[arg(long, value_name = "TARGET=TAG")]
    pub(crate) tag: Vec<String>,
    /// Take a tag away. May be repeated
    #[arg(long, value_name = "TAG")]
    pub(crate) untag: Vec<String>,
    #[arg(long, short, default_value = "default", value_name = "NS")]
    pub(crate) namespace: String,
}

#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// File with YAML documents or JSON; `-` is standard input. May be repeated
    #[arg(long = "filename", short = 'f', value_name = "FILE|-", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Namespace of resources that name none
    #[arg(long, short, value_name = "NS")]
    pub(crate) namespace: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// namespace (ns)
    pub(crate) kind: String,
    pub(crate) name: Option<String>,
}

/// How a list or an object is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    #[default]
    Table,
    /// The table with more columns
    Wide,
    Json,
    Yaml,
    /// One `kind/name` a line
    Name,
}

#[derive(Debug, Args)]
pub(crate) struct Get {
    /// services (ksvc), revisions (rev), routes (rt), configurations (cfg), nodes (no), namespaces (ns)
    pub(crate) kind: String,
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) scope: Scope,
    #[arg(long, short, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Scope {
    #[arg(long, short, default_value = "default", value_name = "NS")]
    pub(crate) namespace: String,
    /// In every namespace
    #[arg(long, short = 'A', conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Describe {
    /// service, revision, route, configuration, node or namespace
    pub(crate) kind: String,
    pub(crate) name: Option<String>,
    #[arg(long, short, default_value = "default", value_name = "NS")]
    pub(crate) namespace: String,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// service, revision, route, configuration, node or namespace
    #[arg(required_unless_present = "files")]
    pub(crate) kind: Option<String>,
    pub(crate) names: Vec<String>,
    /// Delete the resources written in a file; `-` is standard input
    #[arg(long = "filename", short = 'f', value_name = "FILE|-", conflicts_with = "kind")]
    pub(crate) files: Vec<PathBuf>,
    #[arg(long, short, value_name = "NS")]
    pub(crate) namespace: Option<String>,
    /// What is not there counts as deleted
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Name of the service
    pub(crate) name: String,
    #[arg(long, short, default_value = "default", value_name = "NS")]
    pub(crate) namespace: String,
    /// Go on with new lines until Ctrl-C
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Lines of the past to begin with, for each instance
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) tail: u32,
    /// Print time, stream and tag of each line too
    #[arg(long)]
    pub(crate) timestamps: bool,
}

impl Arguments {
    pub(crate) fn hub_url(&self) -> &str {
        self.hub.as_deref().unwrap_or(DEFAULT_HUB)
    }

    pub(crate) fn trust(&self) -> Trust {
        Trust { ca_file: self.ca_file.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn hub_may_stand_after_the_command() {
        let arguments = parse("tombolo get services --hub http://h:1 -A").unwrap();
        assert_eq!(arguments.hub_url(), "http://h:1");
    }

    #[test]
    fn deploy_takes_a_command_after_two_dashes() {
        let Command::Deploy(deploy) =
            parse("tombolo deploy . --env A=B -e C=D --port 80 -- /a -x").unwrap().command
        else {
            panic!("not deploy");
        };
        assert_eq!(deploy.env, ["A=B", "C=D"]);
        assert_eq!(deploy.command, ["/a", "-x"]);
        assert_eq!(deploy.port, Some(80));
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "tombolo up --http-port 1 --router-listen 127.0.0.1:2",
            "tombolo deploy",
            "tombolo deploy . --git u",
            "tombolo build . --git u",
            "tombolo build --push --no-push",
            "tombolo build --language cobol",
            "tombolo new x",
            "tombolo new --lang rust",
            "tombolo deploy . --port 0",
            "tombolo deploy . --wait --no-wait",
            "tombolo apply",
            "tombolo get services -n a -A",
            "tombolo get services -o xml",
            "tombolo delete",
            "tombolo delete service a -f b",
            "tombolo logs",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
