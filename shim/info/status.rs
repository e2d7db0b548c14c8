//! Status: the conditions that the kubelet checks before it starts pods, and the data of `crictl info`.

use std::collections::{BTreeMap, HashMap};

use berth_proto::v1::{
    RuntimeCondition, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus, StatusResponse,
};
use serde::Serialize;
use serde_json::json;

use super::{API_VERSION, VERSION};
use crate::check::HostReport;
use crate::check::files::kernel_version;
use crate::checkpoint::criu::CriuReport;
use crate::config::{BrokenDropIn, Config};
use crate::error::CriError;
use crate::handlers::features::RuntimeSupport;

/// Whether pods can have a network, and the reason if not.
#[derive(Clone, Copy, Debug)]
pub struct NetworkReadiness<'a> {
    /// Whether pods can have a network.
    pub ready: bool,
    /// The reason as one word.
    pub reason: &'a str,
    /// The reason with file, line and key.
    pub message: &'a str,
}

/// Returns the response of Status: a verbose one if there is a report about CRIU. `runtimes` are the OCI runtimes of handlers.
///
/// # Errors
/// The verbose part cannot be encoded as JSON.
pub fn response(
    config: &Config,
    network: NetworkReadiness<'_>,
    host: &HostReport,
    criu: Option<&CriuReport>,
    runtimes: &BTreeMap<String, RuntimeSupport>,
) -> Result<StatusResponse, CriError> {
    let mut conditions = vec![runtime_ready(host), network_ready(network)];
    conditions.extend(config.broken_drop_ins.iter().map(broken_drop_in));
    Ok(StatusResponse {
        status: Some(RuntimeStatus { conditions }),
        info: criu.map(|criu| info(config, host, criu)).transpose()?.unwrap_or_default(),
        runtime_handlers: handlers(config, runtimes),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
            mount_options: true,
        }),
    })
}

fn condition(kind: &str, status: bool, reason: &str, message: &str) -> RuntimeCondition {
    RuntimeCondition {
        r#type: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

fn runtime_ready(host: &HostReport) -> RuntimeCondition {
    match host.missing() {
        None => condition("RuntimeReady", true, "", ""),
        Some(missing) => condition(
            "RuntimeReady",
            false,
            "HostNotFit",
            &format!("this host lacks {missing}; see berth check"),
        ),
    }
}

fn network_ready(network: NetworkReadiness<'_>) -> RuntimeCondition {
    match network.ready {
        true => condition("NetworkReady", true, "", ""),
        false => condition("NetworkReady", false, network.reason, network.message),
    }
}

/// Returns the condition of a broken drop-in. The kubelet reads only the two conditions above; this one is for
/// `crictl info` and monitoring.
fn broken_drop_in(broken: &BrokenDropIn) -> RuntimeCondition {
    let name = broken.file.file_name().unwrap_or(broken.file.as_os_str()).to_string_lossy();
    condition(&format!("ConfigReady:{name}"), false, "BrokenDropIn", &broken.message)
}

/// Returns the handlers by name. The kubelet uses the one with the empty name as the default.
fn handlers(config: &Config, runtimes: &BTreeMap<String, RuntimeSupport>) -> Vec<RuntimeHandler> {
    let own = RuntimeHandlerFeatures {
        // mount_setattr(2) with AT_RECURSIVE.
        recursive_read_only_mounts: kernel_version().is_some_and(|version| version >= (5, 12)),
        // Overlays can be ID-mapped since Linux 5.19; tmpfs, which kubelets use for volumes, since 6.3.
        user_namespaces: kernel_version().is_some_and(|version| version >= (6, 3)),
    };
    let mut names: Vec<&str> = config.runtime_handlers.iter().map(String::as_str).collect();
    names.push("");
    names.sort_unstable();
    names.dedup();
    let features = |name: &str| match runtimes.get(name) {
        None => own,
        // The sandbox is berth's, so both must support it.
        Some(runtime) => RuntimeHandlerFeatures {
            recursive_read_only_mounts: own.recursive_read_only_mounts && runtime.recursive_read_only_mounts,
            user_namespaces: own.user_namespaces && runtime.user_namespaces,
        },
    };
    names
        .into_iter()
        .map(|name| RuntimeHandler { name: name.to_owned(), features: Some(features(name)) })
        .collect()
}

fn info(config: &Config, host: &HostReport, criu: &CriuReport) -> Result<HashMap<String, String>, CriError> {
    let kernel = rustix::system::uname();
    let versions = json!({
        "berth": VERSION,
        "cri": API_VERSION,
        "kernel": kernel.release().to_string_lossy(),
        "machine": kernel.machine().to_string_lossy(),
    });
    Ok(HashMap::from([
        ("config".to_owned(), text("config", config)?),
        ("versions".to_owned(), text("versions", &versions)?),
        ("host".to_owned(), text("host", host)?),
        ("checkpoints".to_owned(), text("checkpoints", criu)?),
    ]))
}

fn text(what: &str, value: &impl Serialize) -> Result<String, CriError> {
    serde_json::to_string(value).map_err(|error| CriError::internal(format!("encode {what} as JSON"), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Availability, HostFeature};

    const NETWORK: NetworkReadiness<'_> = NetworkReadiness { ready: true, reason: "", message: "" };

    fn host(found: Availability) -> HostReport {
        let row = HostFeature {
            what: "overlayfs".to_owned(),
            found,
            detail: "no such device".to_owned(),
            required: true,
            without: "berth does not run",
            fix: None,
        };
        HostReport { fit: found == Availability::Yes, rows: vec![row] }
    }

    fn conditions(answer: &StatusResponse) -> Vec<(String, bool, String)> {
        let conditions = &answer.status.as_ref().unwrap().conditions;
        conditions.iter().map(|c| (c.r#type.clone(), c.status, c.message.clone())).collect()
    }

    #[test]
    fn a_fit_host_with_a_network_is_ready() {
        let answer =
            response(&Config::default(), NETWORK, &host(Availability::Yes), None, &BTreeMap::new()).unwrap();
        let expected = ["RuntimeReady", "NetworkReady"].map(|kind| (kind.to_owned(), true, String::new()));
        assert_eq!(conditions(&answer), expected);
        assert!(answer.info.is_empty());
    }

    #[test]
    fn each_problem_has_a_condition_with_a_message() {
        let broken =
            BrokenDropIn { file: "/etc/berth/conf.d/50-x.toml".into(), message: "50-x:3: bad".to_owned() };
        let config = Config { broken_drop_ins: vec![broken], ..Config::default() };
        let network =
            NetworkReadiness { ready: false, reason: "NetworkPluginNotReady", message: "10-x:1: bad" };
        let answer = response(&config, network, &host(Availability::No), None, &BTreeMap::new()).unwrap();
        let expected = [
            ("RuntimeReady", "this host lacks overlayfs (no such device); see berth check"),
            ("NetworkReady", "10-x:1: bad"),
            ("ConfigReady:50-x.toml", "50-x:3: bad"),
        ]
        .map(|(kind, message)| (kind.to_owned(), false, message.to_owned()));
        assert_eq!(conditions(&answer), expected);
    }

    #[test]
    fn the_default_handler_comes_first_under_the_empty_name() {
        let config =
            Config { runtime_handlers: vec!["z".to_owned(), "berth".to_owned()], ..Config::default() };
        let answer = response(&config, NETWORK, &host(Availability::Yes), None, &BTreeMap::new()).unwrap();
        let names: Vec<_> = answer.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
        assert_eq!(names, ["", "berth", "z"]);
    }

    #[test]
    fn the_features_of_an_oci_runtime_are_its_own() {
        let config = Config { runtime_handlers: vec!["old".to_owned()], ..Config::default() };
        let runtimes = BTreeMap::from([("old".to_owned(), RuntimeSupport::default())]);
        let answer = response(&config, NETWORK, &host(Availability::Yes), None, &runtimes).unwrap();
        let features: Vec<_> = answer.runtime_handlers.iter().map(|handler| handler.features).collect();
        assert_eq!(features[1], Some(RuntimeHandlerFeatures::default()));
        assert_ne!(features[0], features[1], "berth's own runtime");
    }

    #[test]
    fn verbose_info_is_json_by_key() {
        let criu = CriuReport { program: None, version: None, usable: false, why: "no criu".to_owned() };
        let answer =
            response(&Config::default(), NETWORK, &host(Availability::Yes), Some(&criu), &BTreeMap::new())
                .unwrap();
        let value = |key: &str| serde_json::from_str::<serde_json::Value>(&answer.info[key]).unwrap();
        assert_eq!(value("config")["socket"], "/run/berth/berth.sock");
        assert_eq!(value("versions")["berth"], VERSION);
        assert_eq!(value("host")["rows"][0]["found"], "yes");
        assert_eq!(value("checkpoints")["why"], "no criu");
    }
}
