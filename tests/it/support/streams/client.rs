//! Clients that are processes: streamclient and crictl.

use super::*;

pub(super) type Text = Arc<Mutex<Vec<u8>>>;

/// A client that is a process. Its output is read continuously.
pub struct Client {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: (Text, Option<JoinHandle<()>>),
    stderr: (Text, Option<JoinHandle<()>>),
    lines: usize,
}

impl Client {
    pub(super) fn start(mut command: Command) -> Self {
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
