//! No descriptors left: in a process of its own, because the limit is the process's.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tests::echo_device::serve_echo;
use tests::frontend::{F_PROTOCOL, Frontend, PATIENCE, Protocol};
use tests::{holds_within, log_lines};

#[test]
fn the_listener_survives_running_out_of_descriptors() {
    log_lines::collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("echo.sock");
    let (endpoint, _calls) = serve_echo("scarce", &path).unwrap();
    let usual = getrlimit(Resource::Nofile);
    // Hold everything up to a low limit, then let go of just enough for our own end of a connection.
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), ..usual }).unwrap();
    let mut held = Vec::new();
    let hold = |held: &mut Vec<_>| held.extend(std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()));
    hold(&mut held);
    let (accepted, refused) = ("turned a frontend away", "can't accept a frontend");
    let waiting = loop {
        let before = log_lines::warnings(accepted).len();
        held.pop();
        let frontend = Frontend::connect(&path).unwrap();
        let told =
            || log_lines::warnings(accepted).len() > before || !log_lines::warnings(refused).is_empty();
        assert!(holds_within(PATIENCE, told));
        if !log_lines::warnings(refused).is_empty() {
            break frontend;
        }
        // The listener, asking whether somebody is there, had a descriptor while we took the others: one more is free.
        drop(frontend);
        hold(&mut held);
    };
    // Some descriptors come back, one by one: first too few for a session, then enough.
    while held.pop().is_some() {
        std::thread::yield_now();
    }
    setrlimit(Resource::Nofile, usual).unwrap();
    // The first connection was served or turned away, but not forgotten; the next one is served.
    let served = waiting.sync().is_ok();
    assert!(served || waiting.closed_within(PATIENCE));
    let mut next = Frontend::connect(&path).unwrap();
    next.negotiate(F_PROTOCOL, Protocol::all()).unwrap();
    assert_eq!(endpoint.sessions().len(), 1 + usize::from(served));
    assert!(log_lines::warnings("can't accept a frontend").len() == 1, "one line for one streak");
}
