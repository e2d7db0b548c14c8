//! `berth oci`, and the example of its documentation. The tests of its commands are in `oci/tests`. Runs as root.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

/// Copies busybox and its libraries.
fn write_rootfs(rootfs: &Path) {
    for folder in ["bin", "proc", "dev", "sys"] {
        fs::create_dir_all(rootfs.join(folder)).unwrap();
    }
    let busybox =
        ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists()).unwrap();
    fs::copy(busybox, rootfs.join("bin/busybox")).unwrap();
    let libraries = Command::new("ldd").arg(busybox).output().unwrap().stdout;
    for library in String::from_utf8_lossy(&libraries).split_whitespace().filter(|word| word.starts_with('/'))
    {
        let target = rootfs.join(library.trim_start_matches('/'));
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(library, target).unwrap();
    }
    symlink("busybox", rootfs.join("bin/echo")).unwrap();
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

#[test]
fn the_example_of_the_documentation_works_under_both_names() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/oci.md")).unwrap();
    let example = page.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("berth-oci");
    symlink(env!("CARGO_BIN_EXE_berth"), &link).unwrap();
    let link = link.display().to_string();
    for (number, program) in [link, format!("{} oci", env!("CARGO_BIN_EXE_berth"))].iter().enumerate() {
        let bundle = folder.path().join(number.to_string());
        write_rootfs(&bundle.join("rootfs"));
        let name = bundle.display().to_string();
        let state = folder.path().join("state").display().to_string();
        for line in example.lines() {
            let line =
                line.replace("berth-oci", &format!("{program} --root {state}")).replace("BUNDLE", &name);
            // The container holds its output open: a pipe would not end.
            let file = fs::File::create(folder.path().join("output")).unwrap();
            let mut command = Command::new("sh");
            command.args(["-c", &line]).stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
            let status = command.status().unwrap();
            let output = text(&fs::read(folder.path().join("output")).unwrap());
            assert!(status.success(), "{line}: {output}");
            if line.contains(" spec ") {
                let config = fs::read_to_string(bundle.join("config.json")).unwrap();
                let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
                config["process"]["terminal"] = false.into();
                config["process"]["args"] = serde_json::json!(["echo", "hello"]);
                fs::write(bundle.join("config.json"), config.to_string()).unwrap();
            }
            if line.contains(" state demo") {
                assert!(output.contains("\"status\": \"created\""), "{output}");
            }
        }
        let run = format!("{program} --root {state} run --bundle {name} demo");
        let output = Command::new("sh").args(["-c", &run]).stdin(Stdio::null()).output().unwrap();
        assert_eq!((text(&output.stdout), text(&output.stderr)), ("hello\n".to_owned(), String::new()));
    }
}
