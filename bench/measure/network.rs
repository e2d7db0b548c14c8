//! The network of pods when much happens at once, when an address comes back, and when there are very many.

use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use berth_proto::v1::{
    NamespaceMode, PodSandboxStatusRequest, RemovePodSandboxRequest, StopPodSandboxRequest,
};
use futures_util::StreamExt;
use tokio::net::TcpStream;

use crate::bench::{Bench, Pod};
use crate::client::timed;
use crate::error::BenchError;
use crate::figures::{Samples, number};

/// How many pods with ports there are, and how many start at a time.
const WITH_PORTS: u16 = 96;
const AT_ONCE: usize = 8;

/// The ports that lead to them.
const FIRST_PORT: u16 = 21_000;

/// How long an address may be dead before the next one is tried.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pods with a port of the host each, eight at a time: how many a second, and how many fail.
pub(super) async fn ports(bench: &Bench) -> Result<(), BenchError> {
    let start = Instant::now();
    let pods: Vec<_> = futures_util::stream::iter(0..WITH_PORTS)
        .map(|number| bench.run_pod_with_port(FIRST_PORT + number))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let took = start.elapsed();
    let failed = pods.iter().filter(|pod| pod.is_err()).count();
    let rate = number(pods.len() - failed) / took.as_secs_f64();
    bench.add_figure(format!("pods with a port of the host, {AT_ONCE} at a time"), rate, "pods/s");
    bench.add_figure(format!("of {WITH_PORTS} of these fail"), number(failed), "pods");
    if let Some(error) = pods.into_iter().find_map(Result::err) {
        bench.add_problem(format!("a pod with a port of the host: {error}"));
    }
    Ok(())
}

/// From the answer of RunPodSandbox until the host reaches the pod, whose address was another's just before.
pub(super) async fn returns(bench: &Bench) -> Result<(), BenchError> {
    let mut samples = Samples::default();
    for _ in 0..bench.options.count.min(20) {
        let pod = bench.run_pod(NamespaceMode::Pod).await?.answer;
        let address = address_of(bench, &pod).await?;
        // The host knows where it is, and will not ask for some seconds.
        reached(address).await;
        remove(bench, &pod, None).await?;
        give_next(bench, address)?;
        let again = bench.run_pod(NamespaceMode::Pod).await?.answer;
        if address_of(bench, &again).await? != address {
            return Err(BenchError::Answer { rpc: "PodSandboxStatus", what: "address that was given back" });
        }
        let took = reached(address).await;
        samples.push("first answer of an address that came back", took);
        remove(bench, &again, None).await?;
    }
    bench.add(samples);
    Ok(())
}

/// Each call of pods with a port, alone and beside thousands of others: their addresses and, for berth, their rules. Links are
/// not among it: a bridge has a thousand ports at most.
pub(super) async fn crowd(bench: &Bench) -> Result<(), BenchError> {
    let mut samples = Samples::default();
    calls(bench, "", &mut samples).await?;
    let others = Crowd::gather(bench)?;
    calls(bench, &format!(", beside {} others", bench.options.crowd), &mut samples).await?;
    drop(others);
    bench.add(samples);
    Ok(())
}

async fn calls(bench: &Bench, beside: &str, samples: &mut Samples) -> Result<(), BenchError> {
    for number in 0..bench.options.count {
        let port = FIRST_PORT + u16::try_from(number).unwrap_or_default();
        let pod = bench.run_pod_with_port(port).await?;
        // One before the others is not counted.
        if number > 0 {
            samples.push(&format!("RunPodSandbox with a port{beside}"), pod.took);
        }
        let counted = (number > 0).then_some((&mut *samples, beside));
        remove(bench, &pod.answer, counted).await?;
    }
    Ok(())
}

async fn remove(bench: &Bench, pod: &Pod, counted: Option<(&mut Samples, &str)>) -> Result<(), BenchError> {
    let mut client = bench.client.runtime.clone();
    let stop = StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    let stopped = timed("StopPodSandbox", client.stop_pod_sandbox(stop)).await?;
    let remove = RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    timed("RemovePodSandbox", client.remove_pod_sandbox(remove)).await?;
    if let Some((samples, beside)) = counted {
        samples.push(&format!("StopPodSandbox with a port{beside}"), stopped.took);
    }
    Ok(())
}

async fn address_of(bench: &Bench, pod: &Pod) -> Result<Ipv4Addr, BenchError> {
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
    let mut client = bench.client.runtime.clone();
    let answer = timed("PodSandboxStatus", client.pod_sandbox_status(request)).await?.answer;
    let network = answer.status.and_then(|status| status.network);
    let address = network.and_then(|network| network.ip.parse().ok());
    address.ok_or(BenchError::Answer { rpc: "PodSandboxStatus", what: "IPv4 address" })
}

/// How long it takes until an address answers: that nothing listens there is an answer.
async fn reached(address: Ipv4Addr) -> Duration {
    /// A packet that is lost is sent again by this, not by the kernel a second later.
    const TRIAL: Duration = Duration::from_millis(20);
    let (start, port) = (Instant::now(), SocketAddr::new(IpAddr::V4(address), 9));
    while start.elapsed() < PATIENCE {
        match tokio::time::timeout(TRIAL, TcpStream::connect(port)).await {
            Ok(Ok(_)) => break,
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => break,
            Ok(Err(_)) => tokio::time::sleep(TRIAL).await,
            Err(_) => {}
        }
    }
    start.elapsed()
}

fn folder(bench: &Bench) -> Result<&Path, BenchError> {
    let folder = bench.options.addresses.as_deref();
    folder.ok_or(BenchError::Answer { rpc: "--addresses", what: "folder" })
}

fn write(path: &Path, text: &str) -> Result<(), BenchError> {
    let action = "write";
    fs::write(path, text).map_err(|source| BenchError::File { action, path: path.to_owned(), source })
}

/// The next pod gets this address, if it is free.
fn give_next(bench: &Bench, address: Ipv4Addr) -> Result<(), BenchError> {
    let before = Ipv4Addr::from(u32::from(address).saturating_sub(1));
    let file = folder(bench)?.join("last_reserved_ip.0");
    write(&file, &before.to_string())
}

/// What thousands of pods would have: taken back when this is dropped.
struct Crowd {
    files: Vec<PathBuf>,
    rules: String,
}

impl Crowd {
    fn gather(bench: &Bench) -> Result<Self, BenchError> {
        let folder = folder(bench)?;
        let network = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (mut crowd, mut add) = (Self { files: Vec::new(), rules: String::new() }, String::new());
        let berth = bench.version.runtime_name == "berth";
        for number in 0..bench.options.crowd {
            let id = format!("{number:064x}");
            // Far from those that pods of this run get.
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 88, 100, 0)) + number);
            let file = folder.join(address.to_string());
            write(&file, &format!("{id}\r\neth0"))?;
            crowd.files.push(file);
            if berth {
                let port = 30_000 + number;
                let owner = format!("comment \"{network} {id} eth0\"");
                let mut element = |set: &str, key: &str, value: &str| {
                    // Writing to a string does not fail.
                    let _written =
                        writeln!(add, "add element inet berth {set} {{ {key} {owner} : {value} }}");
                    let _written = writeln!(crowd.rules, "delete element inet berth {set} {{ {key} }}");
                };
                let jump = "jump of-10.88.0.0/16".to_owned();
                element("masquerade4", &address.to_string(), &jump);
                element("ports4", &format!("tcp . {port}"), &format!("{address} . 80"));
                element("hairpin4", &address.to_string(), "jump of-hairpin-10.88.0.0/16");
            }
        }
        nft(&add)?;
        Ok(crowd)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for file in &self.files {
            drop(fs::remove_file(file));
        }
        drop(nft(&self.rules));
    }
}

fn nft(rules: &str) -> Result<(), BenchError> {
    if rules.is_empty() {
        return Ok(());
    }
    let failed = |error: std::io::Error| BenchError::Nft(error.to_string());
    let file = tempfile::NamedTempFile::new().map_err(failed)?;
    write(file.path(), rules)?;
    let run = Command::new("nft").arg("-f").arg(file.path()).stdin(Stdio::null()).status();
    match run.map_err(failed)?.success() {
        true => Ok(()),
        false => Err(BenchError::Nft("it refuses the rules of the crowd".to_owned())),
    }
}
