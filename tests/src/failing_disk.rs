//! A disk that fails when it is told to, and comes back: a file in a file system of the test's own (FUSE). Whoever may not
//! mount, or has a kernel without FUSE, skips the test.
//!
//! A file that is truncated is no lost disk: it grows again when it is written. This one answers everything, opening
//! included, with an I/O error, as a disk does whose cable was pulled, and then holds what it held.
#![allow(clippy::print_stdout, reason = "a skipped test says so")]

use std::ffi::CString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;

/// Name of the one file.
pub const NAME: &str = "disk.img";
/// Node of the root directory, and of the file.
const ROOT: u64 = 1;
const FILE: u64 = 2;
/// Bytes of a write at most.
const WRITE_BYTES_MAX: u32 = 128 << 10;
/// Bytes of the header of every request.
const HEADER_BYTES: usize = 40;

/// The disk; unmounted when dropped, which must be after everybody who uses it.
pub struct FailingDisk {
    dir: tempfile::TempDir,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
}

struct Shared {
    store: File,
    failed: AtomicBool,
    refused: AtomicU64,
}

impl FailingDisk {
    /// Mounts a disk of `bytes`, which this thread sees, and what it starts from now on; `None`, and the reason printed, where
    /// that cannot be.
    ///
    /// # Panics
    /// There is no room for it.
    #[must_use]
    pub fn new(bytes: u64) -> Option<FailingDisk> {
        let dir = tempfile::tempdir().expect("a directory for the disk");
        let store = tempfile::tempfile().expect("a file for the disk's data");
        store.set_len(bytes).expect("room for the disk's data");
        let device = match mount(dir.path()) {
            Ok(device) => device,
            Err(error) => {
                println!("skipped: no file system of our own can be mounted here: {error}");
                return None;
            }
        };
        let shared = Arc::new(Shared { store, failed: AtomicBool::new(false), refused: AtomicU64::new(0) });
        let served = Arc::clone(&shared);
        let server = std::thread::spawn(move || serve(device, &served));
        Some(FailingDisk { dir, shared, server: Some(server) })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join(NAME)
    }

    /// Everything fails from now on.
    pub fn fail(&self) {
        self.shared.failed.store(true, Ordering::SeqCst);
    }

    /// It is there again, with what it held.
    pub fn come_back(&self) {
        self.shared.failed.store(false, Ordering::SeqCst);
    }

    /// Operations that were answered with an error.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::SeqCst)
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        let dir =
            CString::new(self.dir.path().as_os_str().as_encoded_bytes()).expect("no zero byte in a path");
        // SAFETY: a string that lives over the call.
        let unmounted = unsafe { libc::umount2(dir.as_ptr(), libc::MNT_DETACH) } == 0;
        if let Some(server) = self.server.take().filter(|_| unmounted && !std::thread::panicking()) {
            let _ = server.join();
        }
    }
}

/// Mounts at `dir`; the other side of it.
fn mount(dir: &Path) -> std::io::Result<File> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    // SAFETY: these calls take no memory; this thread and what it starts see mounts of their own from now on, which go with
    // the last of them however a test ends.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS | libc::CLONE_FS) != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    let text = |text: &str| CString::new(text).expect("no zero byte");
    let (root, fuse, dir) = (text("/"), text("fuse"), text(dir.to_str().expect("a path of text")));
    let data = text(&format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd()));
    // SAFETY: the strings live over the calls.
    let done = unsafe {
        libc::mount(
            fuse.as_ptr(),
            root.as_ptr(),
            std::ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            std::ptr::null(),
        ) == 0
            && libc::mount(
                fuse.as_ptr(),
                dir.as_ptr(),
                fuse.as_ptr(),
                libc::MS_NOSUID | libc::MS_NODEV,
                data.as_ptr().cast(),
            ) == 0
    };
    if done { Ok(device) } else { Err(std::io::Error::last_os_error()) }
}

/// Answers until the file system is unmounted.
fn serve(mut device: File, shared: &Shared) {
    let mut buffer = vec![0; WRITE_BYTES_MAX as usize + (64 << 10)];
    loop {
        let bytes = match device.read(&mut buffer) {
            Ok(bytes) => bytes,
            // Whoever asked was killed meanwhile.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR | libc::EAGAIN)) => {
                continue;
            }
            // Unmounted.
            Err(_) => return,
        };
        let request = Request(&buffer[..bytes]);
        // Those that are forgotten or interrupted want no answer.
        if matches!(request.opcode(), 2 | 36 | 42) {
            continue;
        }
        let (error, body) = match shared.answer(&request) {
            Ok(body) => (0, body),
            Err(errno) => (-errno, Vec::new()),
        };
        let mut reply = ((16 + body.len()) as u32).to_le_bytes().to_vec();
        reply.extend(error.to_le_bytes());
        reply.extend(request.number(8).to_le_bytes());
        reply.extend(body);
        // Who asked may be dead.
        let _ = device.write(&reply);
    }
}

/// A request of the kernel (`include/uapi/linux/fuse.h`).
struct Request<'a>(&'a [u8]);

impl Request<'_> {
    fn number(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().expect("eight bytes"))
    }

    fn small(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    fn opcode(&self) -> u32 {
        self.small(4)
    }
}

impl Shared {
    fn answer(&self, request: &Request<'_>) -> Result<Vec<u8>, i32> {
        const BODY: usize = HEADER_BYTES;
        let opcode = request.opcode();
        let (node, offset) = (request.number(16), |at: usize| request.number(BODY + at));
        // INIT, RELEASE, RELEASEDIR and DESTROY touch no disk.
        if self.failed.load(Ordering::SeqCst) && !matches!(opcode, 18 | 26 | 29 | 38) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(libc::EIO);
        }
        let failed = |error: std::io::Error| error.raw_os_error().unwrap_or(libc::EIO);
        match opcode {
            // LOOKUP: valid for no time at all, so that every opening asks again.
            1 if node == ROOT && request.0[BODY..].strip_suffix(&[0]) == Some(NAME.as_bytes()) => {
                Ok([&FILE.to_le_bytes()[..], &[0; 32], &self.attributes(FILE)].concat())
            }
            1 => Err(libc::ENOENT),
            // GETATTR, SETATTR
            3 => Ok([&[0; 16][..], &self.attributes(node)].concat()),
            4 if request.small(BODY) & 8 != 0 => Err(libc::EPERM),
            4 => Ok([&[0; 16][..], &self.attributes(node)].concat()),
            // OPEN, OPENDIR
            14 | 27 => Ok(vec![0; 16]),
            // READ
            15 => {
                let mut bytes = vec![0; request.small(BODY + 16) as usize];
                let read = self.store.read_at(&mut bytes, offset(8)).map_err(failed)?;
                bytes.truncate(read);
                Ok(bytes)
            }
            // WRITE
            16 => {
                let bytes = request.small(BODY + 16);
                self.store
                    .write_all_at(&request.0[BODY + 40..][..bytes as usize], offset(8))
                    .map_err(failed)?;
                Ok([bytes.to_le_bytes(), [0; 4]].concat())
            }
            // INIT: version 7.31; direct I/O may be in flight side by side, and writes be long.
            26 => {
                let mut reply = [7u32, 31, request.small(BODY + 8), 1 << 5 | 1 << 15 | 1 << 22]
                    .iter()
                    .flat_map(|number| number.to_le_bytes())
                    .collect::<Vec<u8>>();
                reply.extend([64, 0, 48, 0]);
                reply.extend(WRITE_BYTES_MAX.to_le_bytes());
                reply.extend(1u32.to_le_bytes());
                reply.extend([(WRITE_BYTES_MAX / 4096) as u8, 0]);
                reply.resize(64, 0);
                Ok(reply)
            }
            // FALLOCATE
            43 => {
                let mode = FallocateFlags::from_bits_truncate(request.small(BODY + 24) as i32);
                let (from, bytes) = (offset(8) as i64, offset(16) as i64);
                fallocate(self.store.as_fd(), mode, from, bytes)
                    .map(|()| Vec::new())
                    .map_err(|errno| errno as i32)
            }
            // FLUSH, FSYNC, FSYNCDIR, RELEASE, RELEASEDIR, DESTROY
            18 | 20 | 25 | 29 | 30 | 38 => Ok(Vec::new()),
            _ => Err(libc::ENOSYS),
        }
    }

    fn attributes(&self, node: u64) -> [u8; 88] {
        let bytes = self.store.metadata().map_or(0, |metadata| metadata.len());
        let (mode, size) =
            if node == ROOT { (libc::S_IFDIR | 0o755, 0) } else { (libc::S_IFREG | 0o600, bytes) };
        let mut attributes = [0; 88];
        attributes[..8].copy_from_slice(&node.to_le_bytes());
        attributes[8..16].copy_from_slice(&size.to_le_bytes());
        attributes[60..64].copy_from_slice(&mode.to_le_bytes());
        attributes[64..68].copy_from_slice(&1u32.to_le_bytes());
        attributes[80..84].copy_from_slice(&4096u32.to_le_bytes());
        attributes
    }
}
