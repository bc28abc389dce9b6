//! What a volume is: as it is asked for, kept over restarts, and shown.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use telemetry::check::{Errors, Fields};
use telemetry::{Problem, SocketAccess};

use crate::request::SERIAL_BYTES;
use crate::tier::limits::{ChangeLimits, TierView, limit_fields};
use crate::tier::spec::{PinName, PoolPlace};

/// Most queues of a volume.
pub const QUEUES_MAX: u16 = 16;
/// Largest volume in bytes: what a signed file offset can address, in whole blocks.
pub const SIZE_BYTES_MAX: u64 = i64::MAX as u64 / 4096 * 4096;

const SIZE_EXPECTED: &str = "a size such as 4GiB, or a number of bytes";

/// Where the data of a volume are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backing {
    /// A regular file; made, sparse, when it does not exist.
    #[schema(value_type = String)]
    File(PathBuf),
    /// A block device, used whole.
    #[schema(value_type = String)]
    Device(PathBuf),
    /// In a tiered pool.
    Pool(PoolPlace),
    /// Nowhere: requests complete at once, reads leave the guest's buffers as they are. For benchmarks.
    Null,
}

impl Backing {
    /// The file or device, if there is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Backing::File(path) | Backing::Device(path) => Some(path),
            Backing::Null | Backing::Pool(_) => None,
        }
    }

    /// The place in a pool, if it is in one.
    pub fn place(&self) -> Option<&PoolPlace> {
        match self {
            Backing::Pool(place) => Some(place),
            _ => None,
        }
    }
}

impl std::fmt::Display for Backing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Backing::File(path) => write!(f, "file {}", path.display()),
            Backing::Device(path) => write!(f, "device {}", path.display()),
            Backing::Pool(place) => write!(f, "pool {}", place.name),
            Backing::Null => f.write_str("null"),
        }
    }
}

/// A volume as it is kept: everything that its frontends depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VolumeSpec {
    /// Unique name; the socket is `<name>.sock` in the run directory.
    pub name: String,
    /// Where the data are.
    pub backing: Backing,
    /// Size in bytes; `None` takes the size of an existing file or device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Number of virtqueues.
    pub queues: u16,
    /// Whether guests may only read.
    pub read_only: bool,
    /// What guests see as the disk's serial, at most 20 bytes.
    pub serial: String,
    /// Logical block size in bytes, 512 or 4096; `None` takes the device's own, and 512 for files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_bytes: Option<u32>,
    /// Owner, group and mode of the socket.
    #[serde(default)]
    pub socket: SocketAccess,
}

/// A volume as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VolumeView {
    /// What was asked for.
    #[serde(flatten)]
    pub spec: VolumeSpec,
    /// Where frontends connect.
    #[schema(value_type = String)]
    pub socket_path: PathBuf,
    /// Whether it is served, and if not, why.
    pub state: VolumeState,
    /// Number of frontends connected now.
    pub frontends: u32,
    /// What its pool knows of it, when one volume is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<TierView>,
}

/// A volume that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// What is kept of it.
    pub spec: VolumeSpec,
    /// What it may use of its pool.
    pub limits: ChangeLimits,
}

/// Whether a volume is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// Frontends are served.
    Serving,
    /// Reads go on; since a flush failed, everything that would change data is refused.
    Poisoned {
        /// What failed.
        reason: String,
    },
    /// Its file or device cannot be used. It is tried again, less and less often.
    Failed {
        /// What was attempted and what came of it.
        reason: String,
        /// How often it was tried.
        attempts: u32,
        /// Seconds until it is tried again.
        retry_in_s: u64,
    },
}

/// The body of a request to create a volume, as it is described to others; [`read_create`] reads it and finds everything
/// that is wrong.
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "the description only")]
pub struct CreateVolume {
    /// Unique name, `[a-z0-9][a-z0-9._-]{0,62}`.
    name: String,
    /// Path of a file; one of `file`, `device`, `pool` and `null` is needed.
    file: Option<String>,
    /// Path of a block device.
    device: Option<String>,
    /// No data at all.
    null: Option<bool>,
    /// Name of a tiered pool.
    pool: Option<String>,
    /// Where a pool keeps the data: `auto`, `hot` or `cold`; `auto` when absent.
    pin: Option<String>,
    /// Path of a file or block device whose data the pool takes over where they are.
    adopt: Option<String>,
    /// Number of a volume that the pool has and that has no name: it gets this one.
    unnamed: Option<u32>,
    /// Bytes of the pool that it may use, such as `10GiB`; no limit when absent.
    quota: Option<String>,
    /// Bytes of the hot tier that others do not take from it.
    hot_min: Option<String>,
    /// Bytes of the hot tier that it may have.
    hot_max: Option<String>,
    /// Who pays for it.
    tenant: Option<String>,
    /// Size in bytes, or a text such as `4GiB`; needed unless the file or device exists.
    #[schema(value_type = Option<u64>)]
    size_bytes: Option<Value>,
    /// Number of virtqueues, 1 to 16; 1 when absent.
    queues: Option<u16>,
    /// Whether guests may only read; false when absent.
    read_only: Option<bool>,
    /// Serial that guests see, at most 20 visible characters; the name when absent.
    serial: Option<String>,
    /// Logical block size, 512 or 4096; the device's own when absent.
    block_size: Option<u32>,
    /// Owner of the socket, a name or id.
    socket_owner: Option<String>,
    /// Group of the socket, a name or id.
    socket_group: Option<String>,
    /// Permission bits of the socket in octal; `0660` when absent.
    socket_mode: Option<String>,
}

/// The body of a request to grow a volume, as it is described to others; see [`read_resize`].
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "the description only")]
pub struct ResizeVolume {
    /// New size in bytes, or a text such as `8GiB`.
    #[schema(value_type = u64)]
    size_bytes: Value,
}

/// Checks the body of a request to create a volume. The keys are `name`, one of `file`, `device`, `pool` and
/// `null`, `pin`, `adopt`, `unnamed`, `quota`, `hot_min`, `hot_max`, `tenant`, `size_bytes`, `queues`, `read_only`, `serial`, `block_size`, `socket_owner`, `socket_group`, `socket_mode`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_create(body: Value) -> Result<NewVolume, Problem> {
    let mut errors = Errors::new();
    let mut fields = Fields::new("", body, &mut errors);
    let name = fields.required::<String>("name", "a name").unwrap_or_default();
    if !name.is_empty() {
        fields.errors().name("name", &name);
    }
    let backing = read_backing(&mut fields);
    let limits = limit_fields(&mut fields);
    if !limits.is_empty() && matches!(backing, Some(Backing::File(_) | Backing::Device(_) | Backing::Null)) {
        let remedy = "give a pool, or leave them out";
        fields.errors().add("quota", "", "only volumes in a pool have limits", remedy);
    }
    let block_bytes = fields.optional("block_size", "512 or 4096");
    if let Some(bytes) = block_bytes.filter(|bytes| ![512, 4096].contains(bytes)) {
        fields.errors().add("block_size", bytes, "not a block size", "use 512 or 4096");
    }
    let size_bytes = read_size(&mut fields, block_bytes.unwrap_or(512));
    let has_size = backing.as_ref().and_then(Backing::place).is_some_and(PoolPlace::is_there);
    if size_bytes.is_none() && !has_size && matches!(backing, Some(Backing::Null | Backing::Pool(_))) {
        fields.errors().add("size_bytes", "", "missing", format!("this volume needs {SIZE_EXPECTED}"));
    }
    let queues = fields.optional("queues", "a number from 1 to 16").unwrap_or(1);
    fields.errors().range("queues", queues, 1..=QUEUES_MAX);
    let read_only = fields.optional("read_only", "true or false").unwrap_or(false);
    let serial = read_serial(&mut fields).unwrap_or_else(|| default_serial(&name));
    let socket = SocketAccess::read(&mut fields);
    fields.finish();
    let backing = backing.unwrap_or(Backing::Null);
    let spec = VolumeSpec { name, backing, size_bytes, queues, read_only, serial, block_bytes, socket };
    let title = format!("the volume `{}` cannot be created", spec.name);
    errors.into_result(title, NewVolume { spec, limits })
}

/// The body of a request to make a snapshot or clone, as it is described to others; see [`read_fork`].
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "the description only")]
pub struct ForkVolume {
    /// Unique name of the copy.
    name: String,
    /// Whether the copy can be written: a clone; else it is a snapshot.
    writable: bool,
    /// Serial that guests see; the name when absent.
    serial: Option<String>,
}

/// A snapshot or clone that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFork {
    /// Its name.
    pub name: String,
    /// A clone is, a snapshot is not.
    pub writable: bool,
    /// What its guests see as serial.
    pub serial: Option<String>,
}

/// Checks the body of a request to make a snapshot or clone. The keys are `name`, `writable`, `serial`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_fork(from: &str, body: Value) -> Result<NewFork, Problem> {
    let mut errors = Errors::new();
    let mut fields = Fields::new("", body, &mut errors);
    let name = fields.required::<String>("name", "a name").unwrap_or_default();
    if !name.is_empty() {
        fields.errors().name("name", &name);
    }
    let writable = fields.required("writable", "true for a clone, false for a snapshot").unwrap_or(false);
    let serial = read_serial(&mut fields);
    fields.finish();
    errors.into_result(
        format!("the volume `{from}` cannot be copied to `{name}`"),
        NewFork { name, writable, serial },
    )
}

/// The key `serial`.
fn read_serial(fields: &mut Fields<'_>) -> Option<String> {
    let serial: String = fields.optional("serial", "a text")?;
    if serial.len() > SERIAL_BYTES || !serial.chars().all(|c| c.is_ascii_graphic()) {
        let remedy = "use at most 20 visible ASCII characters without spaces";
        fields.errors().add("serial", &serial, "not a serial", remedy);
    }
    Some(serial)
}

/// Checks the body of a request to change a volume, whose one key is `size_bytes`: the new size.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_resize(name: &str, block_bytes: u32, body: Value) -> Result<u64, Problem> {
    let mut errors = Errors::new();
    let mut fields = Fields::new("", body, &mut errors);
    let size_bytes = read_size(&mut fields, block_bytes);
    if size_bytes.is_none() && fields.errors().is_empty() {
        fields.errors().add("size_bytes", "", "missing", format!("give {SIZE_EXPECTED}"));
    }
    fields.finish();
    let title = format!("the volume `{name}` cannot be resized");
    errors.into_result(title, size_bytes.unwrap_or_default())
}

/// The serial of a volume that was given none: as much of its name as fits.
pub(crate) fn default_serial(name: &str) -> String {
    name.chars().filter(char::is_ascii_graphic).take(SERIAL_BYTES).collect()
}

fn read_backing(fields: &mut Fields<'_>) -> Option<Backing> {
    let file: Option<PathBuf> = fields.optional("file", "the path of a file");
    let device: Option<PathBuf> = fields.optional("device", "the path of a block device");
    let null = fields.optional("null", "true").unwrap_or(false);
    let pool: Option<String> = fields.optional("pool", "the name of a pool");
    let pin: Option<PinName> = fields.optional("pin", "auto, hot or cold");
    if let (Some(_), None) = (pin, &pool) {
        fields.errors().add("pin", "", "only volumes in a pool have tiers", "give a pool, or leave it out");
    }
    let adopted: Option<PathBuf> = fields.optional("adopt", "the path of a file or block device");
    if let (Some(path), None) = (&adopted, &pool) {
        let detail = "only a pool adopts what is there";
        fields.errors().add("adopt", path.display(), detail, "give a pool, or use file or device");
    }
    let unnamed: Option<u32> = fields.optional("unnamed", "the number of a volume of the pool");
    if let Some(id) = unnamed.filter(|id| *id == 0 || pool.is_none() || adopted.is_some()) {
        let remedy = "give the pool and a number that it shows as unnamed, and nothing to adopt";
        fields.errors().add("unnamed", id, "no volume of a pool", remedy);
    }
    for (field, path) in [("file", &file), ("device", &device), ("adopt", &adopted)] {
        if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
            fields.errors().add(field, path.display(), "not an absolute path", "begin it with `/`");
        }
    }
    let mut given: Vec<Backing> = Vec::new();
    given.extend(file.map(Backing::File));
    given.extend(device.map(Backing::Device));
    given.extend(pool.map(|name| {
        let (id, pin) = (unnamed.unwrap_or(0), pin.unwrap_or_default());
        Backing::Pool(PoolPlace { name, id, pin, origin: None, adopted })
    }));
    given.extend(null.then_some(Backing::Null));
    let shown = given.iter().map(Backing::to_string).collect::<Vec<_>>().join(", ");
    match given.len() {
        1 => given.pop(),
        0 => {
            fields.errors().add("file", "", "missing", "give one of file, device, pool and null");
            None
        }
        _ => {
            fields.errors().add(
                "file",
                shown,
                "more than one place for the data",
                "give one of file, device, pool and null",
            );
            None
        }
    }
}

/// A key that is a number of bytes or a text with a unit.
pub(crate) fn read_bytes(fields: &mut Fields<'_>, key: &'static str) -> Option<u64> {
    match fields.optional::<Value>(key, SIZE_EXPECTED)? {
        Value::String(text) => fields.errors().size(key, &text),
        Value::Number(number) if number.is_u64() => number.as_u64(),
        other => {
            fields.errors().add(key, &other, "not a size", format!("give {SIZE_EXPECTED}"));
            None
        }
    }
}

/// The key `size_bytes`: a number of bytes or a text with a unit; whole blocks.
fn read_size(fields: &mut Fields<'_>, block_bytes: u32) -> Option<u64> {
    let bytes = read_bytes(fields, "size_bytes")?;
    fields.errors().range("size_bytes", bytes, 1..=SIZE_BYTES_MAX);
    if !bytes.is_multiple_of(u64::from(block_bytes)) {
        let remedy = format!("use a multiple of the block size, {block_bytes} bytes");
        fields.errors().add("size_bytes", bytes, "not whole blocks", remedy);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults() {
        let NewVolume { spec, .. } =
            read_create(json!({"name": "v0", "file": "/a", "size_bytes": "4GiB"})).expect("a good volume");
        let expect = VolumeSpec {
            name: "v0".to_string(),
            backing: Backing::File("/a".into()),
            size_bytes: Some(4 << 30),
            queues: 1,
            read_only: false,
            serial: "v0".to_string(),
            block_bytes: None,
            socket: SocketAccess::default(),
        };
        assert_eq!(spec, expect);
    }

    #[test]
    fn what_is_kept_is_read_back() {
        let body = json!({"name": "z", "device": "/dev/zram0", "queues": 4, "read_only": true, "block_size": 4096,
            "serial": "S-1", "socket_owner": "0", "socket_group": "root", "socket_mode": "0660"});
        let NewVolume { spec, .. } = read_create(body).expect("a good volume");
        assert_eq!(spec.socket, SocketAccess { owner: Some(0), group: Some(0), mode: Some(0o660) });
        let text = serde_json::to_string(&spec).expect("serialisable");
        assert_eq!(serde_json::from_str::<VolumeSpec>(&text).expect("readable"), spec);
    }

    #[test]
    fn a_long_name_gives_a_serial_that_fits() {
        let name = "a".repeat(40);
        let NewVolume { spec, .. } =
            read_create(json!({"name": name, "null": true, "size_bytes": 512})).expect("a good volume");
        assert_eq!(spec.serial.len(), SERIAL_BYTES);
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let body = json!({"name": "a/b", "file": "disk.img", "null": true, "size_bytes": "4XiB", "queues": 17,
            "read_only": "no", "serial": "a b", "block_size": 1024, "socket_owner": "nobody-of-that-name",
            "socket_group": "no-such-group", "socket_mode": "9", "colour": "red"});
        let problem = read_create(body).expect_err("all of it is wrong");
        let mut found: Vec<&str> = problem.errors.iter().map(|error| error.field.as_str()).collect();
        found.sort_unstable();
        let expect = [
            "block_size",
            "colour",
            "file",
            "file",
            "name",
            "queues",
            "read_only",
            "serial",
            "size_bytes",
            "socket_group",
            "socket_mode",
            "socket_owner",
        ];
        assert_eq!(found, expect);
    }

    #[test]
    fn sizes_that_are_refused() {
        for (size, detail) in [
            (json!(0), "out of range"),
            (json!(u64::MAX), "out of range"),
            (json!(513), "not whole blocks"),
            (json!(-1), "not a size"),
            (json!(true), "not a size"),
            (json!("1GB"), "unknown unit"),
        ] {
            let problem =
                read_create(json!({"name": "v", "null": true, "size_bytes": size})).expect_err("a bad size");
            assert!(problem.to_string().contains(detail), "{problem} does not say {detail}");
        }
        let missing = read_create(json!({"name": "v", "null": true})).expect_err("no size");
        assert!(missing.to_string().contains("size_bytes"));
    }

    #[test]
    fn a_resize_needs_a_size_of_whole_blocks() {
        assert_eq!(read_resize("v", 4096, json!({"size_bytes": "8GiB"})), Ok(8 << 30));
        for body in
            [json!({}), json!({"size_bytes": 512}), json!({"size_bytes": 4096, "queues": 2}), json!(3)]
        {
            assert!(read_resize("v", 4096, body.clone()).is_err(), "{body}");
        }
    }
}
