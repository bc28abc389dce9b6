//! Volumes that are not served as they should be: tried again by themselves, or at an operator's word.

use std::time::{Duration, Instant};

use telemetry::Problem;

use crate::spec::{VolumeState, VolumeView};
use crate::volume::{Volumes, no_volume};

/// Pause after the first attempt to open a volume; doubled with each further one.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Why a volume is not served, and when it is tried again.
pub(crate) struct Outage {
    pub(crate) reason: String,
    attempts: u32,
    next: Instant,
}

/// Pause after so many attempts before the last one.
pub(crate) fn pause(attempts: u32) -> Duration {
    RETRY_FIRST.saturating_mul(1 << attempts.min(16)).min(RETRY_MAX)
}

impl Outage {
    /// The first attempt failed.
    pub(crate) fn first(problem: Problem) -> Outage {
        Outage { reason: problem.to_string(), attempts: 1, next: Instant::now() + RETRY_FIRST }
    }

    /// Nothing was attempted yet.
    pub(crate) fn waiting(reason: &str) -> Outage {
        Outage { reason: reason.to_string(), attempts: 0, next: Instant::now() }
    }

    /// One more attempt failed.
    fn again(&mut self, problem: &Problem, now: Instant) {
        let pause = pause(self.attempts);
        self.reason = problem.to_string();
        self.attempts = self.attempts.saturating_add(1);
        self.next = now + pause;
    }

    pub(crate) fn state(&self) -> VolumeState {
        VolumeState::Failed {
            reason: self.reason.clone(),
            attempts: self.attempts,
            retry_in_s: self.next.saturating_duration_since(Instant::now()).as_secs(),
        }
    }
}

/// The file of the state directory that says why a volume is poisoned.
pub(crate) fn poison_note(volume: &str) -> String {
    format!("{volume}.poisoned")
}

impl Volumes {
    /// Tries those again that are not served and whose time has come, first the pools; updates what is shown of volumes
    /// in pools. For a timer.
    pub fn retry(&self, now: Instant) {
        let Ok(workers) = self.workers() else { return };
        let mut held = self.lock();
        self.look_after_pools(&mut held, now);
        held.update_gauges();
        let due =
            |volume: &crate::volume::Volume| matches!(&volume.service, Err(outage) if outage.next <= now);
        let names: Vec<_> =
            held.volumes.values().filter(|volume| due(volume)).map(|v| v.spec.name.clone()).collect();
        for name in names {
            let served = self.serve(&held.volumes[&name].spec, false, &held, workers);
            let Some(volume) = held.volumes.get_mut(&name) else { continue };
            match (served, &mut volume.service) {
                (Ok(service), place) => {
                    tracing::info!(volume = name, "served now");
                    *place = Ok(service);
                }
                (Err(problem), Err(outage)) => outage.again(&problem, now),
                (Err(_), Ok(_)) => {}
            }
        }
    }

    /// Opens the file or device of a volume again: at once, if it failed, and for writing, if a failed flush put an end to
    /// that. What the flush lost stays lost; its frontends are disconnected and connect again.
    ///
    /// # Errors
    /// There is no such volume, it is served as it should be, or it fails again.
    pub fn reopen(&self, name: &str) -> Result<VolumeView, Problem> {
        let mut held = self.lock();
        let volume = held.volumes.get(name).ok_or_else(|| no_volume(name))?;
        if let Some(place) = volume.spec.backing.place()
            && let Some(Ok(pool)) = held.pools.get(&place.name).map(|pool| &pool.open)
            && let Some(why) = pool.status().read_only()
        {
            let title = format!("the volume `{name}` cannot be written again");
            let remedy = format!("when that is mended: `sluice pool open {}`", place.name);
            let detail = format!("its pool `{}` is read-only: {why}; {remedy}", place.name);
            return Err(Problem::conflict(title).detail(detail));
        }
        if let Ok(service) = &volume.service
            && service.shared.disk.poisoned().is_none()
        {
            return Err(Problem::conflict(format!("the volume `{name}` is served already")));
        }
        let Some(volume) = held.volumes.get_mut(name) else { return Err(no_volume(name)) };
        let forgotten = self.state()?.remove(&poison_note(name));
        forgotten.map_err(|error| Problem::internal(error.to_string()))?;
        let closed = Outage::waiting("it is being opened again");
        // Ends its sessions, waits until their queues are drained, and lets go of the file.
        drop(std::mem::replace(&mut volume.service, Err(closed)));
        let spec = volume.spec.clone();
        let workers = self.workers()?;
        let served = self.serve(&spec, false, &held, workers);
        let Some(volume) = held.volumes.get_mut(name) else { return Err(no_volume(name)) };
        match served {
            Ok(service) => volume.service = Ok(service),
            Err(problem) => {
                volume.service = Err(Outage::first(problem.clone()));
                return Err(problem);
            }
        }
        tracing::info!(volume = name, "opened again");
        Ok(self.view(&held.volumes[name]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_minute() {
        let problem = Problem::internal("no such file");
        let mut outage = Outage::first(problem.clone());
        let now = Instant::now();
        let pauses: Vec<_> = (0..8)
            .map(|_| {
                outage.again(&problem, now);
                outage.next.duration_since(now).as_secs()
            })
            .collect();
        assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60]);
        assert!(matches!(outage.state(), VolumeState::Failed { attempts: 9, retry_in_s: 58..=60, .. }));
    }
}
