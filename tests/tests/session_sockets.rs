//! The socket itself: who may be there, who may connect, and that it can always be closed.

use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tests::driver_queue::DriverQueue;
use tests::echo_device::{serve_echo, serve_echo_as};
use tests::frontend::{F_EVENT_IDX, F_PROTOCOL, F_VERSION_1, Frontend, PATIENCE, Protocol, Request, message};
use tests::guest_ram::GuestRam;
use tests::holds_within;
use vhost_session::{EndpointError, SOCKET_PATH_BYTES_MAX, SocketRole};

const FEATURES: u64 = F_PROTOCOL | F_VERSION_1 | F_EVENT_IDX;

fn server(path: &Path, mode: u32) -> SocketRole {
    SocketRole::Server { path: path.to_owned(), owner: None, group: None, mode }
}

/// Starts a ring on a connection and moves data through it.
fn works(mut frontend: Frontend) -> Frontend {
    let ram = Arc::new(GuestRam::new(0, 1 << 20).unwrap());
    frontend.negotiate(FEATURES, Protocol::all()).unwrap();
    frontend.set_mem_table(&[&ram]).unwrap();
    let mut queue = DriverQueue::new(Arc::clone(&ram), 16, true).unwrap();
    frontend.start_queue(0, &queue, 0).unwrap();
    queue.add(&[(ram.alloc(8, 8), 8)], &[(ram.alloc(8, 8), 8)]).unwrap();
    queue.publish();
    assert!(queue.wait_used(PATIENCE).is_some());
    frontend
}

#[test]
fn paths_that_cannot_be_served_are_named_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let error = |path: &Path| serve_echo("echo", path).map(drop).unwrap_err();

    let long = at(&"x".repeat(SOCKET_PATH_BYTES_MAX + 1 - dir.path().as_os_str().len() - 1));
    assert_eq!(long.as_os_str().len(), SOCKET_PATH_BYTES_MAX + 1);
    assert!(matches!(error(&long), EndpointError::PathTooLong(_)));
    let longest = PathBuf::from(&long.to_str().unwrap()[..SOCKET_PATH_BYTES_MAX]);
    let (endpoint, _) = serve_echo("echo", &longest).unwrap();
    works(Frontend::connect(&longest).unwrap());
    endpoint.close();

    let missing = error(&at("no/such/v0.sock"));
    assert!(matches!(missing, EndpointError::NoDirectory { .. }));
    assert!(
        missing.to_string().contains("no/such") && missing.to_string().contains("create it"),
        "{missing}"
    );

    std::fs::write(at("file"), "precious").unwrap();
    assert!(matches!(error(&at("file")), EndpointError::NotASocket { kind: "a regular file", .. }));
    assert_eq!(std::fs::read(at("file")).unwrap(), b"precious");
    std::fs::create_dir(at("dir")).unwrap();
    assert!(matches!(error(&at("dir")), EndpointError::NotASocket { kind: "a directory", .. }));
    std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
    assert!(matches!(error(&at("link")), EndpointError::NotASocket { kind: "a symbolic link", .. }));
    assert!(error(&at("dir")).to_string().contains("move it away"));
}

#[test]
fn a_stale_socket_is_replaced_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v0.sock");
    // What a killed process leaves behind.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let (endpoint, _) = serve_echo("first", &path).unwrap();
    let frontend = works(Frontend::connect(&path).unwrap());
    let error = serve_echo("second", &path).unwrap_err();
    assert!(matches!(error, EndpointError::InUse(_)), "{error}");
    frontend.sync().unwrap();
    works(Frontend::connect(&path).unwrap());
    // Even when its backlog is full.
    let full = dir.path().join("full.sock");
    let listener = UnixListener::bind(&full).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let _one = UnixStream::connect(&full).unwrap();
    assert!(matches!(serve_echo("third", &full).unwrap_err(), EndpointError::InUse(_)));
    endpoint.close();
    assert!(!path.exists(), "closing removes the file");
    assert!(frontend.closed_within(PATIENCE));
    // Somebody else's file at the same path stays.
    let (endpoint, _) = serve_echo("fourth", &path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    endpoint.close();
    assert!(path.exists());
}

#[test]
fn owner_group_and_mode_are_set_before_anybody_gets_in() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v0.sock");
    let us = std::fs::metadata(dir.path()).unwrap();
    for mode in [0o600, 0o660, 0o666] {
        let role =
            SocketRole::Server { path: path.clone(), owner: Some(us.uid()), group: Some(us.gid()), mode };
        let (_endpoint, _) = serve_echo_as("echo", role).unwrap();
        let meta = std::fs::symlink_metadata(&path).unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!((meta.permissions().mode() & 0o777, meta.uid(), meta.gid()), (mode, us.uid(), us.gid()));
    }
    if nix::unistd::geteuid().is_root() {
        let role =
            SocketRole::Server { path: path.clone(), owner: Some(12345), group: Some(54321), mode: 0o640 };
        let (_endpoint, _) = serve_echo_as("echo", role).unwrap();
        let meta = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (12345, 54321));
    }
}

/// Whatever frontends do, closing ends within bounded time.
#[test]
fn closing_does_not_wait_for_frontends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v0.sock");
    let (endpoint, _) = serve_echo_as("echo", server(&path, 0o600)).unwrap();
    let silent = Frontend::connect(&path).unwrap();
    let half = Frontend::connect(&path).unwrap();
    half.send_raw(&message(5, 0, &[0; 100])[..50], &[]).unwrap();
    let running = works(Frontend::connect(&path).unwrap());
    // Asks and asks and never reads: the answers fill the socket, and the session is stuck in a write.
    let deaf = Frontend::connect(&path).unwrap();
    deaf.socket().set_nonblocking(true).unwrap();
    let question = message(Request::GET_FEATURES.into(), 0, &[]);
    assert!(holds_within(PATIENCE, || deaf.send_raw(&question.repeat(100), &[]).is_err()));
    let begin = Instant::now();
    endpoint.close();
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    for frontend in [silent, half, running] {
        assert!(frontend.closed_within(PATIENCE));
    }
}

#[test]
fn a_client_connects_at_once_and_again_whenever_the_frontend_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qemu.sock");
    let role = SocketRole::Client {
        path: path.clone(),
        retry_min: Duration::from_millis(5),
        retry_max: Duration::from_millis(50),
    };
    // Nobody listens yet.
    let (endpoint, _) = serve_echo_as("client", role.clone()).unwrap();
    for round in 0..5 {
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let (socket, _) = listener.accept().unwrap();
        let frontend = works(Frontend::from_stream(socket).unwrap());
        assert_eq!(endpoint.sessions().len(), 1, "round {round}");
        if round % 2 == 0 {
            // A frontend that misbehaves is only another reason to come back.
            frontend.send_raw(&[0xff; 12], &[]).unwrap();
            assert!(frontend.closed_within(PATIENCE));
        }
    }
    let listener = {
        let _ = std::fs::remove_file(&path);
        UnixListener::bind(&path).unwrap()
    };
    let (socket, _) = listener.accept().unwrap();
    let frontend = works(Frontend::from_stream(socket).unwrap());
    let begin = Instant::now();
    endpoint.close();
    assert!(begin.elapsed() < PATIENCE);
    assert!(frontend.closed_within(PATIENCE));
    assert!(path.exists(), "the socket belongs to the frontend");

    // With a listener there already, the first attempt is made at once, whatever the pauses are.
    let patient = SocketRole::Client {
        path: path.clone(),
        retry_min: Duration::from_secs(3600),
        retry_max: Duration::from_secs(3600),
    };
    let (endpoint, _) = serve_echo_as("client", patient).unwrap();
    let (socket, _) = listener.accept().unwrap();
    drop(works(Frontend::from_stream(socket).unwrap()));
    // Now it waits for an hour, but not when it is closed.
    assert!(holds_within(PATIENCE, || endpoint.sessions().is_empty()));
    let begin = Instant::now();
    endpoint.close();
    assert!(begin.elapsed() < PATIENCE);
}

/// A frontend whose listener never accepts must not hold up closing either.
#[test]
fn a_client_does_not_block_on_a_full_backlog() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qemu.sock");
    let listener = UnixListener::bind(&path).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let mut first = UnixStream::connect(&path).unwrap();
    let role =
        SocketRole::Client { path, retry_min: Duration::from_millis(1), retry_max: Duration::from_millis(5) };
    let (endpoint, _) = serve_echo_as("client", role).unwrap();
    drop(listener.accept().unwrap());
    assert_eq!(first.read(&mut [0; 1]).unwrap(), 0);
    let (socket, _) = listener.accept().unwrap();
    works(Frontend::from_stream(socket).unwrap());
    let begin = Instant::now();
    endpoint.close();
    assert!(begin.elapsed() < PATIENCE);
}
