//! The alert rules of contrib: unit tests of each rule by `promtool`, and the alerts that fire within a test, provoked in a
//! real daemon that a real Prometheus scrapes. Runs as root.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::prometheus::{CONFIG, Prometheus, programs, repository};
use crate::support::{Berth, container, shell};
use berth_proto::v1::*;

#[test]
fn every_rule_fires_and_stays_silent_as_its_test_says() {
    let tests = repository("contrib/prometheus/berth.test.yml");
    let tested =
        Command::new(programs().join("promtool")).args(["test", "rules"]).arg(&tests).output().unwrap();
    let text =
        String::from_utf8_lossy(&tested.stdout).into_owned() + &String::from_utf8_lossy(&tested.stderr);
    assert!(tested.status.success(), "{text}");
    let (tests, rules) = (
        fs::read_to_string(tests).unwrap(),
        fs::read_to_string(repository("contrib/prometheus/berth.rules.yml")).unwrap(),
    );
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let of_alert: Vec<&str> = tests
            .split("- eval_time:")
            .filter(|test| test.contains(&format!("alertname: {alert}\n")))
            .collect();
        let fires = |test: &&&str| test.contains("exp_labels");
        assert!(of_alert.iter().any(|test| fires(&test)), "no test in which {alert} fires");
        assert!(!of_alert.iter().all(|test| fires(&test)), "no test in which {alert} does not fire");
    }
}

/// Fails to start a pod's container, and to pull an image.
async fn fail(berth: &mut Berth, pod: &str, number: u32) {
    let mut config = container(&format!("none{number}"), &["/nonexistent"]);
    config.metadata.as_mut().unwrap().attempt = number;
    let id = berth.try_create(pod, config).await.unwrap();
    berth.try_start_container(&id).await.unwrap_err();
    let image = ImageSpec { image: "127.0.0.1:1/none:1".to_owned(), ..ImageSpec::default() };
    let request = PullImageRequest { image: Some(image), ..PullImageRequest::default() };
    berth.images.pull_image(request).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_of_a_daemon_fire_their_alerts() {
    let mut berth = Berth::start_with(CONFIG).await;
    berth.load_image().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let mut greedy = shell(
        "greedy",
        "while [ ! -e /tmp/go ]; do sleep 0.1; done; while :; do tail /dev/zero; sleep 0.2; done",
    );
    greedy.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() });
    let greedy = berth.run(&pod, greedy).await;
    fail(&mut berth, &pod, 0).await;
    // Pods whose creation was interrupted: the next daemon removes them.
    for number in 0_u8..12 {
        let folder = berth.path(&format!("root/pods/{}", hex::encode([number; 32])));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("pod.json"), "{").unwrap();
    }
    let prometheus = Prometheus::start(&berth);
    prometheus.wait_for_series("up{job=\"berth\"} == 1");
    // A scrape sees each daemon.
    for restarts in 1..=3 {
        berth.restart().await;
        let seen = format!("changes(process_start_time_seconds{{job=\"berth\"}}[30m]) == {restarts}");
        prometheus.wait_for_series(&seen);
    }
    prometheus.wait_for("BerthRestarting", |prometheus| prometheus.firing("BerthRestarting"));
    for number in 0_u8..12 {
        let folder = berth.path(&format!("root/pods/{}", hex::encode([number; 32])));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("pod.json"), "{").unwrap();
    }
    berth.restart().await;
    let summary = prometheus.wait_for("BerthRecoveryRemovedObjects", |prometheus| {
        prometheus.firing("BerthRecoveryRemovedObjects")
    });
    assert!(summary.contains("removed 12 incomplete pods"), "{summary}");
    berth.sh(&greedy, "touch /tmp/go").await;
    // An increase is measured between two scrapes.
    let silent = |prometheus: &Prometheus| {
        let all = ["BerthContainersOutOfMemory", "BerthImagePullsFailing", "BerthPodsFailing"];
        all.into_iter().find(|name| prometheus.firing(name).is_none())
    };
    let mut number = 1;
    while let Some(name) = silent(&prometheus) {
        assert!(number < 60, "{name} does not fire");
        fail(&mut berth, &pod, number).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        number += 1;
    }
    drop(prometheus);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
