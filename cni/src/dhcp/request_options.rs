//! The DHCP options of a network's configuration: the keys of the reference plugin's `ipam` section, compiled to
//! message options.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::message::option;

/// The options of the messages to servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestOptions {
    /// The options that the client sends.
    pub(crate) provided: BTreeMap<u8, Vec<u8>>,
    /// The options that the client requests, in order.
    pub(crate) requested: Vec<u8>,
    /// The metric of routes; 0 is the kernel's default.
    pub(crate) priority: u32,
}

/// The requested options unless the configuration sets `skipDefault`. Classless routes come before the router (RFC
/// 3442).
const DEFAULT: [u8; 7] = [
    option::SUBNET_MASK,
    option::CLASSLESS_ROUTE,
    option::ROUTER,
    option::STATIC_ROUTE,
    option::NAME_SERVER,
    option::DOMAIN_NAME,
    option::MTU,
];

#[derive(Debug, Deserialize)]
struct DhcpKeys {
    #[serde(default)]
    provide: Vec<Provide>,
    #[serde(default)]
    request: Vec<Request>,
    #[serde(default)]
    priority: u32,
}

#[derive(Debug, Deserialize)]
struct Provide {
    option: String,
    #[serde(default)]
    value: String,
    #[serde(default, rename = "fromArg")]
    from_argument: String,
}

#[derive(Debug, Deserialize)]
struct Request {
    #[serde(default, rename = "skipDefault")]
    skip_default: bool,
    #[serde(default)]
    option: String,
}

impl RequestOptions {
    /// Compiles an `ipam` section and the values of `CNI_ARGS`.
    ///
    /// # Errors
    /// A key is invalid. The error names it.
    pub(crate) fn compile(ipam: &Value, arguments: &BTreeMap<String, String>) -> Result<Self, String> {
        let keys = DhcpKeys::deserialize(ipam).map_err(|error| format!("ipam: {error}"))?;
        let mut provided = BTreeMap::new();
        for provide in keys.provide {
            let number = number(&provide.option).map_err(|why| format!("ipam.provide: {why}"))?;
            let argument = arguments.get(&provide.from_argument).map(String::as_str);
            // The runtime's value overrides that of the configuration.
            let value = argument.or(Some(&provide.value)).filter(|value| !value.is_empty());
            let Some(value) = value else { continue };
            if value.len() > 255 {
                return Err(format!(
                    "ipam.provide: the value of option {} has more than 255 bytes",
                    provide.option
                ));
            }
            provided.insert(number, value.as_bytes().to_vec());
        }
        let mut requested = Vec::new();
        let mut add = |number: u8| {
            if !requested.contains(&number) {
                requested.push(number);
            }
        };
        let skip = keys.request.iter().any(|request| request.skip_default);
        if !skip {
            DEFAULT.into_iter().for_each(&mut add);
        }
        for request in keys.request.iter().filter(|request| !request.option.is_empty()) {
            add(number(&request.option).map_err(|why| format!("ipam.request: {why}"))?);
        }
        Ok(Self { provided, requested, priority: keys.priority })
    }
}

/// Returns the code of an option: one of these names (dhcp-options(5)), or a number.
fn number(name: &str) -> Result<u8, String> {
    Ok(match name {
        "dhcp-client-identifier" => option::CLIENT,
        "subnet-mask" => option::SUBNET_MASK,
        "routers" => option::ROUTER,
        "host-name" => option::HOST_NAME,
        "user-class" => option::USER_CLASS,
        "vendor-class-identifier" => option::VENDOR_CLASS,
        number => match number.parse() {
            // The pad and the end are not options.
            Ok(number @ 1..=254) => number,
            _ => return Err(format!("unknown DHCP option {number:?}")),
        },
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn compile(ipam: Value) -> Result<RequestOptions, String> {
        let arguments = BTreeMap::from([("K8S_POD_NAME".to_owned(), "web-0".to_owned())]);
        RequestOptions::compile(&ipam, &arguments)
    }

    #[test]
    fn the_keys_of_the_reference_plugin_are_supported() {
        let options =
            compile(json!({ "type": "dhcp", "daemonSocketPath": "/run/cni/dhcp.sock", "priority": 50,
            "request": [{ "skipDefault": false }, { "option": "42" }],
            "provide": [{ "option": "host-name", "value": "other", "fromArg": "K8S_POD_NAME" },
                        { "option": "12", "fromArg": "NOT_THERE" },
                        { "option": "vendor-class-identifier", "value": "berth" }] }));
        let options = options.unwrap();
        assert_eq!(options.provided, BTreeMap::from([(12, b"web-0".to_vec()), (60, b"berth".to_vec())]));
        assert_eq!(options.requested, [1, 121, 3, 33, 6, 15, 26, 42]);
        assert_eq!(options.priority, 50);
        let only = compile(
            json!({ "request": [{ "skipDefault": true }, { "option": "routers" }, { "option": "subnet-mask" }] }),
        );
        assert_eq!(only.unwrap().requested, [3, 1]);
        assert_eq!(compile(json!({ "type": "dhcp" })).unwrap().provided, BTreeMap::new());
    }

    #[test]
    fn errors_name_the_invalid_key() {
        let error_of = |ipam: Value| compile(ipam).unwrap_err();
        assert!(
            error_of(json!({ "provide": [{ "option": "hostname", "value": "x" }] })).contains("hostname")
        );
        assert!(error_of(json!({ "request": [{ "option": "255" }] })).contains("255"));
        assert!(
            error_of(json!({ "provide": [{ "option": "12", "value": "x".repeat(256) }] }))
                .contains("255 bytes")
        );
        assert!(error_of(json!({ "provide": 5 })).starts_with("ipam: "));
    }
}
