//! Tests of registries that are reached through TLS and proxies of all kinds, with private certificates. They
//! run as root, as the store does.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test panics")]

mod support;

use std::fs;
use std::sync::{Arc, Mutex};

use berth_image::{ErrorKind, Image, ImageStore, Options, Proxies};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use support::registry::Registry;
use support::simple;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A registry with TLS. The proxies have the same certificate.
struct Network {
    folder: tempfile::TempDir,
    registry: Registry,
    tls: TlsAcceptor,
    /// The address of the registry with TLS.
    secure: String,
    requests: Arc<Mutex<Vec<String>>>,
}

async fn network() -> Network {
    let key = KeyPair::generate().unwrap();
    let names = ["secure.example", "127.0.0.1"].map(str::to_owned);
    let mut params = CertificateParams::new(names).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("certs.d/secure.example");
    fs::create_dir_all(&hosts).unwrap();
    fs::write(hosts.join("ca.crt"), certificate.pem()).unwrap();
    let plain = folder.path().join("certs.d/plain.example");
    fs::create_dir_all(&plain).unwrap();
    fs::write(plain.join("hosts.toml"), "server = \"http://plain.example\"\n").unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    let tls = TlsAcceptor::from(Arc::new(config));
    let registry = Registry::start(std::process::id());
    registry.image("image", &simple("x").0, &simple("x").1);
    let (acceptor, to) = (tls.clone(), registry.address.clone());
    let secure = listen(move |stream| {
        let (acceptor, to) = (acceptor.clone(), to.clone());
        async move {
            let mut stream = acceptor.accept(stream).await.unwrap();
            relay(&mut stream, &to).await;
        }
    })
    .await;
    Network { folder, registry, tls, secure, requests: Arc::default() }
}

impl Network {
    /// Starts an HTTP proxy, with or without TLS. Returns its address.
    async fn http_proxy(&self, by_tls: bool) -> String {
        let (tls, requests) = (self.tls.clone(), self.requests.clone());
        let (secure, plain) = (self.secure.clone(), self.registry.address.clone());
        listen(move |stream| {
            let (tls, requests) = (tls.clone(), requests.clone());
            let (secure, plain) = (secure.clone(), plain.clone());
            async move {
                match by_tls {
                    true => http_proxy(tls.accept(stream).await.unwrap(), &requests, &secure, &plain).await,
                    false => http_proxy(stream, &requests, &secure, &plain).await,
                }
            }
        })
        .await
    }

    /// Starts a SOCKS proxy that requires a user. Returns its address.
    async fn socks_proxy(&self) -> String {
        let requests = self.requests.clone();
        let (secure, plain) = (self.secure.clone(), self.registry.address.clone());
        listen(move |stream| {
            let (requests, secure, plain) = (requests.clone(), secure.clone(), plain.clone());
            async move { socks_proxy(stream, &requests, &secure, &plain).await }
        })
        .await
    }

    async fn pull(&self, proxy: &str, name: &str) -> Result<Arc<Image>, berth_image::Error> {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            certs_dirs: vec![self.folder.path().join("certs.d")],
            proxies: Proxies::all(proxy, ""),
            ..Options::new(folder.path())
        };
        ImageStore::open(options).await.unwrap().pull(&name.parse().unwrap(), None).await
    }

    fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

async fn listen<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> String
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

async fn relay(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), to: &str) {
    let mut server = TcpStream::connect(to).await.unwrap();
    // Either side may close first.
    drop(copy_bidirectional(stream, &mut server).await);
}

async fn http_proxy(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    requests: &Mutex<Vec<String>>,
    secure: &str,
    plain: &str,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    requests.lock().unwrap().push(text.lines().next().unwrap_or_default().to_owned());
    if !text.to_ascii_lowercase().contains("proxy-authorization: basic dtpw\r\n") {
        stream.write_all(b"HTTP/1.1 407 who\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        return;
    }
    if text.starts_with("CONNECT ") {
        stream.write_all(b"HTTP/1.1 200 go\r\n\r\n").await.unwrap();
        return relay(&mut stream, secure).await;
    }
    let mut server = TcpStream::connect(plain).await.unwrap();
    server.write_all(&head).await.unwrap();
    drop(copy_bidirectional(&mut stream, &mut server).await);
}

/// Serves RFC 1928, and RFC 1929 for the user.
async fn socks_proxy(mut stream: TcpStream, requests: &Mutex<Vec<String>>, secure: &str, plain: &str) {
    let mut greeting = vec![0; 2];
    stream.read_exact(&mut greeting).await.unwrap();
    let mut methods = vec![0; usize::from(greeting[1])];
    stream.read_exact(&mut methods).await.unwrap();
    assert!(methods.contains(&2), "a user is offered: {methods:?}");
    stream.write_all(&[5, 2]).await.unwrap();
    let word = async |stream: &mut TcpStream| {
        let length = stream.read_u8().await.unwrap();
        let mut word = vec![0; length.into()];
        stream.read_exact(&mut word).await.unwrap();
        String::from_utf8(word).unwrap()
    };
    assert_eq!(stream.read_u8().await.unwrap(), 1);
    let (user, password) = (word(&mut stream).await, word(&mut stream).await);
    assert_eq!((user.as_str(), password.as_str()), ("u", "p"));
    stream.write_all(&[1, 0]).await.unwrap();
    let mut request = [0; 4];
    stream.read_exact(&mut request).await.unwrap();
    assert_eq!(request, [5, 1, 0, 3], "the proxy resolves the name");
    let host = word(&mut stream).await;
    let port = stream.read_u16().await.unwrap();
    requests.lock().unwrap().push(format!("{host}:{port}"));
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
    relay(&mut stream, if port == 443 { secure } else { plain }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_of_all_kinds_reach_servers_of_all_kinds() {
    let network = network().await;
    let http = network.http_proxy(false).await;
    let https = network.http_proxy(true).await;
    let socks = network.socks_proxy().await;
    for proxy in [format!("http://u:p@{http}"), format!("u:p@{http}"), format!("https://u:p@{https}")] {
        let pulled = network.pull(&proxy, "secure.example/image:1").await;
        pulled.unwrap_or_else(|error| panic!("{proxy}: {error}"));
        let requests = network.take_requests();
        assert!(
            requests.iter().all(|line| line == "CONNECT secure.example:443 HTTP/1.1"),
            "{proxy}: {requests:?}"
        );
        assert!(!requests.is_empty());
    }
    network.pull(&format!("http://u:p@{http}"), "plain.example/image:1").await.unwrap();
    let requests = network.take_requests();
    assert_eq!(requests[0], "GET http://plain.example/v2/image/manifests/1 HTTP/1.1");
    for scheme in ["socks5", "socks5h"] {
        for (name, place) in [("secure.example", "secure.example:443"), ("plain.example", "plain.example:80")]
        {
            let pulled = network.pull(&format!("{scheme}://u:p@{socks}"), &format!("{name}/image:1")).await;
            pulled.unwrap_or_else(|error| panic!("{scheme} {name}: {error}"));
            let requests = network.take_requests();
            assert!(!requests.is_empty() && requests.iter().all(|request| request == place), "{requests:?}");
        }
    }
    // A proxy whose certificate is not trusted receives no request. It is unknown without the registry's
    // authority.
    let error = network.pull(&format!("https://u:p@{https}"), "plain.example/image:1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(network.take_requests().is_empty(), "{error}");
    let error = network.pull("quic://proxy.example", "secure.example/image:1").await.unwrap_err();
    assert!(error.to_string().contains("only http, https and socks5"), "{error}");
}
