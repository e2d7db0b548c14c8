use super::*;
use proptest::prelude::*;

fn urls(conf: &RegistriesConf, reference: &str) -> Vec<String> {
    let endpoints = conf.endpoints(&reference.parse().unwrap()).unwrap().unwrap_or_default();
    let url = |one: &Endpoint| format!("{}://{}{}/{}", one.scheme, one.authority, one.path, one.repository);
    endpoints.iter().map(url).collect()
}

const CONF: &str = r#"
    unqualified-search-registries = ["quay.io", "docker.io"]
    [aliases]
    "tool" = "r.example/team/tool"
    [[registry]]
    location = "docker.io"
    [[registry.mirror]]
    location = "mirror.example:5000/hub"
    insecure = true
    [[registry.mirror]]
    location = "digests.example"
    pull-from-mirror = "digest-only"
    [[registry]]
    prefix = "r.example/team"
    location = "inner.example/t"
    [[registry]]
    prefix = "*.wild.example"
    [[registry.mirror]]
    location = "cache.example/wild"
    [[registry]]
    location = "evil.example"
    blocked = true
"#;

#[test]
fn mirrors_and_locations_are_used_as_in_podman() {
    let conf = RegistriesConf::parse(CONF).unwrap();
    assert_eq!(
        urls(&conf, "busybox:1"),
        [
            "https://mirror.example:5000/v2/hub/library/busybox",
            "http://mirror.example:5000/v2/hub/library/busybox",
            "https://registry-1.docker.io/v2/library/busybox"
        ]
    );
    let digest = format!("busybox@sha256:{}", "a".repeat(64));
    assert_eq!(urls(&conf, &digest)[2], "https://digests.example/v2/library/busybox");
    assert_eq!(urls(&conf, "r.example/team/a/b"), ["https://inner.example/v2/t/a/b"]);
    assert_eq!(
        urls(&conf, "x.wild.example/a"),
        ["https://cache.example/v2/wild/a", "https://x.wild.example/v2/a"]
    );
    for other in ["r.example/teams/a", "r.example/other", "docker.io.example/a", "wild.example/a"] {
        assert!(conf.endpoints(&other.parse().unwrap()).unwrap().is_none(), "{other}");
    }
    let error = conf.endpoints(&"evil.example/a".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("blocks"), "{error}");
}

#[test]
fn the_longest_prefix_applies() {
    let conf = RegistriesConf::parse(
        r#"
        [[registry]]
        prefix = "*.bar.example.com"
        location = "three.test"
        [[registry]]
        prefix = "*.example.com"
        location = "two.test/x"
        [[registry]]
        prefix = "*.com"
        [[registry]]
        prefix = "foo.bar.example.com:5000"
        location = "five.test"
        [[registry]]
        prefix = "one.test/team"
        location = "six.test"
        [[registry]]
        prefix = "one.test/team/app:1"
        location = "seven.test/only"
        "#,
    )
    .unwrap();
    for (reference, expected) in [
        ("a.bar.example.com/i", "https://three.test/v2/i"),
        ("a.bar.example.com:4000/i", "https://three.test:4000/v2/i"),
        ("a.example.com/i", "https://two.test/v2/x/i"),
        ("a.b.com/i", "https://a.b.com/v2/i"),
        ("foo.bar.example.com:5000/i", "https://five.test/v2/i"),
        ("one.test/team/app:2", "https://six.test/v2/app"),
        ("one.test/team/app:1", "https://seven.test/v2/only"),
    ] {
        assert_eq!(urls(&conf, reference), [expected], "{reference}");
    }
    assert!(conf.endpoints(&"com/i:1".parse::<Reference>().unwrap()).unwrap().is_none());
}

#[test]
fn the_mirrors_of_a_blocked_registry_are_used() {
    // The format of OpenShift, with additional slashes.
    let conf = RegistriesConf::parse(
        r#"
        [[registry]]
          prefix = ""
          location = "source.test/release/"
          blocked = true
          [[registry.mirror]]
            location = "mirror.test:5000/release//"
            insecure = true
            pull-from-mirror = "digest-only"
        [[registry]]
          location = "moved.test"
          [[registry.mirror]]
            location = "blocked.test/x"
          [[registry.mirror]]
            location = "insecure.test/x"
        [[registry]]
          location = "blocked.test"
          blocked = true
        [[registry]]
          location = "insecure.test"
          insecure = true
        [[registry]]
          prefix = "away.test"
          location = "blocked.test/y"
        "#,
    )
    .unwrap();
    let digest = format!("source.test/release/a@sha256:{}", "a".repeat(64));
    assert_eq!(
        urls(&conf, &digest),
        ["https://mirror.test:5000/v2/release/a", "http://mirror.test:5000/v2/release/a"]
    );
    for blocked in ["source.test/release/a:1", "away.test/a", "blocked.test/a"] {
        let error = conf.endpoints(&blocked.parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("blocks"), "{blocked}: {error}");
    }
    assert_eq!(
        urls(&conf, "moved.test/a"),
        ["https://insecure.test/v2/x/a", "http://insecure.test/v2/x/a", "https://moved.test/v2/a"]
    );
}

#[test]
fn short_names_are_searched_in_order() {
    let conf = RegistriesConf::parse(CONF).unwrap();
    let names =
        |text: &str| -> Vec<String> { conf.candidates(text).iter().map(ToString::to_string).collect() };
    assert_eq!(names("busybox:1"), ["quay.io/busybox:1", "docker.io/library/busybox:1"]);
    assert_eq!(names("team/app"), ["quay.io/team/app:latest", "docker.io/team/app:latest"]);
    assert_eq!(names("tool:2"), ["r.example/team/tool:2"]);
    for whole in ["r.example/a", "localhost/a", "h:5000/a:1"] {
        assert!(names(whole).is_empty(), "{whole}");
    }
    assert!(RegistriesConf::default().candidates("busybox").is_empty());
}

#[test]
fn drop_ins_replace_registries_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let main = folder.path().join("registries.conf");
    assert!(RegistriesConf::read(&main).unwrap().registry.is_empty());
    fs::write(&main, CONF).unwrap();
    fs::create_dir(folder.path().join("registries.conf.d")).unwrap();
    let drop_in = folder.path().join("registries.conf.d/50-x.conf");
    fs::write(&drop_in, "unqualified-search-registries = []\n[[registry]]\nlocation = \"evil.example\"\n")
        .unwrap();
    let conf = RegistriesConf::read(&main).unwrap();
    assert_eq!(urls(&conf, "evil.example/a"), ["https://evil.example/v2/a"]);
    assert!(conf.candidates("busybox").is_empty());
    fs::write(&drop_in, "[[registry]]\nblocked = true\n").unwrap();
    let error = RegistriesConf::read(&main).unwrap_err().to_string();
    assert!(error.contains("50-x.conf") && error.contains("neither prefix nor location"), "{error}");
}

#[test]
fn invalid_settings_are_rejected() {
    for text in [
        "[registries.search]\nregistries = ['docker.io']",
        "[[registry]]\nprefix = \"a.example\"",
        "[[registry]]\nlocation = \"https://a.example\"",
        "[[registry]]\nlocation = \"a.example\"\n[[registry.mirror]]\ninsecure = true",
        "[[registry]]\nlocation = \"a.example\"\n[[registry.mirror]]\nlocation = \"b\"\npull-from-mirror = \"never\"",
        "[[registry]]\nlocation = \"a.example\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"b\"\npull-from-mirror = \"tag-only\"",
    ] {
        assert!(RegistriesConf::parse(text).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn any_text_and_any_name_are_handled(text in ".{0,200}", name in "[a-z./:@]{0,40}") {
        drop(RegistriesConf::parse(&text));
        drop(RegistriesConf::parse(CONF).unwrap().candidates(&name));
    }
}
