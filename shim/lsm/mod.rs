//! The Linux security modules that a host may have, in addition to capabilities and seccomp.
//!
//! * [`apparmor`]: a profile by name
//! * [`selinux`]: labels of processes and files

pub mod apparmor;
pub mod selinux;
