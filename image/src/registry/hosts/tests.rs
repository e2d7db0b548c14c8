use super::*;
use proptest::prelude::*;

fn named(domain: &str) -> Reference {
    format!("{domain}/team/app").parse().unwrap()
}

fn urls(endpoints: &[Endpoint]) -> Vec<String> {
    endpoints
        .iter()
        .map(|endpoint| format!("{}://{}{}", endpoint.scheme, endpoint.authority, endpoint.path))
        .collect()
}

#[test]
fn without_configuration_the_registry_itself_is_used() {
    for (domain, url) in [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("quay.io", "https://quay.io/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("127.3.2.1", "http://127.3.2.1/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("127.0.0.1.example.com", "https://127.0.0.1.example.com/v2"),
    ] {
        assert_eq!(urls(&[origin(domain, "team/app")]), [url]);
    }
}

#[test]
fn hosts_are_tried_in_the_order_of_the_file_and_the_server_last() {
    let text = r#"
        server = "https://registry-1.docker.io"
        skip_verify = true
        [host."http://z.example:5000/prefix/"]
          capabilities = ["pull"]
          [host."http://z.example:5000/prefix/".header]
            x-one = "1"
            x-two = ["a", "b"]
        [host."https://a.example/v2/mirror"]
          override_path = true
          capabilities = ["pull", "resolve"]
        [host."m.example"]
    "#;
    let parsed = parse(text, Path::new("/"), &named("docker.io")).unwrap();
    assert_eq!(
        urls(&parsed),
        [
            "http://z.example:5000/prefix/v2",
            "https://a.example/v2/mirror",
            "https://m.example/v2",
            "https://registry-1.docker.io/v2",
        ]
    );
    assert_eq!(
        parsed.iter().map(|host| (host.pull, host.resolve)).collect::<Vec<_>>(),
        [(true, false), (true, true), (true, true), (true, true),]
    );
    let headers: Vec<_> = parsed[0].headers.iter().map(|(_, value)| value.to_str().unwrap()).collect();
    assert_eq!(headers, ["1", "a", "b"]);
    assert_eq!(parsed[0].namespace.as_deref(), Some("docker.io"));
    assert_eq!((parsed[3].namespace.as_deref(), parsed[3].tls.skip_verify), (None, true));
    assert!(!parsed[0].tls.skip_verify);
}

#[test]
fn folders_and_certificates_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let dirs = [folder.path().join("none"), folder.path().to_owned()];
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("_default/hosts.toml", "[host.\"https://cache.example\"]\n");
    assert_eq!(
        urls(&endpoints(&dirs, &named("quay.io")).unwrap().unwrap()),
        ["https://cache.example/v2", "https://quay.io/v2"]
    );
    write(
        "r.example_444_/hosts.toml",
        "server = \"https://r.example:444\"\nca = \"ca.pem\"\nclient = [[\"c\", \"k\"]]\n",
    );
    let error = endpoints(&dirs, &named("r.example:444")).unwrap_err().to_string();
    assert!(error.contains("ca.pem"), "{error}");
    for (name, text) in [("ca.pem", "authority"), ("c", "certificate"), ("k", "key")] {
        write(&format!("r.example_444_/{name}"), text);
    }
    let tls = endpoints(&dirs, &named("r.example:444")).unwrap().unwrap()[0].tls.clone();
    assert_eq!(tls.ca, [b"authority"]);
    assert_eq!(tls.client, [(b"certificate".to_vec(), b"key".to_vec())]);
    write("localhost:5001/x.crt", "docker");
    assert_eq!(certificates(&dirs, "localhost:5001").unwrap().ca.len(), 1);
    assert_eq!(certificates(&dirs, "localhost:5002").unwrap(), Tls::default());
}

#[test]
fn a_server_that_is_also_a_host_is_tried_once_with_the_settings_of_the_host() {
    let text = |capabilities: &str| {
        format!(
            "server = \"https://reg.test:5000\"\n[host.\"https://reg.test:5000\"]\n{capabilities}skip_verify = true\n"
        )
    };
    let parsed =
        |capabilities: &str| parse(&text(capabilities), Path::new("/"), &named("reg.test:5000")).unwrap();
    let once = parsed("capabilities = [\"pull\", \"resolve\"]\n");
    assert_eq!(urls(&once), ["https://reg.test:5000/v2"]);
    assert!(once[0].tls.skip_verify);
    assert_eq!(urls(&parsed("")).len(), 1);
    // Tags are resolved by the server.
    assert_eq!(urls(&parsed("capabilities = [\"pull\"]\n")).len(), 2);
}

fn servers_with_capabilities(text: &str) -> Vec<String> {
    let parsed = parse(text, Path::new("/"), &named("reg.test:5000")).unwrap();
    let line = |one: &Endpoint| {
        let what = [(one.pull, " pull"), (one.resolve, " resolve")];
        let what: String = what.iter().filter(|(may, _)| *may).map(|(_, text)| *text).collect();
        format!("{}{what}", urls(std::slice::from_ref(one))[0])
    };
    parsed.iter().map(line).collect()
}

#[test]
fn paths_and_capabilities_are_parsed_as_in_containerd() {
    for (text, expected) in [
        // The format of k3s.
        (
            "server = \"http://reg.test:5000/v2\"\ncapabilities = [\"pull\", \"resolve\", \"push\"]\n[host]\n\
             [host.\"http://mirror.test:5001/v2\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
            &["http://mirror.test:5001/v2 pull resolve", "http://reg.test:5000/v2 pull resolve"][..],
        ),
        ("server = \"\"", &["https://reg.test:5000/v2 pull resolve"]),
        ("server = \"reg.test:5000\"", &["https://reg.test:5000/v2 pull resolve"]),
        ("server = \"https://x.test/\"", &["https://x.test/v2 pull resolve"]),
        ("server = \"https://x.test/v2/\"", &["https://x.test/v2 pull resolve"]),
        ("server = \"https://x.test//a//b/\"", &["https://x.test/a/b/v2 pull resolve"]),
        ("server = \"https://x.test/av2\"", &["https://x.test/av2/v2 pull resolve"]),
        ("server = \"https://x.test/a\"\noverride_path = true", &["https://x.test/a pull resolve"]),
        ("server = \"https://x.test\"\noverride_path = true", &["https://x.test pull resolve"]),
        (
            "server = \"http://reg.test:5000\"\n\
             [host.\"http://a.test:5001\"]\ncapabilities = [\"pull\", \"resolve\", \"referrers\"]\n\
             [host.\"http://b.test:5001\"]\ncapabilities = [\"Pull\", \"RESOLVE\"]\n\
             [host.\"http://c.test:5001\"]\ncapabilities = []\n\
             [host.\"http://d.test:5001\"]\ncapabilities = [\"push\"]\n",
            &[
                "http://a.test:5001/v2 pull resolve",
                "http://b.test:5001/v2 pull resolve",
                "http://c.test:5001/v2 pull resolve",
                "http://d.test:5001/v2",
                "http://reg.test:5000/v2 pull resolve",
            ],
        ),
        // TLS is configured for it, so TLS is tried.
        (
            "server = \"http://reg.test:5000\"\nskip_verify = true",
            &["https://reg.test:5000/v2 pull resolve", "http://reg.test:5000/v2 pull resolve"],
        ),
        ("server = \"http://reg.test:80\"\nskip_verify = true", &["http://reg.test:80/v2 pull resolve"]),
    ] {
        assert_eq!(servers_with_capabilities(text), expected, "{text}");
    }
}

#[test]
fn a_dial_timeout_is_parsed_as_in_go() {
    let parsed = |text: &str| {
        let text = format!("server = \"https://x.test\"\ndial_timeout = {text:?}");
        parse(&text, Path::new("/"), &named("x.test")).map(|hosts| hosts[0].tls.dial_timeout)
    };
    for (text, milliseconds) in [("3s", 3000), ("1m30s", 90_000), ("1.5s", 1500), ("250ms", 250), ("0s", 0)] {
        assert_eq!(parsed(text), Ok(Some(Duration::from_millis(milliseconds))), "{text}");
    }
    assert_eq!(parsed(""), Ok(None));
    for bad in ["3", "s", "-1s", "3 s", "3x", "1e400s"] {
        assert!(parsed(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_folder_with_certificates_only_is_that_of_the_registry() {
    let folder = tempfile::tempdir().unwrap();
    let dirs = [folder.path().join("first"), folder.path().join("second")];
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("first/_default/hosts.toml", "[host.\"https://cache.example\"]\n");
    write("first/r.example/ca.crt", "authority");
    assert_eq!(endpoints(&dirs, &named("r.example")).unwrap(), None);
    assert_eq!(certificates(&dirs, "r.example").unwrap().ca, [b"authority"]);
    // An empty file is ignored. Another folder may have one with content.
    write("first/r.example/hosts.toml", "\n");
    write("second/r.example/hosts.toml", "[host.\"https://other.example\"]\n");
    let hosts = endpoints(&dirs, &named("r.example")).unwrap().unwrap();
    assert_eq!(urls(&hosts), ["https://other.example/v2", "https://r.example/v2"]);
    // The first name is used, and the folder of the second name is ignored.
    write("first/r.example_5000_/x.cert", "both");
    write("first/r.example:5000/hosts.toml", "[host.\"https://never.example\"]\n");
    assert_eq!(endpoints(&dirs, &named("r.example:5000")).unwrap(), None);
    let tls = certificates(&dirs, "r.example:5000").unwrap();
    assert_eq!(tls.client, [(b"both".to_vec(), b"both".to_vec())]);
    assert!(endpoints(&dirs, &named("other.example")).unwrap().is_some(), "others use the default");
}

#[test]
fn an_invalid_file_is_an_error() {
    for text in [
        "server = 1",
        "server = \"ftp://x\"",
        "server = \"https://u:p@x\"",
        "[host.\"https://\"]",
        "[host.\"https://x\"]\ncapabilities = [\"fly\"]",
        "[host.\"https://x\".header]\na = \"\\u0001\"",
        "[host.\"https://x?y=z\"]",
    ] {
        assert!(parse(text, Path::new("/"), &named("docker.io")).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_rejected(text in "(server|host|\\[|\\]|\"|=|\\.|https://|x|\n| |true|ca|\\PC){0,40}") {
        if let Ok(endpoints) = parse(&text, Path::new("/nonexistent"), &named("docker.io")) {
            prop_assert!(!endpoints.is_empty());
        }
    }
}
