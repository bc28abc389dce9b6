//! QEMU's tools, which know the formats: `qemu-img` tells what an image is made of, `qemu-nbd` reads and writes it.
//!
//! An image may come from anybody, and its header names files: a backing file could be `/etc/shadow`, or the disk of another
//! guest. So nothing is opened because a header says so: the chain is looked at file by file, each must lie in a
//! directory that was allowed and say its format, and what is opened then is spelled out node by node, with no probing.

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use super::nbd::Client;

/// Layers of an image at most.
const LAYERS_MAX: usize = 64;
/// How long qemu-nbd may take to open an image.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How often is looked whether it has.
const START_PAUSE: Duration = Duration::from_millis(5);
/// How long it may take to end when it has nothing left to do.
const STOP_LIMIT: Duration = Duration::from_secs(60);
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bit of the incompatible features: the data are in another file.
const EXTERNAL_DATA: u8 = 1 << 2;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The host refused.
    #[error("cannot {attempt} {path}: {source}")]
    Host {
        /// What was attempted.
        attempt: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// QEMU's tools are missing.
    #[error(
        "{0} is not installed; install QEMU's tools (Debian and Ubuntu: qemu-utils, Fedora: qemu-img), or give a raw image"
    )]
    NoTool(&'static str),
    /// A tool said no.
    #[error("{tool} cannot use {path}: {said}")]
    Tool {
        /// Which.
        tool: &'static str,
        /// The image.
        path: PathBuf,
        /// What it said.
        said: String,
    },
    /// Neither raw nor qcow2, or it cannot be told.
    #[error(
        "{path} is of no known format: {reason}; give --format raw or --format qcow2 if it is one, or convert it with qemu-img"
    )]
    Format {
        /// The image.
        path: PathBuf,
        /// What was found.
        reason: &'static str,
    },
    /// Something that is not taken.
    #[error("{path} {what}; {remedy}")]
    Refused {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do.
        remedy: String,
    },
}

/// What images there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// The bytes of the disk.
    Raw,
    /// QEMU's format, version 2 or 3.
    Qcow2,
}

impl Format {
    /// What an image is. Name and content must agree: a guest can write a header of its choice into a raw image.
    pub fn of(path: &Path) -> Result<Format, ImageError> {
        let mut magic = [0; 8];
        let mut file = open(path)?;
        let read = file.read(&mut magic).map_err(host("read", path))?;
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let named = |names: &[&str]| names.iter().any(|name| extension.eq_ignore_ascii_case(name));
        let refuse = |reason| ImageError::Format { path: path.to_path_buf(), reason };
        let qcow2 = magic[..4] == QCOW2_MAGIC;
        match (qcow2, read) {
            (true, _) if named(&["qcow2", "qcow"]) => Ok(Format::Qcow2),
            (true, _) => Err(refuse("it begins like qcow2, but its name does not end so")),
            (_, 8) if known_elsewhere(&magic) => Err(refuse("it is made for another program than QEMU")),
            _ if named(&["raw", "img", "iso"]) => Ok(Format::Raw),
            _ if named(&["qcow2", "qcow"]) => Err(refuse("it does not begin like qcow2, as its name says")),
            _ => Err(refuse("neither its name nor its beginning tells")),
        }
    }
}

/// VMDK, VHDX, VHD, QED and LUKS.
fn known_elsewhere(magic: &[u8; 8]) -> bool {
    [&b"KDMV"[..], b"# Disk D", b"vhdxfile", b"conectix", b"QED\0", b"LUKS\xba\xbe"]
        .iter()
        .any(|known| magic.starts_with(known))
}

pub(super) fn host<'a>(attempt: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ImageError + 'a {
    move |source| ImageError::Host { attempt, path: path.to_path_buf(), source }
}

pub(super) fn open(path: &Path) -> Result<File, ImageError> {
    let kind = std::fs::metadata(path).map_err(host("find", path))?.file_type();
    // A pipe would be waited for, a directory read as nothing.
    if !kind.is_file() && !kind.is_block_device() {
        let (what, remedy) = ("is no file or block device".into(), "give the path of an image".into());
        return Err(ImageError::Refused { path: path.to_path_buf(), what, remedy });
    }
    File::open(path).map_err(host("open", path))
}

/// What `qemu-img info` tells.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
    #[serde(default)]
    encrypted: bool,
    backing_filename: Option<String>,
    full_backing_filename: Option<String>,
    backing_filename_format: Option<String>,
}

/// An image and what it stands on, checked.
#[derive(Debug)]
pub struct Chain {
    /// The image itself.
    pub path: PathBuf,
    /// Bytes of the disk.
    pub size_bytes: u64,
    /// All of it for QEMU, node by node.
    node: Value,
}

impl Chain {
    /// Looks at a qcow2 image and its backing files, which must lie in its own directory or one of `allowed`.
    ///
    /// # Errors
    /// It is no such image, or refers to what was not allowed.
    pub fn of(path: &Path, allowed: &[PathBuf]) -> Result<Chain, ImageError> {
        let top = canonical(path)?;
        let mut dirs = vec![top.parent().unwrap_or(&top).to_path_buf()];
        for dir in allowed {
            dirs.push(canonical(dir)?);
        }
        let mut layers = Vec::new();
        let mut size_bytes = None;
        let mut next = Some((top.clone(), Format::Qcow2));
        while let Some((layer, format)) = next.take() {
            let refused = |what: String, remedy: &str| {
                Err(ImageError::Refused { path: layer.clone(), what, remedy: remedy.to_string() })
            };
            if layers.len() == LAYERS_MAX {
                return refused(
                    format!("has more than {LAYERS_MAX} backing files"),
                    "merge some with qemu-img commit",
                );
            }
            if !dirs.iter().any(|dir| layer.starts_with(dir)) {
                let remedy = format!(
                    "give --backing-dir {} if you trust the image",
                    layer.parent().unwrap_or(&layer).display()
                );
                return refused(
                    format!("is a backing file outside the directory of {}", path.display()),
                    &remedy,
                );
            }
            if format == Format::Qcow2 {
                check_header(&layer)?;
                let info = info(&layer)?;
                size_bytes.get_or_insert(info.virtual_size);
                if info.encrypted {
                    return refused("is encrypted".into(), "decrypt it with qemu-img convert first");
                }
                next = backing(&layer, &info)?;
            }
            layers.push((layer, format));
        }
        let node = layers.into_iter().rev().fold(Value::Null, |below, (layer, format)| {
            let block =
                std::fs::metadata(&layer).is_ok_and(|metadata| metadata.file_type().is_block_device());
            let driver = if block { "host_device" } else { "file" };
            let file = json!({ "driver": driver, "filename": layer });
            match format {
                Format::Raw => json!({ "driver": "raw", "file": file }),
                Format::Qcow2 => json!({ "driver": "qcow2", "file": file, "backing": below }),
            }
        });
        Ok(Chain { path: path.to_path_buf(), size_bytes: size_bytes.unwrap_or_default(), node })
    }

    /// A qcow2 image that this program has made itself, to be written.
    pub fn own(path: &Path, size_bytes: u64) -> Chain {
        let node = json!({
            "driver": "qcow2",
            "file": { "driver": "file", "filename": path },
            "backing": null,
        });
        Chain { path: path.to_path_buf(), size_bytes, node }
    }

    fn name(&self) -> String {
        format!("json:{}", self.node)
    }

    /// Bytes of data in it at least, to be told at once that they do not fit.
    ///
    /// # Errors
    /// qemu-img cannot read it.
    pub fn data_bytes(&self) -> Result<u64, ImageError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Measure {
            required: u64,
            fully_allocated: u64,
        }
        let name = self.name();
        let Measure { required, fully_allocated } =
            ask(&self.path, &["measure", "--output=json", "-O", "qcow2", &name])?;
        Ok(required.saturating_sub(fully_allocated.saturating_sub(self.size_bytes)))
    }
}

/// The next layer, if there is one.
fn backing(layer: &Path, info: &Info) -> Result<Option<(PathBuf, Format)>, ImageError> {
    let Some(named) = &info.backing_filename else { return Ok(None) };
    let refused = |what: String, remedy: &str| {
        Err(ImageError::Refused { path: layer.to_path_buf(), what, remedy: remedy.to_string() })
    };
    let full = PathBuf::from(info.full_backing_filename.as_ref().unwrap_or(named));
    if !full.is_absolute() {
        return refused(
            format!("stands on {named}, which is no local file"),
            "convert it with qemu-img first",
        );
    }
    let format = match info.backing_filename_format.as_deref() {
        Some("qcow2") => Format::Qcow2,
        Some("raw") => Format::Raw,
        Some(other) => {
            let what = format!("stands on {named} of the format {other}");
            return refused(what, "convert it with qemu-img first");
        }
        None => {
            let what = format!("does not say of what format its backing file {named} is");
            return refused(
                what,
                "tell it with qemu-img rebase -u -F FORMAT -b FILE, if you trust the image",
            );
        }
    };
    Ok(Some((canonical(&full)?, format)))
}

fn canonical(path: &Path) -> Result<PathBuf, ImageError> {
    std::fs::canonicalize(path).map_err(host("find", path))
}

/// What must be known before QEMU opens a file: that the header does not make it open another one.
fn check_header(path: &Path) -> Result<(), ImageError> {
    let mut header = [0; 80];
    let mut file = open(path)?;
    let refuse = |reason| ImageError::Format { path: path.to_path_buf(), reason };
    file.read_exact(&mut header).map_err(|_| refuse("it is too short for qcow2"))?;
    let version = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    if header[..4] != QCOW2_MAGIC || ![2, 3].contains(&version) {
        return Err(refuse("it is not qcow2 of version 2 or 3"));
    }
    // Incompatible features are bytes 72 to 79 from version 3 on.
    if version == 3 && header[79] & EXTERNAL_DATA != 0 {
        let (what, remedy) =
            ("keeps its data in another file".into(), "convert it with qemu-img first".into());
        return Err(ImageError::Refused { path: path.to_path_buf(), what, remedy });
    }
    Ok(())
}

fn info(path: &Path) -> Result<Info, ImageError> {
    let name = path.to_str().ok_or_else(|| ImageError::Refused {
        path: path.to_path_buf(),
        what: "has a name that is not UTF-8".into(),
        remedy: "rename it".into(),
    })?;
    ask(path, &["info", "--output=json", "-f", "qcow2", name])
}

fn ask<T: for<'a> Deserialize<'a>>(path: &Path, args: &[&str]) -> Result<T, ImageError> {
    const TOOL: &str = "qemu-img";
    let output =
        Command::new(TOOL).args(args).stdin(Stdio::null()).output().map_err(|error| missing(TOOL, error))?;
    let failed = |said| ImageError::Tool { tool: TOOL, path: path.to_path_buf(), said };
    if !output.status.success() {
        return Err(failed(last_line(&output.stderr)));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| failed(format!("its answer is not understood: {error}")))
}

/// Makes an empty qcow2 image.
///
/// # Errors
/// qemu-img is missing or cannot.
pub fn create(path: &Path, size_bytes: u64) -> Result<(), ImageError> {
    const TOOL: &str = "qemu-img";
    let mut command = Command::new(TOOL);
    command.args(["create", "-q", "-f", "qcow2"]).arg(path).arg(size_bytes.to_string());
    let output = command.stdin(Stdio::null()).output().map_err(|error| missing(TOOL, error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(ImageError::Tool { tool: TOOL, path: path.to_path_buf(), said: last_line(&output.stderr) })
}

fn missing(tool: &'static str, error: io::Error) -> ImageError {
    match error.kind() {
        io::ErrorKind::NotFound => ImageError::NoTool(tool),
        _ => ImageError::Host { attempt: "start", path: tool.into(), source: error },
    }
}

fn last_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    text.trim().lines().last().unwrap_or("it said nothing").trim().to_string()
}

/// A running qemu-nbd with one image.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Nobody else reaches the socket in it.
    dir: PathBuf,
    path: PathBuf,
}

const NBD: &str = "qemu-nbd";

impl Server {
    /// Opens an image; what is needed meanwhile goes to a directory made in `run_dir`.
    ///
    /// # Errors
    /// qemu-nbd is missing or cannot open it.
    pub fn start(chain: &Chain, read_only: bool, run_dir: &Path) -> Result<(Server, Client), ImageError> {
        let dir = run_dir.join(format!("nbd-{}", uuid::Uuid::new_v4().simple()));
        DirBuilder::new().mode(0o700).create(&dir).map_err(host("make", &dir))?;
        let socket = dir.join("s");
        let mut command = Command::new(NBD);
        command.arg("--socket").arg(&socket).arg("--shared=1").arg("--discard=unmap");
        if read_only {
            command.arg("--read-only");
        }
        command.arg(chain.name()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| {
            let _ = std::fs::remove_dir(&dir);
            missing(NBD, error)
        })?;
        let mut server = Server { child, dir, path: chain.path.clone() };
        let stream = server.connect(&socket)?;
        let client = Client::new(stream).map_err(host("read", &chain.path))?;
        Ok((server, client))
    }

    fn connect(&mut self, socket: &Path) -> Result<UnixStream, ImageError> {
        let until = Instant::now() + START_LIMIT;
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => return Ok(stream),
                Err(_) if self.child.try_wait().is_ok_and(|ended| ended.is_some()) => {
                    let mut said = Vec::new();
                    if let Some(stderr) = &mut self.child.stderr {
                        let _ = stderr.read_to_end(&mut said);
                    }
                    let (path, said) = (self.path.clone(), last_line(&said));
                    return Err(ImageError::Tool { tool: NBD, path, said });
                }
                Err(source) if Instant::now() > until => {
                    return Err(ImageError::Host {
                        attempt: "open by qemu-nbd",
                        path: self.path.clone(),
                        source,
                    });
                }
                Err(_) => std::thread::sleep(START_PAUSE),
            }
        }
    }

    /// Waits until it has closed the image, after its client has said goodbye.
    ///
    /// # Errors
    /// It failed to.
    pub fn finish(mut self) -> Result<(), ImageError> {
        let until = Instant::now() + STOP_LIMIT;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(None) if Instant::now() < until => std::thread::sleep(START_PAUSE),
                ended => {
                    let said = format!("it did not close the image: {ended:?}");
                    return Err(ImageError::Tool { tool: NBD, path: self.path.clone(), said });
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
