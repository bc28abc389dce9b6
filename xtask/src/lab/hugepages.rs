//! Hugepages for DPDK programs, given back at the end.

use anyhow::{Context as _, ensure};

const FILE: &str = "/proc/sys/vm/nr_hugepages";
const COMPACT: &str = "/proc/sys/vm/compact_memory";

/// A reservation of 2 MiB pages; dropping it restores what was there before.
pub struct Hugepages {
    before: u64,
}

impl Hugepages {
    /// Reserves at least `pages` pages of 2 MiB. Needs root.
    ///
    /// # Errors
    /// When the host does not let us, or has too little memory in one piece.
    pub fn reserve(pages: u64) -> anyhow::Result<Hugepages> {
        let before = read()?;
        let reserved = Hugepages { before };
        std::fs::write(FILE, pages.max(before).to_string())
            .with_context(|| format!("reserving {pages} hugepages (as root)"))?;
        if read()? < pages {
            // Files in memory lie between free pages: moved together, there is room.
            std::fs::write(COMPACT, "1").with_context(|| COMPACT.to_string())?;
            std::fs::write(FILE, pages.max(before).to_string())?;
        }
        let got = read()?;
        ensure!(got >= pages, "the host gave {got} of {pages} hugepages of 2 MiB");
        Ok(reserved)
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        // Nobody is left to tell; the pages stay reserved then, which `grep Huge /proc/meminfo` shows.
        let _ = std::fs::write(FILE, self.before.to_string());
    }
}

fn read() -> anyhow::Result<u64> {
    Ok(std::fs::read_to_string(FILE).with_context(|| FILE.to_string())?.trim().parse()?)
}
