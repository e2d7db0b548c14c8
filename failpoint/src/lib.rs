//! Failpoints: a test stops the daemon or a keeper at a named step of an operation, and kills a process there.
//!
//! A test arms a step by a file in the folder of the environment variable `BERTH_FAILPOINTS`. The first process that reaches
//! the step renames the file and waits until the test has killed it, or has removed the file. Files work across processes and
//! restarts: one daemon, started once, stops at one step after the other, and so do its keepers.
//!
//! Only builds with debug assertions contain failpoints: the one module is not compiled without them, and the functions of
//! this file are then empty.

#![forbid(unsafe_code)]

use std::process::Command;

#[cfg(debug_assertions)]
mod armed;

/// Waits at a step if a test has armed it.
#[inline]
pub fn reach(operation: &str, step: &str) {
    #[cfg(debug_assertions)]
    armed::reach(operation, step);
    #[cfg(not(debug_assertions))]
    let _ = (operation, step);
}

/// Passes the folder of failpoints on to a program that is started without the environment.
#[inline]
pub fn pass_on(command: &mut Command) {
    #[cfg(debug_assertions)]
    armed::pass_on(command);
    #[cfg(not(debug_assertions))]
    let _ = command;
}

/// Declares the steps of an operation as an enum. A test walks all of them.
#[macro_export]
macro_rules! steps {
    ($(#[$enum_doc:meta])* $operation:literal: $steps:ident { $($(#[$doc:meta])* $step:ident,)* }) => {
        $(#[$enum_doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $steps {
            $($(#[$doc])* $step,)*
        }

        impl $steps {
            /// The name of the operation.
            pub const OPERATION: &str = $operation;
            /// All steps.
            pub const ALL: &[Self] = &[$(Self::$step,)*];

            /// The id of the step.
            #[must_use]
            pub fn id(self) -> &'static str {
                match self { $(Self::$step => stringify!($step),)* }
            }

            /// Lets a test stop the process here.
            pub fn reach(self) {
                $crate::reach(Self::OPERATION, self.id());
            }
        }
    };
}
