//! What a pool is: as it is asked for, kept over restarts, and shown.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use telemetry::Problem;
use telemetry::check::{Errors, Fields};
use tiering::{Pin, Tier, UNIT_BYTES, VolumeId};
use uuid::Uuid;

/// A device of a pool as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceSpec {
    /// Its tier.
    pub tier: TierName,
    /// A file or block device.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Bytes of it that the pool uses.
    pub size_bytes: u64,
    /// What its superblock calls it.
    #[schema(value_type = String)]
    pub uuid: Uuid,
    /// Bytes of the volume that it was before it joined; the pool's own are behind them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted_bytes: Option<u64>,
}

/// A tier of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TierName {
    /// The fast devices.
    Hot,
    /// The large devices.
    Cold,
}

impl TierName {
    /// As it is written.
    pub fn key(self) -> &'static str {
        match self {
            TierName::Hot => "hot",
            TierName::Cold => "cold",
        }
    }
}

impl From<TierName> for Tier {
    fn from(name: TierName) -> Tier {
        match name {
            TierName::Hot => Tier::Hot,
            TierName::Cold => Tier::Cold,
        }
    }
}

/// A pool as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolSpec {
    /// Unique name.
    pub name: String,
    /// What its superblocks call it.
    #[schema(value_type = String)]
    pub uuid: Uuid,
    /// Its devices, in the order in which they joined it.
    pub devices: Vec<DeviceSpec>,
    /// Most bytes a second that moves between the tiers may take; `None` is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration_bytes_per_s: Option<u64>,
    /// Names of tenants, whom the pool knows by number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<TenantSpec>,
}

/// A tenant of a pool as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantSpec {
    /// Its name.
    pub name: String,
    /// What the pool calls it.
    pub id: u32,
}

impl PoolSpec {
    /// Bytes of the devices of a tier.
    pub fn tier_bytes(&self, tier: TierName) -> u64 {
        self.devices.iter().filter(|device| device.tier == tier).map(|device| device.size_bytes).sum()
    }
}

/// Where the data of a volume in a pool are, and where the operator wants them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolPlace {
    /// Name of the pool.
    pub name: String,
    /// The volume's number in the pool.
    pub id: u32,
    /// Where its data are to be.
    #[serde(default, skip_serializing_if = "PinName::is_auto")]
    pub pin: PinName,
    /// Name of the volume that this is a snapshot or clone of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The file or device whose data it was made of, where they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub adopted: Option<PathBuf>,
}

impl PoolPlace {
    /// The volume's number as the store names it.
    pub fn volume(&self) -> VolumeId {
        VolumeId(self.id)
    }

    /// Whether the volume's data are there before it has its name: to be adopted, or a volume of the pool without one.
    pub fn is_there(&self) -> bool {
        self.adopted.is_some() || self.id != 0
    }
}

/// Where the operator wants the data of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PinName {
    /// By heat.
    #[default]
    Auto,
    /// Hot once touched, and kept there.
    Hot,
    /// Never promoted.
    Cold,
}

impl PinName {
    fn is_auto(&self) -> bool {
        *self == PinName::Auto
    }
}

impl From<Pin> for PinName {
    fn from(pin: Pin) -> PinName {
        match pin {
            Pin::Auto => PinName::Auto,
            Pin::Hot => PinName::Hot,
            Pin::Cold => PinName::Cold,
        }
    }
}

impl From<PinName> for Pin {
    fn from(name: PinName) -> Pin {
        match name {
            PinName::Auto => Pin::Auto,
            PinName::Hot => Pin::Hot,
            PinName::Cold => Pin::Cold,
        }
    }
}

/// A pool as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PoolView {
    /// What it was made of.
    #[serde(flatten)]
    pub spec: PoolSpec,
    /// Whether it is open, and if not, why.
    pub state: PoolState,
    /// Space and work; absent when it is not open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<PoolUsage>,
    /// Names of its volumes.
    pub volumes: Vec<String>,
    /// What to look after although it works.
    pub warnings: Vec<String>,
}

/// Whether a pool is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PoolState {
    /// Its volumes are served.
    Open,
    /// Writes to new places wait until there is space; everything else goes on.
    Full,
    /// Reads go on; nothing is written.
    ReadOnly {
        /// Why.
        reason: String,
    },
    /// It could not be opened.
    Failed {
        /// What was attempted and what came of it.
        reason: String,
    },
}

/// Space and work of an open pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PoolUsage {
    /// Space for data on the hot tier, bytes.
    pub hot_bytes: u64,
    /// Free of it.
    pub hot_free_bytes: u64,
    /// Space for data on the cold tier, which is the pool's capacity, bytes.
    pub cold_bytes: u64,
    /// Free of it.
    pub cold_free_bytes: u64,
    /// Data that are on the hot tier only, bytes in whole units.
    pub dirty_bytes: u64,
    /// Sizes of all volumes together: more than the capacity when the pool is overcommitted.
    pub promised_bytes: u64,
    /// Writes that wait for space.
    pub waiting_writes: u64,
    /// Numbers of volumes in the pool that no name belongs to.
    pub unnamed: Vec<u32>,
    /// Devices that are not there, or were lost while the pool was at work.
    #[schema(value_type = Vec<String>)]
    pub lost_devices: Vec<PathBuf>,
    /// What tenants use.
    pub tenants: Vec<super::limits::TenantUsage>,
    /// Data that were lost with a hot device, as `volume, first byte, bytes`.
    pub lost: Vec<LostRange>,
}

/// Data that cannot be read because they were on a lost hot device only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LostRange {
    /// The volume's name, or its number where it has none.
    pub volume: String,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A device of a pool that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDevice {
    /// A file or block device.
    pub path: PathBuf,
    /// Its size in bytes; `None` takes all of what exists.
    pub size_bytes: Option<u64>,
}

/// Devices of a pool that is to be made, or more of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MoreDevices {
    /// The fast devices.
    pub hot: Vec<NewDevice>,
    /// The large devices.
    pub cold: Vec<NewDevice>,
    /// Overwrite what is on the devices.
    pub force: bool,
}

/// A pool that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPool {
    /// Its name.
    pub name: String,
    /// Its devices.
    pub devices: MoreDevices,
    /// Most bytes a second that moves may take.
    pub migration_bytes_per_s: Option<u64>,
}

/// The body of a request to make a pool, as it is described to others; see [`read_create`].
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "the description only")]
pub struct CreatePool {
    /// Unique name, `[a-z0-9][a-z0-9._-]{0,62}`.
    name: String,
    /// The fast devices, each `PATH:SIZE` or, for what exists, `PATH`.
    hot: Vec<String>,
    /// The large devices, in the same way.
    cold: Vec<String>,
    /// Most bytes a second that moves between the tiers may take, or a text such as `50MiB`; no limit when absent.
    #[schema(value_type = Option<u64>)]
    migration_bytes_per_s: Option<Value>,
    /// Overwrite what is on the devices; false when absent.
    force: Option<bool>,
}

/// Checks the body of a request to make a pool. The keys are `name`, `hot`, `cold`, `migration_bytes_per_s`, `force`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_create(body: Value) -> Result<NewPool, Problem> {
    let mut errors = Errors::new();
    let mut fields = Fields::new("", body, &mut errors);
    let name = fields.required::<String>("name", "a name").unwrap_or_default();
    if !name.is_empty() {
        fields.errors().name("name", &name);
    }
    let hot = read_devices(&mut fields, "hot", true);
    let cold = read_devices(&mut fields, "cold", true);
    let migration_bytes_per_s = crate::spec::read_bytes(&mut fields, "migration_bytes_per_s");
    if migration_bytes_per_s.is_some_and(|rate| rate < 1 << 20) {
        let remedy = "give at least 1MiB, or leave it out for no limit";
        fields.errors().add(
            "migration_bytes_per_s",
            "",
            "so slow that a full hot tier stalls guests",
            remedy,
        );
    }
    let force = fields.optional("force", "true or false").unwrap_or(false);
    fields.finish();
    let devices = MoreDevices { hot, cold, force };
    refuse_twice(&devices, &mut errors);
    let title = format!("the pool `{name}` cannot be made");
    errors.into_result(title, NewPool { name, devices, migration_bytes_per_s })
}

/// The body of a request to extend a pool, as it is described to others; see [`read_extend`].
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "the description only")]
pub struct ExtendPool {
    /// Fast devices that join, or that the pool has and that have become larger: `PATH:SIZE`, or `PATH` for all of it.
    hot: Option<Vec<String>>,
    /// Large devices, in the same way.
    cold: Option<Vec<String>>,
    /// Overwrite what is on devices that join; false when absent.
    force: Option<bool>,
}

/// Checks the body of a request to extend a pool. The keys are `hot`, `cold`, `force`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_extend(name: &str, body: Value) -> Result<MoreDevices, Problem> {
    let mut errors = Errors::new();
    let mut fields = Fields::new("", body, &mut errors);
    let hot = read_devices(&mut fields, "hot", false);
    let cold = read_devices(&mut fields, "cold", false);
    let force = fields.optional("force", "true or false").unwrap_or(false);
    fields.finish();
    let devices = MoreDevices { hot, cold, force };
    if errors.is_empty() && devices.hot.is_empty() && devices.cold.is_empty() {
        errors.add("hot", "", "no device", "give one or more, hot or cold");
    }
    refuse_twice(&devices, &mut errors);
    errors.into_result(format!("the pool `{name}` cannot be extended"), devices)
}

fn refuse_twice(devices: &MoreDevices, errors: &mut Errors) {
    let all: Vec<&Path> =
        devices.hot.iter().chain(&devices.cold).map(|device| device.path.as_path()).collect();
    for (at, path) in all.iter().enumerate() {
        if all[..at].contains(path) {
            errors.add("devices", path.display(), "given twice", "give each device once");
        }
    }
}

/// The body of a request to open a pool, as it is described to others; see [`read_open`].
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "the description only")]
pub struct OpenPool {
    /// Open it read-only without its hot tier although data were only there; false when absent.
    degraded: Option<bool>,
}

/// Checks the body of a request to open a pool, whose one key is `degraded`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_open(name: &str, body: Value) -> Result<bool, Problem> {
    let mut errors = Errors::new();
    let mut fields = Fields::new("", body, &mut errors);
    let degraded = fields.optional("degraded", "true or false").unwrap_or(false);
    fields.finish();
    errors.into_result(format!("the pool `{name}` cannot be opened"), degraded)
}

fn read_devices(fields: &mut Fields<'_>, tier: &'static str, needed: bool) -> Vec<NewDevice> {
    let expected = "a list such as [\"/fast/hot.img:2GiB\"]";
    let texts: Option<Vec<String>> =
        if needed { fields.required(tier, expected) } else { fields.optional(tier, expected) };
    let texts = texts.unwrap_or_default();
    let mut devices = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        match read_device(text) {
            Ok(device) => devices.push(device),
            Err((detail, remedy)) => fields.errors().add(format!("{tier}[{at}]"), text, detail, remedy),
        }
    }
    if needed && texts.is_empty() && fields.errors().is_empty() {
        fields.errors().add(tier, "", "no device", format!("give one or more, {expected}"));
    }
    devices
}

/// Reads `PATH:SIZE` or `PATH`.
pub fn read_device(text: &str) -> Result<NewDevice, (String, &'static str)> {
    let (path, size) = match text.rsplit_once(':') {
        // Some names of devices have colons themselves.
        Some((path, size)) if !size.contains('/') && !Path::new(text).exists() => (path, Some(size)),
        _ => (text, None),
    };
    let remedy = "give PATH:SIZE with an absolute path, such as /fast/hot.img:2GiB";
    if !Path::new(path).is_absolute() {
        return Err(("not an absolute path".to_string(), remedy));
    }
    let size_bytes = size.map(telemetry::check::size).transpose().map_err(|detail| (detail, remedy))?;
    if let Some(size) = size_bytes.filter(|size| *size == 0 || !size.is_multiple_of(UNIT_BYTES)) {
        let detail = format!("{size} bytes are not whole units of {UNIT_BYTES}");
        return Err((detail, "give a multiple of 64KiB"));
    }
    Ok(NewDevice { path: path.into(), size_bytes })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn devices_are_paths_with_sizes() {
        let device = |path: &str, size_bytes| Ok(NewDevice { path: path.into(), size_bytes });
        assert_eq!(read_device("/fast/hot.img:2GiB"), device("/fast/hot.img", Some(2 << 30)));
        assert_eq!(read_device("/dev/nvme0n1"), device("/dev/nvme0n1", None));
        assert_eq!(read_device("/dev/a:b/c"), device("/dev/a:b/c", None));
        for (text, says) in [
            ("hot.img:2GiB", "absolute"),
            ("/hot.img:2GB", "unit"),
            ("/hot.img:100", "whole units"),
            ("/hot.img:0", "whole units"),
            ("/hot.img:", "not a size"),
        ] {
            let (detail, _) = read_device(text).expect_err(text);
            assert!(detail.contains(says), "{text}: {detail}");
        }
    }

    #[test]
    fn everything_wrong_with_a_pool_is_told_at_once() {
        let body = json!({"name": "A", "hot": ["x:1", "/a:64KiB"], "cold": ["/a:64KiB", "/b:1KiB"],
            "migration_bytes_per_s": "7KiB", "force": 1, "warm": []});
        let problem = read_create(body).expect_err("all of it is wrong");
        let mut found: Vec<&str> = problem.errors.iter().map(|error| error.field.as_str()).collect();
        found.sort_unstable();
        assert_eq!(found, ["cold[1]", "devices", "force", "hot[0]", "migration_bytes_per_s", "name", "warm"]);
        let none = read_create(json!({"name": "a"})).expect_err("no devices");
        assert_eq!(none.errors.len(), 2);
    }
}
