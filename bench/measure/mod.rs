//! One file for each thing that is measured.
//!
//! * [`lifecycle`]: each call of a pod's life, with either network
//! * [`exec`]: the call that runs a command
//! * [`parallel`]: pods a second
//! * [`memory`]: the daemon's, and that of what runs beside a pod's containers
//! * [`list`]: lists and status with many pods
//! * [`log`]: a container that writes as fast as it can
//! * [`stream`]: sessions as kubectl has them
//! * [`pull`]: images from a registry
//! * [`network`]: ports of the host, addresses that come back, very many pods

mod exec;
mod lifecycle;
mod list;
mod log;
mod memory;
mod network;
mod parallel;
mod pull;
mod stream;

use berth_proto::v1::NamespaceMode;

use crate::bench::Bench;
use crate::error::BenchError;
use crate::options::Part;

pub(crate) use pull::DEADLINE as PULL_DEADLINE;

/// Measures what is wanted, one after the other. What fails is noted and the next goes on, since they do not depend on
/// each other; a runtime that is not there any more ends it.
pub(crate) async fn all(bench: &Bench) -> Result<(), BenchError> {
    use Part::{
        Crowd, Exec, Hostnet, Isolation, Lifecycle, List, Log, Memory, Parallel, Ports, Pull, Returns, Stream,
    };
    // Memory comes first: the daemon has not grown by what else is measured.
    for part in [
        Memory, Lifecycle, Hostnet, Isolation, Exec, Parallel, Ports, Returns, Crowd, List, Log, Stream, Pull,
    ] {
        if !bench.options.wants(part) {
            continue;
        }
        let result = match part {
            Part::Memory => memory::measure(bench).await,
            Part::Lifecycle => lifecycle::measure(bench, "", NamespaceMode::Pod).await,
            Part::Hostnet => lifecycle::measure(bench, "host network: ", NamespaceMode::Node).await,
            Part::Isolation => lifecycle::isolation(bench).await,
            Part::Exec => exec::measure(bench).await,
            Part::Parallel => parallel::measure(bench).await,
            Part::List => list::measure(bench).await,
            Part::Log => log::measure(bench).await,
            Part::Stream => stream::measure(bench).await,
            Part::Pull => pull::measure(bench).await,
            Part::Ports => network::ports(bench).await,
            Part::Returns => network::returns(bench).await,
            Part::Crowd => network::crowd(bench).await,
        };
        if let Err(error) = result {
            if matches!(&error, BenchError::Rpc { status, .. } if status.code() == tonic::Code::Unavailable) {
                return Err(error);
            }
            bench.add_problem(format!("{part:?}: {error}"));
        }
        // Whatever a failure has left would be counted in the next.
        crate::clean::pods(bench).await?;
    }
    Ok(())
}
