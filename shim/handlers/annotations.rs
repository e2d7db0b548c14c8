//! Annotations of pods and containers that a handler's runtime gets. Without a pattern in the configuration there are none:
//! some runtimes change their behaviour by annotations, and everyone who may create pods can set them.

use std::collections::HashMap;

use oci_spec::runtime::Spec;

/// The annotation by which some runtimes look for a sandbox of the same runtime, which does not exist: the sandbox is berth's.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

/// Adds the annotations that match a pattern. The spec's own stay; those of the container precede those of the pod.
pub fn add(
    spec: &mut Spec,
    patterns: &[String],
    container: &HashMap<String, String>,
    pod: &HashMap<String, String>,
) {
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    for (key, value) in container.iter().chain(pod) {
        if patterns.iter().any(|pattern| matches(pattern, key)) && !annotations.contains_key(key) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    annotations.remove(CONTAINER_TYPE);
    spec.set_annotations(Some(annotations));
}

/// Whether a name matches a pattern: `*` is any text without `/`, `?` any letter except `/`, as in containerd.
fn matches(pattern: &str, name: &str) -> bool {
    let mut pattern_rest = pattern.chars();
    match pattern_rest.next() {
        None => name.is_empty(),
        Some('*') => {
            let rest = pattern_rest.as_str();
            let ends =
                name.char_indices().map(|(at, letter)| (at, letter == '/')).chain([(name.len(), true)]);
            for (at, is_last) in ends {
                if matches(rest, name.get(at..).unwrap_or_default()) {
                    return true;
                }
                if is_last {
                    break;
                }
            }
            false
        }
        Some(expected) => {
            let mut letters = name.chars();
            letters.next().is_some_and(|letter| letter == expected || expected == '?' && letter != '/')
                && matches(pattern_rest.as_str(), letters.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn stars_stop_at_slashes() {
        for (pattern, name, expected) in [
            ("io.example.*", "io.example.a", true),
            ("io.example.*", "io.example.a/b", false),
            ("io.example.*/*", "io.example.a/b", true),
            ("*", "", true),
            ("*", "a", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abcd", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn only_matching_annotations_are_added_and_none_is_replaced() {
        let mut spec = Spec::default();
        spec.set_annotations(Some(map(&[
            ("io.kubernetes.cri.sandbox-id", "p"),
            (CONTAINER_TYPE, "container"),
        ])));
        let container = map(&[("x.a", "of the container"), ("other", "1"), (CONTAINER_TYPE, "sandbox")]);
        let pod = map(&[("x.a", "of the pod"), ("x.b", "2"), ("io.kubernetes.cri.sandbox-id", "forged")]);
        let patterns = ["x.*", "io.kubernetes.*"].map(str::to_owned);
        add(&mut spec, &patterns, &container, &pod);
        let expected =
            map(&[("io.kubernetes.cri.sandbox-id", "p"), ("x.a", "of the container"), ("x.b", "2")]);
        assert_eq!(spec.annotations().clone().unwrap(), expected);
    }
}
