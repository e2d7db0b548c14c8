//! One file for each measurement.
//!
//! * [`lifecycle`]: each call of a pod's life, with the pod network and the host network
//! * [`exec`]: the call that runs a command
//! * [`parallel`]: pods per second
//! * [`memory`]: the memory of the daemon and of the processes beside a pod's containers
//! * [`list`]: lists and status with many pods
//! * [`log`]: a container that writes as fast as it can
//! * [`stream`]: sessions like those of kubectl
//! * [`pull`]: images from a registry
//! * [`network`]: host ports, reused addresses, very many pods

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

/// Runs the selected measurements one after another. They do not depend on each other, so a failure is recorded and
/// the next one runs. The run ends if the runtime is unavailable.
pub(crate) async fn all(bench: &Bench) -> Result<(), BenchError> {
    use Part::{
        Crowd, Exec, Hostnet, Isolation, Lifecycle, List, Log, Memory, Parallel, Ports, Pull, Returns, Stream,
    };
    // Memory comes first, before other measurements make the daemon grow.
    for part in [
        Memory, Lifecycle, Hostnet, Isolation, Exec, Parallel, Ports, Returns, Crowd, List, Log, Stream, Pull,
    ] {
        if !bench.options.selects(part) {
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
        // Pods that a failed measurement left would affect the next one.
        crate::clean::pods(bench).await?;
    }
    Ok(())
}
