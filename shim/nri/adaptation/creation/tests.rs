use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use berth_proto::nri::{
    Container, LinuxResources, PodSandbox, RegisterPluginRequest, SynchronizeRequest, SynchronizeResponse,
};
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::*;
use crate::config::{NriConfig, NriValidatorConfig};
use crate::nri::adaptation::NriHost;
use crate::nri::wire::frame::{self, Channel};
use crate::nri::wire::message::{Packet, TtrpcRequest, TtrpcResponse, Unpacker};

/// A daemon with one container in its store.
struct OneContainer;

impl NriHost for OneContainer {
    fn snapshot(&self) -> Pin<Box<dyn Future<Output = (Vec<PodSandbox>, Vec<Container>)> + Send + '_>> {
        let container = Container { id: "stored".to_owned(), ..Container::default() };
        Box::pin(async { (Vec::new(), vec![container]) })
    }

    fn update(
        &self,
        _: String,
        _: LinuxResources,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async { Ok(()) })
    }

    fn evict(&self, _: String, _: String) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async { Ok(()) })
    }
}

fn adaptation() -> Arc<Adaptation> {
    let config = NriConfig { plugin_registration_timeout: 1, ..NriConfig::default() };
    let adaptation = Adaptation::new(&config, &NriValidatorConfig::default());
    adaptation.set_host(Arc::new(OneContainer));
    adaptation
}

/// A plugin that answers its calls. Returns the containers that it gets when it synchronizes.
async fn plugin(mut socket: UnixStream) -> Vec<String> {
    let payload = RegisterPluginRequest {
        plugin_name: "p".to_owned(),
        plugin_idx: "10".to_owned(),
        ..RegisterPluginRequest::default()
    };
    let request = TtrpcRequest {
        service: "nri.pkg.api.v1alpha1.Runtime".to_owned(),
        method: "RegisterPlugin".to_owned(),
        payload: payload.encode_to_vec(),
        timeout_nanoseconds: 0,
    };
    let bytes = Packet::Request(1, request).encode().unwrap();
    socket.write_all(&frame::frames(Channel::Runtime, &bytes)).await.unwrap();
    let mut calls = Unpacker::default();
    loop {
        let Some((channel, data)) = frame::read(&mut socket).await.unwrap() else { continue };
        if channel == Channel::Runtime {
            continue;
        }
        calls.push(&data);
        while let Some(Packet::Request(stream, request)) = calls.next_packet().unwrap() {
            let payload = SynchronizeResponse::default().encode_to_vec();
            let answer = Packet::Response(stream, TtrpcResponse { status: None, payload }).encode().unwrap();
            socket.write_all(&frame::frames(Channel::Plugin, &answer)).await.unwrap();
            if request.method == "Synchronize" {
                let all = SynchronizeRequest::decode(request.payload.as_slice()).unwrap();
                // The connection ends with the test.
                std::mem::forget(socket);
                return all.containers.into_iter().map(|container| container.id).collect();
            }
        }
    }
}

async fn connect(adaptation: &Arc<Adaptation>) -> Vec<String> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let seen = tokio::spawn(plugin(theirs));
    adaptation.connect(ours, None).await.unwrap();
    seen.await.unwrap()
}

#[tokio::test]
async fn a_plugin_waits_for_creations_of_which_none_was_notified() {
    let adaptation = adaptation();
    let creation = adaptation.begin("silent");
    assert!(!creation.is_announced() && !adaptation.is_active());
    let connecting = {
        let adaptation = adaptation.clone();
        tokio::spawn(async move { connect(&adaptation).await })
    };
    while !adaptation.is_active() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The creation ends in time, with its container in the store.
    assert_eq!(creation.check(), Ok(()));
    drop(creation);
    assert_eq!(connecting.await.unwrap(), ["stored"]);
    assert!(adaptation.begin("next").is_announced());
}

#[tokio::test]
async fn a_creation_that_a_plugin_does_not_wait_for_fails() {
    let adaptation = adaptation();
    let creation = adaptation.begin("slow");
    assert_eq!(connect(&adaptation).await, ["stored"]);
    assert_eq!(creation.check(), Err(NriError::Overtaken));
    drop(creation);
    assert_eq!(adaptation.begin("next").check(), Ok(()));
}

#[tokio::test]
async fn a_plugin_gets_announced_containers_until_they_are_in_the_store() {
    let adaptation = adaptation();
    assert_eq!(connect(&adaptation).await, ["stored"]);
    let creation = adaptation.begin("new");
    for (id, expected) in [("stored", vec!["stored"]), ("new", vec!["new", "stored"])] {
        let container = Container { id: id.to_owned(), ..Container::default() };
        adaptation.announced().containers.insert(id.to_owned(), container);
        assert_eq!(connect(&adaptation).await, expected, "an announced container comes once");
    }
    drop(creation);
    adaptation.announced().containers.clear();
    assert_eq!(connect(&adaptation).await, ["stored"]);
}
