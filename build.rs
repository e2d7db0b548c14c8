//! Builds the three programs that the daemon embeds: the keeper, the pause and the program of the demo image. berth is
//! therefore a single file to copy to a node. A nested cargo builds each program in a separate target folder inside
//! `OUT_DIR`. The programs are static and not position-independent, because relocated pages are private memory, once per
//! pod.
//!
//! The path of each program is exported as an environment variable for `shim/programs.rs`.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program to embed.
struct Program {
    /// The name of the binary and of its package.
    name: &'static str,
    /// Its manifest, relative to the root of the repository.
    manifest: &'static str,
    profile: &'static str,
    rustflags: &'static str,
    /// The environment variable that `shim/programs.rs` reads.
    variable: &'static str,
    /// Its sources. The program is rebuilt if one of them changes.
    sources: &'static [&'static str],
}

const PROGRAMS: [Program; 3] = [
    Program {
        name: "berth-keeper",
        manifest: "runtime/keeper/Cargo.toml",
        profile: "pod",
        rustflags: "-C target-feature=+crt-static -C relocation-model=static",
        variable: "BERTH_KEEPER_PATH",
        sources: &["runtime", "failpoint", "Cargo.toml", "Cargo.lock"],
    },
    Program {
        name: "berth-pause",
        manifest: "runtime/pause/Cargo.toml",
        profile: "release",
        rustflags: "-C relocation-model=static -C target-feature=+crt-static -C link-arg=-nostartfiles \
                    -C link-arg=-nostdlib -C link-arg=-static -C link-arg=-Wl,--build-id=none",
        variable: "BERTH_PAUSE_PATH",
        sources: &["runtime/pause"],
    },
    Program {
        name: "berth-demo-app",
        manifest: "demo/Cargo.toml",
        profile: "pod",
        rustflags: "-C target-feature=+crt-static -C relocation-model=static",
        variable: "BERTH_DEMO_APP_PATH",
        sources: &["demo", "Cargo.toml", "Cargo.lock"],
    },
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(required("CARGO_MANIFEST_DIR")?);
    let target_folder = PathBuf::from(required("OUT_DIR")?).join("programs");
    println!("cargo::rerun-if-changed=build.rs");
    for program in &PROGRAMS {
        for source in program.sources {
            watch(&root.join(source))?;
        }
        let path = build(program, &root, &target_folder)?;
        println!("cargo::rustc-env={}={}", program.variable, path.display());
    }
    Ok(())
}

fn required(variable: &str) -> Result<String, String> {
    env::var(variable).map_err(|error| format!("invalid environment variable {variable}: {error}"))
}

/// Makes cargo watch the sources of a program. Watching a whole folder would include the tests in it.
fn watch(path: &Path) -> Result<(), Box<dyn Error>> {
    if !path.is_dir() {
        println!("cargo::rerun-if-changed={}", path.display());
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(|error| format!("failed to read {}: {error}", path.display()))? {
        let entry = entry?.path();
        let name = entry.file_name().unwrap_or_default();
        if name != "tests" && name != "target" {
            watch(&entry)?;
        }
    }
    Ok(())
}

/// Builds a program and returns the path of its binary.
fn build(program: &Program, root: &Path, target_folder: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let target = required("TARGET")?;
    let mut command = Command::new(required("CARGO")?);
    command
        .current_dir(root)
        .args(["build", "--locked", "--manifest-path", program.manifest, "--bin", program.name])
        .args(["--profile", program.profile, "--target", &target])
        .arg("--target-dir")
        .arg(target_folder);
    isolate(&mut command);
    // A debug build of the daemon has failpoints, and so has its keeper: https://doc.rust-lang.org/cargo/reference/profiles.html
    if required("PROFILE")? == "debug" {
        command.env("CARGO_PROFILE_POD_DEBUG_ASSERTIONS", "true");
    }
    command.env("RUSTFLAGS", program.rustflags);
    // A cross-compiler needs the linker of the target. Cargo passes the one that it resolved for this build:
    // https://doc.rust-lang.org/cargo/reference/environment-variables.html
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        command.env(linker_variable(&target), linker);
    }
    let output =
        command.output().map_err(|error| format!("failed to start cargo for {}: {error}", program.name))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(format!("failed to build {}: {}:\n{text}", program.name, output.status).into());
    }
    let profile_folder = target_folder.join(target).join(program.profile);
    let built = profile_folder.join(program.name);
    if !built.is_file() {
        return Err(
            format!("binary {} of {} not found after its build", built.display(), program.name).into()
        );
    }
    Ok(built)
}

/// The environment variable that sets the linker of a target.
fn linker_variable(target: &str) -> String {
    format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_"))
}

/// Removes the environment of the outer build: its flags, its target, clippy in place of rustc. Settings of the machine
/// (proxies, the registry, cargo's home, the jobserver in MAKEFLAGS) stay, and so does the compiler (`RUSTC`): only the
/// outer build's may have a standard library for the target.
fn isolate(command: &mut Command) {
    const KEEP: [&str; 2] = ["CARGO_HOME", "CARGO_MAKEFLAGS"];
    const DROP: [&str; 11] = [
        "RUSTFLAGS",
        "RUSTDOC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_LINKER",
        "TARGET",
        "HOST",
        "OUT_DIR",
        "PROFILE",
        "CLIPPY_ARGS",
        "__CARGO_DEFAULT_LIB_METADATA",
    ];
    const MACHINE: [&str; 5] =
        ["CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTRY", "CARGO_REGISTRIES_", "CARGO_SOURCE_"];
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let of_the_machine =
            KEEP.contains(&text.as_ref()) || MACHINE.iter().any(|prefix| text.starts_with(prefix));
        let of_the_build = DROP.contains(&text.as_ref())
            || ["CARGO", "CLIPPY_", "DEP_"].iter().any(|prefix| text.starts_with(prefix));
        if of_the_build && !of_the_machine {
            command.env_remove(&name);
        }
    }
}
