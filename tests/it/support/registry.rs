//! A registry in the daemon's network namespace. It answers each path with what a test has set, whole or in part.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_image::{Algorithm, Digest};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The response to a request.
#[derive(Clone)]
pub enum Answer {
    /// A status code, a media type and the body.
    Whole(u16, &'static str, Vec<u8>),
    /// The header announces the whole body. The connection closes after this number of bytes.
    BrokenOff(Vec<u8>, usize),
    /// This number of bytes after each pause.
    Dripping(Vec<u8>, usize, Duration),
    /// This number of bytes, and then nothing for a long time.
    Stalled(Vec<u8>, usize),
    /// Bytes that are not HTTP.
    Raw(Vec<u8>),
    /// A status code, additional headers that each end with CR LF, and the body.
    Headers(u16, String, Vec<u8>),
    /// The first answer if the request has this Authorization header, else the second.
    Authorized(&'static str, Box<Answer>, Box<Answer>),
    /// The first answer this number of times, then the second.
    Times(usize, Box<Answer>, Box<Answer>),
}

/// A request that the registry has received.
#[derive(Clone, Debug)]
pub struct ReceivedRequest {
    pub path: String,
    pub authorization: Option<String>,
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The registry. Its threads run until the test's process exits.
pub struct Registry {
    pub address: String,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    requests: Arc<Mutex<Vec<ReceivedRequest>>>,
}

impl Registry {
    /// Listens on loopback in the network namespace of the process `pid`.
    pub fn start(pid: u32) -> Self {
        Self::start_at(pid, "127.0.0.1:0")
    }

    /// Listens on an address in the network namespace of the process `pid`.
    pub fn start_at(pid: u32, address: &'static str) -> Self {
        let answers: Arc<Mutex<HashMap<String, Answer>>> = Arc::default();
        let requests: Arc<Mutex<Vec<ReceivedRequest>>> = Arc::default();
        let (shared, log) = (answers.clone(), requests.clone());
        // setns(2) changes the network namespace of one thread. A socket stays in the namespace in which it was
        // created.
        let listener = std::thread::spawn(move || {
            let namespace = File::open(format!("/proc/{pid}/ns/net")).unwrap();
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))
                .unwrap();
            TcpListener::bind(address).unwrap()
        })
        .join()
        .unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answers, log) = (shared.clone(), log.clone());
                std::thread::spawn(move || serve(&stream, &answers, &log));
            }
        });
        Self { address, answers, requests }
    }

    /// Returns all requests in the order in which they arrived.
    pub fn asked(&self) -> Vec<ReceivedRequest> {
        self.requests.lock().unwrap().clone()
    }

    /// Returns the number of requests for a path.
    pub fn times(&self, path: &str) -> usize {
        // Requests to a mirror name the original registry in the query.
        let same = |asked: &ReceivedRequest| asked.path == path || asked.path.split('?').next() == Some(path);
        self.asked().iter().filter(|asked| same(asked)).count()
    }

    /// Returns the bytes of the answer to a path.
    pub fn answer_of(&self, path: &str) -> Option<Vec<u8>> {
        match self.answers.lock().unwrap().get(path)? {
            Answer::Whole(_, _, bytes) | Answer::Headers(_, _, bytes) => Some(bytes.clone()),
            _ => None,
        }
    }

    /// Sets the answer to a path.
    pub fn answer(&self, path: impl Into<String>, answer: Answer) {
        self.answers.lock().unwrap().insert(path.into(), answer);
    }

    /// Adds a blob and returns its digest.
    pub fn blob(&self, name: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, bytes);
        let answer = Answer::Whole(200, "application/octet-stream", bytes.to_vec());
        self.answer(format!("/v2/{name}/blobs/{digest}"), answer);
        digest
    }

    /// Adds a manifest under a tag and under its digest. Returns the digest.
    pub fn manifest(&self, name: &str, tag: &str, manifest: &serde_json::Value) -> Digest {
        let bytes = manifest.to_string().into_bytes();
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        for place in [tag, &digest.to_string()] {
            let answer = Answer::Whole(200, MANIFEST, bytes.clone());
            self.answer(format!("/v2/{name}/manifests/{place}"), answer);
        }
        digest
    }

    /// Adds an image `name:1` with one layer: the layer's bytes as they are sent, and the diff id in its config.
    /// Returns the path of the layer.
    pub fn image(&self, name: &str, layer: &[u8], diff_id: &Digest) -> String {
        self.layers(name, &[(layer.to_vec(), diff_id.clone())]).remove(0)
    }

    /// Adds an image `name:1` with several layers and returns their paths.
    pub fn layers(&self, name: &str, layers: &[(Vec<u8>, Digest)]) -> Vec<String> {
        let diff_ids: Vec<_> = layers.iter().map(|(_, diff_id)| diff_id).collect();
        let config = serde_json::json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
            "config": { "Cmd": ["sh"] }, "rootfs": { "type": "layers", "diff_ids": diff_ids },
        })
        .to_string();
        let config_digest = Digest::of(Algorithm::Sha256, config.as_bytes());
        let octets = "application/octet-stream";
        let blobs = format!("/v2/{name}/blobs");
        let (mut descriptors, mut paths) = (Vec::new(), Vec::new());
        for (layer, _) in layers {
            let digest = Digest::of(Algorithm::Sha256, layer);
            descriptors.push(serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": layer.len() }));
            let path = format!("{blobs}/{digest}");
            self.answer(path.as_str(), Answer::Whole(200, octets, layer.clone()));
            paths.push(path);
        }
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest,
                        "size": config.len() },
            "layers": descriptors,
        });
        self.manifest(name, "1", &manifest);
        self.answer(format!("{blobs}/{config_digest}"), Answer::Whole(200, octets, config.into_bytes()));
        paths
    }
}

fn serve(stream: &TcpStream, answers: &Mutex<HashMap<String, Answer>>, log: &Mutex<Vec<ReceivedRequest>>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request).unwrap_or(0) == 0 {
            return;
        }
        let mut line = String::new();
        let mut authorization = None;
        while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
            if let Some((_, value)) =
                line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("authorization"))
            {
                authorization = Some(value.trim().to_owned());
            }
            line.clear();
        }
        let target = request.split(' ').nth(1).unwrap_or_default();
        // A request to a proxy has the whole URL.
        let host = target.strip_prefix("http://").unwrap_or_default();
        let path = host.find('/').map_or(target, |start| &host[start..]);
        log.lock()
            .unwrap()
            .push(ReceivedRequest { path: target.to_owned(), authorization: authorization.clone() });
        let is_head = request.starts_with("HEAD");
        let missing = Answer::Whole(404, "text/plain", b"none".to_vec());
        let mut known = answers.lock().unwrap();
        let place = if known.contains_key(path) { path } else { path.split('?').next().unwrap_or_default() };
        let answer = known.get_mut(place).map_or(missing, |answer| {
            if let Answer::Times(left, first, then) = answer {
                if *left > 0 {
                    *left -= 1;
                    return (**first).clone();
                }
                return (**then).clone();
            }
            answer.clone()
        });
        drop(known);
        let answer = match answer {
            Answer::Authorized(header, first, _) if authorization.as_deref() == Some(header) => *first,
            Answer::Authorized(_, _, second) => *second,
            other => other,
        };
        if !send(stream, answer, is_head) {
            drop(stream.shutdown(std::net::Shutdown::Both));
            return;
        }
    }
}

/// Sends an answer. Returns whether the connection stays open.
fn send(mut stream: &TcpStream, answer: Answer, is_head: bool) -> bool {
    let head = |code: u16, kind: &str, body: &[u8]| {
        let digest = Digest::of(Algorithm::Sha256, body);
        format!(
            "HTTP/1.1 {code} x\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {digest}\r\n\r\n",
            body.len()
        )
    };
    let (head, body, goes_on) = match answer {
        Answer::Whole(code, kind, body) => (head(code, kind, &body), body, true),
        Answer::BrokenOff(body, sent) => {
            (head(200, "application/octet-stream", &body), body[..sent].to_vec(), false)
        }
        Answer::Dripping(body, count, pause) => {
            let mut sent = stream.write_all(head(200, "application/octet-stream", &body).as_bytes()).is_ok();
            for piece in body.chunks(count) {
                sent = sent && stream.write_all(piece).is_ok();
                if !sent {
                    break;
                }
                std::thread::sleep(pause);
            }
            return sent;
        }
        Answer::Stalled(body, count) => {
            let head = head(200, "application/octet-stream", &body).into_bytes();
            if stream.write_all(&[head, body[..count].to_vec()].concat()).is_ok() {
                std::thread::sleep(Duration::from_secs(3600));
            }
            return false;
        }
        Answer::Raw(body) => (String::new(), body, false),
        Answer::Headers(code, more, body) => {
            (format!("HTTP/1.1 {code} x\r\nContent-Length: {}\r\n{more}\r\n", body.len()), body, true)
        }
        Answer::Authorized(..) | Answer::Times(..) => {
            panic!("Authorized and Times are resolved before an answer is sent")
        }
    };
    let body = if is_head { Vec::new() } else { body };
    stream.write_all(&[head.into_bytes(), body].concat()).is_ok() && goes_on
}
