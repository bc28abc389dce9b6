//! A file becomes a golden image in a pool.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::SeekFrom;
use telemetry::Problem;
use telemetry::check::show_size;
use tiering::{Pin, SECTOR_BYTES, UNIT_BYTES, VolumeId};

use super::nbd::Client;
use super::qemu::{self, Chain, Format, ImageError, Server};
use super::spec::NewImage;
use super::transfer::{CHUNK_BYTES, Transfers, not_zero};
use super::{CopyError, Report};
use crate::disk;
use crate::spec::{Backing, VolumeSpec, VolumeView, default_serial};
use crate::tier::control::PoolHandle;
use crate::tier::spec::{PinName, PoolPlace};
use crate::volume::{Doomed, Volumes, chain_of, make_in_pool, refused};

/// Bytes read from an image at once.
const READ_BYTES: usize = 4 * CHUNK_BYTES;

/// Where the data come from.
enum Source {
    Raw { file: File, size_bytes: u64 },
    Nbd { server: Server, client: Client },
}

impl Source {
    fn open(new: &NewImage, format: Format, run_dir: &Path) -> Result<(Source, u64), ImageError> {
        match format {
            Format::Raw => {
                let file = qemu::open(&new.from)?;
                let busy = |error: disk::DiskError| ImageError::Refused {
                    path: new.from.clone(),
                    what: format!("cannot be read safely ({error})"),
                    remedy: "stop what writes to it".into(),
                };
                disk::lock(&file, &new.from, true).map_err(busy)?;
                let size_bytes = disk::length(&file).map_err(qemu::host("measure", &new.from))?;
                let stored = file.metadata().map_err(qemu::host("inspect", &new.from))?;
                let data = if stored.is_file() { (stored.blocks() * 512).min(size_bytes) } else { 0 };
                Ok((Source::Raw { file, size_bytes }, data))
            }
            Format::Qcow2 => {
                let chain = Chain::of(&new.from, &new.backing_dirs)?;
                let data = chain.data_bytes()?;
                let (server, client) = Server::start(&chain, true, run_dir)?;
                Ok((Source::Nbd { server, client }, data))
            }
        }
    }

    /// Bytes of the disk, in whole sectors.
    fn size_bytes(&self) -> u64 {
        let bytes = match self {
            Source::Raw { size_bytes, .. } => *size_bytes,
            Source::Nbd { client, .. } => client.size_bytes(),
        };
        bytes.next_multiple_of(SECTOR_BYTES)
    }

    /// Where the next data may be, at or behind `offset`; the end if there are none.
    fn next_data(&self, offset: u64) -> u64 {
        let Source::Raw { file, size_bytes } = self else { return offset };
        match rustix::fs::seek(file, SeekFrom::Data(offset)) {
            Ok(data) => data / UNIT_BYTES * UNIT_BYTES,
            Err(rustix::io::Errno::NXIO) => *size_bytes,
            // It knows of no holes.
            Err(_) => offset,
        }
        .max(offset)
    }

    /// Fills `into`; false if there was nothing but zeroes for sure.
    fn read(&mut self, offset: u64, into: &mut [u8]) -> std::io::Result<bool> {
        match self {
            Source::Nbd { client, .. } => client.read(offset, into),
            Source::Raw { file, size_bytes } => {
                let there = size_bytes.saturating_sub(offset).min(into.len() as u64) as usize;
                file.read_exact_at(&mut into[..there], offset)?;
                into[there..].fill(0);
                Ok(true)
            }
        }
    }

    fn finish(self) -> Result<(), ImageError> {
        if let Source::Nbd { server, client } = self {
            // What was read is complete, whatever it says to the goodbye.
            let _ = client.disconnect();
            server.finish()?;
        }
        Ok(())
    }
}

/// An import that was found possible and has begun; [`Import::run`] does the work. Dropped, it leaves nothing behind.
pub struct Import {
    volumes: Arc<Volumes>,
    new: NewImage,
    source: Option<Source>,
    pool: PoolHandle,
    id: VolumeId,
    size_bytes: u64,
}

impl Volumes {
    /// Checks what can be told at once, and sets aside name and space of a new image.
    ///
    /// # Errors
    /// The name is taken, the pool is not there or too full, the image cannot be used.
    pub fn begin_import(self: &Arc<Self>, new: NewImage) -> Result<Import, Problem> {
        let title = format!("the image `{}` cannot be imported", new.name);
        let wrong = |error: ImageError| refused(title.clone(), &error, "from", &new.from.display());
        let pool = {
            let held = self.lock();
            held.refuse_taken(&new.name)?;
            held.open_pool(&new.pool)?
        };
        // Nobody waits for the list while QEMU looks at the image.
        let format = new.format.map_or_else(|| Format::of(&new.from), Ok).map_err(wrong)?;
        let (source, data_bytes) = Source::open(&new, format, self.run_dir()).map_err(wrong)?;
        let size_bytes = source.size_bytes();
        let (free, _) = pool
            .ask(|store| store.cold_slots())
            .map_err(|gone| Problem::conflict(title.clone()).detail(gone.to_string()))?;
        if data_bytes > free * UNIT_BYTES {
            let detail = format!(
                "it holds {} of data, and the pool `{}` has {} free; delete volumes or extend the pool",
                show_size(data_bytes),
                new.pool,
                show_size(free * UNIT_BYTES)
            );
            return Err(Problem::conflict(title).detail(detail));
        }
        let mut held = self.lock();
        held.refuse_taken(&new.name)?;
        // Pinned cold while it is filled: nothing that guests use is pushed out for it.
        let id = make_in_pool(&pool, size_bytes, Pin::Cold)
            .map_err(|error| refused(title, &error, "from", &new.from.display()))?;
        held.unfinished.push(Doomed { pool: new.pool.clone(), id: id.0 });
        held.reserved.insert(new.name.clone());
        let import = Import { volumes: self.clone(), new, source: Some(source), pool, id, size_bytes };
        let kept = self.keep(&held);
        drop(held);
        kept.map(|()| import)
    }
}

impl Import {
    /// Copies the data and gives the image its name.
    ///
    /// # Errors
    /// The image cannot be read, the pool is full or failed, or it was called off: nothing is left behind.
    pub fn run(mut self, report: Report<'_>) -> Result<VolumeView, Problem> {
        let title = format!("the image `{}` cannot be imported", self.new.name);
        self.copy(report).map_err(|error| error.problem(title.clone()))?;
        let id = self.id;
        self.pool
            .change(move |store| store.pin_volume(id, Pin::Auto))
            .map_err(|error| Problem::conflict(title).detail(chain_of(&error)))?;
        let spec = VolumeSpec {
            name: self.new.name.clone(),
            backing: Backing::Pool(PoolPlace {
                name: self.new.pool.clone(),
                id: id.0,
                pin: PinName::Auto,
                origin: None,
                adopted: None,
            }),
            size_bytes: Some(self.size_bytes),
            queues: 1,
            read_only: true,
            serial: default_serial(&self.new.name),
            block_bytes: None,
            socket: telemetry::SocketAccess::default(),
        };
        let mut held = self.volumes.lock();
        held.reserved.remove(&self.new.name);
        held.unfinished.retain(|unfinished| unfinished.id != id.0 || unfinished.pool != self.new.pool);
        let made = Doomed { pool: self.new.pool.clone(), id: id.0 };
        self.volumes.put_into_service(&mut held, spec, Some(made))
    }

    fn copy(&mut self, report: Report<'_>) -> Result<(), CopyError> {
        let path = self.new.from.clone();
        let mut source = self.source.take().expect("an import runs once");
        let mut to = Transfers::new(self.pool.clone(), self.id);
        let mut buffer = vec![0; READ_BYTES];
        let mut offset = 0;
        while offset < self.size_bytes {
            let next = source.next_data(offset).min(self.size_bytes);
            if next > offset {
                offset = next;
                continue;
            }
            let bytes = &mut buffer[..(self.size_bytes - offset).min(READ_BYTES as u64) as usize];
            if source.read(offset, bytes).map_err(qemu::host("read", &path))? {
                for (at, len) in not_zero(bytes, UNIT_BYTES as usize) {
                    for piece in (at..at + len).step_by(CHUNK_BYTES) {
                        let end = (piece + CHUNK_BYTES).min(at + len);
                        to.write(offset + piece as u64, &bytes[piece..end])?;
                    }
                }
            }
            offset += bytes.len() as u64;
            if !report(offset, self.size_bytes) {
                return Err(CopyError::CalledOff);
            }
        }
        to.flush()?;
        source.finish()?;
        Ok(())
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        self.source = None;
        self.volumes.give_up(&self.new.pool, self.id, Some(&self.new.name));
    }
}
