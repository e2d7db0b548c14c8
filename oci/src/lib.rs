//! The command line of an OCI runtime over berth's runtime, so that containerd, podman and CRI-O can use it. Its commands
//! and flags are those of runc (opencontainers/runtime-tools, "OCI Runtime Command Line Interface").
//!
//! There is no keeper. `create` clones the container's first process itself and ends when that process waits at its
//! gate. The first process gets a listening socket in the container's folder; `start` connects to it. The caller of
//! `create` becomes the parent of the first process, if it is a subreaper.
//!
//! * [`arguments`]: the command line; [`log`]: the log file in which callers look for errors; [`error`]: errors
//! * [`store`]: the folders of containers; [`bundle`]: the spec of a bundle; [`cgroups`]: the cgroup that a spec names
//! * [`child`]: reports of a first process; [`launch`]: clones a container's first process; [`console`]: terminals;
//!   [`foreground`]: waits for a process; [`namespaces`]: namespaces by their path, users and clocks; [`mounts`]: mounts
//!   that are carried out by others
//! * [`protect`]: protects the program from its containers
//! * the other modules: one per command
//! * [`delete`]: `berth oci delete`
//! * [`events`]: prints the resource usage of a container as JSON lines, in the format of runc
//! * [`exec`]: runs a command in a running container
//! * [`features`]: prints the supported features
//! * [`kill`]: sends a signal to a container
//! * [`pause`]: freeze and thaw a container
//! * [`ps`]: lists the processes in a container
//! * [`mod@run`]: creates and starts a container, and waits for its end
//! * [`spec`]: writes a spec to start with
//! * [`state`]: print containers
//! * [`update`]: changes the limits of a container

mod arguments;
mod bundle;
mod cgroups;
mod child;
mod console;
mod create;
mod delete;
mod error;
mod events;
mod exec;
mod features;
mod foreground;
mod kill;
mod launch;
mod log;
mod mounts;
mod namespaces;
mod pause;
mod protect;
mod ps;
mod run;
mod spec;
mod start;
mod state;
mod store;
mod update;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command, Global};
use error::Result;
use store::Store;

/// The commands that clone a process into a container.
const CLONING: [&str; 3] = ["create", "run", "exec"];

/// The exit code of an exec that could not be started, as in runc.
const EXEC_FAILED: u8 = 255;

/// Runs the command with these arguments, without the program's name.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = [OsString::from("berth-oci")].into_iter().chain(arguments).collect();
    // The program starts twice, so the first start must be short: it looks for the name of a command anywhere.
    let clones = |argument: &OsString| CLONING.iter().any(|name| argument == name);
    let sealed = if arguments.iter().any(clones) { protect::seal_program() } else { Ok(()) };
    let Arguments { global, command } = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // If standard error is closed, nobody reads the message.
            drop(error.print());
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let failed = if matches!(command, Command::Exec(_)) { EXEC_FAILED } else { 1 };
    match sealed.and_then(|()| execute(&global, command)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log::error(&global, &error.to_string());
            ExitCode::from(failed)
        }
    }
}

fn execute(global: &Global, command: Command) -> Result<u8> {
    // No other descriptor of the caller is inherited by a container.
    command.protect_descriptors()?;
    let done = |result: Result<()>| result.map(|()| 0);
    match &command {
        Command::Features => return done(features::run()),
        Command::Spec(arguments) => return done(spec::run(arguments)),
        _ => {}
    }
    global.check()?;
    let store = Store::open(&global.root)?;
    match command {
        Command::Create(arguments) => done(create::run(global, &store, &arguments)),
        Command::Start(arguments) => done(start::run(&store, &arguments.id)),
        Command::State(arguments) => done(state::run(&store, &arguments.id)),
        Command::Kill(arguments) => done(kill::run(&store, &arguments)),
        Command::Delete(arguments) => done(delete::run(global, &store, &arguments)),
        Command::Exec(arguments) => exec::run(&store, &arguments),
        Command::Run(arguments) => run::create_and_start(global, &store, &arguments),
        Command::List(arguments) => done(state::list(&store, &arguments)),
        Command::Ps(arguments) => done(ps::run(&store, &arguments)),
        Command::Pause(arguments) => done(pause::run(&store, &arguments.id, true)),
        Command::Resume(arguments) => done(pause::run(&store, &arguments.id, false)),
        Command::Update(arguments) => done(update::run(&store, &arguments)),
        Command::Events(arguments) => done(events::run(&store, &arguments)),
        Command::Features => done(features::run()),
        Command::Spec(arguments) => done(spec::run(&arguments)),
    }
}
