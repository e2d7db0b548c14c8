//! The challenges of a registry in its `WWW-Authenticate` headers (RFC 9110, 11.6.1).

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// An authentication scheme that berth supports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    /// A token from the service at `realm` (distribution's token specification).
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The challenges of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenges {
    /// The answer has a challenge, supported or not.
    pub(crate) sent: bool,
    /// The challenges whose scheme is supported.
    pub(crate) supported: Vec<Challenge>,
}

/// Returns the challenges of an answer.
pub(crate) fn challenges(headers: &HeaderMap) -> Challenges {
    Challenges { sent: headers.contains_key(WWW_AUTHENTICATE), supported: supported(headers) }
}

fn supported(headers: &HeaderMap) -> Vec<Challenge> {
    let mut parsed = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        // A realm may be any text, in any encoding (RFC 9110, 5.5, "obs-text").
        for (scheme, parameters) in schemes(&String::from_utf8_lossy(value.as_bytes())) {
            let get = |name: &str| {
                let parameter = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                parameter.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
            };
            if scheme.eq_ignore_ascii_case("basic") {
                parsed.push(Challenge::Basic);
            } else if scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = get("realm")
            {
                let realm = ascii(&realm);
                parsed.push(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
            }
        }
    }
    parsed
}

/// Returns an address as a URL (RFC 3987, 3.1): letters outside ASCII are percent-encoded.
fn ascii(address: &str) -> String {
    let mut url = String::new();
    for letter in address.chars() {
        if letter.is_ascii() {
            url.push(letter);
        } else {
            let mut bytes = [0; 4];
            let bytes = letter.encode_utf8(&mut bytes).bytes();
            bytes.for_each(|byte| url.push_str(&format!("%{byte:02X}")));
        }
    }
    url
}

type Parameters = Vec<(String, String)>;

/// Splits a header into its schemes. A word before `=` is a parameter. Any other word starts the next scheme.
fn schemes(header: &str) -> Vec<(String, Parameters)> {
    let mut parsed: Vec<(String, Parameters)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            // A lone `=` is not a valid header.
            return parsed;
        }
        rest = after;
        match rest.trim_start_matches([' ', '\t']).strip_prefix('=') {
            Some(value) => {
                let (value, after) = parameter_value(value.trim_start_matches([' ', '\t']));
                rest = after;
                if let Some((_, parameters)) = parsed.last_mut() {
                    parameters.push((word.to_owned(), value));
                }
            }
            None => parsed.push((word.to_owned(), Vec::new())),
        }
    }
}

fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        return (value.to_owned(), rest);
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, quoted.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            letter => value.push(letter),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn parse(values: &[&str]) -> Vec<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
        }
        let parsed = challenges(&headers);
        assert_eq!(parsed.sent, !values.is_empty());
        parsed.supported
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let own = |text: &str| text.to_owned();
        Challenge::Bearer { realm: realm.to_owned(), service: service.map(own), scope: scope.map(own) }
    }

    #[test]
    fn challenges_of_registries_are_parsed() {
        let hub = "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",scope=\"repository:library/busybox:pull,push\"";
        assert_eq!(
            parse(&[hub]),
            [bearer(
                "https://auth.docker.io/token",
                Some("registry.docker.io"),
                Some("repository:library/busybox:pull,push"),
            )]
        );
        assert_eq!(
            parse(&["Basic realm=\"x, y\"", "bearer realm=z"]),
            [Challenge::Basic, bearer("z", None, None)]
        );
        assert_eq!(
            parse(&["Negotiate, Basic realm=a, Bearer realm=\"q\\\"r\" , service = s"]),
            [Challenge::Basic, bearer("q\"r", Some("s"), None)]
        );
        // "Zugriff für alle" as UTF-8, and as Latin-1.
        for realm in [&b"Basic realm=\"Zugriff f\xc3\xbcr alle\""[..], b"Basic realm=\"Zugriff f\xfcr alle\""]
        {
            let mut headers = HeaderMap::new();
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_bytes(realm).unwrap());
            assert_eq!(challenges(&headers).supported, [Challenge::Basic]);
        }
        let mut headers = HeaderMap::new();
        let token = "Bearer realm=\"https://auth.test/t\u{f6}ken\",service=\"d\u{e9}p\u{f4}t\"";
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_bytes(token.as_bytes()).unwrap());
        let expected = bearer("https://auth.test/t%C3%B6ken", Some("d\u{e9}p\u{f4}t"), None);
        assert_eq!(challenges(&headers).supported, [expected]);
        assert_eq!(parse(&["Bearer service=x"]), []);
        assert_eq!(parse(&["Bearer realm=\"unclosed"]), [bearer("unclosed", None, None)]);
        assert_eq!(parse(&["", "===", ","]), []);
    }

    proptest! {
        #[test]
        fn parsing_any_header_terminates(text in "[ -~]{0,60}") {
            drop(parse(&[&text]));
        }
    }
}
