//! What is asked for when an image is to be imported or a volume exported.

use std::path::{Path, PathBuf};

use serde_json::Value;
use telemetry::Problem;
use telemetry::check::Errors;
use telemetry::check::Fields;

use super::Format;

/// The body of a request to import an image, as it is described to others; see [`read_import`].
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "the description only")]
pub struct ImportImage {
    /// Unique name of the golden image.
    name: String,
    /// Name of the pool.
    pool: String,
    /// Path of a raw or qcow2 image.
    from: String,
    /// `raw` or `qcow2`; when absent, name and beginning of the file must agree on it.
    format: Option<String>,
    /// Directories, besides its own, that backing files of the image may lie in.
    backing_dirs: Option<Vec<String>>,
}

/// An image that is to be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewImage {
    /// Name of the golden image.
    pub name: String,
    /// Name of the pool.
    pub pool: String,
    /// The file.
    pub from: PathBuf,
    /// Of what format it is.
    pub format: Option<Format>,
    /// Where its backing files may lie.
    pub backing_dirs: Vec<PathBuf>,
}

/// The body of a request to export a volume, as it is described to others; see [`read_export`].
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "the description only")]
pub struct ExportVolume {
    /// Path of the file.
    to: String,
    /// `raw` or `qcow2`; when absent, the name tells.
    format: Option<String>,
    /// Whether a file of that name is replaced.
    force: Option<bool>,
}

/// A volume that is to be exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewExport {
    /// Name of the volume.
    pub volume: String,
    /// The file.
    pub to: PathBuf,
    /// Of what format it is to be.
    pub format: Format,
    /// Whether a file of that name is replaced.
    pub force: bool,
}

const FORMATS: &str = "raw or qcow2";

fn read_path(fields: &mut Fields<'_>, key: &'static str) -> PathBuf {
    let path = fields.required::<PathBuf>(key, "a path").unwrap_or_default();
    check_path(fields, key, &path);
    path
}

fn check_path(fields: &mut Fields<'_>, key: &str, path: &Path) {
    if path.as_os_str().is_empty() || path.is_absolute() {
        return;
    }
    fields.errors().add(key, path.display(), "not an absolute path", "begin it with `/`");
}

/// Checks the body of a request to import an image. The keys are `name`, `pool`, `from`, `format` and `backing_dirs`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_import(body: Value) -> Result<NewImage, Problem> {
    let mut errors = Errors::new();
    let mut fields = Fields::new("", body, &mut errors);
    let name = fields.required::<String>("name", "a name").unwrap_or_default();
    if !name.is_empty() {
        fields.errors().name("name", &name);
    }
    let pool = fields.required::<String>("pool", "the name of a pool").unwrap_or_default();
    let from = read_path(&mut fields, "from");
    let format = fields.optional("format", FORMATS);
    let backing_dirs: Vec<PathBuf> = fields.optional("backing_dirs", "a list of paths").unwrap_or_default();
    backing_dirs.iter().for_each(|dir| check_path(&mut fields, "backing_dirs", dir));
    fields.finish();
    let title = format!("the image `{name}` cannot be imported");
    errors.into_result(title, NewImage { name, pool, from, format, backing_dirs })
}

/// Checks the body of a request to export a volume. The keys are `to`, `format` and `force`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_export(volume: &str, body: Value) -> Result<NewExport, Problem> {
    let mut errors = Errors::new();
    let mut fields = Fields::new("", body, &mut errors);
    let to = read_path(&mut fields, "to");
    let given: Option<Format> = fields.optional("format", FORMATS);
    let force = fields.optional("force", "true or false").unwrap_or(false);
    let extension = to.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
    let named = match extension.as_deref() {
        Some("qcow2") => Some(Format::Qcow2),
        Some("raw" | "img") => Some(Format::Raw),
        _ => None,
    };
    let format = given.or(named);
    if format.is_none() && fields.errors().is_empty() {
        let remedy = "let it end in .raw, .img or .qcow2, or give a format";
        fields.errors().add("to", to.display(), "its name tells no format", remedy);
    }
    fields.finish();
    let title = format!("the volume `{volume}` cannot be exported");
    let format = format.unwrap_or(Format::Raw);
    errors.into_result(title, NewExport { volume: volume.to_string(), to, format, force })
}
