//! A registry in the daemon's network namespace that says what a test tells it to: bytes by path, sent whole or in part.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_image::{Algorithm, Digest};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What is answered to a path.
#[derive(Clone)]
pub enum Answer {
    /// A status line's code, a media type, the body.
    Whole(u16, &'static str, Vec<u8>),
    /// The header promises all of it, and the connection ends after so many bytes.
    BrokenOff(Vec<u8>, usize),
    /// So many bytes at once, and again after each pause.
    Dripping(Vec<u8>, usize, Duration),
    /// So many bytes, and then nothing for a long time.
    Stalled(Vec<u8>, usize),
    /// What is no HTTP at all.
    Raw(Vec<u8>),
    /// With more headers, each ended by CR LF.
    Headers(u16, String, Vec<u8>),
    /// The first to who sends this header of authorization, the second to others.
    Authorized(&'static str, Box<Answer>, Box<Answer>),
    /// The first so many times, then the second.
    Times(usize, Box<Answer>, Box<Answer>),
}

/// What somebody has asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub authorization: Option<String>,
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The registry; its threads end with the test's process.
pub struct Registry {
    pub address: String,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Registry {
    /// Listens on loopback in the network namespace of the process `pid`.
    pub fn start(pid: u32) -> Self {
        Self::start_at(pid, "127.0.0.1:0")
    }

    /// The same at an address of its choice.
    pub fn start_at(pid: u32, address: &'static str) -> Self {
        let answers: Arc<Mutex<HashMap<String, Answer>>> = Arc::default();
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (shared, log) = (answers.clone(), asked.clone());
        // A thread has a network namespace of its own (setns(2)); what it listens on stays there.
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
        Self { address, answers, asked }
    }

    /// What was asked for, in the order in which it came.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// How often a path was asked for.
    pub fn times(&self, path: &str) -> usize {
        // Mirrors are told by a query which registry they stand for.
        let same = |asked: &Asked| asked.path == path || asked.path.split('?').next() == Some(path);
        self.asked().iter().filter(|asked| same(asked)).count()
    }

    /// The bytes that are answered to a path.
    pub fn answer_of(&self, path: &str) -> Option<Vec<u8>> {
        match self.answers.lock().unwrap().get(path)? {
            Answer::Whole(_, _, bytes) | Answer::Headers(_, _, bytes) => Some(bytes.clone()),
            _ => None,
        }
    }

    /// From now on `path` is answered so.
    pub fn answer(&self, path: impl Into<String>, answer: Answer) {
        self.answers.lock().unwrap().insert(path.into(), answer);
    }

    /// Has a blob; its digest is returned.
    pub fn blob(&self, name: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(Algorithm::Sha256, bytes);
        let answer = Answer::Whole(200, "application/octet-stream", bytes.to_vec());
        self.answer(format!("/v2/{name}/blobs/{digest}"), answer);
        digest
    }

    /// Has a manifest under a tag and under its digest, which is returned.
    pub fn manifest(&self, name: &str, tag: &str, manifest: &serde_json::Value) -> Digest {
        let bytes = manifest.to_string().into_bytes();
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        for place in [tag, &digest.to_string()] {
            let answer = Answer::Whole(200, MANIFEST, bytes.clone());
            self.answer(format!("/v2/{name}/manifests/{place}"), answer);
        }
        digest
    }

    /// Has an image of one layer under `name:1`: the layer's bytes as they are sent, and the diff id that its config
    /// promises. The layer's path is returned.
    pub fn image(&self, name: &str, layer: &[u8], diff_id: &Digest) -> String {
        self.layers(name, &[(layer.to_vec(), diff_id.clone())]).remove(0)
    }

    /// The same with any number of layers.
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

fn serve(stream: &TcpStream, answers: &Mutex<HashMap<String, Answer>>, log: &Mutex<Vec<Asked>>) {
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
        // Who asks a proxy names the whole address.
        let host = target.strip_prefix("http://").unwrap_or_default();
        let path = host.find('/').map_or(target, |start| &host[start..]);
        log.lock().unwrap().push(Asked { path: target.to_owned(), authorization: authorization.clone() });
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

/// Whether the connection goes on.
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
        Answer::Authorized(..) | Answer::Times(..) => panic!("nested the wrong way round"),
    };
    let body = if is_head { Vec::new() } else { body };
    stream.write_all(&[head.into_bytes(), body].concat()).is_ok() && goes_on
}
