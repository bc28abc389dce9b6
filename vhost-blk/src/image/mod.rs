//! Images: a disk from a file becomes a golden image in a pool, and a volume in a pool becomes a file.
//!
//! QEMU's tools know the formats (`qemu`, spoken to over `nbd`); raw files are read and written here. Both directions take
//! the cold tier's side: what passes through does not push out what guests use.
//!
//! **All or nothing.** A volume that is being filled, and the snapshot that is being written to a file, have no name; the list in
//! the state directory has them among those to be deleted, so they are gone after a crash, and a name appears only
//! for what is whole and stable. A file gets its name when it is whole too.

mod export;
mod import;
pub mod nbd;
pub mod qemu;
mod spec;
mod transfer;

pub use export::Export;
pub use import::Import;
pub use qemu::Format;
pub use spec::{ExportVolume, ImportImage, NewExport, NewImage, read_export, read_import};

use std::sync::Arc;

use telemetry::Problem;

use crate::job::JobView;
use crate::tier::control::TransferError;
use crate::volume::Volumes;
use qemu::ImageError;

/// Is told how far it is: bytes of all. False calls the work off.
pub type Report<'a> = &'a dyn Fn(u64, u64) -> bool;

impl Volumes {
    /// Begins to import an image.
    ///
    /// # Errors
    /// What can be told at once.
    pub fn import_image(self: &Arc<Self>, new: NewImage) -> Result<JobView, Problem> {
        let name = new.name.clone();
        let import = self.begin_import(new)?;
        self.jobs().start("import", &name, move |job| {
            import
                .run(&|done, total| job.report(done, total))
                .map(|_| ())
                .map_err(|problem| problem.to_string())
        })
    }

    /// Begins to export a volume.
    ///
    /// # Errors
    /// What can be told at once.
    pub fn export_volume(self: &Arc<Self>, new: NewExport) -> Result<JobView, Problem> {
        let name = new.volume.clone();
        let export = self.begin_export(new)?;
        self.jobs().start("export", &name, move |job| {
            export.run(&|done, total| job.report(done, total)).map_err(|problem| problem.to_string())
        })
    }
}

/// Why an import or export ended early.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error("it was called off")]
    CalledOff,
}

impl CopyError {
    fn problem(self, title: String) -> Problem {
        Problem::conflict(title).detail(crate::volume::chain_of(&self))
    }
}
