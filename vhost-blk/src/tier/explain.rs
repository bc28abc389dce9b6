//! Where the data of a volume are, and why.

use serde::{Deserialize, Serialize};
use telemetry::Problem;
use tiering::{Explanation, PAGE_BYTES, Residency, UNIT_BYTES, VolumeError};

use super::control::PoolHandle;
use super::spec::PoolPlace;
use crate::volume::{Volumes, no_volume};

/// Units looked at in one go, so that no guest waits long: a few milliseconds.
pub(super) const UNITS_AT_ONCE: u64 = 1 << 16;
/// Cells of a heat map at most.
pub const CELLS_MAX: u64 = 4096;

/// Where one place of a volume is, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlaceView {
    /// Name of the volume.
    pub volume: String,
    /// The byte that was asked for.
    pub offset: u64,
    /// The unit that it is in, which moves as one: first byte and bytes.
    pub unit: (u64, u64),
    /// `none` (never written), `cold` or `hot`.
    pub tier: String,
    /// Seconds since it came to the hot tier, or since the pool was opened if that was later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_s: Option<f64>,
    /// How warm the policy holds it to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heat: Option<String>,
    /// Why it is there.
    pub why: String,
    /// What would move it.
    pub moves_when: String,
    /// Bytes of the unit on the hot tier.
    pub hot_bytes: u64,
    /// Bytes of the unit that are there only.
    pub dirty_bytes: u64,
    /// Bytes of the unit that cannot be read: they were lost with a device.
    pub lost_bytes: u64,
}

/// Where the data of a volume are, cell by cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HeatView {
    /// Name of the volume.
    pub volume: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Bytes of a cell; the last one may have fewer.
    pub cell_bytes: u64,
    /// The cells in order.
    pub cells: Vec<CellView>,
}

/// One cell of a heat map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CellView {
    /// Bytes that were written at some time, in whole units.
    pub mapped_bytes: u64,
    /// Of those, bytes of units that are on the hot tier.
    pub hot_bytes: u64,
    /// Of those, bytes of units that are at least in part only there.
    pub dirty_bytes: u64,
}

/// A range of bytes in which two volumes differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DifferenceView {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A volume in a pool, as one asks the pool about it.
pub(super) struct InPool {
    pub(super) pool: PoolHandle,
    /// The pool's name, and the volume's number there.
    pub(super) place: PoolPlace,
    pub(super) size_bytes: u64,
}

impl Volumes {
    /// Where the byte at `offset` of a volume is, and why.
    ///
    /// # Errors
    /// There is no such volume or byte, or it is in no pool.
    pub fn explain(&self, name: &str, offset: u64) -> Result<PlaceView, Problem> {
        let InPool { pool, place, size_bytes } = self.in_pool(name)?;
        let id = place.volume();
        if offset >= size_bytes {
            let title = format!("there is no byte {offset} in the volume `{name}`");
            return Err(Problem::conflict(title).detail(format!("it has {size_bytes} bytes")));
        }
        let look = move |store: &mut tiering::Store| (store.explain(id, offset), store.now_ns());
        let (explanation, now_ns) = pool.ask(look).map_err(gone)?;
        let explanation = explanation.map_err(refused)?;
        let by = match &explanation {
            Explanation::Hot { by, .. } => self.lock().name_in(&place.name, *by),
            _ => None,
        };
        Ok(view(name, offset, &explanation, now_ns, by))
    }

    /// Where the data of a volume are, in at most `cells` cells of whole units.
    ///
    /// # Errors
    /// There is no such volume, or it is in no pool.
    pub fn heat(&self, name: &str, cells: u64) -> Result<HeatView, Problem> {
        let InPool { pool, place, size_bytes } = self.in_pool(name)?;
        let id = place.volume();
        let units = size_bytes.div_ceil(UNIT_BYTES);
        let per_cell = units.div_ceil(cells.clamp(1, CELLS_MAX)).max(1);
        let mut found = Vec::new();
        let mut at = 0;
        while at < units {
            // Small cells together, large ones in pieces.
            let count = (UNITS_AT_ONCE / per_cell).max(1);
            let first = at;
            let look = move |store: &mut tiering::Store| {
                (0..count)
                    .map(|cell| store.residency(id, first + cell * per_cell, per_cell.min(UNITS_AT_ONCE)))
                    .collect::<Result<Vec<Residency>, VolumeError>>()
            };
            let mut part = pool.ask(look).map_err(gone)?.map_err(refused)?;
            let mut done = UNITS_AT_ONCE;
            while done < per_cell {
                let (from, len) = (at + done, UNITS_AT_ONCE.min(per_cell - done));
                let more = pool.ask(move |store| store.residency(id, from, len)).map_err(gone)?;
                let more = more.map_err(refused)?;
                part[0].mapped += more.mapped;
                part[0].hot += more.hot;
                part[0].dirty += more.dirty;
                done += len;
            }
            found.extend(part);
            at += count * per_cell;
        }
        found.truncate(units.div_ceil(per_cell) as usize);
        let cell = |of: Residency| CellView {
            mapped_bytes: of.mapped * UNIT_BYTES,
            hot_bytes: of.hot * UNIT_BYTES,
            dirty_bytes: of.dirty * UNIT_BYTES,
        };
        let cells = found.into_iter().map(cell).collect();
        Ok(HeatView { volume: name.to_string(), size_bytes, cell_bytes: per_cell * UNIT_BYTES, cells })
    }

    /// Where two volumes of a pool, such as two snapshots, do not share their data: in order, in whole units.
    ///
    /// # Errors
    /// There is no such volume, or they are not in the same pool.
    pub fn differences(&self, name: &str, other: &str) -> Result<Vec<DifferenceView>, Problem> {
        let (one, two) = (self.in_pool(name)?, self.in_pool(other)?);
        if one.place.name != two.place.name {
            let title = format!("the volumes `{name}` and `{other}` are in different pools");
            return Err(Problem::conflict(title).detail("only volumes of one pool share data"));
        }
        let mut found: Vec<DifferenceView> = Vec::new();
        let (a, b) = (one.place.volume(), two.place.volume());
        let units = one.size_bytes.max(two.size_bytes).div_ceil(UNIT_BYTES);
        for first in (0..units).step_by(UNITS_AT_ONCE as usize) {
            let part = one.pool.ask(move |store| store.diff(a, b, first, UNITS_AT_ONCE)).map_err(gone)?;
            for (offset, bytes) in part.map_err(refused)? {
                match found.last_mut() {
                    Some(last) if last.offset + last.bytes == offset => last.bytes += bytes,
                    _ => found.push(DifferenceView { offset, bytes }),
                }
            }
        }
        Ok(found)
    }

    /// A volume in an open pool.
    pub(super) fn in_pool(&self, name: &str) -> Result<InPool, Problem> {
        let held = self.lock();
        let spec = &held.volumes.get(name).ok_or_else(|| no_volume(name))?.spec;
        let Some(place) = spec.backing.place() else {
            let title = format!("the volume `{name}` is in no pool");
            return Err(Problem::conflict(title).detail("only those in pools have tiers"));
        };
        let pool = held.open_pool(&place.name)?;
        Ok(InPool { pool, place: place.clone(), size_bytes: spec.size_bytes.unwrap_or_default() })
    }
}

pub(crate) fn gone(gone: reactor::Gone) -> Problem {
    Problem::conflict("the pool is no longer open").detail(gone.to_string())
}

fn refused(error: VolumeError) -> Problem {
    Problem::conflict("the pool does not tell").detail(error.to_string())
}

fn view(name: &str, offset: u64, found: &Explanation, now_ns: u64, by: Option<String>) -> PlaceView {
    let unit = (offset / UNIT_BYTES * UNIT_BYTES, UNIT_BYTES);
    let pages = |mask: u16| u64::from(mask.count_ones()) * PAGE_BYTES;
    let blank = PlaceView {
        volume: name.to_string(),
        offset,
        unit,
        tier: "none".to_string(),
        since_s: None,
        heat: None,
        why: "it was never written, or was discarded: it reads as zero and takes no space".to_string(),
        moves_when: "it is written".to_string(),
        hot_bytes: 0,
        dirty_bytes: 0,
        lost_bytes: 0,
    };
    match found {
        Explanation::Unmapped => blank,
        Explanation::Cold { lost, moves_when, .. } => PlaceView {
            tier: "cold".to_string(),
            why: match lost {
                0 => "it was not used lately, or in a long stream only, or may not be hot",
                _ => "the hot copy was lost with its device",
            }
            .to_string(),
            moves_when: moves_when.to_string(),
            lost_bytes: pages(*lost),
            ..blank
        },
        Explanation::Hot { valid, dirty, since_ns, standing, moves_when, .. } => {
            let by =
                by.map_or_else(|| "a volume that is gone".to_string(), |by| format!("the volume `{by}`"));
            let copy = if *dirty == 0 { "the cold copy is the same" } else { "what is new is only here" };
            PlaceView {
                tier: "hot".to_string(),
                since_s: Some(now_ns.saturating_sub(*since_ns) as f64 / 1e9),
                heat: Some(standing.to_string()),
                why: format!("{by} used it; {copy}"),
                moves_when: moves_when.to_string(),
                hot_bytes: pages(*valid),
                dirty_bytes: pages(*dirty),
                ..blank
            }
        }
    }
}
