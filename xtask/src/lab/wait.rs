//! Waiting for a condition: with a deadline, and ended early by Ctrl-C.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

/// Signals that asked the program to end.
static INTERRUPTS: AtomicU32 = AtomicU32::new(0);

/// Exit status of a program that Ctrl-C ended.
const INTERRUPTED_STATUS: i32 = 130;

/// From now on SIGINT and SIGTERM make every wait fail instead of ending the program, so that it cleans up on its way out.
/// A second one ends it at once (what it started dies with it).
pub fn interruptible() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Both handlers are in place when this returns.
    let (mut int, mut term) = {
        let _context = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
                if INTERRUPTS.fetch_add(1, Ordering::Relaxed) > 0 {
                    std::process::exit(INTERRUPTED_STATUS);
                }
            }
        });
    });
    Ok(())
}

/// Fails when somebody pressed Ctrl-C.
pub fn interrupted() -> anyhow::Result<()> {
    ensure!(INTERRUPTS.load(Ordering::Relaxed) == 0, "interrupted");
    Ok(())
}

/// Asks again and again until there is an answer; `what` says in the error what did not come in time.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        interrupted()?;
        if Instant::now() > deadline {
            bail!("{what}: not within {} s", limit.as_secs_f32());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
