//! Names: of images, RuntimeClass handlers, plugins and resource limits.

use serde::Deserialize;

use super::{Described, InvalidValue, invalid};

checked! {
    /// References of images.
    References, "Vec<String>", Vec<String> => Vec<String>, references,
        "a list of references, with a tag or a digest"
}

checked! {
    /// Names of RuntimeClass handlers: DNS labels, as Kubernetes requires.
    HandlerNames, "Vec<String>", Vec<String> => Vec<String>, handlers,
        "a list of DNS labels; a pod without a RuntimeClass needs none"
}

checked! {
    /// Types of built-in CNI plugins.
    PluginNames, "Vec<String>", Vec<String> => Vec<String>, plugins,
        "a list of types of built-in plugins"
}

checked! {
    /// Resource limits as `name=soft:hard`, by the names of setrlimit(2) in lower case.
    Ulimits, "Vec<String>", Vec<String> => Vec<String>, ulimits,
        "a list of limits: `\"nofile=1024:524288\"`, `\"core=0\"`, `\"memlock=unlimited\"`"
}

checked! {
    /// Names without a rule.
    Names, "Vec<String>", Vec<String> => Vec<String>, unchanged,
        "a list of names"
}

checked! {
    /// A name without a rule.
    Name, "String", String => String, unchanged,
        "a text"
}

fn references(names: Vec<String>) -> Result<Vec<String>, InvalidValue> {
    for name in &names {
        if let Err(error) = name.parse::<berth_image::Reference>() {
            return invalid(error.to_string());
        }
    }
    Ok(names)
}

fn handlers(names: Vec<String>) -> Result<Vec<String>, InvalidValue> {
    names.iter().try_for_each(|name| check_handler_name(name))?;
    Ok(names)
}

/// Checks the name of a handler.
pub(in crate::config) fn check_handler_name(name: &str) -> Result<(), InvalidValue> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let framed = !name.starts_with('-') && !name.ends_with('-');
    if name.is_empty() || name.len() > 63 || !name.bytes().all(allowed) || !framed {
        return invalid(format!("{name:?} is not a handler's name: 1 to 63 lowercase letters, digits and -"));
    }
    Ok(())
}

fn plugins(names: Vec<String>) -> Result<Vec<String>, InvalidValue> {
    let built_in = [&berth_cni::BUILT_IN[..], &berth_cni::BUILT_IN_IPAM].concat();
    match names.iter().find(|name| !built_in.contains(&name.as_str())) {
        Some(name) => invalid(format!("{name:?} is not one of {}", built_in.join(", "))),
        None => Ok(names),
    }
}

fn ulimits(limits: Vec<String>) -> Result<Vec<String>, InvalidValue> {
    for limit in &limits {
        if let Err(why) = crate::oci::rlimits::parse(limit) {
            return invalid(format!("{limit:?} {why}"));
        }
    }
    Ok(limits)
}

#[allow(clippy::unnecessary_wraps, reason = "checked types have a function that can fail")]
fn unchanged<T>(value: T) -> Result<T, InvalidValue> {
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_break_a_rule_are_refused() {
        assert!(handlers(vec!["gvisor-2".to_owned()]).is_ok());
        for name in ["", "A", "-a", "a-", "a_b"] {
            assert!(handlers(vec![name.to_owned()]).is_err(), "{name}");
        }
        assert!(plugins(vec!["portmap".to_owned(), "host-local".to_owned()]).is_ok());
        assert!(plugins(vec!["calico".to_owned()]).is_err(), "not built in");
    }
}
