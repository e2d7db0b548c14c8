//! ListContainers, answered from memory.

use berth_proto::v1::{Container as Summary, ContainerFilter};

use crate::store::{Container, Store};
use crate::views::container_state;

/// Returns the containers that match every part of the filter.
#[must_use]
pub fn list_containers(store: &Store, filter: Option<&ContainerFilter>) -> Vec<Summary> {
    store.containers().iter().map(|c| summary(c)).filter(|c| matches(c, filter)).collect()
}

fn summary(container: &Container) -> Summary {
    container.with(|record| Summary {
        id: record.id.as_str().to_owned(),
        pod_sandbox_id: record.pod.as_str().to_owned(),
        metadata: record.config.metadata.clone(),
        image: record.image.clone().or_else(|| record.config.image.clone()),
        image_ref: record.image_ref.clone(),
        state: container_state(&record.state).into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image_id.clone(),
    })
}

fn matches(container: &Summary, filter: Option<&ContainerFilter>) -> bool {
    let Some(filter) = filter else { return true };
    container.id.starts_with(&filter.id)
        && container.pod_sandbox_id.starts_with(&filter.pod_sandbox_id)
        && filter.state.as_ref().is_none_or(|expected| expected.state == container.state)
        && filter.label_selector.iter().all(|(key, value)| container.labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use berth_proto::v1::{ContainerState as CriState, ContainerStateValue};

    use super::*;

    #[test]
    fn every_part_of_a_filter_must_match() {
        let container = Summary {
            id: "abc".to_owned(),
            pod_sandbox_id: "def".to_owned(),
            state: CriState::ContainerRunning.into(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            ..Summary::default()
        };
        let filter = ContainerFilter { pod_sandbox_id: "d".to_owned(), ..ContainerFilter::default() };
        assert!(matches(&container, None));
        assert!(matches(&container, Some(&filter)));
        let other_pod = ContainerFilter { pod_sandbox_id: "e".to_owned(), ..ContainerFilter::default() };
        assert!(!matches(&container, Some(&other_pod)));
        let exited = ContainerStateValue { state: CriState::ContainerExited.into() };
        assert!(!matches(&container, Some(&ContainerFilter { state: Some(exited), ..filter.clone() })));
        let label = [("app".to_owned(), "db".to_owned())].into();
        assert!(!matches(&container, Some(&ContainerFilter { label_selector: label, ..filter })));
    }
}
