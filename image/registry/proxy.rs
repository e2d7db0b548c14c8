//! Connections by way of a proxy, as the environment names them (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`, in
//! either case): a tunnel for TLS (RFC 9110, 9.3.6 "CONNECT"), requests with the whole address otherwise. What is on this
//! machine is never asked for through a proxy.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::HeaderValue;
use http::uri::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

use super::hosts::is_loopback;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Which proxies are used for what.
#[derive(Clone)]
pub struct Proxies {
    matcher: Arc<Matcher>,
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Their addresses may have passwords in them.
        f.write_str("Proxies")
    }
}

impl Default for Proxies {
    /// Those of the environment.
    fn default() -> Self {
        Self { matcher: Arc::new(Matcher::from_env()) }
    }
}

impl Proxies {
    /// One proxy for everything but the hosts of `no`, a list as in `NO_PROXY`.
    #[must_use]
    pub fn all(proxy: &str, no: &str) -> Self {
        Self { matcher: Arc::new(Matcher::builder().all(proxy).no(no).build()) }
    }

    /// The proxy for an address, and the header that it wants of a plain request.
    fn of(&self, uri: &Uri) -> Option<(Uri, Option<HeaderValue>)> {
        if uri.authority().is_some_and(|authority| is_loopback(authority.as_str())) {
            return None;
        }
        let intercept = self.matcher.intercept(uri)?;
        Some((intercept.uri().clone(), intercept.basic_auth().cloned()))
    }

    /// The header that a plain request to this address takes along for its proxy.
    pub(super) fn authorization(&self, uri: &Uri) -> Option<HeaderValue> {
        if uri.scheme_str() == Some("http") { self.of(uri)?.1 } else { None }
    }
}

/// Connects directly or by way of a proxy.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    pub(super) direct: HttpConnector,
    pub(super) proxies: Proxies,
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Service::poll_ready(&mut self.direct, context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let mut direct = self.direct.clone();
        let Some((proxy, authorization)) = self.proxies.of(&uri) else {
            return Box::pin(async move {
                let inner = Service::call(&mut direct, uri).await?;
                Ok(Stream { inner, asks_whole: false })
            });
        };
        Box::pin(async move {
            if proxy.scheme_str() != Some("http") {
                let scheme = proxy.scheme_str().unwrap_or_default().to_owned();
                return Err(format!("a proxy by {scheme:?} is not supported: only http").into());
            }
            let through = |error: BoxError| -> BoxError {
                let host = proxy.authority().map(http::uri::Authority::host).unwrap_or_default();
                format!("proxy {host}: {error}").into()
            };
            if uri.scheme_str() == Some("https") {
                let mut tunnel = Tunnel::new(proxy.clone(), direct);
                if let Some(header) = authorization {
                    tunnel = tunnel.with_auth(header);
                }
                let inner = Service::call(&mut tunnel, uri).await.map_err(|error| through(error.into()))?;
                return Ok(Stream { inner, asks_whole: false });
            }
            let inner =
                Service::call(&mut direct, proxy.clone()).await.map_err(|error| through(error.into()))?;
            Ok(Stream { inner, asks_whole: true })
        })
    }
}

/// A connection that knows whether requests on it name the whole address.
#[derive(Debug)]
pub(super) struct Stream {
    inner: TokioIo<TcpStream>,
    asks_whole: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.inner.connected().proxy(self.asks_whole)
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
    fn what_is_here_or_excepted_is_asked_directly() {
        let proxies = Proxies::all("http://user:secret@proxy.example:3128", "inside.example,10.0.0.0/8");
        let of = |uri: &str| proxies.of(&uri.parse().unwrap());
        let (proxy, header) = of("https://registry.example/v2/").unwrap();
        assert_eq!(proxy.authority().unwrap().host(), "proxy.example");
        assert_eq!(header.unwrap(), "Basic dXNlcjpzZWNyZXQ=");
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
}
