//! The steps of a keeper at which a test stops it (`tests/it/failpoints`).

use crate::wire::Call;

berth_failpoint::steps! {
    /// A step of a keeper.
    "Keeper": KeeperStep {
        /// A call has arrived, and nothing is done.
        Hello,
        /// See [`Call::Sandbox`].
        Sandbox,
        /// See [`Call::Namespaces`].
        Namespaces,
        /// See [`Call::Create`].
        Create,
        /// See [`Call::Start`].
        Start,
        /// See [`Call::Signal`].
        Signal,
        /// See [`Call::Exec`].
        Exec,
        /// See [`Call::SignalExec`].
        SignalExec,
        /// See [`Call::ReopenLog`].
        ReopenLog,
        /// See [`Call::Attach`].
        Attach,
        /// See [`Call::Resize`].
        Resize,
        /// See [`Call::Forget`].
        Forget,
        /// See [`Call::Shutdown`].
        Shutdown,
        /// The pause is cloned; it may not have reached its program.
        PauseCloned,
        /// The pause runs, and the call is not answered.
        PauseRuns,
        /// The first process of a container is cloned.
        Cloned,
        /// The first process waits before its exec, and the call is not answered.
        AtGate,
        /// The command runs, and the call is not answered.
        Runs,
        /// An exec is cloned.
        ExecCloned,
        /// The command of an exec runs or has failed, and the call is not answered.
        ExecRuns,
        /// The process of an exec is reaped, and its end is not reported.
        ExecEnded,
        /// The first process of a container is reaped, and its end is not recorded.
        Ended,
        /// The end is recorded, and not reported.
        Recorded,
        /// The end is reported.
        Reported,
        /// All processes are killed, and the call to end the keeper is not answered.
        Killed,
    }
}

impl KeeperStep {
    /// The arrival of a call.
    #[must_use]
    pub fn of(call: &Call) -> Self {
        match call {
            Call::Hello { .. } => Self::Hello,
            Call::Sandbox(_) => Self::Sandbox,
            Call::Namespaces => Self::Namespaces,
            Call::Create { .. } => Self::Create,
            Call::Start { .. } => Self::Start,
            Call::Signal { .. } => Self::Signal,
            Call::Exec { .. } => Self::Exec,
            Call::SignalExec { .. } => Self::SignalExec,
            Call::ReopenLog { .. } => Self::ReopenLog,
            Call::Attach { .. } => Self::Attach,
            Call::Resize { .. } => Self::Resize,
            Call::Forget { .. } => Self::Forget,
            Call::Shutdown => Self::Shutdown,
        }
    }
}
