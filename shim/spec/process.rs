//! The command of a container: what to run, where, with which environment and as whom.

use berth_image::ImageConfig;
use berth_proto::v1::{ContainerConfig, LinuxContainerSecurityContext};
use oci_spec::runtime::{Process, Spec, User as OciUser};

use super::{Host, ImageContext, PodContext, Result, User, capabilities, error, rlimits};

/// Where commands are looked for in an image that does not say it.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The lowest score that the kernel knows (proc(5), oom_score_adj).
const LOWEST_SCORE: i64 = -1000;

/// The process of a container.
pub(super) fn process(
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
    process.set_env(Some(environment(config, pod, image.config, user)?));
    let mut oci_user = OciUser::default();
    oci_user.set_uid(user.uid).set_gid(user.gid).set_additional_gids(Some(user.groups.clone()));
    process.set_user(oci_user);
    process.set_capabilities(Some(capabilities::sets(security, user.uid, host)?));
    process.set_no_new_privileges(Some(security.no_new_privs));
    process.set_oom_score_adj(Some(oom_score_adj(config, host)?));
    process.set_rlimits(Some(rlimits::of_container(host)?));
    Ok(process)
}

/// The CRI's command replaces the image's entrypoint and its cmd; the CRI's args replace its cmd alone (CRI
/// `ContainerConfig.command`, `args`; as with `docker run --entrypoint`).
fn arguments(config: &ContainerConfig, image: &ImageConfig) -> Result<Vec<String>> {
    let (mut command, mut args) = (config.command.clone(), config.args.clone());
    if command.is_empty() {
        command.clone_from(&image.entrypoint);
        if args.is_empty() {
            args.clone_from(&image.cmd);
        }
    }
    command.extend(args);
    match command.first() {
        Some(program) if !program.is_empty() => Ok(command),
        _ => Err(error("command", "is given neither by the request nor by the image")),
    }
}

fn cwd(config: &ContainerConfig, image: &ImageConfig) -> String {
    let cwd = if config.working_dir.is_empty() { &image.working_dir } else { &config.working_dir };
    match cwd.as_str() {
        "" => "/".to_owned(),
        cwd if cwd.starts_with('/') => cwd.to_owned(),
        // As containerd: relative to the root.
        cwd => format!("/{cwd}"),
    }
}

fn environment(
    config: &ContainerConfig,
    pod: &PodContext<'_>,
    image: &ImageConfig,
    user: &User,
) -> Result<Vec<String>> {
    let mut env = Environment::default();
    env.set(PATH.to_owned());
    if config.tty {
        env.set("TERM=xterm".to_owned());
    }
    if !pod.config.hostname.is_empty() {
        env.set(format!("HOSTNAME={}", pod.config.hostname));
    }
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

/// Variables in the order in which they were first set; the last value counts.
#[derive(Default)]
struct Environment {
    variables: Vec<String>,
}

impl Environment {
    fn place(&self, name: &str) -> Option<usize> {
        self.variables.iter().position(|known| known.split('=').next() == Some(name))
    }

    fn has(&self, name: &str) -> bool {
        self.place(name).is_some()
    }

    fn set(&mut self, variable: String) {
        let name = variable.split('=').next().unwrap_or_default();
        match self.place(name).and_then(|place| self.variables.get_mut(place)) {
            Some(known) => *known = variable,
            None => self.variables.push(variable),
        }
    }
}

/// A score below the daemon's own needs CAP_SYS_RESOURCE; where the config says so it is raised instead of refused.
/// It is always set: the one that a container would have otherwise is its keeper's, which is among the last to be killed.
fn oom_score_adj(config: &ContainerConfig, host: &Host) -> Result<i32> {
    let Some(resources) = config.linux.as_ref().and_then(|linux| linux.resources.as_ref()) else {
        return Ok(host.oom_score_adj_floor.max(0));
    };
    let asked = resources.oom_score_adj;
    if !(LOWEST_SCORE..=1000).contains(&asked) {
        return Err(error("linux.resources.oom_score_adj", format!("{asked} is not from -1000 to 1000")));
    }
    let score = i32::try_from(asked).unwrap_or(0);
    Ok(if host.restrict_oom_score_adj { score.max(host.oom_score_adj_floor) } else { score })
}

/// A further process of a container: the container's own with another command. It has never more than the container.
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
    fn commands_are_those_of_docker() {
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
    }

    #[test]
    fn a_score_is_always_set_and_raised_only_where_configured() {
        let of = |asked: Option<i64>, host: &Host| {
            let resources =
                asked.map(|oom_score_adj| LinuxContainerResources { oom_score_adj, ..Default::default() });
            let linux = LinuxContainerConfig { resources, security_context: None };
            oom_score_adj(&ContainerConfig { linux: Some(linux), ..Default::default() }, host)
        };
        let daemon = |restrict_oom_score_adj, oom_score_adj_floor| Host {
            restrict_oom_score_adj,
            oom_score_adj_floor,
            ..Host::default()
        };
        let scores = |host: &Host| [None, Some(-998), Some(500)].map(|asked| of(asked, host).unwrap());
        assert_eq!(scores(&daemon(false, -999)), [0, -998, 500]);
        assert_eq!(scores(&daemon(true, 100)), [100, 100, 500]);
        assert!(of(Some(1001), &Host::default()).is_err() && of(Some(i64::MIN), &Host::default()).is_err());
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let mut env = Environment::default();
        for variable in ["A=1", "B=2", "A=3", "C"] {
            env.set(variable.to_owned());
        }
        assert_eq!(env.variables, ["A=3", "B=2", "C"]);
    }
}
