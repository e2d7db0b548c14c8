use std::fs;

use oci_spec::runtime::LinuxDeviceType;

use super::*;

const YAML: &str = r#"
cdiVersion: "0.6.0"
kind: "vendor.example/gpu"
devices:
  - name: "0"
    containerEdits:
      env: ["GPU=0", "PATH=/vendor"]
      additionalGids: [44]
      deviceNodes:
        - path: /dev/gpu0
          hostPath: /dev/null
          permissions: rw
      mounts:
        - hostPath: /usr/lib
          containerPath: /usr/lib/vendor
          options: [ro, nosuid, nodev, rbind]
  - name: all
containerEdits:
  env: ["VENDOR=yes"]
"#;

struct Folders {
    _folder: tempfile::TempDir,
    paths: Vec<PathBuf>,
}

fn folders(files: &[(usize, &str, &str)]) -> Folders {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = ["etc", "run"].iter().map(|name| folder.path().join(name)).collect();
    for path in &paths {
        fs::create_dir(path).unwrap();
    }
    for (place, name, text) in files {
        fs::write(paths[*place].join(name), text).unwrap();
    }
    Folders { _folder: folder, paths }
}

fn injected(folders: &Folders, names: &[&str]) -> Result<(Spec, BTreeMap<String, String>), CriError> {
    let mut spec = Spec::default();
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    inject(&mut spec, &names, &folders.paths).map(|sources| (spec, sources))
}

#[test]
fn a_device_brings_nodes_mounts_variables_and_groups() {
    let folders = folders(&[(0, "vendor.yaml", YAML)]);
    let (spec, sources) = injected(&folders, &["vendor.example/gpu=0", "vendor.example/gpu=0"]).unwrap();
    let process = spec.process().clone().unwrap();
    let env = process.env().clone().unwrap();
    assert!(
        env.ends_with(&["VENDOR=yes".to_owned(), "GPU=0".to_owned(), "PATH=/vendor".to_owned()]),
        "{env:?}"
    );
    assert_eq!(env.iter().filter(|variable| variable.starts_with("PATH=")).count(), 1);
    assert_eq!(process.user().additional_gids().clone().unwrap(), [44]);
    let linux = spec.linux().clone().unwrap();
    let device = &linux.devices().clone().unwrap()[0];
    assert_eq!((device.typ(), device.major(), device.minor()), (LinuxDeviceType::C, 1, 3));
    let rules = linux.resources().clone().unwrap().devices().clone().unwrap();
    assert_eq!(rules.last().unwrap().access().as_deref(), Some("rw"));
    assert_eq!(sources["/dev/gpu0"], "/dev/null");
    let mounts = spec.mounts().clone().unwrap();
    assert_eq!(mounts.last().unwrap().destination(), Path::new("/usr/lib/vendor"));
}

#[test]
fn the_later_folder_wins_and_two_files_of_one_contradict() {
    let json = |value: &str| {
        format!(
            r#"{{"cdiVersion": "1.0.0", "kind": "v/c", "devices": [{{"name": "d", "containerEdits": {{"env": ["A={value}"]}}}}]}}"#
        )
    };
    let both = folders(&[(0, "a.json", &json("etc")), (1, "a.json", &json("run"))]);
    let (spec, _) = injected(&both, &["v/c=d"]).unwrap();
    assert!(spec.process().clone().unwrap().env().clone().unwrap().contains(&"A=run".to_owned()));
    let twice = folders(&[(0, "a.json", &json("1")), (0, "b.json", &json("2"))]);
    let error = injected(&twice, &["v/c=d"]).unwrap_err().to_string();
    assert!(error.contains("a.json") && error.contains("b.json"), "{error}");
}

#[test]
fn a_missing_device_is_reported_with_the_folders() {
    let folders = folders(&[(0, "broken.json", "{"), (0, "readme.txt", "x"), (1, "vendor.yaml", YAML)]);
    let error = injected(&folders, &["vendor.example/gpu=7"]).unwrap_err().to_string();
    for part in ["vendor.example/gpu=7", "/etc", "/run", "broken.json"] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
    assert!(!error.contains("readme"));
    for name in ["gpu", "vendor/gpu", "vendor/gpu=", "/gpu=0", "v/c=../x"] {
        assert!(injected(&folders, &[name]).is_err(), "{name}");
    }
    let (spec, _) = injected(&folders, &["vendor.example/gpu=all"]).unwrap();
    assert!(spec.process().clone().unwrap().env().clone().unwrap().contains(&"VENDOR=yes".to_owned()));
}

#[test]
fn unsupported_edits_are_refused() {
    let with = |edits: &str| {
        let json = format!(
            r#"{{"cdiVersion": "0.5.0", "kind": "v/c", "devices": [{{"name": "d", "containerEdits": {{{edits}}}}}]}}"#
        );
        injected(&folders(&[(0, "a.json", &json)]), &["v/c=d"]).unwrap_err().to_string()
    };
    assert!(with(r#""deviceNodes": [{"path": "/dev/nonexistent"}]"#).contains("/dev/nonexistent"));
    assert!(with(r#""netDevices": [{"hostInterfaceName": "eth7", "name": "x"}]"#).contains("eth7"));
    assert!(with(r#""intelRdt": {"closID": "x"}"#).contains("RDT"));
}

#[test]
fn devices_are_asked_for_by_the_field_and_by_annotations() {
    let config = |annotations: &[(&str, &str)], devices: &[&str]| ContainerConfig {
        annotations: annotations.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect(),
        cdi_devices: devices
            .iter()
            .map(|&name| berth_proto::v1::CdiDevice { name: name.to_owned() })
            .collect(),
        ..ContainerConfig::default()
    };
    let both = config(
        &[
            ("cdi.k8s.io/b", "v.test/d=2, v.test/d=1"),
            ("cdi.k8s.io/a", "v.test/d=3"),
            ("other/x", "no device"),
        ],
        &["v.test/d=1"],
    );
    assert_eq!(requested(&both).unwrap(), ["v.test/d=1", "v.test/d=3", "v.test/d=2"]);
    for value in ["", "d", "v.test/d", "v.test/d=1,", "v.test/d=../x"] {
        let error = requested(&config(&[("cdi.k8s.io/x", value)], &[])).unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{value}");
        assert!(error.to_string().contains("cdi.k8s.io/x"), "{error}");
    }
}

#[test]
fn files_are_read_as_containerd_and_cri_o_read_them() {
    let yaml = r#"
cdiVersion: "0.5.0"
kind: vendor.test/dev
containerEdits:
devices:
  - name: "0"
    containerEdits:
      env: null
      mounts: ~
      deviceNodes:
        - path: /dev/zero
          fileMode: 0640
          major: 1
          minor: 5
          type: c
          permissions: null
"#;
    let json = r#"{"cdiVersion": "0.5.0", "kind": "vendor.test/json", "containerEdits": null, "devices": [
        {"name": "a", "containerEdits": {"env": ["A=1"], "mounts": null, "hooks": null, "deviceNodes": null,
        "additionalGids": null, "intelRdt": null}}]}"#;
    let folders = folders(&[(0, "a.yaml", yaml), (0, "b.json", json)]);
    let (spec, _) = injected(&folders, &["vendor.test/dev=0", "vendor.test/json=a"]).unwrap();
    let devices = spec.linux().clone().unwrap().devices().clone().unwrap();
    assert_eq!(devices[0].file_mode(), Some(0o640));
    assert!(spec.process().clone().unwrap().env().clone().unwrap().contains(&"A=1".to_owned()));
}
