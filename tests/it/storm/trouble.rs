//! The faults: kills of the daemon, faults of keepers, and faults of the disk.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use berth_runtime::client::{FoundKeeper, find_keepers};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::process::{Pid, Signal, kill_process};

use crate::storm::truth::Ledger;
use crate::support::Berth;

pub struct Trouble {
    ledger: Arc<Ledger>,
    rng: StdRng,
    /// The number of kills of the daemon.
    pub kills: u64,
    keepers: u64,
    pauses: u64,
    stops: u64,
    full: u64,
    frozen: u64,
    /// The stopped keepers. They continue at the end.
    stopped: Vec<i32>,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kills, keepers, pauses, stops, full, frozen, .. } = self;
        write!(f, "killed: {kills} daemons, {keepers} keepers, {pauses} pauses; {stops} keepers stopped; ")?;
        write!(f, "disk full {full}, frozen {frozen} times")
    }
}

/// Returns the keepers of the daemon.
pub fn keepers(berth: &Berth) -> Vec<FoundKeeper> {
    let folder = berth.folder.path().to_owned();
    find_keepers(|keeper| keeper.folder().is_some_and(|of_keeper| of_keeper.starts_with(&folder))).unwrap()
}

impl Trouble {
    pub fn new(ledger: Arc<Ledger>, seed: u64) -> Self {
        Self {
            ledger,
            rng: StdRng::seed_from_u64(seed),
            kills: 0,
            keepers: 0,
            pauses: 0,
            stops: 0,
            full: 0,
            frozen: 0,
            stopped: Vec::new(),
        }
    }

    fn moment(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(0..most))
    }

    /// Injects the next fault.
    pub async fn inject(&mut self, berth: &mut Berth) {
        tokio::time::sleep(self.moment(700)).await;
        if berth.has_ended() {
            self.ledger.violation("the daemon has exited by itself".to_owned());
            berth.start_again();
        }
        match self.rng.random_range(0..16) {
            0 => self.kill_keeper(berth),
            1 => self.kill_pause(berth),
            2 => {
                // Both are killed, so only the disk has the state.
                self.kill_keeper(berth);
                self.kill_daemon(berth).await;
            }
            3 | 4 => self.stop_keeper(berth).await,
            5 => self.fill(berth).await,
            6 => self.freeze(berth).await,
            _ => self.kill_daemon(berth).await,
        }
    }

    async fn kill_daemon(&mut self, berth: &mut Berth) {
        self.kills += 1;
        berth.kill();
        tokio::time::sleep(self.moment(80)).await;
        berth.start_again();
        // Some daemons are killed before they answer.
        if self.rng.random_ratio(1, 4) {
            tokio::time::sleep(self.moment(150)).await;
            self.kills += 1;
            berth.kill();
            berth.start_again();
        }
    }

    fn any_keeper(&mut self, berth: &Berth) -> Option<FoundKeeper> {
        let mut keepers = keepers(berth);
        match keepers.len() {
            0 => None,
            count => Some(keepers.swap_remove(self.rng.random_range(0..count))),
        }
    }

    fn kill_keeper(&mut self, berth: &Berth) {
        let Some(keeper) = self.any_keeper(berth) else { return };
        self.keepers += 1;
        self.ledger.mark_broken(keeper.pod());
        keeper.into_process().kill();
    }

    fn kill_pause(&mut self, berth: &Berth) {
        let Some(keeper) = self.any_keeper(berth) else { return };
        self.ledger.mark_broken(keeper.pod());
        let keeper = keeper.into_process().pid();
        let children =
            std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap_or_default();
        // The pause is the first child of the keeper.
        let pause = children.split_whitespace().next().and_then(|pid| Pid::from_raw(pid.parse().ok()?));
        if let Some(pause) = pause {
            self.pauses += 1;
            let _gone = kill_process(pause, Signal::KILL);
        }
    }

    async fn stop_keeper(&mut self, berth: &mut Berth) {
        let Some(keeper) = self.any_keeper(berth) else { return };
        let keeper = keeper.into_process();
        let Some(pid) = Pid::from_raw(keeper.pid()) else { return };
        self.stops += 1;
        let _gone = kill_process(pid, Signal::STOP);
        match self.rng.random_ratio(1, 4) {
            // The keeper stays stopped during other faults.
            true => self.stopped.push(keeper.pid()),
            false => {
                tokio::time::sleep(self.moment(2500)).await;
                continue_keeper(keeper.pid());
            }
        }
        if self.stopped.len() > 2 {
            self.stopped.drain(..).for_each(continue_keeper);
        }
    }

    async fn fill(&mut self, berth: &mut Berth) {
        self.full += 1;
        berth.disk.as_ref().unwrap().fill();
        tokio::time::sleep(self.moment(1000)).await;
        if self.rng.random_ratio(1, 2) {
            self.kill_daemon(berth).await;
            tokio::time::sleep(self.moment(1000)).await;
        }
        berth.disk.as_ref().unwrap().free();
    }

    async fn freeze(&mut self, berth: &mut Berth) {
        self.frozen += 1;
        let frozen = berth.disk.as_ref().unwrap().freeze(Duration::from_secs(3));
        tokio::time::sleep(self.moment(1500)).await;
        if self.rng.random_ratio(1, 4) {
            // A process that waits for the disk exits when the disk is thawed.
            self.kill_daemon(berth).await;
        }
        drop(frozen);
    }

    /// Ends the faults.
    pub async fn end(&mut self, berth: &mut Berth) {
        self.stopped.drain(..).for_each(continue_keeper);
        berth.connect_again().await;
    }
}

/// Continues a stopped keeper. Keepers are children of the daemon, so the pid of an exited keeper is not reused
/// before it is reaped.
fn continue_keeper(pid: i32) {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if command.starts_with(b"berth-keeper\0")
        && let Some(pid) = Pid::from_raw(pid)
    {
        let _gone = kill_process(pid, Signal::CONT);
    }
}
