//! Tells systemd how the service is (`Type=notify`, `WatchdogSec=`,
//! sd_notify(3)); does nothing where systemd didn't start it.

use std::{env, time::Duration};

use sd_notify::NotifyState;

/// The service manager, if there is one.
#[derive(Clone, Debug)]
pub struct ServiceManager {
    present: bool,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// Looks for `NOTIFY_SOCKET` and `WATCHDOG_USEC` in the environment.
    pub fn from_environment() -> Self {
        let present = env::var_os("NOTIFY_SOCKET").is_some();
        Self { present, watchdog: sd_notify::watchdog_enabled().filter(|_| present) }
    }

    /// How often [`alive`](Self::alive) must be called: half the watchdog's
    /// time, as sd_watchdog_enabled(3) recommends; never if there is none.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// The appliance is up: what is started after it may start now.
    pub fn ready(&self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// One line for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.tell(&[NotifyState::Status(&one_line(status))]);
    }

    /// The control loop turns. To be called from that loop and nowhere else,
    /// or the watchdog watches nothing.
    pub fn alive(&self) {
        if self.watchdog.is_some() {
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    /// The appliance is on its way out.
    pub fn stopping(&self) {
        self.tell(&[NotifyState::Stopping]);
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if !self.present {
            return;
        }
        if let Err(error) = sd_notify::notify(states) {
            tracing::debug!(%error, "systemd was not reached");
        }
    }
}

/// A line break would start another assignment in sd_notify's protocol.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_cannot_smuggle_an_assignment() {
        assert_eq!(one_line("1 peer up\nMAINPID=1\r"), "1 peer up MAINPID=1 ");
    }

    #[test]
    fn the_watchdog_is_fed_at_half_its_time() {
        let manager = ServiceManager { present: true, watchdog: Some(Duration::from_secs(10)) };
        assert_eq!(manager.watchdog_interval(), Some(Duration::from_secs(5)));
    }
}
