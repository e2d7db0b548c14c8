//! The security modules that a host may have beside capabilities and seccomp.
//!
//! * [`apparmor`]: a profile by name
//! * [`selinux`]: labels of processes and files

pub mod apparmor;
pub mod selinux;
