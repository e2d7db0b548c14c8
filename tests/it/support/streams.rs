//! Clients of streaming sessions on the daemon's host: streamclient (which uses the same Go libraries as kubectl),
//! crictl, and raw clients.

mod client;
mod spdy;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use berth::stream::spdy::StreamHeaders;
use berth::stream::spdy::frame::{ControlFrame, HEAD, SpdyFrameHeader, StreamId};
use berth::stream::spdy::headers::HeaderWriter;
use berth_proto::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub use client::{Client, finished, output_of};
pub use spdy::Spdy;

use super::{Berth, PATIENCE};

/// The names of the transports in the options of streamclient and crictl.
pub const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

/// The streams of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Streams {
    pub const ALL: Self = Self { stdin: true, stdout: true, stderr: true, tty: false };
    pub const OUTPUT: Self = Self { stdin: false, stdout: true, stderr: true, tty: false };
    pub const TERMINAL: Self = Self { stdin: true, stdout: true, stderr: false, tty: true };

    pub fn of(request: &ExecRequest) -> Self {
        Self { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty }
    }
}

pub fn exec(id: &str, command: &[&str], streams: Streams) -> ExecRequest {
    let Streams { stdin, stdout, stderr, tty } = streams;
    let cmd = command.iter().map(|&part| part.to_owned()).collect();
    ExecRequest { container_id: id.to_owned(), cmd, stdin, stdout, stderr, tty }
}

fn port_of(url: &str) -> u16 {
    url.split(':').nth(2).and_then(|rest| rest.split('/').next()).unwrap().parse().unwrap()
}

/// Returns whether the other end has closed a connection.
pub fn is_closed(connection: &std::net::TcpStream) -> bool {
    connection.set_nonblocking(true).unwrap();
    match (&mut &*connection).read(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

/// Returns the folder with streamclient and crictl. The first call builds them, which can take longer than the minute for which
/// a session waits for its client: it comes before the request of a session.
/// Returns the folder of the clients, among them crictl.
pub fn tools() -> &'static Path {
    static TOOLS: OnceLock<PathBuf> = OnceLock::new();
    TOOLS.get_or_init(|| {
        if let Some(folder) = std::env::var_os("BERTH_STREAM_TOOLS") {
            return folder.into();
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand-ins/streamclient.sh");
        let output = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "streamclient is not built");
        String::from_utf8(output.stdout).unwrap().trim().into()
    })
}

impl Berth {
    pub async fn exec_url(&mut self, request: ExecRequest) -> String {
        tools();
        self.runtime.exec(request).await.unwrap().into_inner().url
    }

    pub async fn attach_url(&mut self, id: &str, streams: Streams) -> String {
        tools();
        let Streams { stdin, stdout, stderr, tty } = streams;
        let request = AttachRequest { container_id: id.to_owned(), stdin, stdout, stderr, tty };
        self.runtime.attach(request).await.unwrap().into_inner().url
    }

    pub async fn port_forward_url(&mut self, pod: &str) -> String {
        tools();
        let request = PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: Vec::new() };
        self.runtime.port_forward(request).await.unwrap().into_inner().url
    }

    /// Returns a command that runs in the network namespace of the daemon's host.
    pub fn command_on_host(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.host_process())).arg("--").arg(program);
        command
    }

    pub fn spawn_on_host(&self, command: &[&str]) -> Child {
        self.command_on_host(Path::new(command[0]))
            .args(&command[1..])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    pub fn crictl(&self, arguments: &[&str]) -> Client {
        let socket = format!("unix://{}", self.path("run/berth.sock").display());
        let mut command = self.command_on_host(&tools().join("crictl"));
        command.args(["--runtime-endpoint", &socket, "--image-endpoint", &socket]).args(arguments);
        Client::start(command)
    }

    /// Opens connections to the server of a URL as a user of the daemon's host. Nothing is sent on them.
    pub fn silent_connections(&self, user: u32, url: &str, count: usize) -> Vec<std::net::TcpStream> {
        let netns = std::fs::File::open(format!("/proc/{}/ns/net", self.host_process())).unwrap();
        let port = port_of(url);
        // The thread changes its namespace and user, and exits afterwards.
        let connect = move || {
            rustix::thread::move_into_link_name_space(
                netns.as_fd(),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .unwrap();
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(user)).unwrap();
            let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
            (0..count).filter_map(|_| std::net::TcpStream::connect_timeout(&address, PATIENCE).ok()).collect()
        };
        std::thread::spawn(connect).join().unwrap()
    }

    /// Opens a connection to the server of a URL.
    pub async fn connect(&self, url: &str) -> TcpStream {
        let port = port_of(url);
        let netns = std::fs::File::open(format!("/proc/{}/ns/net", self.host_process())).unwrap();
        berth_cni::port_forward::connect(Some(netns.as_fd()), port).await.unwrap()
    }

    /// Sends a request unchanged and returns the whole response.
    pub async fn http(&self, url: &str, request: &str) -> String {
        let mut io = self.connect(url).await;
        // A server that refuses early does not need to read the whole request.
        drop(io.write_all(request.as_bytes()).await);
        let mut answer = Vec::new();
        drop(io.read_to_end(&mut answer).await);
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn upgraded(&self, url: &str, headers: &str) -> TcpStream {
        let mut io = self.connect(url).await;
        let request = format!("GET {url} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n{headers}\r\n");
        io.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(io.read_u8().await.unwrap());
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        io
    }

    /// Returns a client that speaks SPDY frame by frame.
    pub async fn spdy(&self, url: &str, version: &str) -> Spdy {
        let headers = format!("Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {version}\r\n");
        let io = self.upgraded(url, &headers).await;
        Spdy::new(io)
    }

    /// Returns a client that speaks WebSocket byte by byte.
    pub async fn websocket(&self, url: &str, protocol: &str) -> TcpStream {
        let headers = format!(
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n"
        );
        self.upgraded(url, &headers).await
    }
}

/// Writes a file of xorshift random numbers, which do not compress and do not repeat.
pub fn write_noise(path: &Path, size: usize) {
    let mut file = std::io::BufWriter::with_capacity(1 << 20, std::fs::File::create(path).unwrap());
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut left = size;
    while left > 0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let bytes = state.to_le_bytes();
        let count = left.min(bytes.len());
        file.write_all(&bytes[..count]).unwrap();
        left -= count;
    }
    file.flush().unwrap();
}

/// Prints the throughput. It is visible with `--nocapture`.
pub fn report(transport: &str, direction: &str, bytes: usize, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    eprintln!("{transport} {direction}: {:.0} MB/s", bytes as f64 / 1e6 / seconds);
}
