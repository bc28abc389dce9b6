//! Unix sockets: a listening one that is ready before anybody can connect, and a connect that never blocks.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Longest path, in bytes, that fits into a `sockaddr_un` with its terminating zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why an endpoint could not be made. The text names the path and what to do.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The path doesn't fit into a socket address.
    #[error(
        "socket path {} has {} bytes, at most {SOCKET_PATH_BYTES_MAX} are possible: choose a shorter directory or name",
        .0.display(), .0.as_os_str().len()
    )]
    PathTooLong(PathBuf),
    /// The directory of the socket is missing.
    #[error("can't create socket {}: directory {} does not exist: create it", .path.display(), .directory.display())]
    NoDirectory {
        /// The socket.
        path: PathBuf,
        /// The directory that is missing.
        directory: PathBuf,
    },
    /// Something that is no socket has the path.
    #[error("can't create socket {}: {kind} of that name exists: move it away or choose another path", .path.display())]
    NotASocket {
        /// The socket.
        path: PathBuf,
        /// What is there.
        kind: &'static str,
    },
    /// Another process listens on the path.
    #[error("can't create socket {}: another process serves it: stop that one or choose another path", .0.display())]
    InUse(PathBuf),
    /// The operating system refused.
    #[error("can't {action} socket {}: {source}", .path.display())]
    System {
        /// What was attempted.
        action: &'static str,
        /// The socket.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl EndpointError {
    fn system(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::System { action, path, source }
    }
}

/// A socket file of ours; removed when dropped, unless somebody else has put another one in its place.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device_inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.device_inode);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

pub(crate) fn address(path: &Path) -> Result<SocketAddrUnix, EndpointError> {
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX || path.as_os_str().as_bytes().contains(&0) {
        return Err(EndpointError::PathTooLong(path.to_owned()));
    }
    SocketAddrUnix::new(path).map_err(|errno| EndpointError::system("use", path)(errno.into()))
}

/// Connects without ever waiting: a listener whose backlog is full is an error like any other.
pub(crate) fn connect(address: &SocketAddrUnix) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, address)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// A listening socket at `path`. A stale file of a dead process is replaced, anything else is left alone. Owner, group
/// and mode are set before anybody can connect.
pub(crate) fn listen(
    path: &Path,
    owner: Option<u32>,
    group: Option<u32>,
    mode: u32,
) -> Result<(UnixListener, SocketFile), EndpointError> {
    let address = address(path)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(directory) = directory.filter(|directory| !directory.is_dir()) {
        return Err(EndpointError::NoDirectory { path: path.to_owned(), directory: directory.to_owned() });
    }
    clear_stale(path, &address)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|errno| EndpointError::system("create", path)(errno.into()))?;
    rustix::net::bind(&socket, &address).map_err(|errno| match errno {
        Errno::ADDRINUSE => EndpointError::InUse(path.to_owned()),
        errno => EndpointError::system("create", path)(errno.into()),
    })?;
    let meta = fs::symlink_metadata(path).map_err(EndpointError::system("look at", path))?;
    let file = SocketFile { path: path.to_owned(), device_inode: (meta.dev(), meta.ino()) };
    // Until `listen` every connect is refused, so nobody gets in with the permissions of the umask.
    std::os::unix::fs::lchown(path, owner, group)
        .map_err(EndpointError::system("set owner and group of", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(EndpointError::system("set the mode of", path))?;
    rustix::net::listen(&socket, 128)
        .map_err(|errno| EndpointError::system("listen on", path)(errno.into()))?;
    Ok((socket.into(), file))
}

fn clear_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), EndpointError> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(EndpointError::system("look at", path)(error)),
    };
    let file_type = meta.file_type();
    if !file_type.is_socket() {
        let kind = match () {
            () if file_type.is_dir() => "a directory",
            () if file_type.is_symlink() => "a symbolic link",
            () if file_type.is_file() => "a regular file",
            () => "a special file",
        };
        return Err(EndpointError::NotASocket { path: path.to_owned(), kind });
    }
    match connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(EndpointError::system("replace the stale", path))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(EndpointError::system("probe", path)(error))
        }
        // Connected, or its backlog is full: somebody is alive there.
        _ => Err(EndpointError::InUse(path.to_owned())),
    }
}
