//! The configuration through the program itself: files, drop-ins, flags, and the messages about mistakes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

struct Files(tempfile::TempDir);

impl Files {
    fn new(main: &str, drop_ins: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.toml"), main).unwrap();
        fs::create_dir(folder.path().join("conf.d")).unwrap();
        for (name, text) in drop_ins {
            fs::write(folder.path().join("conf.d").join(name), text).unwrap();
        }
        Self(folder)
    }

    fn berth(&self, arguments: &[&str]) -> Output {
        let file = self.0.path().join("config.toml");
        berth(&[arguments, &["--config", file.to_str().unwrap()]].concat())
    }

    fn dump(&self, flags: &[&str]) -> toml::Table {
        let output = self.berth(&[&["config", "dump"], flags].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap().parse().unwrap()
    }
}

fn berth(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_berth")).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn later_files_override_earlier_ones_and_flags_override_all() {
    let files = Files::new(
        "root = \"/main\"\nparallel_pulls = 2\nlog_level = \"warn\"\n",
        &[
            ("20-b.toml", "parallel_pulls = 20\n[network]\nmtu = 1400\n"),
            ("10-a.toml", "parallel_pulls = 10\nlog_level = \"error\"\n"),
            (".hidden.toml", "parallel_pulls = 60\n"),
            ("90-note.txt", "not toml"),
        ],
    );
    let config = files.dump(&["--log-level", "debug"]);
    assert_eq!(config["root"].as_str(), Some("/main"));
    assert_eq!(config["parallel_pulls"].as_integer(), Some(20));
    assert_eq!(config["network"]["mtu"].as_integer(), Some(1400));
    assert_eq!(config["network"]["bridge"].as_str(), Some("berth0"));
    assert_eq!(config["log_level"].as_str(), Some("debug"));
}

#[test]
fn a_broken_main_file_is_fatal_with_line_and_key() {
    let files = Files::new("root = \"/main\"\nsokcet = \"/x\"\n", &[]);
    for command in [&["config", "dump"][..], &["config", "check"], &["serve"]] {
        let output = files.berth(command);
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        let expected = "config.toml:2: sokcet: unknown key; did you mean \"socket\"?";
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
}

#[test]
fn a_broken_drop_in_is_skipped_with_a_warning() {
    let files = Files::new(
        "parallel_pulls = 2\n",
        &[("10-bad.toml", "root = \"/bad\"\nparallel_pulls = 0\n"), ("20-good.toml", "state = \"/good\"\n")],
    );
    let output = files.berth(&["config", "dump"]);
    assert!(
        stderr(&output).contains("10-bad.toml:2: parallel_pulls: 0 is not from 1 to 64"),
        "{}",
        stderr(&output)
    );
    let config = files.dump(&[]);
    assert_eq!(config["root"].as_str(), Some("/var/lib/berth"), "no key of a broken file has an effect");
    assert_eq!(config["state"].as_str(), Some("/good"));
    assert_eq!(files.berth(&["config", "check"]).status.code(), Some(1));
}

#[test]
fn a_config_file_named_on_the_command_line_must_exist() {
    let output = berth(&["config", "dump", "--config", "/nonexistent/berth.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("read /nonexistent/berth.toml: No such file"), "{}", stderr(&output));
}

#[test]
fn a_config_dump_is_a_valid_config_file() {
    let first = Files::new("metrics_address = \"127.0.0.1:9470\"\ncerts_dir = \"/certs\"\n", &[]).dump(&[]);
    let second = Files::new(&first.to_string(), &[]).dump(&[]);
    assert_eq!(first, second);
}

#[test]
fn flags_are_validated_like_keys() {
    let output = berth(&["config", "dump", "--root", "relative"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("\"relative\" is not an absolute path"), "{}", stderr(&output));
}

#[test]
fn the_documentation_contains_the_default_config() {
    let document =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md")).unwrap();
    let defaults = berth(&["config", "default"]);
    let defaults = String::from_utf8(defaults.stdout).unwrap();
    assert!(document.contains(&defaults), "docs/configuration.md does not contain the defaults:\n{defaults}");
}

#[test]
fn the_documentation_contains_the_table_of_keys() {
    let document =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md")).unwrap();
    let table = String::from_utf8(berth(&["config", "keys"]).stdout).unwrap();
    assert!(document.contains(&table), "docs/configuration.md does not contain the table:\n{table}");
}

#[test]
fn every_flag_of_the_table_is_in_the_help_with_its_description_and_default() {
    let table = String::from_utf8(berth(&["config", "keys"]).stdout).unwrap();
    let help = String::from_utf8(berth(&["serve", "--help"]).stdout).unwrap();
    let flags: Vec<&str> =
        table.lines().filter_map(|line| line.split("| `--").nth(1)?.split('`').next()).collect();
    assert!(flags.contains(&"socket") && flags.contains(&"cgroup-driver"), "{flags:?}");
    for flag in flags {
        assert!(help.contains(&format!("--{flag} <")), "{flag}: {help}");
    }
    assert!(help.contains("Socket for the kubelet and crictl [default: /run/berth/berth.sock]"), "{help}");
}

#[test]
fn a_stream_certificate_needs_its_matching_key() {
    let half = Files::new("stream_key = \"/k\"\n", &[]);
    let output = half.berth(&["config", "check"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("invalid stream_key: stream_certificate is not set"),
        "{}",
        stderr(&output)
    );

    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let pairs = [1, 2].map(|_| rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap());
    for (number, pair) in pairs.iter().enumerate() {
        fs::write(path(&format!("{number}.crt")), pair.cert.pem()).unwrap();
        fs::write(path(&format!("{number}.key")), pair.signing_key.serialize_pem()).unwrap();
    }
    for (certificate, key, expected) in [
        ("0.crt", "0.key", None),
        ("0.crt", "1.key", Some("stream_key")),
        ("0.key", "0.key", Some("stream_certificate")),
        ("none", "0.key", Some("stream_certificate")),
        ("0.crt", "0.crt", Some("stream_key")),
    ] {
        let text = format!("stream_certificate = {:?}\nstream_key = {:?}\n", path(certificate), path(key));
        let output = Files::new(&text, &[]).berth(&["config", "check"]);
        match expected {
            None => assert!(output.status.success(), "{}", stderr(&output)),
            Some(expected) => {
                assert_eq!(output.status.code(), Some(1), "{certificate} {key}");
                assert!(stderr(&output).contains(expected), "{certificate} {key}: {}", stderr(&output));
            }
        }
    }
}

#[test]
fn config_check_reports_every_mistake_in_every_file() {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("certs.d/a.test/hosts.toml", "server = \"ftp://a.test\"\n");
    write("registries.conf", "[[registry]]\nlocation = \"https://b.test\"\n");
    write("policy.json", "{}");
    write("auth.json", "[");
    write("net.d/10-one.conflist", r#"{"cniVersion": "1.0.0", "name": "../x", "plugins": []}"#);
    write("net.d/20-two.conflist", "{");
    write("cdi/vendor.yaml", "kind: x\n");
    write("hooks.d/broken.json", r#"{"version": "1.0.0", "hook": {"path": "/bin/true"}, "when": {}}"#);
    let place = folder.path().display();
    let main = format!(
        "sokcet = \"/x\"\nroot = \"relative\"\ncerts_dir = \"{place}/certs.d\"\n\
         registries_conf = \"{place}/registries.conf\"\nsignature_policy = \"{place}/policy.json\"\n\
         auth_file = [\"{place}/auth.json\"]\ncni_conf_dir = \"{place}/net.d\"\ncdi_spec_dirs = [\"{place}/cdi\"]\n\
         hooks_dirs = [\"{place}/hooks.d\"]\n"
    );
    let files =
        Files::new(&main, &[("10-a.toml", "parallel_pulls = 0\nno_key = 1\n"), ("20-b.toml", "= 1\n")]);
    let output = files.berth(&["config", "check"]);
    assert_eq!(output.status.code(), Some(1));
    let errors = stderr(&output);
    for expected in [
        "config.toml:1: sokcet",
        "config.toml:2: root",
        "10-a.toml:1: parallel_pulls",
        "10-a.toml:2: no_key",
        "20-b.toml:1:",
        "certs.d/a.test/hosts.toml",
        "registries.conf",
        "policy.json",
        "auth.json",
        "10-one.conflist",
        "20-two.conflist",
        "vendor.yaml",
        "hooks.d/broken.json",
    ] {
        assert!(
            errors.lines().any(|line| line.starts_with("berth: ") && line.contains(expected)),
            "{expected}: {errors}"
        );
    }
}
