//! The calls about pods and containers.

use berth_proto::nri::Event;

/// A call about a pod or a container whose answer has no content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A pod runs; clients do not see it yet.
    RunPod,
    /// The resources of a pod were updated.
    PostUpdatePod,
    /// The containers of a pod have ended; its network and namespaces still exist.
    StopPod,
    /// A pod was removed.
    RemovePod,
    /// A container was created.
    PostCreate,
    /// A container will be started.
    Start,
    /// A container was started.
    PostStart,
    /// The limits of a container were updated.
    PostUpdate,
    /// A container was removed.
    Remove,
}

impl Notice {
    /// Returns the event to which plugins subscribe.
    #[must_use]
    pub fn event(self) -> Event {
        match self {
            Self::RunPod => Event::RunPodSandbox,
            Self::PostUpdatePod => Event::PostUpdatePodSandbox,
            Self::StopPod => Event::StopPodSandbox,
            Self::RemovePod => Event::RemovePodSandbox,
            Self::PostCreate => Event::PostCreateContainer,
            Self::Start => Event::StartContainer,
            Self::PostStart => Event::PostStartContainer,
            Self::PostUpdate => Event::PostUpdateContainer,
            Self::Remove => Event::RemoveContainer,
        }
    }
}

/// Returns the name of the function that a plugin has for an event.
#[must_use]
pub fn method(event: Event) -> &'static str {
    match event {
        Event::RunPodSandbox => "RunPodSandbox",
        Event::StopPodSandbox => "StopPodSandbox",
        Event::RemovePodSandbox => "RemovePodSandbox",
        Event::CreateContainer => "CreateContainer",
        Event::PostCreateContainer => "PostCreateContainer",
        Event::StartContainer => "StartContainer",
        Event::PostStartContainer => "PostStartContainer",
        Event::UpdateContainer => "UpdateContainer",
        Event::PostUpdateContainer => "PostUpdateContainer",
        Event::StopContainer => "StopContainer",
        Event::RemoveContainer => "RemoveContainer",
        Event::UpdatePodSandbox => "UpdatePodSandbox",
        Event::PostUpdatePodSandbox => "PostUpdatePodSandbox",
        Event::ValidateContainerAdjustment => "ValidateContainerAdjustment",
        Event::Unknown | Event::Last => "StateChange",
    }
}

/// A set of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventMask(i32);

impl EventMask {
    /// All events.
    const ALL: Self = Self((1 << 14) - 1);

    /// Reads the mask of a plugin. An empty one means all events.
    ///
    /// # Errors
    /// The bits of unknown events.
    pub fn from_plugin(bits: i32) -> Result<Self, i32> {
        match bits {
            0 => Ok(Self::ALL),
            bits if bits & !Self::ALL.0 == 0 => Ok(Self(bits)),
            bits => Err(bits & !Self::ALL.0),
        }
    }

    /// Whether the event is in the set.
    #[must_use]
    pub fn contains(self, event: Event) -> bool {
        self.0 & 1 << (i32::from(event) - 1).max(0) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_a_bit_for_each_event() {
        assert_eq!(EventMask::ALL.0, (1 << (i32::from(Event::Last) - 1)) - 1);
        let create = EventMask::from_plugin(1 << 3).unwrap();
        assert!(create.contains(Event::CreateContainer) && !create.contains(Event::StartContainer));
        assert!(EventMask::from_plugin(0).unwrap().contains(Event::ValidateContainerAdjustment));
        assert_eq!(EventMask::from_plugin(1 << 14 | 1), Err(1 << 14));
    }
}
