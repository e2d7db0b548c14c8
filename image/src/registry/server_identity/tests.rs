use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use rustls_pki_types::pem::PemObject as _;

use super::super::p521::provider;
use super::*;

/// A folder in which openssl creates certificates.
struct Authority(tempfile::TempDir);

impl Authority {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn openssl(&self, line: &str) {
        let output = Command::new("openssl").args(words(line)).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Creates a self-signed certificate. `key` is an argument of `-newkey`.
    fn selfsigned(&self, name: &str, key: &str, more: &str) -> &Self {
        self.openssl(&format!(
            "req -newkey {key} -nodes -x509 -days 365 -keyout {name}.key -out {name}.crt -subj /CN={name} {more}"
        ));
        self
    }

    /// Creates a certificate that another one has signed, with these extensions.
    fn signed(&self, name: &str, by: &str, extensions: &str) -> &Self {
        fs::write(self.0.path().join("extensions"), extensions).unwrap();
        self.openssl(&format!(
            "req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA {by}.crt -CAkey {by}.key -CAcreateserial -days 365 -extfile extensions \
             -out {name}.crt"
        ));
        self
    }

    fn read(&self, name: &str) -> CertificateDer<'static> {
        read(&self.0.path().join(format!("{name}.crt")))
    }

    /// Verifies a server at `host` that sends `chain`. `named` are the configured authorities.
    fn verdict(&self, host: &str, chain: &[&str], named: &[&str]) -> Result<(), Error> {
        self.verdict_at(host, chain, named, UnixTime::now())
    }

    fn verdict_at(&self, host: &str, chain: &[&str], named: &[&str], now: UnixTime) -> Result<(), Error> {
        let chain: Vec<_> = chain.iter().map(|name| self.read(name)).collect();
        let named: Vec<_> = named.iter().map(|name| self.read(name)).collect();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(named.iter().cloned());
        let identity = ServerIdentity::new(provider(), roots, named);
        let name = ServerName::try_from(host.to_owned()).unwrap();
        identity.verify_server_cert(&chain[0], &chain[1..], &name, &[], now).map(drop)
    }
}

/// Splits a line into words. A quoted text is one word.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (place, part) in line.split('"').enumerate() {
        match place % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}

fn read(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

fn refused(result: Result<(), Error>) -> CertificateError {
    match result {
        Err(Error::InvalidCertificate(why)) => why,
        other => panic!("{other:?}"),
    }
}

const SAN: &str = "-addext \"subjectAltName = DNS:reg.test, IP:10.92.0.1\"";

#[test]
fn a_certificate_that_is_a_configured_authority_is_trusted() {
    let openssl = Authority::new();
    // The command of the registry's documentation. openssl makes such a certificate an authority.
    openssl.selfsigned("rsa", "rsa:2048 -sha256", SAN);
    for curve in ["P-256", "P-384", "P-521"] {
        openssl.selfsigned(curve, &format!("ec -pkeyopt ec_paramgen_curve:{curve}"), SAN);
    }
    openssl.selfsigned("ed25519", "ed25519", SAN);
    openssl.selfsigned(
        "leaf",
        "rsa:2048",
        &format!("{SAN} -addext \"basicConstraints = critical,CA:FALSE\""),
    );
    for name in ["rsa", "P-256", "P-384", "P-521", "ed25519", "leaf"] {
        openssl.verdict("reg.test", &[name], &[name]).unwrap_or_else(|error| panic!("{name}: {error}"));
        openssl.verdict("10.92.0.1", &[name], &[name]).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(
            refused(openssl.verdict("other.test", &[name], &[name])),
            CertificateError::NotValidForName
        );
        assert_eq!(
            refused(openssl.verdict("10.92.0.2", &[name], &[name])),
            CertificateError::NotValidForName
        );
    }
    let unknown = refused(openssl.verdict("reg.test", &["rsa"], &["P-256"]));
    assert_eq!(unknown, CertificateError::UnknownIssuer);
    let late =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() + Duration::from_secs(366 * 86_400);
    let late = openssl.verdict_at("reg.test", &["rsa"], &["rsa"], UnixTime::since_unix_epoch(late));
    assert_eq!(refused(late), CertificateError::Expired);
}

#[test]
fn server_certificates_that_may_sign_others_are_verified_by_their_chain() {
    let openssl = Authority::new();
    let leaf = "basicConstraints = critical,CA:TRUE\nsubjectAltName = DNS:reg.test\n";
    openssl
        .selfsigned("root", "rsa:2048", "-addext \"keyUsage = critical,keyCertSign\"")
        .selfsigned("p521", "ec -pkeyopt ec_paramgen_curve:P-521", "")
        .selfsigned("unrelated", "rsa:2048", "")
        .signed("direct", "root", leaf)
        .signed("by-p521", "p521", leaf)
        .signed("middle", "root", "basicConstraints = critical,CA:TRUE,pathlen:0\n")
        .signed("below", "middle", leaf)
        .signed("plain", "middle", "subjectAltName = DNS:reg.test\n")
        .signed("no-authority", "root", "basicConstraints = critical,CA:FALSE\n")
        .signed("by-none", "no-authority", leaf)
        .signed("other-use", "root", &format!("{leaf}extendedKeyUsage = clientAuth\n"))
        .signed("use", "root", &format!("{leaf}extendedKeyUsage = serverAuth, clientAuth\n"))
        .signed("odd", "root", &format!("{leaf}nameConstraints = critical,permitted;DNS:reg.test\n"));
    let verdict = |chain: &[&str], named: &str| openssl.verdict("reg.test", chain, &[named]);
    for chain in [&["direct"][..], &["below", "middle"], &["plain", "middle"], &["use"]] {
        verdict(chain, "root").unwrap_or_else(|error| panic!("{chain:?}: {error}"));
    }
    verdict(&["by-p521"], "p521").unwrap();
    for chain in [&["direct"][..], &["below", "middle"], &["below", "middle", "root"]] {
        assert_eq!(refused(verdict(chain, "unrelated")), CertificateError::UnknownIssuer, "{chain:?}");
    }
    for chain in [&["below"][..], &["by-none", "no-authority"]] {
        assert_eq!(refused(verdict(chain, "root")), CertificateError::UnknownIssuer, "{chain:?}");
    }
    assert_eq!(refused(verdict(&["other-use"], "root")), CertificateError::InvalidPurpose);
    assert_eq!(refused(verdict(&["odd"], "root")), CertificateError::UnhandledCriticalExtension);
}

#[test]
fn stars_match_the_first_label() {
    for (pattern, name, fits) in [
        ("*.test", "reg.test", true),
        ("*.Test", "REG.test.", true),
        ("*.reg.test", "a.reg.test", true),
        ("*.test", "a.reg.test", false),
        ("*.test", "test", false),
        ("*.test", ".test", false),
        ("*", "test", false),
        ("r*.test", "reg.test", false),
        ("reg.*", "reg.test", false),
        ("reg.test", "reg.test", true),
        ("reg_1.test", "reg_1.test", true),
        ("", "reg.test", false),
    ] {
        assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
    }
}
