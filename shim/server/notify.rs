//! Notifications to the service manager (sd_notify(3)). Without a service manager, they do nothing.

use sd_notify::NotifyState;

/// Reports that the socket answers: units that are ordered after berth may start.
pub fn ready() {
    notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// Reports that the daemon is stopping; pods keep running.
pub fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("answering calls in flight")]);
}

/// Reports that the daemon is healthy (sd_watchdog_enabled(3)).
pub fn healthy() {
    notify(&[NotifyState::Watchdog]);
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "failed to notify the service manager");
    }
}
