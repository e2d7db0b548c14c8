//! The steps of a pull at which a test stops the daemon (`tests/it/failpoints`).

berth_failpoint::steps! {
    /// A step of a pull.
    "PullImage": PullStep {
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
}
