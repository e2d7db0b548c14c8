//! One plugin: it registers, is configured, gets all pods and containers, and is called until its connection ends.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_proto::nri::{
    ConfigureRequest, ConfigureResponse, Container, ContainerUpdate, Empty, Event, FailurePolicy, PodSandbox,
    RegisterPluginRequest, StartContainerRequest, StateChangeEvent, SynchronizeRequest, SynchronizeResponse,
};
use prost::Message;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::events::{EventMask, Notice, method};
use super::wire::message::TtrpcStatus;
use super::wire::{IncomingCall, PluginConnection, PluginError, UNIMPLEMENTED, UNKNOWN};

/// The index and the name of a plugin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PluginName {
    /// Two digits: plugins are called in the order of their indexes.
    pub index: Box<str>,
    /// The name.
    pub name: Box<str>,
}

impl PluginName {
    /// Checks an index and a name.
    ///
    /// # Errors
    /// The reason why they are invalid.
    pub fn new(index: &str, name: &str) -> Result<Self, String> {
        if index.len() != 2 || !index.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("invalid index {index:?}: it must have two digits"));
        }
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte);
        if name.is_empty() || !name.bytes().all(valid) {
            return Err(format!("invalid name {name:?}: only letters, digits and -_.+ are allowed"));
        }
        Ok(Self { index: index.into(), name: name.into() })
    }

    /// Reads the name of a file, `NN-name`.
    ///
    /// # Errors
    /// The reason why it is invalid.
    pub fn of_file(file: &str) -> Result<Self, String> {
        let (index, name) = file.split_once('-').ok_or("the name is not NN-name")?;
        Self::new(index, name)
    }
}

impl fmt::Display for PluginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.index, self.name)
    }
}

/// The time limits, which the daemon also sends to every plugin.
#[derive(Clone, Debug)]
pub struct PluginSettings {
    /// The time until a plugin that connects has registered, and until it has handled all pods and containers.
    pub registration: Duration,
    /// The time until a plugin answers a call.
    pub request: Duration,
}

/// A plugin that the daemon has started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchedPlugin {
    /// Its name, from the file.
    pub name: PluginName,
    /// Its configuration.
    pub config: String,
}

/// The state of a plugin.
#[derive(Clone, Debug, PartialEq)]
pub enum PluginState {
    /// The connection exists.
    Connected,
    /// The plugin has sent its name.
    Registered,
    /// The plugin has sent the events that it subscribes to.
    Configured(Subscription),
    /// The plugin has all pods and containers, and receives events.
    Synchronized(Subscription),
    /// The connection has ended.
    Closed,
}

/// The answer of a plugin to its configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    events: EventMask,
    policy: FailurePolicy,
}

/// A plugin that has registered and is configured.
#[derive(Debug)]
pub struct NriPlugin {
    /// Its name.
    pub name: PluginName,
    state: Mutex<PluginState>,
    connection: Arc<PluginConnection>,
    limit: Duration,
}

/// The version of NRI whose messages the daemon uses.
const NRI_VERSION: &str = "v0.12.5";

impl NriPlugin {
    /// Waits until the plugin of a connection has registered, and configures it. Returns it with its further calls.
    ///
    /// # Errors
    /// The plugin does not register in time, or its registration or its answer is invalid.
    pub async fn register(
        socket: UnixStream,
        launched: Option<LaunchedPlugin>,
        settings: &PluginSettings,
    ) -> Result<(Self, mpsc::Receiver<IncomingCall>), String> {
        let (connection, mut calls) = PluginConnection::start(socket);
        let registered = async {
            tokio::select! {
                name = registration(&mut calls, launched.as_ref()) => name,
                why = connection.ended() => Err(format!("the connection ended: {why}")),
            }
        };
        let name = tokio::time::timeout(settings.registration, registered)
            .await
            .map_err(|_elapsed| format!("it did not register within {:?}", settings.registration))??;
        let config = launched.map(|launched| launched.config).unwrap_or_default();
        let state = Mutex::new(PluginState::Registered);
        let plugin = Self { name, state, connection, limit: settings.request };
        plugin.configure(config, settings).await.map_err(|why| format!("{}: {why}", plugin.name))?;
        Ok((plugin, calls))
    }

    async fn configure(&self, config: String, settings: &PluginSettings) -> Result<(), String> {
        let milliseconds = |limit: Duration| i64::try_from(limit.as_millis()).unwrap_or(i64::MAX);
        let request = ConfigureRequest {
            config,
            runtime_name: "berth".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            registration_timeout: milliseconds(settings.registration),
            request_timeout: milliseconds(settings.request),
            nri_version: NRI_VERSION.to_owned(),
        };
        let answer: ConfigureResponse = self
            .connection
            .call("Configure", &request, self.limit)
            .await
            .map_err(|error| format!("failed to configure it: {error}"))?;
        let events = EventMask::from_plugin(answer.events)
            .map_err(|bits| format!("it subscribes to unknown events {bits:#x}"))?;
        let subscription = Subscription { events, policy: answer.failure_policy.unwrap_or_default() };
        self.set_state(PluginState::Configured(subscription));
        Ok(())
    }

    /// Sends all pods and containers. Returns the updates that the plugin requests.
    ///
    /// # Errors
    /// The plugin refuses them, or does not answer in time. It is closed then.
    pub async fn synchronize(
        &self,
        pods: Vec<PodSandbox>,
        containers: Vec<Container>,
        limit: Duration,
    ) -> Result<Vec<ContainerUpdate>, PluginError> {
        let done = tokio::time::timeout(limit, self.send_all(pods, containers, limit)).await;
        let updates = done.unwrap_or(Err(PluginError::Timeout(limit)));
        match (&updates, self.state()) {
            (Ok(_), PluginState::Configured(subscription)) => {
                self.set_state(PluginState::Synchronized(subscription));
            }
            (Ok(_), _) => {}
            (Err(error), _) => self.close(&error.to_string()),
        }
        updates
    }

    async fn send_all(
        &self,
        pods: Vec<PodSandbox>,
        containers: Vec<Container>,
        limit: Duration,
    ) -> Result<Vec<ContainerUpdate>, PluginError> {
        let mut parts = divide(pods, containers).into_iter().peekable();
        while let Some(part) = parts.next() {
            let more = parts.peek().is_some();
            let request = SynchronizeRequest { more, ..part };
            let answer: SynchronizeResponse = self.connection.call("Synchronize", &request, limit).await?;
            if !more {
                return Ok(answer.update);
            }
            if !answer.more || !answer.update.is_empty() {
                return Err(PluginError::Protocol("it does not support several messages".to_owned()));
            }
        }
        Ok(Vec::new())
    }

    /// Whether the plugin is called for an event.
    #[must_use]
    pub fn handles(&self, event: Event) -> bool {
        match self.state() {
            PluginState::Synchronized(subscription) => subscription.events.contains(event),
            _ => false,
        }
    }

    /// Sends an event without an answer.
    ///
    /// # Errors
    /// The plugin rejects the event, or does not handle it and its policy requires that.
    pub async fn notify(
        &self,
        notice: Notice,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<(), PluginError> {
        let event = notice.event();
        if !self.handles(event) {
            return Ok(());
        }
        // The requests of all these calls have the same two fields; those about pods lack the second one.
        let request = StartContainerRequest { pod: Some(pod.clone()), container: container.cloned() };
        let mut sent = self.connection.call::<_, Empty>(method(event), &request, self.limit).await;
        if matches!(sent, Err(PluginError::Rejected { code: UNIMPLEMENTED, .. })) {
            let StartContainerRequest { pod, container } = request;
            let request = StateChangeEvent { event: event.into(), pod, container };
            sent = self.connection.call("StateChange", &request, self.limit).await;
        }
        self.by_policy(event, sent).map(drop)
    }

    /// Calls the function of an event. Returns none if the plugin does not handle the event.
    ///
    /// # Errors
    /// As [`NriPlugin::notify`].
    pub async fn request<Q: Message, A: Message + Default>(
        &self,
        event: Event,
        request: &Q,
    ) -> Result<Option<A>, PluginError> {
        if !self.handles(event) {
            return Ok(None);
        }
        let answer = self.connection.call(method(event), request, self.limit).await;
        self.by_policy(event, answer)
    }

    /// Handles a plugin that does not answer: it is closed, and the event proceeds without it, unless its policy
    /// specifies something else. An error that the plugin returns is not affected.
    fn by_policy<A>(&self, event: Event, answer: Result<A, PluginError>) -> Result<Option<A>, PluginError> {
        let error = match answer {
            Ok(answer) => return Ok(Some(answer)),
            Err(error @ (PluginError::Rejected { .. } | PluginError::TooLarge(_))) => return Err(error),
            Err(error) => error,
        };
        let policy = match self.state() {
            PluginState::Synchronized(subscription) => subscription.policy,
            _ => FailurePolicy::default(),
        };
        let keeps = policy.keep_connected && matches!(error, PluginError::Timeout(_));
        tracing::error!(plugin = %self.name, event = method(event), %error, closed = !keeps,
            "an NRI plugin failed to handle an event");
        if !keeps {
            self.close(&format!("failed to handle {}: {error}", method(event)));
        }
        if policy.fail_request { Err(error) } else { Ok(None) }
    }

    /// Closes the plugin's connection.
    pub fn close(&self, why: &str) {
        self.set_state(PluginState::Closed);
        self.connection.close(why);
    }

    /// Waits until the connection has ended, and returns the reason.
    pub async fn ended(&self) -> String {
        self.connection.ended().await
    }

    /// Whether the plugin is no longer called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// Notifies the plugin of the end of the daemon.
    pub async fn shut_down(&self, limit: Duration) {
        drop(self.connection.call::<_, Empty>("Shutdown", &Empty {}, limit).await);
        self.close("the daemon ends");
    }

    fn state(&self) -> PluginState {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_state(&self, state: PluginState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

/// Waits for the registration, and answers it.
async fn registration(
    calls: &mut mpsc::Receiver<IncomingCall>,
    launched: Option<&LaunchedPlugin>,
) -> Result<PluginName, String> {
    let Some(call) = calls.recv().await else { return Err("the connection ended".to_owned()) };
    let name = match call.method.as_str() {
        "RegisterPlugin" => name_of(&call.payload, launched),
        other => Err(format!("it calls {other} before its registration")),
    };
    match name {
        Ok(name) => {
            call.answer(Ok(Vec::new())).await;
            Ok(name)
        }
        Err(why) => {
            call.answer(Err(TtrpcStatus { code: UNKNOWN, message: why.clone() })).await;
            Err(why)
        }
    }
}

/// Returns the name in a registration. A plugin that the daemon has started has the name of its file.
fn name_of(payload: &[u8], launched: Option<&LaunchedPlugin>) -> Result<PluginName, String> {
    let request = RegisterPluginRequest::decode(payload)
        .map_err(|error| format!("its registration is invalid: {error}"))?;
    match launched {
        Some(launched) => Ok(launched.name.clone()),
        None => PluginName::new(&request.plugin_idx, &request.plugin_name),
    }
}

/// The size of the content of a synchronization message, far enough below the limit of a message.
const PART: usize = 3 << 20;

/// Divides pods and containers into messages below the size limit. There is at least one message.
fn divide(pods: Vec<PodSandbox>, containers: Vec<Container>) -> Vec<SynchronizeRequest> {
    let mut parts = vec![(0, SynchronizeRequest::default())];
    let mut place = |size: usize, add: &mut dyn FnMut(&mut SynchronizeRequest)| {
        if parts.last().is_some_and(|(filled, _)| *filled > 0 && filled + size > PART) {
            parts.push((0, SynchronizeRequest::default()));
        }
        if let Some((filled, part)) = parts.last_mut() {
            *filled += size;
            add(part);
        }
    };
    for pod in pods {
        place(pod.encoded_len() + 8, &mut |part| part.pods.push(pod.clone()));
    }
    for container in containers {
        place(container.encoded_len() + 8, &mut |part| part.containers.push(container.clone()));
    }
    parts.into_iter().map(|(_, part)| part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!(PluginName::of_file("05-logger").unwrap().to_string(), "05-logger");
        assert_eq!(&*PluginName::of_file("05-a-b").unwrap().name, "a-b");
        for invalid in ["logger", "5-logger", "005-logger", "0x-logger", "05-", "05-a/b"] {
            assert!(PluginName::of_file(invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn many_containers_are_divided_into_messages() {
        assert_eq!(divide(Vec::new(), Vec::new()).len(), 1);
        let container = |number: usize| Container {
            id: number.to_string(),
            args: vec!["x".repeat(100_000)],
            ..Container::default()
        };
        let parts = divide(vec![PodSandbox::default()], (0..100).map(container).collect());
        assert_eq!(parts.len(), 4);
        assert!(parts.iter().all(|part| part.encoded_len() <= super::super::wire::message::MAX_MESSAGE));
        let ids: Vec<_> = parts.iter().flat_map(|part| &part.containers).map(|c| c.id.clone()).collect();
        assert_eq!(ids, (0..100).map(|number| number.to_string()).collect::<Vec<_>>());
    }
}
