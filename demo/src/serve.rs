//! An HTTP/1.1 server: one thread and one request per connection, with limits on everything.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::request::{first_line, read_head};

/// The maximum number of connections that are served at the same time. More wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;

/// The longest time that a client can take for its request, and to accept the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The pause after a failed accept, for example without free descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until the process exits.
pub(crate) fn run(port: u16, text: &str) -> io::Result<ExitCode> {
    let listener = listen(port)?;
    writeln!(io::stdout(), "listening on {}", listener.local_addr()?)?;
    let text = Arc::new(format!("{text}\n"));
    loop {
        // The Arc counts the connections: each thread holds one reference.
        while Arc::strong_count(&text) > MAX_CONNECTIONS {
            std::thread::sleep(PAUSE);
        }
        match listener.accept() {
            Ok((stream, _)) => start(stream, Arc::clone(&text)),
            Err(error) => {
                crate::print_error(&format!("failed to accept a connection: {error}"));
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// Listens on all addresses. An IPv6 socket also accepts IPv4. Without IPv6 the server listens on IPv4 only.
fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)).or_else(|error| match error.kind() {
        io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(error),
        _ => TcpListener::bind((IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)),
    })
}

fn start(stream: TcpStream, text: Arc<String>) {
    let started = std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
        // A disconnected client is not an error of the server.
        drop(answer(stream, &text));
    });
    if let Err(error) = started {
        crate::print_error(&format!("failed to start a thread: {error}"));
    }
}

fn answer(mut stream: TcpStream, text: &str) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let head = read_head(&mut stream, PATIENCE)?;
    let parts = head.as_ref().map(|head| first_line(&head.head));
    let (status, body) = match parts {
        None => ("431 Request Header Fields Too Large", "the request is too long\n".to_owned()),
        Some(None) => ("400 Bad Request", "the request is not HTTP/1\n".to_owned()),
        Some(Some([method, target, _])) => route(method, target, text),
    };
    if let Some(Some([method, target, _])) = parts {
        let peer = stream.peer_addr()?.ip().to_canonical();
        let code = status.get(..3).unwrap_or_default();
        writeln!(io::stdout(), "{method} {} from {peer}: {code}", target.escape_debug())?;
    }
    let mut message = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if !matches!(parts, Some(Some(["HEAD", ..]))) {
        message += &body;
    }
    stream.write_all(message.as_bytes())?;
    stream.shutdown(Shutdown::Write)
}

fn route(method: &str, target: &str, text: &str) -> (&'static str, String) {
    if !matches!(method, "GET" | "HEAD") {
        return ("405 Method Not Allowed", "only GET and HEAD\n".to_owned());
    }
    match target.split('?').next() {
        Some("/") => ("200 OK", text.to_owned()),
        Some("/env") => ("200 OK", crate::environment()),
        Some("/healthz") => ("200 OK", "ok\n".to_owned()),
        _ => ("404 Not Found", "not here\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// Sends `request` to a server of one connection and returns the whole answer.
    fn exchange(request: &[u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        start(stream, Arc::new("text\n".to_owned()));
        client.write_all(request).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn each_path_has_its_answer() {
        for (request, status, body) in [
            ("GET / HTTP/1.1\r\n\r\n", "200 OK", "text\n"),
            ("GET /?a=b HTTP/1.0\r\nHost: x\r\n\r\n", "200 OK", "text\n"),
            ("GET /healthz HTTP/1.1\r\n\r\n", "200 OK", "ok\n"),
            ("HEAD / HTTP/1.1\r\n\r\n", "200 OK", ""),
            ("GET /other HTTP/1.1\r\n\r\n", "404 Not Found", "not here\n"),
            ("PUT / HTTP/1.1\r\n\r\n", "405 Method Not Allowed", "only GET and HEAD\n"),
            ("what\r\n\r\n", "400 Bad Request", "the request is not HTTP/1\n"),
        ] {
            let answer = exchange(request.as_bytes());
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request:?}: {answer}");
            assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{request:?}: {answer}");
        }
        assert!(exchange(b"GET /env HTTP/1.1\r\n\r\n").contains("\nPATH="));
    }

    #[test]
    fn garbage_is_answered_with_an_error() {
        assert!(exchange(&vec![b'x'; 9 << 10]).starts_with("HTTP/1.1 431 "));
        assert!(exchange(b"\xff\x00\x80\r\n\r\n").starts_with("HTTP/1.1 400 "));
    }
}
