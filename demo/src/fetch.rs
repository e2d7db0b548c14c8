//! An HTTP/1.1 client: it sends one GET, prints the body to standard output, and returns the class of the status as
//! exit code.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::request::{first_line, read_head};

/// The time to wait for a listener: the containers of a pod start in any order.
const WAIT_FOR_SERVER: Duration = Duration::from_secs(5);

/// The time between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// The longest time that the server can be silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// Fetches `url` and prints its body.
pub(crate) fn run(url: &str) -> io::Result<ExitCode> {
    let Url { host, address, path } = Url::read(url)?;
    let named = |error: io::Error| io::Error::new(error.kind(), format!("failed to fetch {url}: {error}"));
    let mut stream = connect(address).map_err(named)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(named)?;
    let bad = |why: &str| named(io::Error::new(io::ErrorKind::InvalidData, why));
    let head = read_head(&mut stream, PATIENCE).map_err(named)?.ok_or_else(|| bad("the head is too long"))?;
    let code = first_line(&head.head).and_then(|[_, code, _]| code.parse::<u16>().ok());
    let code = code.ok_or_else(|| bad("the answer is not HTTP/1"))?;
    let mut output = io::stdout().lock();
    output.write_all(&head.rest)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    copy(&mut stream, &mut output).map_err(named)?;
    output.flush()?;
    Ok(match code / 100 {
        2 => ExitCode::SUCCESS,
        class @ 3..=5 => {
            crate::print_error(&format!("failed to fetch {url}: status {code}"));
            ExitCode::from(u8::try_from(class).unwrap_or(1))
        }
        _ => return Err(bad("unknown class of status")),
    })
}

fn copy(from: &mut TcpStream, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => to.write_all(buffer.get(..length).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Connects. Repeats refused connections for a while.
fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let deadline = Instant::now() + WAIT_FOR_SERVER;
    loop {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < deadline => {
                std::thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

/// A URL of the form `http://HOST[:PORT][/PATH]`.
#[derive(Debug, PartialEq, Eq)]
struct Url {
    host: String,
    address: SocketAddr,
    path: String,
}

impl Url {
    fn read(text: &str) -> io::Result<Self> {
        let bad =
            |why: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("invalid URL {text}: {why}"));
        let rest = text.strip_prefix("http://").ok_or_else(|| bad("only http:// is supported"))?;
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if text.bytes().any(|byte| byte.is_ascii_control() || byte == b' ') {
            return Err(bad("spaces and control characters are not allowed"));
        }
        let (name, port) = match host.rsplit_once(':') {
            // Colons in a bracketed address do not separate a port.
            Some((name, port)) if !port.ends_with(']') => {
                (name, port.parse().map_err(|_| bad("invalid port"))?)
            }
            _ => (host, 80),
        };
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let ip = match name.parse() {
            Ok(ip) => ip,
            Err(_) => in_hosts(name, &fs::read_to_string("/etc/hosts").unwrap_or_default())
                .ok_or_else(|| bad("the host is not an address and is not in /etc/hosts"))?,
        };
        let path = if path.is_empty() { "/" } else { path };
        Ok(Self { host: host.to_owned(), address: (ip, port).into(), path: path.to_owned() })
    }
}

/// Looks up a name in hosts(5). DNS is not supported: a static program would need shared modules of the C library for
/// it.
fn in_hosts(name: &str, hosts: &str) -> Option<IpAddr> {
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines.map(str::split_whitespace).find_map(|mut words| {
        words.next().and_then(|ip| words.any(|word| word == name).then_some(ip)?.parse().ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_have_a_host_a_port_and_a_path() {
        for (text, address, path) in [
            ("http://127.0.0.1", "127.0.0.1:80", "/"),
            ("http://127.0.0.1:8080/a?b=c", "127.0.0.1:8080", "/a?b=c"),
            ("http://[::1]:9/", "[::1]:9", "/"),
            ("http://[::1]", "[::1]:80", "/"),
        ] {
            let url = Url::read(text).unwrap();
            assert_eq!((url.address.to_string().as_str(), url.path.as_str()), (address, path), "{text}");
        }
        for text in [
            "",
            "https://1.2.3.4",
            "http://",
            "http://1.2.3.4:x",
            "http://1.2.3.4:99999",
            "http://1.2.3.4/\r\nX:",
        ] {
            assert!(Url::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_looked_up_in_hosts() {
        let hosts = "# c\n127.0.0.1 localhost\n\nbroken line\n::1\tip6 six # six2\n";
        assert_eq!(in_hosts("localhost", hosts), Some("127.0.0.1".parse().unwrap()));
        assert_eq!(in_hosts("six", hosts), Some("::1".parse().unwrap()));
        assert_eq!(in_hosts("six2", hosts), None);
        assert_eq!(in_hosts("line", hosts), None);
    }
}
