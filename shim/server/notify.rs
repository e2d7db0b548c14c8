//! What the service manager is told (sd_notify(3)). Without one nothing happens.

use sd_notify::NotifyState;

/// The socket answers: what is ordered after berth may start.
pub fn ready() {
    notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// The daemon is on its way down; pods go on.
pub fn stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("answering what is in flight")]);
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}
