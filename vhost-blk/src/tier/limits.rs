//! The operator's hand on volumes in pools: pins, bounds, quotas, tenants. The store keeps all of it; the list of pools
//! knows which tenant has which number.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use telemetry::Problem;
use telemetry::check::{Errors, Fields};
use tiering::{Limits, Pin, TenantId};

use super::control::ChangeError;
use super::explain::{InPool, gone};
use super::registry::no_pool;
use super::spec::{PinName, PoolPlace, PoolView, TenantSpec};
use crate::spec::VolumeView;
use crate::volume::{Held, Volumes};

/// What a volume in a pool may use; what is absent has no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct VolumeLimits {
    /// Bytes that it may have written, in whole units: more fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    /// Bytes of the hot tier that others do not take from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hot_min_bytes: Option<u64>,
    /// Bytes of the hot tier that it may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hot_max_bytes: Option<u64>,
    /// Who pays for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

/// What a pool knows of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TierView {
    /// Where its data are to be.
    pub pin: PinName,
    /// Parts of it that are pinned otherwise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<PinnedRange>,
    /// What it may use.
    #[serde(flatten)]
    pub limits: VolumeLimits,
    /// Bytes that were written, in whole units, shared with copies or not.
    pub mapped_bytes: u64,
    /// Bytes of the hot tier that it fills.
    pub hot_bytes: u64,
}

/// A part of a volume with a pin of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PinnedRange {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// Where it is to be.
    pub pin: PinName,
}

/// What a tenant's volumes use of a pool together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TenantUsage {
    /// Its name.
    pub tenant: String,
    /// Bytes that they have written, in whole units; what several share counts for each.
    pub mapped_bytes: u64,
    /// Bytes they may; absent for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
}

/// A change of limits: what is absent stays, what is `none` goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeLimits {
    /// See [`VolumeLimits`].
    pub quota_bytes: Option<Option<u64>>,
    /// See [`VolumeLimits`].
    pub hot_min_bytes: Option<Option<u64>>,
    /// See [`VolumeLimits`].
    pub hot_max_bytes: Option<Option<u64>>,
    /// See [`VolumeLimits`].
    pub tenant: Option<Option<String>>,
}

/// The body of a request to change limits, as it is described to others; see [`read_limits`].
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "the description only")]
pub struct SetLimits {
    /// Bytes, a text such as `1GiB`, or `none`; left as it is when absent.
    quota: Option<String>,
    /// The same.
    hot_min: Option<String>,
    /// The same.
    hot_max: Option<String>,
    /// Name of the tenant, or `none`.
    tenant: Option<String>,
}

/// The body of a request to pin a volume or a part of it, as it is described to others; see [`read_pin`].
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "the description only")]
pub struct SetPin {
    /// Where the data are to be.
    pin: PinName,
    /// First byte of the part; all of the volume when absent.
    #[schema(value_type = Option<u64>)]
    offset: Option<Value>,
    /// Bytes of the part.
    #[schema(value_type = Option<u64>)]
    bytes: Option<Value>,
}

/// The body of a request to set a tenant's quota, as it is described to others.
#[derive(utoipa::ToSchema)]
#[allow(dead_code, reason = "the description only")]
pub struct SetTenant {
    /// Bytes, a text such as `1TiB`, or `none`.
    quota: String,
}

/// The keys of limits: `quota`, `hot_min`, `hot_max`, `tenant`.
pub(crate) fn limit_fields(fields: &mut Fields<'_>) -> ChangeLimits {
    let mut bytes = |key: &'static str| -> Option<Option<u64>> {
        match fields.optional::<Value>(key, "a size such as 1GiB, or none")? {
            Value::String(text) if text == "none" => Some(None),
            Value::String(text) => fields.errors().size(key, &text).map(Some),
            Value::Number(number) if number.is_u64() => Some(number.as_u64()),
            other => {
                fields.errors().add(key, &other, "not a size", "give a size such as 1GiB, or none");
                None
            }
        }
    };
    let (quota_bytes, hot_min_bytes, hot_max_bytes) = (bytes("quota"), bytes("hot_min"), bytes("hot_max"));
    let tenant: Option<String> = fields.optional("tenant", "the name of a tenant, or none");
    if let Some(tenant) = tenant.as_ref().filter(|tenant| *tenant != "none") {
        fields.errors().name("tenant", tenant);
    }
    if let (Some(Some(min)), Some(Some(max))) = (hot_min_bytes, hot_max_bytes)
        && min > max
    {
        fields.errors().add("hot_min", min, format!("more than hot_max, {max}"), "give less than hot_max");
    }
    let tenant = tenant.map(|tenant| Some(tenant).filter(|tenant| tenant != "none"));
    ChangeLimits { quota_bytes, hot_min_bytes, hot_max_bytes, tenant }
}

/// Checks the body of a request to change limits. The keys are `quota`, `hot_min`, `hot_max`, `tenant`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_limits(name: &str, body: Value) -> Result<ChangeLimits, Problem> {
    let mut errors = Errors::new();
    let mut fields = Fields::new("", body, &mut errors);
    let limits = limit_fields(&mut fields);
    fields.finish();
    errors.into_result(format!("the limits of the volume `{name}` cannot be changed"), limits)
}

/// Checks the body of a request to pin. The keys are `pin`, `offset`, `bytes`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_pin(name: &str, body: Value) -> Result<(PinName, Option<(u64, u64)>), Problem> {
    let mut errors = Errors::new();
    let mut fields = Fields::new("", body, &mut errors);
    let pin = fields.required("pin", "auto, hot or cold").unwrap_or_default();
    let offset = crate::spec::read_bytes(&mut fields, "offset");
    let bytes = crate::spec::read_bytes(&mut fields, "bytes");
    fields.finish();
    let range = match (offset, bytes) {
        (Some(offset), Some(bytes)) => Some((offset, bytes)),
        (None, None) => None,
        _ => {
            errors.add("offset", "", "half of a range", "give both offset and bytes, or neither");
            None
        }
    };
    errors.into_result(format!("the volume `{name}` cannot be pinned"), (pin, range))
}

/// Checks the body of a request to set a tenant's quota, whose one key is `quota`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_tenant(tenant: &str, body: Value) -> Result<Option<u64>, Problem> {
    let mut errors = Errors::new();
    errors.name("tenant", tenant);
    let mut fields = Fields::new("", body, &mut errors);
    let quota = limit_fields(&mut fields).quota_bytes;
    fields.finish();
    if quota.is_none() && errors.is_empty() {
        errors.add("quota", "", "missing", "give a size such as 1TiB, or none");
    }
    errors.into_result(format!("the tenant `{tenant}` cannot have that quota"), quota.flatten())
}

impl ChangeLimits {
    /// Whether nothing is to be changed.
    pub(crate) fn is_empty(&self) -> bool {
        *self == ChangeLimits::default()
    }

    /// What comes of a volume's limits; `tenant` is the number of the new tenant.
    fn apply(&self, known: Limits, tenant: Option<TenantId>) -> Limits {
        Limits {
            quota_bytes: self.quota_bytes.unwrap_or(known.quota_bytes),
            hot_min_bytes: self.hot_min_bytes.map_or(known.hot_min_bytes, Option::unwrap_or_default),
            hot_max_bytes: self.hot_max_bytes.unwrap_or(known.hot_max_bytes),
            tenant: if self.tenant.is_some() { tenant } else { known.tenant },
        }
    }
}

impl Volumes {
    /// Pins a volume, or a part of it given as first byte and bytes.
    ///
    /// # Errors
    /// There is no such volume or part, it is in no pool, or the pool is read-only.
    pub fn pin(&self, name: &str, pin: PinName, range: Option<(u64, u64)>) -> Result<VolumeView, Problem> {
        let InPool { pool, place, .. } = self.in_pool(name)?;
        let id = place.volume();
        let title = format!("the volume `{name}` cannot be pinned");
        let change = move |store: &mut tiering::Store| match range {
            Some((offset, bytes)) => store.pin_range(id, offset, bytes, pin.into()),
            None => store.pin_volume(id, pin.into()),
        };
        pool.change(change).map_err(|error| Problem::conflict(title).detail(error.to_string()))?;
        tracing::info!(volume = name, ?pin, ?range, "pinned");
        self.show(name)
    }

    /// Changes what a volume may use.
    ///
    /// # Errors
    /// There is no such volume, it is in no pool, or the pool cannot promise that.
    pub fn set_limits(&self, name: &str, limits: &ChangeLimits) -> Result<VolumeView, Problem> {
        let place = self.in_pool(name)?.place;
        let title = format!("the limits of the volume `{name}` cannot be changed");
        self.limit(&mut self.lock(), &place, limits)
            .map_err(|reason| Problem::conflict(title).detail(reason))?;
        tracing::info!(volume = name, ?limits, "limited");
        self.show(name)
    }

    /// Applies a change of limits to a volume of a pool.
    pub(crate) fn limit(
        &self,
        held: &mut Held,
        place: &PoolPlace,
        limits: &ChangeLimits,
    ) -> Result<(), String> {
        let say = |problem: Problem| problem.to_string();
        let tenant = match &limits.tenant {
            Some(Some(name)) => Some(self.tenant(held, &place.name, name).map_err(say)?),
            _ => None,
        };
        let (id, limits) = (place.volume(), limits.clone());
        let change = move |store: &mut tiering::Store| {
            let known = store.volume(id).map(|info| info.limits);
            let known = known.ok_or(tiering::VolumeError::NoVolume(id))?;
            store.set_limits(id, limits.apply(known, tenant))
        };
        held.open_pool(&place.name)
            .map_err(say)?
            .change(change)
            .map_err(|error: ChangeError| error.to_string())
    }

    /// The number of a tenant of a pool, a new one if nobody has heard of it. It is kept before the pool is told.
    fn tenant(&self, held: &mut Held, pool: &str, name: &str) -> Result<TenantId, Problem> {
        let tenants = &mut held.pools.get_mut(pool).ok_or_else(|| no_pool(pool))?.spec.tenants;
        if let Some(known) = tenants.iter().find(|tenant| tenant.name == name) {
            return Ok(TenantId(known.id));
        }
        let id = tenants.iter().map(|tenant| tenant.id).max().unwrap_or(TenantId::NONE.0) + 1;
        tenants.push(TenantSpec { name: name.to_string(), id });
        self.keep(held)?;
        Ok(TenantId(id))
    }

    /// Sets how much a tenant's volumes may write together.
    ///
    /// # Errors
    /// There is no such pool, or it is not open or read-only.
    pub fn set_tenant(&self, pool: &str, tenant: &str, quota: Option<u64>) -> Result<PoolView, Problem> {
        let title = format!("the tenant `{tenant}` cannot have that quota");
        {
            let mut held = self.lock();
            let handle = held.open_pool(pool)?;
            let id = self.tenant(&mut held, pool, tenant)?;
            handle
                .change(move |store| store.set_tenant_quota(id, quota))
                .map_err(|error| Problem::conflict(title).detail(error.to_string()))?;
        }
        tracing::info!(pool, tenant, ?quota, "a tenant has a quota");
        self.pool(pool)
    }

    /// What a pool knows of a volume; `None` if it is in none that is open.
    pub(crate) fn tier_view(&self, name: &str) -> Result<Option<TierView>, Problem> {
        let Ok(InPool { pool, place, .. }) = self.in_pool(name) else { return Ok(None) };
        let id = place.volume();
        let look = move |store: &mut tiering::Store| (store.volume(id), store.pin_ranges(id));
        let (Some(info), ranges) = pool.ask(look).map_err(gone)? else { return Ok(None) };
        let held = self.lock();
        let of_pool = held.pools.get(&place.name);
        let tenant = info.limits.tenant.map(|tenant| {
            let known = of_pool.and_then(|pool| pool.spec.tenants.iter().find(|known| known.id == tenant.0));
            known.map_or_else(|| tenant.0.to_string(), |known| known.name.clone())
        });
        let range = |(offset, bytes, pin): (u64, u64, Pin)| PinnedRange { offset, bytes, pin: pin.into() };
        Ok(Some(TierView {
            pin: info.pin.into(),
            ranges: ranges.into_iter().map(range).collect(),
            limits: VolumeLimits {
                quota_bytes: info.limits.quota_bytes,
                hot_min_bytes: Some(info.limits.hot_min_bytes).filter(|bytes| *bytes > 0),
                hot_max_bytes: info.limits.hot_max_bytes,
                tenant,
            },
            mapped_bytes: info.mapped_bytes,
            hot_bytes: info.hot_bytes,
        }))
    }
}
