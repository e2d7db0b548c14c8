use berth_proto::nri::{
    Hook, KeyValue, LinuxContainerAdjustment, LinuxContainerUpdate, LinuxNamespace, LinuxPids,
    LinuxResources, OptionalInt, PosixRlimit,
};

use super::*;

fn plugin(name: &str) -> PluginName {
    PluginName::of_file(name).unwrap()
}

fn mount(destination: &str, source: &str) -> Mount {
    Mount { destination: destination.to_owned(), source: source.to_owned(), ..Mount::default() }
}

fn variable(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: value.to_owned() }
}

fn creation() -> MergedCreation {
    MergedCreation::new(Container {
        id: "new".to_owned(),
        env: vec!["PATH=/bin".to_owned(), "A=1".to_owned()],
        mounts: vec![mount("/proc", "proc"), mount("/data", "/srv")],
        annotations: [("kept".to_owned(), "1".to_owned())].into(),
        ..Container::default()
    })
}

#[test]
fn the_next_plugin_sees_the_changes_of_the_one_before() {
    let mut merged = creation();
    let first = ContainerAdjustment {
        annotations: [("new".to_owned(), "2".to_owned())].into(),
        mounts: vec![mount("/data", "/other"), mount("-/proc", "")],
        env: vec![variable("A", "2"), variable("-PATH", "")],
        args: vec!["sh".to_owned()],
        rlimits: vec![PosixRlimit { r#type: "RLIMIT_CORE".to_owned(), hard: 1, soft: 1 }],
        ..ContainerAdjustment::default()
    };
    merged.adjust(&plugin("10-a"), first).unwrap();
    let container = &merged.container;
    assert_eq!(container.env, ["A=2"]);
    assert_eq!(container.mounts, [mount("/data", "/other")]);
    assert_eq!(container.annotations.len(), 2);
    assert_eq!((container.args.as_slice(), container.rlimits.len()), (["sh".to_owned()].as_slice(), 1));
    let names: Vec<&str> = merged.adjustment.mounts.iter().map(|mount| mount.destination.as_str()).collect();
    assert_eq!(names, ["-/proc", "/data"]);
}

#[test]
fn plugins_that_set_the_same_entry_conflict_unless_the_later_one_removes_it() {
    let mut merged = creation();
    let set = |source: &str| ContainerAdjustment {
        mounts: vec![mount("/data", source)],
        ..ContainerAdjustment::default()
    };
    merged.adjust(&plugin("10-a"), set("/a")).unwrap();
    let error = merged.clone().adjust(&plugin("20-b"), set("/b")).unwrap_err().to_string();
    assert_eq!(error, "NRI plugins \"10-a\" and \"20-b\" both set Mounts \"/data\"");
    let mut replace = set("/b");
    replace.mounts.push(mount("-/data", ""));
    merged.adjust(&plugin("20-b"), replace).unwrap();
    assert_eq!(merged.adjustment.mounts, [mount("/data", "/b")]);
    let args = |first: &[&str]| ContainerAdjustment {
        args: first.iter().map(|&arg| arg.to_owned()).collect(),
        ..ContainerAdjustment::default()
    };
    merged.adjust(&plugin("10-a"), args(&["a"])).unwrap();
    assert!(merged.clone().adjust(&plugin("20-b"), args(&["b"])).is_err());
    merged.adjust(&plugin("20-b"), args(&["", "b"])).unwrap();
    assert_eq!(merged.adjustment.args, ["b"]);
}

#[test]
fn hooks_of_all_plugins_are_kept() {
    let mut merged = creation();
    let hooks = |path: &str| ContainerAdjustment {
        hooks: Some(Hooks {
            poststop: vec![Hook { path: path.to_owned(), ..Hook::default() }],
            ..Hooks::default()
        }),
        ..ContainerAdjustment::default()
    };
    merged.adjust(&plugin("10-a"), hooks("/a")).unwrap();
    merged.adjust(&plugin("20-b"), hooks("/b")).unwrap();
    merged
        .adjust(&plugin("30-c"), ContainerAdjustment { hooks: Some(Hooks::default()), ..Default::default() })
        .unwrap();
    assert_eq!(merged.adjustment.hooks.unwrap().poststop.len(), 2);
    assert_eq!(merged.owners.owner("new", Field::OciHooks), Some("10-a,20-b".to_owned()));
}

#[test]
fn limits_are_claimed_once_and_set_in_both() {
    let mut merged = creation();
    let linux = LinuxContainerAdjustment {
        resources: Some(LinuxResources { pids: Some(LinuxPids { limit: 5 }), ..LinuxResources::default() }),
        oom_score_adj: Some(OptionalInt { value: 7 }),
        namespaces: vec![LinuxNamespace { r#type: "-ipc".to_owned(), path: String::new() }],
        ..LinuxContainerAdjustment::default()
    };
    let adjustment = ContainerAdjustment { linux: Some(linux), ..ContainerAdjustment::default() };
    merged.adjust(&plugin("10-a"), adjustment.clone()).unwrap();
    let seen = merged.container.linux.clone().unwrap();
    assert_eq!(seen.resources.unwrap().pids, Some(LinuxPids { limit: 5 }));
    assert_eq!(
        merged.adjustment.linux.clone().unwrap().resources.unwrap().pids,
        Some(LinuxPids { limit: 5 })
    );
    let error = merged.adjust(&plugin("20-b"), adjustment).unwrap_err().to_string();
    assert!(error.contains("\"10-a\" and \"20-b\" both set PidsLimit"), "{error}");
}

#[test]
fn updates_of_other_containers_are_merged() {
    let update = |id: &str, limit: i64, ignore_failure: bool| ContainerUpdate {
        container_id: id.to_owned(),
        linux: Some(LinuxContainerUpdate {
            resources: Some(LinuxResources { pids: Some(LinuxPids { limit }), ..LinuxResources::default() }),
        }),
        ignore_failure,
    };
    let mut merged = creation();
    merged.update(&plugin("10-a"), &[update("one", 1, false), update("two", 2, true)], Vec::new()).unwrap();
    merged.update(&plugin("20-b"), &[update("one", 9, true)], Vec::new()).unwrap();
    assert!(merged.clone().update(&plugin("20-b"), &[update("one", 9, false)], Vec::new()).is_err());
    assert_eq!(merged.others.updates(), [update("one", 1, false), update("two", 2, true)]);
    let error = merged.update(&plugin("20-b"), &[update("new", 1, true)], Vec::new()).unwrap_err();
    assert!(matches!(error, MergeError::UpdateOfNew { .. }), "{error}");
    assert_eq!(merged.others.take("one").unwrap().pids, Some(LinuxPids { limit: 1 }));
}
