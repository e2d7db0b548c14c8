//! The process of a container: command, working directory, environment and user.

use berth_image::ImageConfig;
use berth_proto::v1::{ContainerConfig, LinuxContainerSecurityContext};
use oci_spec::runtime::{Process, Spec, User as OciUser};

use super::{Host, ImageContext, PodContext, Result, User, capabilities, error, normal, rlimits};

/// The default PATH, for an image without one.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns the process of a container.
pub(super) fn build(
    config: &ContainerConfig,
    pod: &PodContext<'_>,
    image: &ImageContext<'_>,
    user: &User,
    host: &Host,
    security: &LinuxContainerSecurityContext,
) -> Result<Process> {
    let mut process = Process::default();
    process.set_terminal(Some(config.tty));
    process.set_args(Some(arguments(config, image.config)?));
    process.set_cwd(cwd(config, image.config).into());
    process.set_env(Some(environment(config, pod, image.config, user, host)?));
    let mut oci_user = OciUser::default();
    oci_user.set_uid(user.uid).set_gid(user.gid).set_additional_gids(Some(user.groups.clone()));
    process.set_user(oci_user);
    process.set_capabilities(Some(capabilities::sets(security, user.uid, host)?));
    process.set_no_new_privileges(Some(security.no_new_privs));
    process.set_oom_score_adj(Some(oom_score_adj(config, host)?));
    process.set_rlimits(Some(rlimits::of_container(host)?));
    Ok(process)
}

/// Returns the command line. The CRI's command replaces the image's entrypoint and cmd; the CRI's args replace only
/// the cmd (CRI `ContainerConfig.command`, `args`; as with `docker run --entrypoint`).
fn arguments(config: &ContainerConfig, image: &ImageConfig) -> Result<Vec<String>> {
    let (mut command, mut args) = (config.command.clone(), config.args.clone());
    if command.is_empty() {
        command = entrypoint(image).to_vec();
        if args.is_empty() {
            args.clone_from(&image.cmd);
        }
    }
    command.extend(args);
    match command.first() {
        Some(program) if !program.is_empty() => Ok(command),
        Some(_) => Err(error("command", "the program name is empty")),
        None => Err(error("command", "neither the request nor the image has one")),
    }
}

/// Returns the entrypoint of an image. An entrypoint of one empty string means none: builders use it to remove the
/// entrypoint of a base image (Docker's builder and containerd handle it like this).
fn entrypoint(image: &ImageConfig) -> &[String] {
    match image.entrypoint.as_slice() {
        [only] if only.is_empty() => &[],
        all => all,
    }
}

fn cwd(config: &ContainerConfig, image: &ImageConfig) -> String {
    let cwd = if config.working_dir.is_empty() { &image.working_dir } else { &config.working_dir };
    normal(cwd)
}

fn environment(
    config: &ContainerConfig,
    pod: &PodContext<'_>,
    image: &ImageConfig,
    user: &User,
    host: &Host,
) -> Result<Vec<String>> {
    let mut env = Environment::default();
    env.set(PATH.to_owned());
    if config.tty {
        env.set("TERM=xterm".to_owned());
    }
    // A pod that requests no hostname has the node's.
    let hostname = if pod.config.hostname.is_empty() { &host.node_name } else { &pod.config.hostname };
    env.set(format!("HOSTNAME={hostname}"));
    if let Some(home) = &user.home {
        env.set(format!("HOME={home}"));
    }
    for variable in &image.env {
        env.set(variable.clone());
    }
    for variable in &config.envs {
        let value = std::str::from_utf8(&variable.value)
            .map_err(|_| error(format!("envs[{}]", variable.key), "is not UTF-8"))?;
        env.set(format!("{}={value}", variable.key));
    }
    if !env.has("HOME") {
        env.set(format!("HOME={}", if user.uid == 0 { "/root" } else { "/" }));
    }
    Ok(env.variables)
}

/// Environment variables in the order in which they were first set; the last value of each applies.
#[derive(Default)]
struct Environment {
    variables: Vec<String>,
}

impl Environment {
    fn place(&self, name: &str) -> Option<usize> {
        self.variables.iter().position(|variable| variable.split('=').next() == Some(name))
    }

    fn has(&self, name: &str) -> bool {
        self.place(name).is_some()
    }

    fn set(&mut self, variable: String) {
        let name = variable.split('=').next().unwrap_or_default();
        match self.place(name).and_then(|place| self.variables.get_mut(place)) {
            Some(existing) => *existing = variable,
            None => self.variables.push(variable),
        }
    }
}

/// Returns the oom_score_adj of a container. It is always set: otherwise a container would inherit that of its
/// keeper, which is killed among the last.
fn oom_score_adj(config: &ContainerConfig, host: &Host) -> Result<i32> {
    let Some(resources) = config.linux.as_ref().and_then(|linux| linux.resources.as_ref()) else {
        return Ok(host.oom_score_adj_floor.max(0));
    };
    super::resources::check(resources, host.cgroup_v2)?;
    let floor = Some(host.oom_score_adj_floor).filter(|_| host.restrict_oom_score_adj);
    Ok(score(resources.oom_score_adj, floor))
}

/// Returns the effective oom_score_adj of a request. A score below the daemon's needs CAP_SYS_RESOURCE: with
/// `restrict_oom_score_adj` (`floor`), it is raised instead of refused.
#[must_use]
pub fn score(requested: i64, floor: Option<i32>) -> i32 {
    let requested = i32::try_from(requested).unwrap_or(0);
    floor.map_or(requested, |floor| requested.max(floor))
}

/// Returns the process of an exec: the container's process with another command. It never has more rights than the
/// container.
///
/// # Errors
/// The spec has no process.
pub fn exec_process(spec: &Spec, command: &[String], tty: bool) -> Result<Process> {
    let own = spec.process().as_ref().ok_or_else(|| error("container", "has no process"))?;
    let mut process = own.clone();
    process.set_args(Some(command.to_vec()));
    process.set_terminal(Some(tty));
    if tty {
        let mut env = Environment { variables: process.env().clone().unwrap_or_default() };
        if !env.has("TERM") {
            env.set("TERM=xterm".to_owned());
        }
        process.set_env(Some(env.variables));
    }
    Ok(process)
}

#[cfg(test)]
mod tests {
    use berth_proto::v1::{LinuxContainerConfig, LinuxContainerResources};

    use super::*;

    fn list(values: &[&str]) -> Vec<String> {
        values.iter().map(|&value| value.to_owned()).collect()
    }

    #[test]
    fn commands_are_built_as_in_docker() {
        let image =
            ImageConfig { entrypoint: list(&["/entry"]), cmd: list(&["default"]), ..ImageConfig::default() };
        let run = |command: &[&str], args: &[&str]| {
            let config =
                ContainerConfig { command: list(command), args: list(args), ..ContainerConfig::default() };
            arguments(&config, &image).unwrap()
        };
        assert_eq!(run(&[], &[]), ["/entry", "default"]);
        assert_eq!(run(&[], &["x"]), ["/entry", "x"]);
        assert_eq!(run(&["sh"], &[]), ["sh"]);
        assert_eq!(run(&["sh"], &["-c", "true"]), ["sh", "-c", "true"]);
        assert!(arguments(&ContainerConfig::default(), &ImageConfig::default()).is_err());
        let none = ImageConfig { entrypoint: list(&[""]), cmd: list(&["echo", "x"]), ..image.clone() };
        assert_eq!(arguments(&ContainerConfig::default(), &none).unwrap(), ["echo", "x"]);
        let args = ContainerConfig { args: list(&["ls"]), ..ContainerConfig::default() };
        assert_eq!(arguments(&args, &none).unwrap(), ["ls"]);
        let nothing = ImageConfig { cmd: Vec::new(), ..none };
        assert!(arguments(&ContainerConfig::default(), &nothing).unwrap_err().why.contains("neither"));
        let empty = ImageConfig { entrypoint: list(&["", "x"]), ..image.clone() };
        assert!(arguments(&ContainerConfig::default(), &empty).is_err());
    }

    #[test]
    fn a_score_is_always_set_and_raised_only_where_configured() {
        let of = |requested: Option<i64>, host: &Host| {
            let resources = requested
                .map(|oom_score_adj| LinuxContainerResources { oom_score_adj, ..Default::default() });
            let linux = LinuxContainerConfig { resources, security_context: None };
            oom_score_adj(&ContainerConfig { linux: Some(linux), ..Default::default() }, host)
        };
        let daemon = |restrict_oom_score_adj, oom_score_adj_floor| Host {
            restrict_oom_score_adj,
            oom_score_adj_floor,
            ..Host::default()
        };
        let scores =
            |host: &Host| [None, Some(-998), Some(500)].map(|requested| of(requested, host).unwrap());
        assert_eq!(scores(&daemon(false, -999)), [0, -998, 500]);
        assert_eq!(scores(&daemon(true, 100)), [100, 100, 500]);
        assert!(of(Some(1001), &Host::default()).is_err() && of(Some(i64::MIN), &Host::default()).is_err());
    }

    #[test]
    fn the_last_value_of_a_variable_applies() {
        let mut env = Environment::default();
        for variable in ["A=1", "B=2", "A=3", "C"] {
            env.set(variable.to_owned());
        }
        assert_eq!(env.variables, ["A=3", "B=2", "C"]);
    }
}
