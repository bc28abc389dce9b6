//! A volume in a pool becomes a file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, RenameFlags};
use telemetry::Problem;
use telemetry::check::show_size;
use tiering::{Pin, VolumeId};

use super::nbd::Client;
use super::qemu::{self, Chain, Format, ImageError, Server, host};
use super::spec::NewExport;
use super::transfer::{Transfers, mapped, not_zero};
use super::{CopyError, Report};
use crate::disk;
use crate::tier::control::PoolHandle;
use crate::volume::{Doomed, Volumes, chain_of, no_volume, refused};

/// Zeroes are left out of the file in pieces of this size: the cluster of qcow2.
const PIECE_BYTES: usize = 64 << 10;

/// The file as long as it has no name.
struct Target {
    path: PathBuf,
    kind: Kind,
}

enum Kind {
    Raw(File),
    Nbd(Option<(Server, Client)>),
}

impl Target {
    fn make(to: &Path, format: Format, size_bytes: u64, run_dir: &Path) -> Result<Target, ImageError> {
        let mut name = std::ffi::OsString::from(".");
        name.push(to.file_name().unwrap_or_default());
        name.push(format!(".{}.part", uuid::Uuid::new_v4().simple()));
        let path = to.with_file_name(name);
        let made = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = made.map_err(host("make", &path))?;
        // From here on it is removed when something fails.
        let mut target = Target { path, kind: Kind::Nbd(None) };
        match format {
            Format::Raw => {
                file.set_len(size_bytes).map_err(host("set the size of", to))?;
                target.kind = Kind::Raw(file);
            }
            Format::Qcow2 => {
                drop(file);
                qemu::create(&target.path, size_bytes)?;
                let chain = Chain::own(&target.path, size_bytes);
                target.kind = Kind::Nbd(Some(Server::start(&chain, false, run_dir)?));
            }
        }
        Ok(target)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        match &mut self.kind {
            Kind::Raw(file) => file.write_all_at(bytes, offset),
            Kind::Nbd(Some((_, client))) => client.write(offset, bytes),
            Kind::Nbd(None) => unreachable!("it was opened when it was made"),
        }
    }

    /// Makes it stable and gives it its name.
    fn finish(mut self, to: &Path, replace: bool) -> Result<(), ImageError> {
        if let Kind::Nbd(server) = &mut self.kind
            && let Some((server, mut client)) = server.take()
        {
            client.flush().map_err(host("flush", to))?;
            client.disconnect().map_err(host("close", to))?;
            server.finish()?;
        }
        File::open(&self.path).and_then(|file| file.sync_all()).map_err(host("make durable", to))?;
        let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let renamed = rustix::fs::renameat_with(CWD, &self.path, CWD, to, flags);
        renamed.map_err(|error| host("name", to)(error.into()))?;
        let durable = disk::sync_parent(to);
        durable.map_err(|error| host("make durable", to)(io::Error::other(error)))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // It is gone when it got its name.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// An export that was found possible and has begun; [`Export::run`] does the work. Dropped, it leaves nothing behind.
pub struct Export {
    volumes: Arc<Volumes>,
    new: NewExport,
    target: Option<Target>,
    pool_name: String,
    pool: PoolHandle,
    /// The volume as it was when the export began.
    snapshot: VolumeId,
    size_bytes: u64,
}

impl Volumes {
    /// Checks what can be told at once, and holds on to the volume as it is now.
    ///
    /// # Errors
    /// There is no such volume in a pool, or the file cannot be made.
    pub fn begin_export(self: &Arc<Self>, new: NewExport) -> Result<Export, Problem> {
        let title = format!("the volume `{}` cannot be exported", new.volume);
        let wrong = |error: ImageError| refused(title.clone(), &error, "to", &new.to.display());
        if !new.force && new.to.symlink_metadata().is_ok() {
            let what = "is there already".to_string();
            let remedy = "choose another name, or give --force to replace it".to_string();
            return Err(wrong(ImageError::Refused { path: new.to.clone(), what, remedy }));
        }
        let mut held = self.lock();
        let volume = held.volumes.get(&new.volume).ok_or_else(|| no_volume(&new.volume))?;
        let (size_bytes, backing) = (volume.spec.size_bytes.unwrap_or_default(), volume.spec.backing.clone());
        let Some(place) = backing.place().cloned() else {
            let detail =
                format!("it is not in a pool ({backing}); copy it with qemu-img while no guest uses it");
            return Err(Problem::conflict(title).detail(detail));
        };
        let pool = held.open_pool(&place.name)?;
        let source = place.volume();
        let stored = pool.ask(move |store| store.volume(source));
        let stored = stored.ok().flatten().map_or(0, |info| info.mapped_bytes);
        let room = room_in(&new.to).map_err(wrong)?;
        if stored > room {
            let detail = format!(
                "it holds up to {} of data, and there is room for {} in the directory of {}",
                show_size(stored),
                show_size(room),
                new.to.display()
            );
            return Err(Problem::conflict(title).detail(detail));
        }
        let conflict =
            |error: &dyn std::error::Error| Problem::conflict(title.clone()).detail(chain_of(error));
        let snapshot = pool.fork(source, false).map_err(|error| conflict(&error))?;
        held.unfinished.push(Doomed { pool: place.name.clone(), id: snapshot.0 });
        let kept = self.keep(&held);
        drop(held);
        let pool_name = place.name;
        let mut export =
            Export { volumes: self.clone(), new, target: None, pool_name, pool, snapshot, size_bytes };
        kept?;
        // What is read for a file is not what guests use.
        let pinned = export.pool.change(move |store| store.pin_volume(snapshot, Pin::Cold));
        pinned.map_err(|error| conflict(&error))?;
        let made = Target::make(&export.new.to, export.new.format, size_bytes, self.run_dir());
        export.target =
            Some(made.map_err(|error| refused(title.clone(), &error, "to", &export.new.to.display()))?);
        Ok(export)
    }
}

fn room_in(to: &Path) -> Result<u64, ImageError> {
    let dir = to.parent().unwrap_or(to);
    let found = rustix::fs::statvfs(dir).map_err(|error| host("find", dir)(error.into()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

impl Export {
    /// Copies the data and gives the file its name.
    ///
    /// # Errors
    /// The volume cannot be read, the file not written, or it was called off: nothing is left behind.
    pub fn run(mut self, report: Report<'_>) -> Result<(), Problem> {
        let title = format!("the volume `{}` cannot be exported", self.new.volume);
        self.copy(report).map_err(|error| error.problem(title))
    }

    fn copy(&mut self, report: Report<'_>) -> Result<(), CopyError> {
        let mut target = self.target.take().expect("an export runs once");
        let to = self.new.to.clone();
        let size_bytes = self.size_bytes;
        let ranges = mapped(&self.pool, self.snapshot, size_bytes)?;
        let ranges = ranges.into_iter().map(|(at, len)| (at, len.min(size_bytes.saturating_sub(at))));
        let ranges: Vec<(u64, u64)> = ranges.filter(|(_, len)| *len > 0).collect();
        let total: u64 = ranges.iter().map(|(_, len)| len).sum();
        let mut done = 0;
        Transfers::new(self.pool.clone(), self.snapshot).read(ranges, |offset, bytes| {
            for (at, len) in not_zero(bytes, PIECE_BYTES) {
                let written = target.write(offset + at as u64, &bytes[at..at + len]);
                written.map_err(host("write", &to))?;
            }
            done += bytes.len() as u64;
            if report(done, total) { Ok(()) } else { Err(CopyError::CalledOff) }
        })?;
        Ok(target.finish(&to, self.new.force)?)
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        self.volumes.give_up(&self.pool_name, self.snapshot, None);
    }
}
