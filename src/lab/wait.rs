//! Waiting on conditions, never on time alone.

use super::{LabError, Result};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Calls `condition` until it returns `Ok`, and returns that value. `what`
/// completes the sentence "gave up waiting for …".
///
/// # Errors
/// [`LabError::TimedOut`] with the text of the condition's last `Err`, once
/// `timeout` has passed; [`LabError::Interrupted`] after a signal.
pub fn wait_until<T>(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> Result<T, String>,
) -> Result<T> {
    const FIRST_PAUSE: Duration = Duration::from_millis(1);
    const LONGEST_PAUSE: Duration = Duration::from_millis(50);
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let last_seen = match condition() {
            Ok(value) => return Ok(value),
            Err(last_seen) => last_seen,
        };
        check_interrupt()?;
        let elapsed = start.elapsed();
        if elapsed >= timeout {
            return Err(LabError::TimedOut { what: what.to_owned(), after: timeout, last_seen });
        }
        thread::sleep(pause.min(timeout - elapsed));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Fails once a signal has arrived; for what runs long without a wait.
///
/// # Errors
/// [`LabError::Interrupted`].
pub fn check_interrupt() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(LabError::Interrupted) } else { Ok(()) }
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT, SIGTERM and SIGHUP make every wait return
/// [`LabError::Interrupted`], so that the lab is taken down by `Drop`.
///
/// # Errors
/// The signal handlers could not be installed.
pub fn interrupt_on_signals() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate, mut hang_up) = {
        let _context = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        )
    };
    thread::Builder::new().name("lab-signals".into()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hang_up.recv() => {}
                }
                INTERRUPTED.store(true, Ordering::Relaxed);
            }
        });
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_the_value_once_it_is_there() {
        let mut calls = 0;
        let value = wait_until("the third call", Duration::from_secs(5), || {
            calls += 1;
            if calls == 3 { Ok(calls) } else { Err(format!("call {calls}")) }
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn times_out_with_what_was_last_seen() {
        let mut calls = 0;
        let error = wait_until::<()>("never", Duration::from_millis(20), || {
            calls += 1;
            Err(format!("call {calls}"))
        })
        .unwrap_err();
        assert!(calls > 1);
        assert_eq!(
            error.to_string(),
            format!("gave up waiting for never after 0.02 s; last seen: call {calls}")
        );
    }
}
