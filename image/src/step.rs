//! The steps of a pull at which a test stops the daemon (`tests/it/failpoints`).

macro_rules! pull_steps {
    ($($(#[$doc:meta])* $step:ident,)*) => {
        /// A step of a pull.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum PullStep {
            $($(#[$doc])* $step,)*
        }

        impl PullStep {
            /// All steps.
            pub const ALL: &[Self] = &[$(Self::$step,)*];

            /// The id of the step.
            #[must_use]
            pub fn id(self) -> &'static str {
                match self { $(Self::$step => stringify!($step),)* }
            }
        }
    };
}

pull_steps! {
    /// The manifest is fetched.
    Resolve,
    /// The signature policy is checked, and the image looked up in the store.
    Check,
    /// The config is fetched.
    Config,
    /// A layer is received and unpacked.
    Receive,
    /// The layer is unpacked in its staging folder.
    Unpacked,
    /// The layer is in the store.
    Placed,
    /// The record of the image is written.
    Record,
    /// The image is recorded, and the call is not answered.
    Recorded,
}

impl PullStep {
    /// The RPC.
    pub const OPERATION: &str = "PullImage";

    /// Lets a test stop the daemon here.
    pub(crate) fn reach(self) {
        berth_failpoint::reach(Self::OPERATION, self.id());
    }
}
