//! HTTP connections: one pool for each TLS configuration, timeouts for connecting and answering, and
//! redirects that do not send credentials to another origin (CVE-2020-15157).
//!
//! * this file: sends requests and reads answers; [`redirect`](mod@redirect): redirects; [`traced`](mod@traced): traces of requests

pub(crate) mod redirect;
pub(crate) mod traced;

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{PROXY_AUTHORIZATION, USER_AGENT};
use http::uri::Uri;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::Timeouts;
use super::proxy::{Connector, Proxies};
use super::tls::{Tls, tls_config};
use crate::error::Error;
use crate::printable::Printable;
pub(crate) use redirect::join;
use redirect::{RetainCrossOrigin as _, origin, redirect};
use traced::trace;
pub(crate) use traced::traced;

type HttpClient = Client<HttpsConnector<Connector>, Full<Bytes>>;
const MAX_REDIRECTS: usize = 10;
const AGENT: &str = concat!("berth/", env!("CARGO_PKG_VERSION"));

/// The time for which an unused connection is kept. A pull reuses it; an idle node has none.
const IDLE: Duration = Duration::from_secs(20);

/// The limit of hyper's buffer for one connection. It is below the size from which the allocator maps and
/// unmaps each buffer, which costs a fifth of the time of a pull (`berth_runtime::sys::memory`).
const READ_BUFFER: usize = 128 << 10;

/// A request that can be sent repeatedly.
#[derive(Clone, Debug)]
pub(crate) struct OutgoingRequest {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl OutgoingRequest {
    pub(crate) fn get(uri: Uri) -> Self {
        Self { method: Method::GET, uri, headers: HeaderMap::new(), body: Bytes::new() }
    }
}

/// The connections of all pulls.
pub(crate) struct HttpTransport {
    pools: Mutex<HashMap<Tls, HttpClient>>,
    timeouts: Timeouts,
    proxies: Proxies,
}

impl fmt::Debug for HttpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("timeouts", &self.timeouts).finish_non_exhaustive()
    }
}

impl HttpTransport {
    pub(crate) fn new(timeouts: Timeouts, proxies: Proxies) -> Self {
        Self { pools: Mutex::new(HashMap::new()), timeouts, proxies }
    }

    /// Sends a request and follows redirects. The body of the answer is not read.
    pub(crate) async fn send(
        &self,
        tls: &Tls,
        mut outgoing: OutgoingRequest,
    ) -> Result<Response<Incoming>, Error> {
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_once(tls, &outgoing).await?;
            let Some(target) = redirect(&response, &outgoing.uri)? else {
                return Ok(response);
            };
            if origin(&target) != origin(&outgoing.uri) {
                // This includes the headers of hosts.toml, which may be secrets. Only Range and Accept are
                // kept.
                outgoing.headers.retain_cross_origin();
            }
            tracing::debug!(from = %without_query(&outgoing.uri), to = %without_query(&target), "following redirect");
            outgoing.uri = target;
        }
        Err(Error::unavailable(without_query(&outgoing.uri), format!("more than {MAX_REDIRECTS} redirects")))
    }

    async fn send_once(&self, tls: &Tls, outgoing: &OutgoingRequest) -> Result<Response<Incoming>, Error> {
        let client = self.client(tls)?;
        let what = without_query(&outgoing.uri);
        let mut request = Request::builder().method(&outgoing.method).uri(&outgoing.uri);
        if let Some(headers) = request.headers_mut() {
            headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
            headers.extend(outgoing.headers.clone());
            if let Some(header) = self.proxies.authorization(&outgoing.uri) {
                headers.insert(PROXY_AUTHORIZATION, header);
            }
        }
        let request = request
            .body(Full::new(outgoing.body.clone()))
            .map_err(|error| Error::invalid(what.clone(), error))?;
        let why = match tokio::time::timeout(self.timeouts.answer, client.request(request)).await {
            Ok(Ok(response)) => {
                trace(outgoing, &response.status());
                return Ok(response);
            }
            Ok(Err(error)) => causes(&error),
            Err(_) => format!("no answer within {:?}", self.timeouts.answer),
        };
        trace(outgoing, &why);
        Err(Error::unavailable(what, why))
    }

    fn client(&self, tls: &Tls) -> Result<HttpClient, Error> {
        let pooled = self.pools.lock().unwrap_or_else(PoisonError::into_inner).get(tls).cloned();
        if let Some(client) = pooled {
            return Ok(client);
        }
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(
            tls.dial_timeout.filter(|time| !time.is_zero()).unwrap_or(self.timeouts.connect),
        ));
        // HTTP/1.1: each layer has its own connection, so none waits for another's flow-control window.
        let config = tls_config(tls)?;
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(config.clone())
            .https_or_http()
            .enable_http1()
            .wrap_connector(Connector::new(http, config, self.proxies.clone()));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .http1_max_buf_size(READ_BUFFER)
            .build(connector);
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        // Replaced certificates leave unused pools behind.
        if pools.len() > 64 {
            pools.clear();
        }
        Ok(pools.entry(tls.clone()).or_insert(client).clone())
    }

    /// Reads the whole body of an answer, of at most `limit` bytes.
    pub(crate) async fn body(
        &self,
        what: &str,
        response: Response<Incoming>,
        limit: u64,
    ) -> Result<Bytes, Error> {
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        let start = Instant::now();
        loop {
            let so_far = || format!("after {} bytes in {:.1} s", bytes.len(), start.elapsed().as_secs_f64());
            let piece = match self.piece(what, &mut body).await {
                Ok(Some(piece)) => piece,
                Ok(None) => return Ok(bytes.into()),
                Err(Error::Unavailable { what, why }) => {
                    return Err(Error::unavailable(what.as_str(), format!("{why}, {}", so_far())));
                }
                Err(error) => return Err(error),
            };
            if start.elapsed() > self.timeouts.document {
                let why = format!("not complete within {:?}, cancelled {}", self.timeouts.document, so_far());
                return Err(Error::unavailable(what, why));
            }
            bytes.extend_from_slice(&piece);
            if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
                return Err(Error::limit(what, format!("larger than {limit} bytes")));
            }
        }
    }

    /// Reads the next piece of a body. Returns an error if none arrives in time.
    pub(crate) async fn piece(&self, what: &str, body: &mut Incoming) -> Result<Option<Bytes>, Error> {
        loop {
            match tokio::time::timeout(self.timeouts.stall, body.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Ok(Some(Err(error))) => return Err(Error::unavailable(what, causes(&error))),
                Err(_) => {
                    let why = format!("the transfer stalled for {:?}", self.timeouts.stall);
                    return Err(Error::unavailable(what, why));
                }
            }
        }
    }

    pub(crate) fn timeouts(&self) -> Timeouts {
        self.timeouts
    }
}

/// Returns a URL for messages. The query is removed, since it may contain signatures and tokens.
pub(crate) fn without_query(uri: &Uri) -> Printable {
    let scheme = uri.scheme_str().unwrap_or("http");
    format!("{scheme}://{}{}{}", uri.host().unwrap_or_default(), port(uri), uri.path()).into()
}

fn port(uri: &Uri) -> String {
    uri.port_u16().map(|port| format!(":{port}")).unwrap_or_default()
}

/// Returns the text of an error with all its causes: hyper's own text is only "client error (Connect)".
fn causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    /// A server of openssl that answers any request. It has its own key.
    struct OpensslServer {
        process: std::process::Child,
        folder: tempfile::TempDir,
        port: u16,
    }

    impl OpensslServer {
        fn start(key: &str) -> Self {
            use std::io::BufRead as _;
            let folder = tempfile::tempdir().unwrap();
            let mut create = std::process::Command::new("openssl");
            create.args(["req", "-newkey"]).args(key.split(' ')).current_dir(folder.path());
            create
                .args(["-nodes", "-x509", "-days", "365", "-keyout", "key", "-out", "crt", "-subj", "/CN=x"]);
            create.args(["-addext", "subjectAltName = IP:127.0.0.1"]);
            let created = create.output().unwrap();
            assert!(created.status.success(), "{key}: {}", String::from_utf8_lossy(&created.stderr));
            let mut process = std::process::Command::new("openssl")
                .args(["s_server", "-accept", "127.0.0.1:0", "-cert", "crt", "-key", "key", "-www"])
                .current_dir(folder.path())
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            let lines = std::io::BufReader::new(process.stdout.take().unwrap()).lines();
            let port = lines
                .map_while(Result::ok)
                .find_map(|line| line.strip_prefix("ACCEPT ")?.rsplit(':').next()?.parse().ok());
            Self { process, folder, port: port.unwrap() }
        }
    }

    impl Drop for OpensslServer {
        fn drop(&mut self) {
            drop(self.process.kill());
            drop(self.process.wait());
        }
    }

    #[tokio::test]
    async fn handshakes_succeed_with_the_keys_that_go_supports() {
        for key in [
            "rsa:2048",
            "ec -pkeyopt ec_paramgen_curve:P-256",
            "ec -pkeyopt ec_paramgen_curve:P-384",
            "ec -pkeyopt ec_paramgen_curve:P-521",
            "ed25519",
        ] {
            let server = OpensslServer::start(key);
            let ca = vec![std::fs::read(server.folder.path().join("crt")).unwrap()];
            let transport = HttpTransport::new(Timeouts::default(), Proxies::default());
            let uri: Uri = format!("https://127.0.0.1:{}/", server.port).parse().unwrap();
            let configured = Tls { ca, ..Tls::default() };
            let answer = transport.send(&configured, OutgoingRequest::get(uri.clone())).await;
            assert_eq!(answer.unwrap_or_else(|error| panic!("{key}: {error}")).status(), StatusCode::OK);
            let error = transport.send(&Tls::default(), OutgoingRequest::get(uri.clone())).await.unwrap_err();
            assert!(error.to_string().contains("UnknownIssuer"), "{key}: {error}");
            transport
                .send(&Tls { skip_verify: true, ..Tls::default() }, OutgoingRequest::get(uri))
                .await
                .unwrap();
        }
    }

    #[test]
    fn messages_contain_no_query_and_no_password() {
        let uri: Uri = "https://u:p@r.example:1/a?token=secret".parse().unwrap();
        assert_eq!(without_query(&uri).as_str(), "https://r.example:1/a");
    }
}
