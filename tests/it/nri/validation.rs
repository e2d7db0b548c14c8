//! Validators: plugins and the default one.

use berth_proto::nri::*;
use prost::Message;

use super::plugin::{Reaction, TestPlugin};
use super::{adjusting, socket};
use crate::support::{Berth, sleeper};

#[tokio::test(flavor = "multi_thread")]
async fn a_validator_sees_the_changes_with_their_plugins_and_rejects_them() {
    let mut berth = Berth::start().await;
    let path = socket(&berth);
    let change = ContainerAdjustment {
        env: vec![KeyValue { key: "X".to_owned(), value: "1".to_owned() }],
        ..ContainerAdjustment::default()
    };
    let _first = TestPlugin::reacting(&path, "10", "a", adjusting("c", change)).await;
    let validator = TestPlugin::reacting(&path, "20", "v", |method, payload| {
        if method != "ValidateContainerAdjustment" {
            return None;
        }
        let request = ValidateContainerAdjustmentRequest::decode(payload).unwrap();
        let reject = !request.adjust.unwrap().env.is_empty();
        Some(Reaction::answer(&ValidateContainerAdjustmentResponse {
            reject,
            reason: "no variables".to_owned(),
        }))
    })
    .await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let error = berth.try_create(&pod, sleeper("c")).await.unwrap_err();
    assert!(error.message().contains("NRI validator 20-v rejected the container: no variables"), "{error}");
    let seen = validator.until("ValidateContainerAdjustment").await;
    let request = ValidateContainerAdjustmentRequest::decode(seen.payload.as_slice()).unwrap();
    let container = request.container.unwrap();
    assert!(!container.env.iter().any(|variable| variable == "X=1"), "the container before the changes");
    let owners = &request.owners.unwrap().owners[&container.id].compound[&i32::from(Field::Env)].owners;
    assert_eq!(owners["X"], "10-a");
    let names: Vec<_> =
        request.plugins.iter().map(|plugin| (plugin.index.as_str(), plugin.name.as_str())).collect();
    assert_eq!(names, [("10", "a"), ("20", "v")]);
    berth.run(&pod, sleeper("other")).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn required_plugins_and_forbidden_changes() {
    let mut berth = Berth::start_with(
        "[nri_validator]\nenable = true\nreject_oci_hook_adjustment = true\nrequired_plugins = [\"auth\"]\n\
         tolerate_missing_plugins_annotation = \"tolerate.example\"\n",
    )
    .await;
    berth.load_image().await;
    let path = socket(&berth);
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let error = berth.try_create(&pod, sleeper("c")).await.unwrap_err();
    assert!(error.message().contains("required NRI plugin auth is not connected"), "{error}");
    let mut tolerant = berth.pod_config("tolerant");
    tolerant.annotations.insert("tolerate.example".to_owned(), "true".to_owned());
    let tolerant = berth.run_pod(tolerant).await;
    berth.run(&tolerant, sleeper("c")).await;
    let _auth = TestPlugin::connect(&path, "10", "auth").await;
    berth.run(&pod, sleeper("c")).await;
    let mut more = berth.pod_config("more");
    more.annotations.insert("required-plugins.noderesource.dev".to_owned(), "[\"gpu\"]".to_owned());
    let more = berth.run_pod(more).await;
    let error = berth.try_create(&more, sleeper("c")).await.unwrap_err();
    assert!(error.message().contains("required NRI plugin gpu is not connected"), "{error}");
    let hooks = Hooks {
        poststop: vec![Hook { path: "/bin/true".to_owned(), ..Hook::default() }],
        ..Hooks::default()
    };
    let change = ContainerAdjustment { hooks: Some(hooks), ..ContainerAdjustment::default() };
    let _gpu = TestPlugin::reacting(&path, "20", "gpu", adjusting("hooked", change)).await;
    berth.run(&more, sleeper("c")).await;
    let error = berth.try_create(&more, sleeper("hooked")).await.unwrap_err();
    assert!(
        error.message().contains("20-gpu") && error.message().contains("reject_oci_hook_adjustment"),
        "{error}"
    );
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
