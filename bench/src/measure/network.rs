//! The network of pods: many pods with host ports, reused addresses, and very many other pods.

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

/// The number of pods with host ports, and the number that start at the same time.
const WITH_PORTS: u16 = 96;
const AT_ONCE: usize = 8;

/// The first of the host ports.
const FIRST_PORT: u16 = 21_000;

/// The longest time to wait until an address answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs pods with a host port each, eight at a time. Measures pods per second and the number of failures.
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

/// Measures the time from the answer of RunPodSandbox until the host reaches the pod, if another pod had its address
/// just before.
pub(super) async fn returns(bench: &Bench) -> Result<(), BenchError> {
    let mut samples = Samples::default();
    for _ in 0..bench.options.count.min(20) {
        let pod = bench.run_pod(NamespaceMode::Pod).await?.answer;
        let address = address_of(bench, &pod).await?;
        // The host caches the pod's hardware address and does not resolve it again for some seconds.
        reached(address).await;
        remove(bench, &pod, None).await?;
        give_next(bench, address)?;
        let again = bench.run_pod(NamespaceMode::Pod).await?.answer;
        if address_of(bench, &again).await? != address {
            return Err(BenchError::Answer { rpc: "PodSandboxStatus", what: "reused address" });
        }
        let took = reached(address).await;
        samples.push("first answer of an address that came back", took);
        remove(bench, &again, None).await?;
    }
    bench.add(samples);
    Ok(())
}

/// Measures calls for pods with a host port, alone and beside thousands of others. The others are only addresses and,
/// for berth, rules. They have no links, because a bridge has at most a thousand ports.
pub(super) async fn crowd(bench: &Bench) -> Result<(), BenchError> {
    let mut samples = Samples::default();
    calls(bench, "", &mut samples).await?;
    let others = Crowd::create(bench)?;
    calls(bench, &format!(", beside {} others", bench.options.crowd), &mut samples).await?;
    drop(others);
    bench.add(samples);
    Ok(())
}

async fn calls(bench: &Bench, beside: &str, samples: &mut Samples) -> Result<(), BenchError> {
    for number in 0..bench.options.count {
        let port = FIRST_PORT + u16::try_from(number).unwrap_or_default();
        let pod = bench.run_pod_with_port(port).await?;
        // The first pod is not counted.
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

/// Waits until an address answers and returns the time. A refused connection is also an answer.
async fn reached(address: Ipv4Addr) -> Duration {
    /// A lost packet is repeated after this time. The kernel would repeat it after a second.
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

/// Makes the next pod get this address, if it is free.
fn give_next(bench: &Bench, address: Ipv4Addr) -> Result<(), BenchError> {
    let before = Ipv4Addr::from(u32::from(address).saturating_sub(1));
    let file = folder(bench)?.join("last_reserved_ip.0");
    write(&file, &before.to_string())
}

/// The addresses and rules of thousands of pods. Drop removes them.
struct Crowd {
    files: Vec<PathBuf>,
    rules: String,
}

impl Crowd {
    fn create(bench: &Bench) -> Result<Self, BenchError> {
        let folder = folder(bench)?;
        let network = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (mut crowd, mut add) = (Self { files: Vec::new(), rules: String::new() }, String::new());
        let berth = bench.version.runtime_name == "berth";
        for number in 0..bench.options.crowd {
            let id = format!("{number:064x}");
            // Far from the addresses of the pods of this run.
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 88, 100, 0)) + number);
            let file = folder.join(address.to_string());
            write(&file, &format!("{id}\r\neth0"))?;
            crowd.files.push(file);
            if berth {
                let port = 30_000 + number;
                let owner = format!("comment \"{network} {id} eth0\"");
                let mut element = |set: &str, key: &str, value: &str| {
                    // A write to a string does not fail.
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
        false => Err(BenchError::Nft("nft refused the rules of the crowd".to_owned())),
    }
}
