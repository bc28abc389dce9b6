//! A check of a pool's metadata, while it is at work or not.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use telemetry::Problem;
use tiering::{Checked, UNIT_BYTES};

use super::device::{Devices, OpenDevice};
use super::registry::{boot_id, no_pool};
use crate::volume::Volumes;

/// How often what is wrong has to be seen, since a pool at work changes while it is read.
const PASSES: usize = 4;
/// Pause between them: longer than it takes to write a superblock.
const PAUSE: Duration = Duration::from_millis(200);

/// What a check has seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CheckView {
    /// Name of the pool.
    pub pool: String,
    /// Volumes, snapshots and clones.
    pub volumes: u64,
    /// Bytes that they map; what several share counts for each.
    pub mapped_bytes: u64,
    /// Bytes of the cold tier that they own together.
    pub used_bytes: u64,
    /// Bytes of hot slots in use.
    pub hot_bytes: u64,
    /// Records of the journal behind the checkpoint.
    pub journal_records: u64,
    /// What is wrong; nothing when empty.
    pub findings: Vec<String>,
}

impl Volumes {
    /// Reads all metadata of a pool from its devices and checks it: checksums, both copies of everything that has two,
    /// and whether map, allocation, shares and hot slots fit together. Guests go on meanwhile.
    ///
    /// # Errors
    /// There is no such pool.
    pub fn check_pool(&self, name: &str) -> Result<CheckView, Problem> {
        let (spec, open) = {
            let held = self.lock();
            let pool = held.pools.get(name).ok_or_else(|| no_pool(name))?;
            (pool.spec.clone(), pool.open.clone())
        };
        let title = format!("the pool `{name}` cannot be checked");
        let boot = boot_id().map_err(|reason| Problem::internal(title.clone()).detail(reason))?;
        let (list, mut findings): (_, Vec<String>) = match &open {
            Ok(pool) => {
                let look = |pool: &mut super::Pool| (pool.devices(), pool.store().fault_report());
                let (list, fault) =
                    pool.on_worker(look).map_err(|gone| Problem::conflict(title).detail(gone.to_string()))?;
                (list, fault.into_iter().collect())
            }
            Err(reason) => {
                let (devices, missing) = Devices::open(spec.devices.iter());
                (devices.list, std::iter::once(format!("it is not open: {reason}")).chain(missing).collect())
            }
        };
        let checked = stable(list, boot);
        findings.extend(checked.findings.iter().cloned());
        Ok(CheckView {
            pool: name.to_string(),
            volumes: checked.volumes,
            mapped_bytes: checked.units * UNIT_BYTES,
            used_bytes: checked.extents * UNIT_BYTES,
            hot_bytes: checked.hot_slots * UNIT_BYTES,
            journal_records: checked.records,
            findings,
        })
    }
}

/// Checks until nothing is wrong, or the same again and again.
fn stable(list: Vec<Option<OpenDevice>>, boot: uuid::Uuid) -> Checked {
    let mut devices = Devices { list, failure: None };
    let mut checked = tiering::check(&mut devices, boot);
    for _ in 1..PASSES {
        if checked.findings.is_empty() {
            break;
        }
        std::thread::sleep(PAUSE);
        let mut again = tiering::check(&mut devices, boot);
        let before: BTreeSet<String> = checked.findings.into_iter().collect();
        again.findings.retain(|finding| before.contains(finding));
        checked = again;
    }
    checked
}
