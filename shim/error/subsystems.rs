//! Converts the errors of the crates below, and gives each its gRPC code.

use std::fmt::Display;

use berth_image::ErrorKind;
use berth_runtime::cgroup::{CgroupError, CgroupPathError};
use berth_runtime::client::ClientError;
use berth_runtime::compile::CompileError;
use berth_runtime::seccomp::SeccompError;
use berth_runtime::users::UserError;
use tonic::Code;

use super::CriError;

/// Returns the error of a subsystem: its text, and the gRPC code for it.
pub(crate) fn subsystem(code: Code, error: impl Display) -> CriError {
    CriError::Subsystem { code, message: error.to_string() }
}

impl From<berth_image::Error> for CriError {
    fn from(error: berth_image::Error) -> Self {
        // The kubelet recognizes these two by the start of the text, and strips the code only when it is Unknown
        // (k8s.io/cri-api/pkg/errors, and the kubelet's remote image service).
        let code = match error.kind() {
            ErrorKind::Unavailable => {
                return subsystem(Code::Unknown, format!("RegistryUnavailable: {error}"));
            }
            ErrorKind::Untrusted => {
                return subsystem(Code::Unknown, format!("SignatureValidationFailed: {error}"));
            }
            ErrorKind::NotFound => Code::NotFound,
            ErrorKind::Unauthorized => Code::Unauthenticated,
            ErrorKind::Corrupt => Code::DataLoss,
            ErrorKind::InvalidInput => Code::InvalidArgument,
            ErrorKind::LimitExceeded => Code::ResourceExhausted,
            ErrorKind::Internal => Code::Internal,
        };
        subsystem(code, error)
    }
}

impl From<berth_cni::Error> for CriError {
    fn from(error: berth_cni::Error) -> Self {
        use berth_cni::Error;
        let code = match &error {
            Error::NotReady(_) => Code::Unavailable,
            Error::NoAddress(_) => Code::ResourceExhausted,
            Error::Invalid(_) => Code::InvalidArgument,
            Error::Config(_) => Code::FailedPrecondition,
            Error::Unsupported(_) => Code::Unimplemented,
            Error::Netlink { .. } | Error::Io { .. } | Error::Plugin { .. } | Error::Several(_) => {
                error.cause_in_files().map_or(Code::Internal, code_of_file)
            }
        };
        subsystem(code, error)
    }
}

impl From<CgroupError> for CriError {
    fn from(error: CgroupError) -> Self {
        subsystem(code_of_cgroup(&error), error)
    }
}

fn code_of_cgroup(error: &CgroupError) -> Code {
    match error {
        CgroupError::NoController { .. } | CgroupError::OomScore { .. } => Code::FailedPrecondition,
        CgroupError::Value { .. } | CgroupError::Path(_) => Code::InvalidArgument,
        CgroupError::Refused { source, .. } => code_of_refusal(source),
        CgroupError::Gone { .. } => Code::NotFound,
        CgroupError::Alive { .. } => Code::DeadlineExceeded,
        CgroupError::UndoFailed { error, .. } => code_of_cgroup(error),
        CgroupError::File { .. } | CgroupError::System(_) => Code::Internal,
    }
}

/// Maps the kernel's refusal of a value. Some values are never valid, others conflict with the current state
/// (cgroup-v1/cpusets.rst: EACCES for CPUs that the parent cgroup does not have, EBUSY for CPUs in use;
/// cgroup-v1/memory.rst: EBUSY for less than the current usage).
fn code_of_refusal(error: &std::io::Error) -> Code {
    use rustix::io::Errno;
    let caller = [
        Errno::INVAL,
        Errno::RANGE,
        Errno::OVERFLOW,
        Errno::TOOBIG,
        Errno::DOM,
        Errno::ACCESS,
        Errno::NOSPC,
        Errno::NODEV,
        Errno::NXIO,
        Errno::OPNOTSUPP,
    ];
    match Errno::from_io_error(error) {
        Some(Errno::BUSY) => Code::FailedPrecondition,
        Some(errno) if caller.contains(&errno) => Code::InvalidArgument,
        _ => Code::Internal,
    }
}

impl From<SeccompError> for CriError {
    fn from(error: SeccompError) -> Self {
        let code = match &error {
            SeccompError::System(_) => Code::Internal,
            _ => Code::InvalidArgument,
        };
        subsystem(code, error)
    }
}

impl From<CgroupPathError> for CriError {
    fn from(error: CgroupPathError) -> Self {
        subsystem(Code::InvalidArgument, error)
    }
}

impl From<UserError> for CriError {
    fn from(error: UserError) -> Self {
        let code = match &error {
            UserError::UnknownUser(_) | UserError::UnknownGroup(_) | UserError::NotAnId(_) => {
                Code::InvalidArgument
            }
            UserError::TooLong { .. } | UserError::System(_) => Code::FailedPrecondition,
        };
        subsystem(code, error)
    }
}

impl From<CompileError> for CriError {
    fn from(error: CompileError) -> Self {
        let code = match &error {
            CompileError::Missing(_) | CompileError::Invalid { .. } => Code::InvalidArgument,
            CompileError::Unsupported { .. } => Code::Unimplemented,
        };
        subsystem(code, error)
    }
}

/// Converts errors that are the node's fault.
macro_rules! internal {
    ($($error:ty),*) => {
        $(impl From<$error> for CriError {
            fn from(error: $error) -> Self {
                subsystem(Code::Internal, error)
            }
        })*
    };
}

internal!(ClientError, berth_runtime::sys::Error);

/// Maps an error of a file. A full disk is a limit of the node, and the kubelet's eviction frees space.
pub(crate) fn code_of_file(cause: &std::io::Error) -> Code {
    match cause.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Code::ResourceExhausted,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_a_subsystem_keeps_its_text_and_gets_its_code() {
        let user = CriError::from(UserError::UnknownUser("bob".to_owned()));
        assert_eq!(user.code(), Code::InvalidArgument);
        assert!(user.to_string().contains("bob"));
        let limit = CgroupError::NoController { limit: "hugepages", controller: "hugetlb" };
        assert_eq!(CriError::from(limit).code(), Code::FailedPrecondition);
        for (errno, code) in [
            (22, Code::InvalidArgument),
            (34, Code::InvalidArgument),
            (13, Code::InvalidArgument),
            (16, Code::FailedPrecondition),
            (5, Code::Internal),
        ] {
            let source = std::io::Error::from_raw_os_error(errno);
            let refused = CgroupError::Refused { path: "/x".into(), value: "1".to_owned(), source };
            let partly =
                CgroupError::UndoFailed { error: Box::new(refused), undo_errors: vec!["y".to_owned()] };
            assert_eq!(CriError::from(partly).code(), code, "{errno}");
        }
    }
}
