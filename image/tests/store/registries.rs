//! How registries are asked: credentials, retries, mirrors, proxies, foreign layers.

use super::*;

/// Returns the length of the registry's answer for a path.

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_sent_only_where_they_are_required() {
    let test = test().await;
    let elsewhere = Registry::start(std::process::id());
    let (bytes, digest) = simple("x");
    let layer = test.registry.image("image", &bytes, &digest);
    elsewhere.answer("/blob", Answer::Whole(200, "application/octet-stream", bytes));
    let whole = Answer::Headers(307, format!("Location: http://{}/blob\r\n", elsewhere.address), Vec::new());
    let challenge = format!(
        "WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"here\",scope=\"repository:image:pull\"\r\n",
        test.registry.address
    );
    let refuse = || Box::new(Answer::Headers(401, challenge.clone(), Vec::new()));
    let guard = |path: &str, answer: Answer| {
        test.registry.answer(path, Answer::Authorized("Bearer let-me-in", Box::new(answer), refuse()));
    };
    guard(&layer, whole);
    let token = Answer::Whole(200, "application/json", br#"{ "token": "let-me-in" }"#.to_vec());
    // "user:secret" in base64.
    let basic = "Basic dXNlcjpzZWNyZXQ=";
    let token_request = "/token?service=here&scope=repository%3Aimage%3Apull";
    let unknown = Box::new(Answer::Headers(401, String::new(), Vec::new()));
    test.registry.answer(token_request, Answer::Authorized(basic, Box::new(token), unknown));

    let reference = test.reference("image:1");
    let anonymous = test.store.pull(&reference, None).await.unwrap_err();
    assert_eq!(anonymous.kind(), ErrorKind::Unauthorized, "{anonymous}");
    let wrong = Credentials::Basic { username: "user".into(), password: "guess".into() };
    let error = test.store.pull(&reference, Some(wrong)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert!(!format!("{error:?} {error}").contains("guess"));
    let right = Credentials::Basic { username: "user".into(), password: "secret".into() };
    test.store.pull(&reference, Some(right)).await.unwrap();
    let redirected = elsewhere.asked();
    assert_eq!(redirected.len(), 1, "{redirected:?}");
    assert_eq!(redirected[0].authorization, None, "credentials are sent to another host");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_registry_is_retried() {
    let test = test().await;
    let (bytes, digest) = simple("x");
    let layer = test.registry.image("image", &bytes, &digest);
    let busy = |code| Box::new(Answer::Headers(code, "Retry-After: 0\r\n".to_owned(), Vec::new()));
    let whole = Box::new(Answer::Whole(200, "application/octet-stream", bytes));
    test.registry.answer(layer.as_str(), Answer::Times(2, busy(429), whole));
    test.pull("image:1").await.unwrap();
    assert_eq!(test.registry.times(&layer), 3);
    let dead = "/v2/dead/manifests/1";
    test.registry.answer(dead, Answer::Headers(503, "Retry-After: 0\r\n".to_owned(), Vec::new()));
    let error = test.pull("dead:1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(test.registry.times(dead) > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_come_first_and_the_server_last() {
    let test = test().await;
    let mirror = Registry::start(std::process::id());
    let (bytes, digest) = simple("x");
    let path = mirror.image("library/image", &bytes, &digest);
    let config = test.folder.path().join("certs.d/docker.io");
    fs::create_dir_all(&config).unwrap();
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        test.registry.address, mirror.address
    );
    fs::write(config.join("hosts.toml"), hosts).unwrap();
    let image = test.store.pull(&"image:1".parse().unwrap(), None).await.unwrap();
    assert_eq!(image.repo_tags, ["docker.io/library/image:1"]);
    assert!(test.registry.asked().is_empty(), "the mirror has it");
    // A mirror with wrong content is skipped.
    assert!(test.store.remove("image:1").await.unwrap());
    assert!(test.settled("layers", 0));
    mirror.answer(path.as_str(), Answer::Whole(200, "application/octet-stream", vec![b'x'; bytes.len()]));
    test.registry.image("library/image", &bytes, &digest);
    test.store.pull(&"image:1".parse().unwrap(), None).await.unwrap();
    assert_eq!(test.registry.times(&path), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_are_reached_through_a_proxy() {
    let folder = tempfile::tempdir().unwrap();
    let proxy = Registry::start(std::process::id());
    proxy.image("image", &simple("x").0, &simple("x").1);
    let hosts = folder.path().join("certs.d/plain.example");
    fs::create_dir_all(&hosts).unwrap();
    fs::write(hosts.join("hosts.toml"), "server = \"http://plain.example\"\n").unwrap();
    let options = Options {
        certs_dirs: vec![folder.path().join("certs.d")],
        proxies: Proxies::all(&format!("http://{}", proxy.address), "direct.example"),
        ..Options::new(folder.path().join("image"))
    };
    let store = ImageStore::open(options).await.unwrap();
    store.pull(&"plain.example/image:1".parse().unwrap(), None).await.unwrap();
    assert_eq!(proxy.times("http://plain.example/v2/image/manifests/1"), 1, "{:?}", proxy.asked());
    // TLS uses a tunnel, which this proxy rejects.
    let error = store.pull(&"secure.example/image:1".parse().unwrap(), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("proxy 127.0.0.1"), "{error}");
    assert!(proxy.times("secure.example:443") > 0, "{:?}", proxy.asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_the_registry_does_not_distribute_is_fetched_from_its_urls() {
    let test = test().await;
    let elsewhere = Registry::start(std::process::id());
    let (bytes, diff_id) = simple("a");
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    let path = test.registry.image("image", &bytes, &diff_id);
    let text = String::from_utf8(test.registry.answer_of("/v2/image/manifests/1").unwrap()).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    manifest["layers"][0]["mediaType"] =
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip".into();
    let place = format!("http://{}/layers/a?x=y", elsewhere.address);
    manifest["layers"][0]["urls"] = serde_json::json!(["ftp://r.example/a", "http://r.example/a", place]);
    test.registry.manifest("image", "1", &manifest);
    test.registry.answer(path, Answer::Whole(404, "text/plain", Vec::new()));
    elsewhere.answer("/layers/a?x=y", Answer::Whole(200, "application/octet-stream", bytes));
    let auth = Credentials::Basic { username: "user".to_owned(), password: "secret".to_owned() };
    let image = test.store.pull(&test.reference("image:1"), Some(auth)).await.unwrap();
    assert_eq!(image.layers, [diff_id]);
    let requests = elsewhere.asked();
    assert!(requests.len() == 1 && requests[0].authorization.is_none(), "{requests:?} {digest}");
}
