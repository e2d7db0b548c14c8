//! The daemon's own metrics: the values after some work, the endpoint with misbehaving clients, and Debian's Prometheus,
//! which scrapes a real daemon with the rules and the queries of contrib. Runs as root.

mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use berth_image::{Algorithm, Digest};
use berth_proto::v1::*;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tonic::Code;

use crate::support::net::Namespace;
use crate::support::registry::Registry;
use crate::support::{Berth, PATIENCE, code, leftovers, shell, sleeper};

/// The port of the metrics. Every test has a private network namespace.
const PORT: u16 = 9470;

pub(crate) const CONFIG: &str = "metrics_address = \"127.0.0.1:9470\"\n";

pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Returns the folder with the programs of `tests/stand-ins/prometheus.sh`.
pub(crate) fn programs() -> PathBuf {
    if let Some(folder) = std::env::var_os("BERTH_PROMETHEUS") {
        return folder.into();
    }
    let output = Command::new(repository("tests/stand-ins/prometheus.sh")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// Calls a function on a thread in the network namespace of a process: setns(2) changes that of one thread.
fn in_network_of<T: Send + 'static>(pid: u32, call: impl FnOnce() -> T + Send + 'static) -> T {
    let called = std::thread::spawn(move || {
        let namespace = fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        call()
    });
    called.join().unwrap()
}

/// Connects to the endpoint in the network namespace of the daemon.
fn connect(berth: &Berth) -> TcpStream {
    let stream = in_network_of(berth.host_process(), || TcpStream::connect(("127.0.0.1", PORT)).unwrap());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends a request and returns the head and the body of the response.
fn exchange(mut stream: impl std::io::Read + std::io::Write, request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
    (head.to_owned(), body.to_owned())
}

fn get(berth: &Berth, path: &str, headers: &str) -> (String, String) {
    exchange(connect(berth), &format!("GET {path} HTTP/1.1\r\nHost: berth\r\n{headers}\r\n"))
}

pub(crate) fn scrape(berth: &Berth) -> String {
    let (head, body) = get(berth, "/metrics", "");
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    body
}

/// Returns the value of a series, written as in the output.
fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    Some(line.parse().unwrap())
}

/// Returns the type of each metric.
fn types(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    lines.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

/// Returns the names of the labels of a metric, if it has a sample.
fn labels(text: &str, name: &str) -> Option<BTreeSet<String>> {
    let of_metric = |line: &&str| {
        let series = line.split(['{', ' ']).next().unwrap();
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| series.strip_suffix(end));
        series == name || base == Some(name)
    };
    let sample = text.lines().filter(|line| !line.starts_with('#')).find(of_metric)?;
    let inside = sample.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    let inside = inside.map_or("", |(inside, _)| inside);
    let names = inside.split(',').filter_map(|label| label.split_once('='));
    Some(names.map(|(name, _)| name.to_owned()).filter(|name| name != "le").collect())
}

/// Does everything that the metrics count: pods, containers, failures, pulls, a lack of memory, and a restart.
async fn work(berth: &mut Berth) {
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    berth.run(&pod, sleeper("sleeper")).await;
    let hungry = "x=a; while true; do x=$x$x; done";
    let mut config = shell("hungry", hungry);
    config.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() });
    let id = berth.run(&pod, config).await;
    assert_eq!(berth.wait_exited(&id).await.reason, "OOMKilled");
    let id = berth.try_create(&pod, crate::support::container("none", &["/nonexistent"])).await.unwrap();
    assert_eq!(code(berth.try_start_container(&id).await), Code::FailedPrecondition);
    let gone = berth.run_pod(berth.pod_config("gone")).await;
    berth.stop_pod(&gone).await;
    pulls(berth).await;
}

/// Pulls two images that share a layer, and one that does not exist.
async fn pulls(berth: &mut Berth) {
    let registry = Registry::start(berth.host_process());
    let layer = |text: &str| {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len().try_into().unwrap());
        header.set_mode(0o644);
        tar.append_data(&mut header, "file", text.as_bytes()).unwrap();
        let bytes = tar.into_inner().unwrap();
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        (bytes, digest)
    };
    let (first, second) = (layer("first"), layer("second"));
    registry.layers("one", std::slice::from_ref(&first));
    registry.layers("two", &[first, second]);
    for (name, expected) in [("one", true), ("two", true), ("none", false)] {
        let image = ImageSpec { image: format!("{}/{name}:1", registry.address), ..ImageSpec::default() };
        let request = PullImageRequest { image: Some(image), ..PullImageRequest::default() };
        assert_eq!(berth.images.pull_image(request).await.is_ok(), expected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_values_are_those_of_the_work() {
    let mut berth = Berth::start_with(CONFIG).await;
    berth.load_image().await;
    work(&mut berth).await;
    let text = scrape(&berth);
    for (series, expected) in [
        ("berth_operations_total{operation=\"RunPodSandbox\"}", 2.0),
        ("berth_operations_total{operation=\"StartContainer\"}", 3.0),
        ("berth_operations_errors_total{operation=\"StartContainer\",code=\"FailedPrecondition\"}", 1.0),
        ("berth_operations_in_flight{operation=\"RunPodSandbox\"}", 0.0),
        ("berth_operations_duration_seconds_count{operation=\"RunPodSandbox\"}", 2.0),
        ("berth_step_duration_seconds_count{operation=\"RunPodSandbox\",step=\"network\"}", 2.0),
        ("berth_step_duration_seconds_count{operation=\"RunPodSandbox\",step=\"record\"}", 2.0),
        ("berth_step_duration_seconds_count{operation=\"CreateContainer\",step=\"first process\"}", 3.0),
        ("berth_cni_plugin_duration_seconds_count{plugin=\"bridge\",command=\"ADD\"}", 2.0),
        ("berth_cni_plugin_duration_seconds_count{plugin=\"bridge\",command=\"DEL\"}", 1.0),
        ("berth_image_pulls_total{result=\"success\"}", 2.0),
        ("berth_image_pulls_total{result=\"failure\"}", 1.0),
        ("berth_image_pull_layers_total{source=\"fetched\"}", 2.0),
        ("berth_image_pull_layers_total{source=\"reused\"}", 1.0),
        ("berth_images", 3.0),
        ("berth_pods{state=\"ready\"}", 1.0),
        ("berth_pods{state=\"stopped\"}", 1.0),
        ("berth_containers{state=\"running\"}", 1.0),
        ("berth_containers{state=\"exited\"}", 2.0),
        ("berth_keepers", 1.0),
        ("berth_containers_oom_total", 1.0),
        ("berth_keepers_lost_total", 0.0),
        ("berth_recovered_objects{object=\"pod\",outcome=\"followed\"}", 0.0),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series}\n{text}");
    }
    // Two archives of at least two blocks of 512 bytes.
    assert!(value(&text, "berth_image_pull_received_bytes_total").unwrap() >= 2048.0, "{text}");
    berth.restart().await;
    let text = scrape(&berth);
    for (series, expected) in [
        ("berth_recovered_objects{object=\"pod\",outcome=\"followed\"}", 1.0),
        ("berth_recovered_objects{object=\"pod\",outcome=\"ended\"}", 1.0),
        ("berth_recovered_objects{object=\"container\",outcome=\"followed\"}", 1.0),
        ("berth_recovered_objects{object=\"container\",outcome=\"ended\"}", 2.0),
        ("berth_recovered_objects{object=\"container\",outcome=\"removed\"}", 0.0),
        ("berth_keepers", 1.0),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series}\n{text}");
    }
    assert!(value(&text, "berth_recovery_duration_seconds").unwrap() > 0.0, "{text}");
    assert!(value(&text, "process_resident_memory_bytes").unwrap() > 1e6, "{text}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_in_flight_shows_its_step_and_since_when() {
    let mut berth = Berth::start_with(CONFIG).await;
    berth.load_image().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, shell("deaf", "trap '' TERM; while true; do sleep 1; done")).await;
    let began = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let mut client = berth.runtime.clone();
    let request = StopContainerRequest { container_id: id, timeout: 600 };
    let stopping = tokio::spawn(async move { client.stop_container(request).await });
    let labels = "{operation=\"StopContainer\",step=\"grace period\"}";
    let at_step = format!("berth_operations_at_step{labels}");
    let until = Instant::now() + PATIENCE;
    let text = loop {
        let text = scrape(&berth);
        // The call may begin while the values are read one after the other.
        let both = ["berth_operations_in_flight{operation=\"StopContainer\"}".to_owned(), at_step.clone()];
        if both.iter().all(|name| value(&text, name) == Some(1.0)) || Instant::now() > until {
            break text;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let since = value(&text, &format!("berth_operations_step_start_time_seconds{labels}")).expect(&text);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((began - 0.1..now + 0.1).contains(&since), "{began} {since} {now}");
    assert_eq!(value(&text, "berth_operations_in_flight{operation=\"StopContainer\"}"), Some(1.0), "{text}");
    assert_eq!(value(&text, &format!("berth_operations_stalled{labels}")), None, "not yet: {text}");
    berth.stop_pod(&pod).await;
    stopping.await.unwrap().unwrap();
    let text = scrape(&berth);
    assert_eq!(value(&text, &format!("berth_operations_at_step{labels}")), None, "{text}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_metrics_are_served_in_the_format_that_the_client_accepts() {
    let mut berth = Berth::start_with(CONFIG).await;
    let (head, body) = get(&berth, "/metrics", "");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(!body.contains("# EOF"), "{body}");
    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5\r\n";
    let (head, body) = get(&berth, "/metrics", accept);
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    for path in ["/", "/metrics/", "/metric", "/metrics/../metrics", "/debug/pprof"] {
        assert!(get(&berth, path, "").0.starts_with("HTTP/1.1 404"), "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"] {
        let request = format!("{method} /metrics HTTP/1.1\r\nHost: berth\r\nContent-Length: 0\r\n\r\n");
        let (head, _) = exchange(connect(&berth), &request);
        assert!(head.starts_with("HTTP/1.1 404"), "{method}: {head}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_hostile_clients_do_not_keep_others_away() {
    let mut berth = Berth::start_with(CONFIG).await;
    let mut slow: Vec<TcpStream> = (0..100).map(|_| connect(&berth)).collect();
    for stream in &mut slow {
        // The daemon may have closed it.
        drop(stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: "));
    }
    let started = Instant::now();
    assert!(scrape(&berth).contains("berth_build_info{"));
    let text = scrape(&berth);
    let open = value(&text, "process_open_fds").unwrap();
    assert!(open < 80.0, "{open} descriptors are open, of 100 slow clients");
    // The oldest ones were closed at once, the others at their time limit.
    let mut ended = 0;
    for mut stream in slow {
        let mut answer = Vec::new();
        // A reset is an end, too.
        drop(stream.read_to_end(&mut answer));
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
        ended += 1;
    }
    assert_eq!(ended, 100);
    assert!(started.elapsed() < PATIENCE);
    for request in [
        format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(100_000)),
        format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000)),
        "\0\0\0\0\r\n\r\n".to_owned(),
        "GET /metrics HTTP/9.9\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
    ] {
        let mut stream = connect(&berth);
        drop(stream.write_all(request.as_bytes()));
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer));
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    scrape(&berth);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_is_private_replaced_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("metrics.sock");
    let mut berth = Berth::start_with(&format!("metrics_address = \"unix://{}\"\n", socket.display())).await;
    let request = "GET /metrics HTTP/1.1\r\nHost: berth\r\n\r\n";
    let (head, body) = exchange(UnixStream::connect(&socket).unwrap(), request);
    assert!(head.starts_with("HTTP/1.1 200 OK") && body.contains("berth_build_info{"), "{head}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o660);
    // A killed daemon leaves the socket behind; the next one replaces it.
    berth.restart().await;
    let (head, _) = exchange(UnixStream::connect(&socket).unwrap(), request);
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
    drop(berth);
    assert!(!socket.exists(), "the socket is removed at exit");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_cannot_be_used_is_an_error_that_names_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "precious").unwrap();
    // This daemon must not use the network of the host.
    let network = Namespace::new();
    let used = in_network_of(network.pid(), || std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let path = folder.path().display();
    for (address, expected) in [
        (used.local_addr().unwrap().to_string(), "failed to listen on metrics_address 127.0.0.1:"),
        (format!("unix://{}", file.display()), "invalid metrics_address: failed to listen on"),
        ("unix://metrics.sock".to_owned(), "metrics_address: invalid socket path: \"metrics.sock\" is not"),
        ("localhost".to_owned(), "metrics_address: \"localhost\" is neither ADDRESS:PORT nor unix:///PATH"),
    ] {
        let config = folder.path().join("config.toml");
        let text = format!(
            "socket = \"{path}/berth.sock\"\nroot = \"{path}/root\"\nstate = \"{path}/run\"\n\
             cni_conf_dir = \"{path}/net.d\"\ncni_data_dir = \"{path}/addresses\"\nmetrics_address = \"{address}\"\n"
        );
        fs::write(&config, text).unwrap();
        let output = network
            .command(env!("CARGO_BIN_EXE_berth"))
            .args(["serve", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{address}: {errors}");
        assert!(errors.contains(expected), "{address}: {errors}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

/// A Prometheus in the daemon's network namespace. Drop ends it.
pub(crate) struct Prometheus {
    process: Child,
    /// A process in that namespace.
    host: u32,
    folder: tempfile::TempDir,
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documentation_lists_every_metric_with_its_type_and_labels() {
    let mut berth = Berth::start_with(CONFIG).await;
    berth.load_image().await;
    work(&mut berth).await;
    let text = scrape(&berth);
    let document = fs::read_to_string(repository("docs/metrics.md")).unwrap();
    let mut documented = BTreeMap::new();
    for line in
        document.lines().filter(|line| line.starts_with("| `berth_") || line.starts_with("| `process_"))
    {
        let cells: Vec<_> = line.trim_matches('|').split(" |").map(str::trim).collect();
        let name = cells[0].trim_start_matches("| ").trim_matches('`').to_owned();
        let names = cells[2].split(", ").map(|label| label.trim_matches('`').to_owned());
        let names: BTreeSet<String> = names.filter(|label| !label.is_empty()).collect();
        if let Some(found) = labels(&text, &name) {
            assert_eq!(found, names, "labels of {name}");
        }
        documented.insert(name, cells[1].to_owned());
    }
    assert_eq!(documented, types(&text));
    let alerts = fs::read_to_string(repository("contrib/prometheus/berth.rules.yml")).unwrap();
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(document.contains(&format!("| `{alert}` |")), "docs/metrics.md does not list {alert}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
