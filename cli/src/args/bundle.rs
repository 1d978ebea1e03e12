//! `bundle` as it is typed.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct Bundle {
    #[command(subcommand)]
    pub(crate) command: BundleCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BundleCommand {
    /// Write what nodes should run, with its images, into one signed file; run again, it goes on where it broke off
    Create(BundleCreate),
    /// Show what is in a bundle
    Inspect {
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BundleCreate {
    /// A node the bundle is for. May be repeated
    #[arg(long, value_name = "NAME", required_unless_present = "selector")]
    pub(crate) node: Vec<String>,
    /// The nodes with these labels, as K=V[,K=V]
    #[arg(long, short = 'l', value_name = "K=V")]
    pub(crate) selector: Option<String>,
    /// The file; `tombolo-agent import` and watched directories take it as *.tombolo or *.tar
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Which variants of images to take, such as linux/arm64, instead of each node's own (all, for a node that was never seen).
    /// May be repeated
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Vec<String>,
    /// Leave out the layers that are in this bundle, which the nodes must have imported before
    #[arg(long, value_name = "FILE")]
    pub(crate) without_images_of: Option<PathBuf>,
}
