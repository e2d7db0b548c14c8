//! A crash storm: clients run, exec, stop and remove pods like kubelets and cancel calls at random, while the daemon
//! and keepers are killed, keepers are stopped, and the disk is full or frozen. At the end nothing is lost, doubled
//! or left: every object that was reported to a client is listed once and in the right state, exit codes are right,
//! and only keepers of listed pods run. Runs as root.
//!
//! `BERTH_STORM_SECONDS` is the duration, `BERTH_STORM_KILLS` the minimum number of kills of the daemon (1000 before
//! a release). `BERTH_STORM_SEED` repeats the choices of clients and faults; their timing depends on the machine.
//! `BERTH_STORM_LOG` is a path to which the daemon's log is copied after a failure.
//!
//! * [`truth`]: the state that clients expect; [`client`]: calls that can be cancelled
//! * [`kubelet`]: the pods of a client; [`trouble`]: the faults
//! * [`verdict`]: the final check

mod client;
mod kubelet;
mod trouble;
mod truth;
mod verdict;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{Berth, Setup};

use crate::storm::kubelet::Kubelet;
use crate::storm::trouble::Trouble;
use crate::storm::truth::Ledger;

/// The number of clients. Each has its own pods.
const CLIENTS: u64 = 5;

/// The default duration.
const SECONDS: u64 = 40;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pod_or_container_is_lost_doubled_or_left_over() {
    let seed = number("BERTH_STORM_SEED").unwrap_or(1);
    let kills = number("BERTH_STORM_KILLS").unwrap_or(0);
    let seconds = number("BERTH_STORM_SECONDS").unwrap_or(if kills > 0 { 0 } else { SECONDS });
    println!("BERTH_STORM_SEED={seed}: {seconds} s and {kills} kills at least");
    let mut berth = Berth::start_as(Setup { disk: Some(256), ..Setup::default() }).await;
    let ledger =
        Arc::new(Ledger::new(berth.path("run/berth.sock"), &berth.cgroup_parent, berth.disk_path("logs")));
    let clients: Vec<_> =
        (0..CLIENTS).map(|number| tokio::spawn(Kubelet::new(ledger.clone(), number, seed).live())).collect();
    let mut trouble = Trouble::new(ledger.clone(), seed);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) || trouble.kills < kills {
        trouble.inject(&mut berth).await;
    }
    trouble.end(&mut berth).await;
    ledger.end();
    for client in clients {
        client.await.unwrap();
    }
    println!("{trouble}; {}", ledger.summary());
    // The recovered state must survive another restart.
    berth.restart().await;
    verdict::check(&mut berth, &ledger).await;
    if let (Some(copy), false) = (std::env::var_os("BERTH_STORM_LOG"), ledger.violations().is_empty()) {
        std::fs::copy(berth.path("daemon.log"), copy).unwrap();
    }
    assert_eq!(ledger.violations(), Vec::<String>::new(), "BERTH_STORM_SEED={seed}");
    assert_eq!(berth.clean().await, Vec::<String>::new(), "BERTH_STORM_SEED={seed}");
    assert_eq!(addresses(&berth.disk_path("addresses")), Vec::<String>::new(), "BERTH_STORM_SEED={seed}");
    assert_eq!(trouble::keepers(&berth).len(), 0, "BERTH_STORM_SEED={seed}");
}

/// Returns the addresses that are in use.
fn addresses(folder: &Path) -> Vec<String> {
    let networks = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files =
        networks.flat_map(|network| std::fs::read_dir(network.path()).into_iter().flatten().flatten());
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.replace('_', ":").parse::<std::net::IpAddr>().is_ok()).collect()
}
