//! Protocol negotiation between a client and the server: SPDY or WebSocket, and the version of the protocol
//! above it. Pure functions from request headers to response headers.

use base64::Engine;
use http::header::{CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY};
use http::header::{SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::websocket::Coding;

/// The header in which SPDY clients list their versions and the server returns its choice.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// The header that lists the versions of the server (k8s.io/streaming, httpstream).
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// The GUID that is hashed with a client's key (RFC 6455, section 1.3).
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// How the exit of a command is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportFormat {
    /// As text, if it failed.
    Text,
    /// As a `metav1.Status`, with the exit code (version 4).
    Status,
}

/// A version of the protocol for commands over SPDY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandVersion {
    /// How the exit is reported.
    pub report_format: ReportFormat,
    /// A terminal's size has a stream (version 3).
    pub resizes: bool,
}

/// The negotiated protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Negotiated {
    /// SPDY streams of a command.
    SpdyCommand(CommandVersion),
    /// WebSocket channels of a command.
    ChannelsCommand {
        /// The encoding of messages.
        coding: Coding,
        /// How the exit is reported.
        report_format: ReportFormat,
        /// The client can close a channel (version 5).
        closes: bool,
    },
    /// SPDY streams of forwarded ports.
    SpdyPorts,
    /// SPDY streams of forwarded ports, in a WebSocket tunnel.
    TunnelPorts,
    /// WebSocket channels of forwarded ports.
    ChannelsPorts {
        /// The encoding of messages.
        coding: Coding,
    },
}

/// The response to a request that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status of the response.
    pub status: StatusCode,
    /// The reason, for people.
    pub reason: String,
    /// Additional headers of the response.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// The kind of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Exec and Attach.
    Command,
    /// Connections to ports of a pod (PortForward).
    Ports,
}

type ProtocolTable = [(&'static str, Negotiated)];

const fn spdy(report_format: ReportFormat, resizes: bool) -> Negotiated {
    Negotiated::SpdyCommand(CommandVersion { report_format, resizes })
}

const fn channels(coding: Coding, report_format: ReportFormat, closes: bool) -> Negotiated {
    Negotiated::ChannelsCommand { coding, report_format, closes }
}

/// No name means the oldest version, as in containerd and CRI-O.
const SPDY_COMMAND: &ProtocolTable = &[
    ("v4.channel.k8s.io", spdy(ReportFormat::Status, true)),
    ("v3.channel.k8s.io", spdy(ReportFormat::Text, true)),
    ("v2.channel.k8s.io", spdy(ReportFormat::Text, false)),
    ("channel.k8s.io", spdy(ReportFormat::Text, false)),
    ("", spdy(ReportFormat::Text, false)),
];

const SPDY_PORTS: &ProtocolTable =
    &[("portforward.k8s.io", Negotiated::SpdyPorts), ("", Negotiated::SpdyPorts)];

const WEBSOCKET_COMMAND: &ProtocolTable = &[
    ("v5.channel.k8s.io", channels(Coding::Binary, ReportFormat::Status, true)),
    ("v4.channel.k8s.io", channels(Coding::Binary, ReportFormat::Status, false)),
    ("v4.base64.channel.k8s.io", channels(Coding::Base64, ReportFormat::Status, false)),
    ("channel.k8s.io", channels(Coding::Binary, ReportFormat::Text, false)),
    ("base64.channel.k8s.io", channels(Coding::Base64, ReportFormat::Text, false)),
    ("", channels(Coding::Binary, ReportFormat::Text, false)),
];

const WEBSOCKET_PORTS: &ProtocolTable = &[
    ("SPDY/3.1+portforward.k8s.io", Negotiated::TunnelPorts),
    ("v4.channel.k8s.io", Negotiated::ChannelsPorts { coding: Coding::Binary }),
    ("v4.base64.channel.k8s.io", Negotiated::ChannelsPorts { coding: Coding::Base64 }),
    ("", Negotiated::ChannelsPorts { coding: Coding::Binary }),
];

/// Negotiates a protocol. Returns it with the headers of the response.
///
/// # Errors
/// The refusal to respond with.
pub fn negotiate(purpose: Purpose, request: &HeaderMap) -> Result<(Negotiated, HeaderMap), Refusal> {
    let upgrades: Vec<_> = tokens(request, &UPGRADE).collect();
    let has_upgrade = tokens(request, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let wants = |name: &str| has_upgrade && upgrades.iter().any(|token| token.eq_ignore_ascii_case(name));
    let mut answer = HeaderMap::new();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    if wants("websocket") {
        let table = match purpose {
            Purpose::Command => WEBSOCKET_COMMAND,
            Purpose::Ports => WEBSOCKET_PORTS,
        };
        let key = accept_key(request)?;
        let (name, negotiated) = choose(table, tokens(request, &SEC_WEBSOCKET_PROTOCOL))
            .ok_or_else(|| no_common_protocol(table, Vec::new()))?;
        answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
        answer.insert(SEC_WEBSOCKET_ACCEPT, key);
        if !name.is_empty() {
            answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
        }
        return Ok((negotiated, answer));
    }
    if wants("SPDY/3.1") {
        let table = match purpose {
            Purpose::Command => SPDY_COMMAND,
            Purpose::Ports => SPDY_PORTS,
        };
        let (name, negotiated) = choose(table, tokens(request, &STREAM_PROTOCOL)).ok_or_else(|| {
            let offered = table.iter().filter(|(name, _)| !name.is_empty());
            no_common_protocol(
                table,
                offered.map(|(name, _)| (ACCEPTED, HeaderValue::from_static(name))).collect(),
            )
        })?;
        answer.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        if !name.is_empty() {
            answer.insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
        }
        return Ok((negotiated, answer));
    }
    let headers = vec![(UPGRADE, HeaderValue::from_static("SPDY/3.1, websocket"))];
    let reason = "unable to upgrade: the request is for neither SPDY/3.1 nor websocket".to_owned();
    Err(Refusal { status: StatusCode::BAD_REQUEST, reason, headers })
}

/// Returns the first of the client's protocols that the server has.
fn choose<'a>(
    table: &ProtocolTable,
    offers: impl Iterator<Item = &'a str>,
) -> Option<(&'static str, Negotiated)> {
    let mut offers = offers.peekable();
    let none = offers.peek().is_none().then_some("");
    none.into_iter().chain(offers).find_map(|offer| table.iter().find(|(name, _)| *name == offer).copied())
}

fn no_common_protocol(table: &ProtocolTable, headers: Vec<(HeaderName, HeaderValue)>) -> Refusal {
    let names: Vec<_> = table.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
    let reason = format!("unable to upgrade: none of the requested protocols is one of {}", names.join(", "));
    Refusal { status: StatusCode::FORBIDDEN, reason, headers }
}

/// Returns the elements of a list header, over all its lines.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// Computes the accept key, which proves that the server speaks WebSocket (RFC 6455, section 4.2.2).
fn accept_key(request: &HeaderMap) -> Result<HeaderValue, Refusal> {
    let bad = |reason: &str| Refusal {
        status: StatusCode::BAD_REQUEST,
        reason: format!("unable to upgrade: {reason}"),
        headers: vec![(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"))],
    };
    if request.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(bad("Sec-WebSocket-Version is not 13"));
    }
    let key = request.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    let base64 = base64::engine::general_purpose::STANDARD;
    if base64.decode(key).map_or(0, |key| key.len()) != 16 {
        return Err(bad("Sec-WebSocket-Key is not 16 bytes in base64"));
    }
    let mut sha1 = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(key);
    sha1.update(WEBSOCKET_GUID);
    HeaderValue::from_str(&base64.encode(sha1.finish())).map_err(|_| bad("Sec-WebSocket-Key is invalid"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    fn spdy_request(versions: &[&'static str]) -> HeaderMap {
        let mut request = headers(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")]);
        for version in versions {
            request.append(STREAM_PROTOCOL, HeaderValue::from_static(version));
        }
        request
    }

    fn websocket_request(protocols: &'static str) -> HeaderMap {
        headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", protocols),
        ])
    }

    #[test]
    fn the_first_supported_offer_is_chosen() {
        let request = spdy_request(&["v9.channel.k8s.io", "v3.channel.k8s.io, v4.channel.k8s.io"]);
        let (negotiated, answer) = negotiate(Purpose::Command, &request).unwrap();
        assert_eq!(negotiated, spdy(ReportFormat::Text, true));
        assert_eq!(
            (&answer[STREAM_PROTOCOL], &answer[UPGRADE]),
            (&"v3.channel.k8s.io".parse().unwrap(), &"SPDY/3.1".parse().unwrap())
        );
        let (negotiated, answer) = negotiate(Purpose::Ports, &spdy_request(&[])).unwrap();
        assert_eq!((negotiated, answer.get(STREAM_PROTOCOL)), (Negotiated::SpdyPorts, None));
    }

    #[test]
    fn a_websocket_is_answered_as_in_rfc_6455() {
        let (negotiated, answer) =
            negotiate(Purpose::Command, &websocket_request("v5.channel.k8s.io, v4.channel.k8s.io")).unwrap();
        assert_eq!(negotiated, channels(Coding::Binary, ReportFormat::Status, true));
        // The example in section 1.3.
        assert_eq!(answer[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let (negotiated, _) =
            negotiate(Purpose::Ports, &websocket_request("SPDY/3.1+portforward.k8s.io")).unwrap();
        assert_eq!(negotiated, Negotiated::TunnelPorts);
    }

    #[test]
    fn unsupported_protocols_are_refused_with_the_supported_ones() {
        let refusal = negotiate(Purpose::Command, &spdy_request(&["v9.channel.k8s.io"])).unwrap_err();
        assert_eq!(refusal.status, StatusCode::FORBIDDEN);
        assert_eq!(refusal.headers.iter().filter(|(name, _)| *name == ACCEPTED).count(), 4);
        let refusal = negotiate(Purpose::Ports, &websocket_request("v5.channel.k8s.io")).unwrap_err();
        assert_eq!(refusal.status, StatusCode::FORBIDDEN);
        for request in [HeaderMap::new(), headers(&[("upgrade", "SPDY/3.1")])] {
            let refusal = negotiate(Purpose::Command, &request).unwrap_err();
            assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
        }
        let mut old = websocket_request("");
        old.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("8"));
        assert_eq!(negotiate(Purpose::Command, &old).unwrap_err().status, StatusCode::BAD_REQUEST);
    }
}
