//! ListPodSandbox, answered from memory.

use berth_proto::v1::{PodSandbox, PodSandboxFilter};

use crate::store::{Pod, Store};
use crate::views::pod_state;

/// Returns the pods that match every part of the filter.
#[must_use]
pub fn list_pod_sandboxes(store: &Store, filter: Option<&PodSandboxFilter>) -> Vec<PodSandbox> {
    store.pods().iter().map(|pod| summary(pod)).filter(|pod| matches(pod, filter)).collect()
}

fn summary(pod: &Pod) -> PodSandbox {
    pod.with(|record| PodSandbox {
        id: record.id.as_str().to_owned(),
        metadata: record.config.metadata.clone(),
        state: pod_state(&record.state).into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    })
}

fn matches(pod: &PodSandbox, filter: Option<&PodSandboxFilter>) -> bool {
    let Some(filter) = filter else { return true };
    pod.id.starts_with(&filter.id)
        && filter.state.as_ref().is_none_or(|expected| expected.state == pod.state)
        && filter.label_selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use berth_proto::v1::{PodSandboxState, PodSandboxStateValue};

    use super::*;

    fn pod() -> PodSandbox {
        PodSandbox {
            id: "abc".to_owned(),
            state: PodSandboxState::SandboxReady.into(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            ..PodSandbox::default()
        }
    }

    #[test]
    fn every_part_of_a_filter_must_match() {
        let by_id = |id: &str| PodSandboxFilter { id: id.to_owned(), ..PodSandboxFilter::default() };
        let by_label = |value: &str| PodSandboxFilter {
            label_selector: [("app".to_owned(), value.to_owned())].into(),
            ..by_id("ab")
        };
        assert!(matches(&pod(), None));
        assert!(matches(&pod(), Some(&by_id(""))));
        assert!(!matches(&pod(), Some(&by_id("b"))));
        assert!(matches(&pod(), Some(&by_label("web"))));
        assert!(!matches(&pod(), Some(&by_label("db"))));
        let not_ready = PodSandboxStateValue { state: PodSandboxState::SandboxNotready.into() };
        assert!(!matches(&pod(), Some(&PodSandboxFilter { state: Some(not_ready), ..by_id("") })));
    }
}
