//! What a client and the server agree on before the connection is theirs: SPDY or WebSocket, and which version of the
//! protocol above it. Pure: headers in, headers out.

use base64::Engine;
use http::header::{CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY};
use http::header::{SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::websocket::Coding;

/// What SPDY clients name their versions in; the server's choice comes back in it.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// What the server could have offered (k8s.io/streaming, httpstream).
const ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What is hashed with a client's key (RFC 6455, section 1.3).
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// How the end of a command is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// As text, if it failed.
    Text,
    /// As a `metav1.Status`, with the exit code (version 4).
    Status,
}

/// A version of the protocol for commands over SPDY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandVersion {
    /// How the end is told.
    pub ending: Ending,
    /// A terminal has a stream for its size (version 3).
    pub resizes: bool,
}

/// What was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreed {
    /// SPDY streams of a command.
    SpdyCommand(CommandVersion),
    /// WebSocket channels of a command.
    ChannelsCommand {
        /// What messages are made of.
        coding: Coding,
        /// How the end is told.
        ending: Ending,
        /// The client can end a channel (version 5).
        closes: bool,
    },
    /// SPDY streams of forwarded ports.
    SpdyPorts,
    /// The same in a tunnel.
    TunnelPorts,
    /// WebSocket channels of forwarded ports.
    ChannelsPorts {
        /// What messages are made of.
        coding: Coding,
    },
}

/// The client asks for what there is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status of the answer.
    pub status: StatusCode,
    /// Why, for people.
    pub why: String,
    /// More headers of the answer.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// What sessions are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Exec and Attach.
    Command,
    /// PortForward.
    Ports,
}

type Table = [(&'static str, Agreed)];

const fn spdy(ending: Ending, resizes: bool) -> Agreed {
    Agreed::SpdyCommand(CommandVersion { ending, resizes })
}

const fn channels(coding: Coding, ending: Ending, closes: bool) -> Agreed {
    Agreed::ChannelsCommand { coding, ending, closes }
}

/// No name stands for the oldest version, as with the peers.
const SPDY_COMMAND: &Table = &[
    ("v4.channel.k8s.io", spdy(Ending::Status, true)),
    ("v3.channel.k8s.io", spdy(Ending::Text, true)),
    ("v2.channel.k8s.io", spdy(Ending::Text, false)),
    ("channel.k8s.io", spdy(Ending::Text, false)),
    ("", spdy(Ending::Text, false)),
];

const SPDY_PORTS: &Table = &[("portforward.k8s.io", Agreed::SpdyPorts), ("", Agreed::SpdyPorts)];

const WEBSOCKET_COMMAND: &Table = &[
    ("v5.channel.k8s.io", channels(Coding::Binary, Ending::Status, true)),
    ("v4.channel.k8s.io", channels(Coding::Binary, Ending::Status, false)),
    ("v4.base64.channel.k8s.io", channels(Coding::Base64, Ending::Status, false)),
    ("channel.k8s.io", channels(Coding::Binary, Ending::Text, false)),
    ("base64.channel.k8s.io", channels(Coding::Base64, Ending::Text, false)),
    ("", channels(Coding::Binary, Ending::Text, false)),
];

const WEBSOCKET_PORTS: &Table = &[
    ("SPDY/3.1+portforward.k8s.io", Agreed::TunnelPorts),
    ("v4.channel.k8s.io", Agreed::ChannelsPorts { coding: Coding::Binary }),
    ("v4.base64.channel.k8s.io", Agreed::ChannelsPorts { coding: Coding::Base64 }),
    ("", Agreed::ChannelsPorts { coding: Coding::Binary }),
];

/// Agrees with a client, and says with which headers it is told so.
///
/// # Errors
/// What to answer instead.
pub fn agree(purpose: Purpose, request: &HeaderMap) -> Result<(Agreed, HeaderMap), Refusal> {
    let upgrades: Vec<_> = tokens(request, &UPGRADE).collect();
    let asks = tokens(request, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let wants = |name: &str| asks && upgrades.iter().any(|token| token.eq_ignore_ascii_case(name));
    let mut answer = HeaderMap::new();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    if wants("websocket") {
        let table = match purpose {
            Purpose::Command => WEBSOCKET_COMMAND,
            Purpose::Ports => WEBSOCKET_PORTS,
        };
        let key = accept_key(request)?;
        let (name, agreed) = choose(table, tokens(request, &SEC_WEBSOCKET_PROTOCOL))
            .ok_or_else(|| none_of(table, Vec::new()))?;
        answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
        answer.insert(SEC_WEBSOCKET_ACCEPT, key);
        if !name.is_empty() {
            answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
        }
        return Ok((agreed, answer));
    }
    if wants("SPDY/3.1") {
        let table = match purpose {
            Purpose::Command => SPDY_COMMAND,
            Purpose::Ports => SPDY_PORTS,
        };
        let (name, agreed) = choose(table, tokens(request, &STREAM_PROTOCOL)).ok_or_else(|| {
            let offered = table.iter().filter(|(name, _)| !name.is_empty());
            none_of(table, offered.map(|(name, _)| (ACCEPTED, HeaderValue::from_static(name))).collect())
        })?;
        answer.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        if !name.is_empty() {
            answer.insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
        }
        return Ok((agreed, answer));
    }
    let headers = vec![(UPGRADE, HeaderValue::from_static("SPDY/3.1, websocket"))];
    let why = "unable to upgrade: the request asks for neither SPDY/3.1 nor websocket".to_owned();
    Err(Refusal { status: StatusCode::BAD_REQUEST, why, headers })
}

/// The first of the client's wishes that there is.
fn choose<'a>(table: &Table, wishes: impl Iterator<Item = &'a str>) -> Option<(&'static str, Agreed)> {
    let mut wishes = wishes.peekable();
    let none = wishes.peek().is_none().then_some("");
    none.into_iter().chain(wishes).find_map(|wish| table.iter().find(|(name, _)| *name == wish).copied())
}

fn none_of(table: &Table, headers: Vec<(HeaderName, HeaderValue)>) -> Refusal {
    let names: Vec<_> = table.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
    let why = format!("unable to upgrade: none of the requested protocols is one of {}", names.join(", "));
    Refusal { status: StatusCode::FORBIDDEN, why, headers }
}

/// The parts of a header that is a list, over all its lines.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// What proves to a WebSocket client that it was understood (RFC 6455, section 4.2.2).
fn accept_key(request: &HeaderMap) -> Result<HeaderValue, Refusal> {
    let bad = |why: &str| Refusal {
        status: StatusCode::BAD_REQUEST,
        why: format!("unable to upgrade: {why}"),
        headers: vec![(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"))],
    };
    if request.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(bad("the version of WebSocket is not 13"));
    }
    let key = request.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    let base64 = base64::engine::general_purpose::STANDARD;
    if base64.decode(key).map_or(0, |key| key.len()) != 16 {
        return Err(bad("Sec-WebSocket-Key is not 16 bytes in base64"));
    }
    let mut sha1 = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(key);
    sha1.update(WEBSOCKET_GUID);
    HeaderValue::from_str(&base64.encode(sha1.finish())).map_err(|_| bad("its key"))
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
    fn the_clients_first_wish_that_there_is_counts() {
        let request = spdy_request(&["v9.channel.k8s.io", "v3.channel.k8s.io, v4.channel.k8s.io"]);
        let (agreed, answer) = agree(Purpose::Command, &request).unwrap();
        assert_eq!(agreed, spdy(Ending::Text, true));
        assert_eq!(
            (&answer[STREAM_PROTOCOL], &answer[UPGRADE]),
            (&"v3.channel.k8s.io".parse().unwrap(), &"SPDY/3.1".parse().unwrap())
        );
        let (agreed, answer) = agree(Purpose::Ports, &spdy_request(&[])).unwrap();
        assert_eq!((agreed, answer.get(STREAM_PROTOCOL)), (Agreed::SpdyPorts, None));
    }

    #[test]
    fn a_websocket_is_answered_as_rfc_6455_says() {
        let (agreed, answer) =
            agree(Purpose::Command, &websocket_request("v5.channel.k8s.io, v4.channel.k8s.io")).unwrap();
        assert_eq!(agreed, channels(Coding::Binary, Ending::Status, true));
        // The example of section 1.3.
        assert_eq!(answer[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let (agreed, _) = agree(Purpose::Ports, &websocket_request("SPDY/3.1+portforward.k8s.io")).unwrap();
        assert_eq!(agreed, Agreed::TunnelPorts);
    }

    #[test]
    fn what_there_is_not_is_refused_with_what_there_is() {
        let refusal = agree(Purpose::Command, &spdy_request(&["v9.channel.k8s.io"])).unwrap_err();
        assert_eq!(refusal.status, StatusCode::FORBIDDEN);
        assert_eq!(refusal.headers.iter().filter(|(name, _)| *name == ACCEPTED).count(), 4);
        let refusal = agree(Purpose::Ports, &websocket_request("v5.channel.k8s.io")).unwrap_err();
        assert_eq!(refusal.status, StatusCode::FORBIDDEN);
        for request in [HeaderMap::new(), headers(&[("upgrade", "SPDY/3.1")])] {
            let refusal = agree(Purpose::Command, &request).unwrap_err();
            assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
        }
        let mut old = websocket_request("");
        old.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("8"));
        assert_eq!(agree(Purpose::Command, &old).unwrap_err().status, StatusCode::BAD_REQUEST);
    }
}
