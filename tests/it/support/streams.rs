//! Clients of streaming sessions on the daemon's host: streamclient (which uses the same Go libraries as kubectl),
//! crictl, and raw clients.

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
        Spdy { io, headers: HeaderWriter::default(), received: Received::default() }
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

/// The frames that a raw client has received.
#[derive(Clone, Debug, Default)]
pub struct Received {
    pub replies: BTreeSet<u32>,
    pub data: BTreeMap<u32, Vec<u8>>,
    pub reset: BTreeSet<u32>,
}

pub struct Spdy {
    pub io: TcpStream,
    headers: HeaderWriter,
    received: Received,
}

impl Spdy {
    pub async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
        let block = self.headers.block(&StreamHeaders::from_pairs(headers.iter().copied()));
        let mut frame = Vec::new();
        ControlFrame::SynStream { stream: StreamId::new(stream), fin: false, block: &block }
            .encode(&mut frame);
        self.io.write_all(&frame).await.unwrap();
    }

    pub async fn data(&mut self, stream: u32, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).unwrap();
        self.io.write_all(&SpdyFrameHeader::data(StreamId::new(stream), false, length)).await.unwrap();
        self.io.write_all(bytes).await.unwrap();
    }

    /// Receives frames until the condition is true.
    pub async fn until(&mut self, condition: impl Fn(&Received) -> bool) -> Received {
        while !condition(&self.received) {
            let frame = tokio::time::timeout(PATIENCE, self.frame()).await;
            frame.unwrap_or_else(|_| panic!("no frame arrives after {:?}", self.received));
        }
        self.received.clone()
    }

    async fn frame(&mut self) {
        let mut head = [0; HEAD];
        self.io.read_exact(&mut head).await.unwrap();
        let head = SpdyFrameHeader::parse(head).unwrap();
        let (SpdyFrameHeader::Data { length, .. } | SpdyFrameHeader::Control { length, .. }) = head;
        let mut payload = vec![0; length];
        self.io.read_exact(&mut payload).await.unwrap();
        match head {
            SpdyFrameHeader::Data { stream, .. } => {
                self.received.data.entry(stream.get()).or_default().extend(payload)
            }
            SpdyFrameHeader::Control { kind, flags, .. } => {
                match ControlFrame::parse(kind, flags, &payload).unwrap() {
                    ControlFrame::SynReply { stream, .. } => drop(self.received.replies.insert(stream.get())),
                    ControlFrame::Reset { stream, .. } => drop(self.received.reset.insert(stream.get())),
                    _ => {}
                }
            }
        }
    }
}

type Text = Arc<Mutex<Vec<u8>>>;

/// A client that is a process. Its output is read continuously.
pub struct Client {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: (Text, Option<JoinHandle<()>>),
    stderr: (Text, Option<JoinHandle<()>>),
    lines: usize,
}

impl Client {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::of(command.spawn().unwrap())
    }

    fn of(mut child: Child) -> Self {
        let stdin = child.stdin.take();
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        Self { child, stdin, stdout, stderr, lines: 0 }
    }

    fn command(berth: &Berth, options: &[&str], streams: Streams, url: &str) -> Command {
        let mut command = berth.command_on_host(&tools().join("streamclient"));
        command.arg("run").args(options);
        let Streams { stdin, stdout, stderr, tty } = streams;
        for (name, requested) in [("-stdin", stdin), ("-stdout", stdout), ("-stderr", stderr), ("-tty", tty)]
        {
            if requested {
                command.arg(name);
            }
        }
        command.arg(url);
        command
    }

    /// Starts a client of an exec or attach session.
    pub fn run(berth: &Berth, options: &[&str], streams: Streams, url: &str) -> Self {
        Self::start(Self::command(berth, options, streams, url))
    }

    /// Starts a client that reads its input from elsewhere.
    pub fn run_from(berth: &Berth, options: &[&str], streams: Streams, url: &str, input: Stdio) -> Self {
        let mut command = Self::command(berth, options, streams, url);
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::of(command.spawn().unwrap())
    }

    /// Runs a client that writes its output elsewhere. Returns its exit code and errors.
    pub fn run_into(
        berth: &Berth,
        options: &[&str],
        streams: Streams,
        url: &str,
        output: Stdio,
    ) -> (Option<i32>, String) {
        let mut command = Self::command(berth, options, streams, url);
        command.stdin(Stdio::null()).stdout(output).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        // The command holds a copy of the output's write end, which would keep the reader waiting.
        drop(command);
        let (code, _, stderr) = output_of(Self::of(child));
        (code, stderr)
    }

    pub fn forward(berth: &Berth, transport: &str, url: &str, ports: &[u16]) -> Self {
        let mut command = berth.command_on_host(&tools().join("streamclient"));
        command.args(["forward", "-transport", transport, url]).args(ports.iter().map(ToString::to_string));
        Self::start(command)
    }

    pub fn many(berth: &Berth, transport: &str) -> Self {
        let mut command = berth.command_on_host(&tools().join("streamclient"));
        command.args(["many", "-transport", transport]);
        Self::start(command)
    }

    pub fn send(&mut self, bytes: &[u8]) {
        // The session can have ended already. The client's output shows that.
        drop(self.stdin.as_mut().unwrap().write_all(bytes));
    }

    /// Closes the client's input.
    pub fn close(&mut self) {
        self.stdin = None;
    }

    pub fn has(&self, text: &str) -> bool {
        self.printed().contains(text)
    }

    fn printed(&self) -> String {
        String::from_utf8_lossy(&self.stdout.0.lock().unwrap()).into_owned()
    }

    /// Waits until the client has printed a text.
    pub fn until(&self, text: &str) {
        self.wait(|| self.has(text), text);
    }

    fn wait(&self, there: impl Fn() -> bool, what: &str) {
        let until = Instant::now() + PATIENCE;
        while !there() {
            let errors = String::from_utf8_lossy(&self.stderr.0.lock().unwrap()).into_owned();
            assert!(Instant::now() < until, "{what} is not printed: {} {errors}", self.printed());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the next line that the client prints.
    pub fn line(&mut self) -> String {
        let number = self.lines;
        self.lines += 1;
        self.wait(|| self.printed().matches('\n').count() > number, "a line");
        self.printed().lines().nth(number).unwrap().to_owned()
    }

    /// Kills the client.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn collect(from: Option<impl Read + Send + 'static>) -> (Text, Option<JoinHandle<()>>) {
    let text = Text::default();
    let into = text.clone();
    let reading = from.map(|mut from| {
        std::thread::spawn(move || {
            let mut piece = vec![0; 64 << 10];
            while let Ok(count @ 1..) = from.read(&mut piece) {
                into.lock().unwrap().extend_from_slice(&piece[..count]);
            }
        })
    });
    (text, reading)
}

/// Closes a client's input and waits for its exit. Returns exit code, output and errors.
pub fn finished(mut client: Client) -> (Option<i32>, String, String) {
    client.close();
    output_of(client)
}

/// Waits for the exit of a client while its input stays open.
pub fn output_of(mut client: Client) -> (Option<i32>, String, String) {
    // A tar of a gigabyte takes a while.
    let until = Instant::now() + 10 * PATIENCE;
    let status = loop {
        match client.child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > until => {
                client.child.kill().unwrap();
                panic!("the client does not exit: {}", client.printed());
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    for reading in [&mut client.stdout.1, &mut client.stderr.1] {
        if let Some(reading) = reading.take() {
            reading.join().unwrap();
        }
    }
    let text = |text: &Text| String::from_utf8_lossy(&text.lock().unwrap()).into_owned();
    (status.code(), text(&client.stdout.0), text(&client.stderr.0))
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
