//! A crash storm: clients run, exec, stop and remove pods like kubelets, and give calls up at random, while the daemon and
//! keepers are killed, keepers stopped, and the disk is full or frozen in turns. At the end nothing is lost, doubled or
//! left: what clients have been told of is listed once and in the state that it must have, exit codes are right, and only
//! keepers of listed pods run. Runs as root.
//!
//! `BERTH_STORM_SECONDS` is how long it lasts, `BERTH_STORM_KILLS` how often the daemon is killed at least (1000 before a
//! release), `BERTH_STORM_SEED` repeats what clients and troubles choose; when they do it depends on the machine.
//! `BERTH_STORM_LOG` is where the daemon's log is kept if something is wrong.
//!
//! * [`truth`]: what clients know; [`client`]: calls that may be given up
//! * [`kubelet`]: the lives of pods; [`trouble`]: what happens to them
//! * [`verdict`]: what must hold at the end
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "a test stops at the first surprise"
)]

mod client;
mod kubelet;
#[path = "../support/mod.rs"]
mod support;
mod trouble;
mod truth;
mod verdict;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::{Berth, Setup};

use crate::kubelet::Kubelet;
use crate::trouble::Trouble;
use crate::truth::World;

/// How many clients there are, each with pods of its own.
const CLIENTS: u64 = 5;

/// How long the short form lasts.
const SECONDS: u64 = 40;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_doubled_or_left() {
    let seed = number("BERTH_STORM_SEED").unwrap_or(1);
    let kills = number("BERTH_STORM_KILLS").unwrap_or(0);
    let seconds = number("BERTH_STORM_SECONDS").unwrap_or(if kills > 0 { 0 } else { SECONDS });
    println!("BERTH_STORM_SEED={seed}: {seconds} s and {kills} kills at least");
    let mut berth = Berth::start_as(Setup { disk: Some(256), ..Setup::default() }).await;
    let world =
        Arc::new(World::new(berth.path("run/berth.sock"), &berth.cgroup_parent, berth.disk_path("logs")));
    let clients: Vec<_> =
        (0..CLIENTS).map(|number| tokio::spawn(Kubelet::new(world.clone(), number, seed).live())).collect();
    let mut trouble = Trouble::new(world.clone(), seed);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) || trouble.kills < kills {
        trouble.happen(&mut berth).await;
    }
    trouble.end(&mut berth).await;
    world.end();
    for client in clients {
        client.await.unwrap();
    }
    println!("{trouble}; {}", world.told());
    // What was found at a start is taken over by another one as well.
    berth.restart().await;
    verdict::hold(&mut berth, &world).await;
    if let (Some(copy), false) = (std::env::var_os("BERTH_STORM_LOG"), world.violations().is_empty()) {
        std::fs::copy(berth.path("daemon.log"), copy).unwrap();
    }
    assert_eq!(world.violations(), Vec::<String>::new(), "BERTH_STORM_SEED={seed}");
    assert_eq!(berth.clean().await, Vec::<String>::new(), "BERTH_STORM_SEED={seed}");
    assert_eq!(addresses(&berth.disk_path("addresses")), Vec::<String>::new(), "BERTH_STORM_SEED={seed}");
    assert_eq!(trouble::keepers(&berth).len(), 0, "BERTH_STORM_SEED={seed}");
}

/// The addresses that somebody has.
fn addresses(folder: &Path) -> Vec<String> {
    let networks = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files =
        networks.flat_map(|network| std::fs::read_dir(network.path()).into_iter().flatten().flatten());
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.replace('_', ":").parse::<std::net::IpAddr>().is_ok()).collect()
}
