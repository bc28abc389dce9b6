//! `sluice image`: golden images in the pools of the storage daemon.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Map, Value, json};

use crate::client::{self, Collection};
use crate::job::Wait;

const IMAGES: Collection = Collection { daemon: "blk", path: "/v1/images" };

/// Arguments of `sluice image`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a golden image of a raw or qcow2 file: a read-only volume in a pool, to be cloned
    ///
    /// Formats other than raw need QEMU's tools (qemu-img, qemu-nbd). The daemon reads the file. Backing files are
    /// followed inside the image's own directory and those given; nothing else that its header names is opened.
    Import(Box<Import>),
}

#[derive(clap::Args)]
struct Import {
    /// Name of the golden image
    name: String,
    /// The pool that keeps it
    #[arg(long)]
    pool: String,
    /// The file or block device to read
    #[arg(long, value_name = "PATH")]
    from: PathBuf,
    /// raw or qcow2 [default: what name and beginning of the file agree on]
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// A directory, besides the image's own, that its backing files may lie in; may be given several times
    #[arg(long, value_name = "DIR")]
    backing_dir: Vec<PathBuf>,
    #[command(flatten)]
    wait: Wait,
}

impl Import {
    fn body(&self) -> Value {
        let mut body = Map::new();
        body.insert("name".to_string(), json!(self.name));
        body.insert("pool".to_string(), json!(self.pool));
        client::put_paths(&mut body, [("from", &Some(self.from.clone()))]);
        client::put_texts(&mut body, [("format", &self.format)]);
        if !self.backing_dir.is_empty() {
            let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
            let dirs: Vec<PathBuf> = self.backing_dir.iter().map(absolute).collect();
            body.insert("backing_dirs".to_string(), json!(dirs));
        }
        Value::Object(body)
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        Verb::Import(import) => {
            import.wait.follow(&IMAGES.make(import.wait.daemon(), &import.body())?)?;
        }
    }
    Ok(())
}
