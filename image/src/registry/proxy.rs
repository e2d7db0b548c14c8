//! Connections through a proxy. The environment configures it (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`,
//! `NO_PROXY`, in upper or lower case). TLS uses a tunnel (RFC 9110, 9.3.6 "CONNECT"), plain requests have
//! the absolute URL, and SOCKS version 5 (RFC 1928) is used for both. If the proxy's URL is `https`, the
//! connection to it uses TLS. Hosts on this machine are always contacted directly.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::uri::{Scheme, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower::Service;

use super::no_proxy::NoProxy;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The configured proxies.
#[derive(Clone, Default)]
pub struct Proxies {
    http: Option<Arc<Proxy>>,
    https: Option<Arc<Proxy>>,
    no: NoProxy,
}

/// One proxy.
#[derive(Clone)]
struct Proxy {
    kind: ProxyKind,
    /// A URL with scheme `http` or `https` and a port.
    address: Uri,
    user: Option<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProxyKind {
    Http,
    Socks,
    /// An unsupported scheme. It is reported when the proxy is used.
    Unknown,
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The addresses may contain passwords.
        f.write_str("Proxies")
    }
}

impl Proxies {
    /// Returns the proxies of the environment whose variables `get` reads. The upper-case name takes
    /// precedence, as in Go.
    #[must_use]
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Self {
        let read = |name: &str| {
            let set = |name: &str| get(name).filter(|value| !value.is_empty());
            set(name).or_else(|| set(&name.to_ascii_lowercase()))
        };
        let proxy = |name: &str| {
            let text = read(name).or_else(|| read("ALL_PROXY"))?;
            Proxy::parse(&text).map(Arc::new)
        };
        let no = NoProxy::parse(&read("NO_PROXY").unwrap_or_default());
        Self { http: proxy("HTTP_PROXY"), https: proxy("HTTPS_PROXY"), no }
    }

    /// Returns the proxies of this process's environment.
    #[must_use]
    pub fn of_process() -> Self {
        Self::from_env(|name| std::env::var(name).ok())
    }

    /// Returns one proxy for all hosts except those in `no`, a list as in `NO_PROXY`.
    #[must_use]
    pub fn all(proxy: &str, no: &str) -> Self {
        let proxy = Proxy::parse(proxy).map(Arc::new);
        Self { http: proxy.clone(), https: proxy, no: NoProxy::parse(no) }
    }

    /// Returns the proxy for an address.
    fn of(&self, uri: &Uri) -> Option<&Proxy> {
        let tls = uri.scheme() == Some(&Scheme::HTTPS);
        let proxy = if tls { &self.https } else { &self.http };
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        proxy.as_deref().filter(|_| !self.no.covers(uri.host().unwrap_or_default(), port))
    }

    /// Returns the header for the proxy in a plain request to this address.
    pub(super) fn authorization(&self, uri: &Uri) -> Option<HeaderValue> {
        if uri.scheme() != Some(&Scheme::HTTP) {
            return None;
        }
        self.of(uri).filter(|proxy| proxy.kind == ProxyKind::Http)?.authorization()
    }
}

impl Proxy {
    /// Parses a URL. Without a scheme it is `http`.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once("://").unwrap_or(("http", text.trim()));
        let rest = rest.split('/').next()?;
        let (user, host) = match rest.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, rest),
        };
        let (kind, tls, port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (ProxyKind::Http, false, 80),
            "https" => (ProxyKind::Http, true, 443),
            // In Go, the proxy resolves names in both cases.
            "socks5" | "socks5h" => (ProxyKind::Socks, false, 1080),
            _ => (ProxyKind::Unknown, false, 80),
        };
        let authority: http::uri::Authority = host.parse().ok()?;
        let port = authority.port_u16().unwrap_or(port);
        let scheme = if tls { "https" } else { "http" };
        let address = format!("{scheme}://{}:{port}", authority.host()).parse().ok()?;
        let user = user.map(|user| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            (decoded(name), decoded(password))
        });
        Some(Self { kind, address, user })
    }

    fn authorization(&self) -> Option<HeaderValue> {
        let (name, password) = self.user.as_ref()?;
        let text = format!("Basic {}", STANDARD.encode(format!("{name}:{password}")));
        let mut header = HeaderValue::from_str(&text).ok()?;
        header.set_sensitive(true);
        Some(header)
    }
}

/// Decodes percent-encoding (RFC 3986, 2.1).
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        match code.filter(|_| *first == b'%').and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Connects directly or through a proxy.
#[derive(Clone)]
pub(super) struct Connector {
    direct: HttpConnector,
    /// Connects to a proxy. Its certificate is verified like those of the servers behind it, as in Go.
    to_proxy: HttpsConnector<HttpConnector>,
    proxies: Proxies,
}

impl Connector {
    pub(super) fn new(direct: HttpConnector, tls: ClientConfig, proxies: Proxies) -> Self {
        let to_proxy = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(direct.clone());
        Self { direct, to_proxy, proxies }
    }

    /// Connects to the server, or to the proxy in its place.
    async fn connect(mut self, uri: Uri) -> Result<Stream, BoxError> {
        let Some(proxy) = self.proxies.of(&uri) else {
            let inner = MaybeHttpsStream::Http(Service::call(&mut self.direct, uri).await?);
            return Ok(Stream { inner, absolute_form: false });
        };
        let tls = uri.scheme() == Some(&Scheme::HTTPS);
        let proxy_error = |error: BoxError| -> BoxError {
            format!("proxy {}: {error}", proxy.address.host().unwrap_or_default()).into()
        };
        let address = proxy.address.clone();
        let (inner, absolute_form) = match proxy.kind {
            ProxyKind::Unknown => {
                return Err("unsupported proxy: only http, https and socks5 are supported".into());
            }
            ProxyKind::Socks => {
                let mut socks = SocksV5::new(address, self.to_proxy);
                if let Some((name, password)) = proxy.user.clone() {
                    socks = socks.with_auth(name, password);
                }
                let connected = Service::call(&mut socks, with_port(&uri, tls)?).await;
                (connected.map_err(|error| proxy_error(error.into()))?, false)
            }
            ProxyKind::Http if tls => {
                let mut tunnel = Tunnel::new(address, self.to_proxy);
                if let Some(header) = proxy.authorization() {
                    tunnel = tunnel.with_auth(header);
                }
                (Service::call(&mut tunnel, uri).await.map_err(|error| proxy_error(error.into()))?, false)
            }
            ProxyKind::Http => (Service::call(&mut self.to_proxy, address).await.map_err(proxy_error)?, true),
        };
        Ok(Stream { inner, absolute_form })
    }
}

/// Returns the URL with its port: SOCKS has no default ports.
fn with_port(uri: &Uri, tls: bool) -> Result<Uri, BoxError> {
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let scheme = uri.scheme_str().unwrap_or("http");
    Ok(format!("{scheme}://{}:{port}/", uri.host().unwrap_or_default()).parse()?)
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Service::poll_ready(&mut self.direct, context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// A connection. If `absolute_form` is set, requests on it have the absolute URL.
#[derive(Debug)]
pub(super) struct Stream {
    inner: MaybeHttpsStream<TokioIo<TcpStream>>,
    absolute_form: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.inner.connected().proxy(self.absolute_form)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, buffers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_and_excepted_hosts_are_contacted_directly() {
        let proxies = Proxies::all("http://user:secret@proxy.example:3128", "inside.example,10.0.0.0/8");
        let of = |uri: &str| proxies.of(&uri.parse().unwrap());
        let proxy = of("https://registry.example/v2/").unwrap();
        assert_eq!(proxy.address, "http://proxy.example:3128/");
        assert_eq!(proxy.authorization().unwrap(), "Basic dXNlcjpzZWNyZXQ=");
        assert!(of("http://registry.example/v2/").is_some());
        for direct in [
            "https://inside.example/",
            "https://deep.inside.example/",
            "http://10.1.2.3:5000/",
            "http://127.0.0.1:5000/",
            "http://localhost:5000/",
            "http://[::1]:5000/",
        ] {
            assert!(of(direct).is_none(), "{direct}");
        }
        assert!(!format!("{proxies:?}").contains("secret"));
        assert!(proxies.authorization(&"http://registry.example/".parse().unwrap()).is_some());
        assert!(proxies.authorization(&"https://registry.example/".parse().unwrap()).is_none());
    }

    #[test]
    fn the_environment_is_parsed_as_in_go() {
        let of = |set: &[(&str, &str)], uri: &str| {
            let get =
                |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
            Proxies::from_env(get).of(&uri.parse().unwrap()).map(|proxy| proxy.address.to_string())
        };
        let plain = ("HTTP_PROXY", "http://10.92.0.1:3128");
        for no in ["*.test", "reg.test:5000"] {
            assert_eq!(of(&[plain, ("NO_PROXY", no)], "http://reg.test:5000/v2/"), None, "{no}");
        }
        assert_eq!(of(&[plain, ("NO_PROXY", "10.92.0.1:5000")], "http://10.92.0.1:5000/v2/"), None);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(of(&[plain], "http://reg.test/"), some("http://10.92.0.1:3128/"));
        assert_eq!(of(&[plain], "https://reg.test/"), None);
        assert_eq!(of(&[("https_proxy", "p.test")], "https://reg.test/"), some("http://p.test:80/"));
        let both = [("HTTPS_PROXY", "https://one.test"), ("https_proxy", "https://two.test")];
        assert_eq!(of(&both, "https://reg.test/"), some("https://one.test:443/"));
        let fallback = [("HTTPS_PROXY", ""), ("ALL_PROXY", "socks5://s.test")];
        assert_eq!(of(&fallback, "https://reg.test/"), some("http://s.test:1080/"));
    }

    #[test]
    fn addresses_of_proxies_are_parsed() {
        let parse =
            |text: &str| Proxy::parse(text).map(|proxy| (proxy.kind, proxy.address.to_string(), proxy.user));
        let user = |name: &str, password: &str| Some((name.to_owned(), password.to_owned()));
        for (text, kind, address, expected) in [
            ("p.test:3128", ProxyKind::Http, "http://p.test:3128/", None),
            ("http://u@p.test", ProxyKind::Http, "http://p.test:80/", user("u", "")),
            ("HTTPS://u:p%40ss@p.test/", ProxyKind::Http, "https://p.test:443/", user("u", "p@ss")),
            ("socks5h://[::1]:9", ProxyKind::Socks, "http://[::1]:9/", None),
            ("quic://p.test", ProxyKind::Unknown, "http://p.test:80/", None),
        ] {
            assert_eq!(parse(text), Some((kind, address.to_owned(), expected)), "{text}");
        }
        assert!(Proxy::parse("http://").is_none() && Proxy::parse("").is_none());
    }
}
