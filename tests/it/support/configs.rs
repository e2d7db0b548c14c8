//! The configs of pods and containers, and the text of their logs.

use super::*;

/// Returns the config of a container of the test image that runs a command.
pub fn container(name: &str, command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(ImageSpec { image: IMAGE.to_owned(), ..ImageSpec::default() }),
        command: command.iter().map(|&part| part.to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(LinuxContainerConfig {
            resources: None,
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(NamespaceOption {
                    pid: NamespaceMode::Container.into(),
                    ..NamespaceOption::default()
                }),
                ..LinuxContainerSecurityContext::default()
            }),
        }),
        ..ContainerConfig::default()
    }
}

/// Returns the config of a container that runs a shell script.
pub fn shell(name: &str, script: &str) -> ContainerConfig {
    container(name, &["sh", "-c", script])
}

/// Returns the config of a container that runs until it is stopped.
pub fn sleeper(name: &str) -> ContainerConfig {
    shell(name, "trap 'exit 0' TERM; while true; do sleep 0.1; done")
}

/// Changes the security context of a container's config.
pub fn with_security(
    mut config: ContainerConfig,
    change: impl FnOnce(&mut LinuxContainerSecurityContext),
) -> ContainerConfig {
    change(config.linux.as_mut().unwrap().security_context.as_mut().unwrap());
    config
}

/// Returns the config of a pod with a changed security context.
pub fn pod_with(
    berth: &Berth,
    name: &str,
    change: impl FnOnce(&mut LinuxSandboxSecurityContext),
) -> PodSandboxConfig {
    let mut config = berth.pod_config(name);
    change(config.linux.get_or_insert_default().security_context.get_or_insert_default());
    config
}

/// Returns the text of a CRI log without times, streams and tags.
pub fn text_of(log: &str) -> String {
    let mut text = String::new();
    for record in log.lines() {
        let mut fields = record.splitn(4, ' ');
        let (tag, line) = (fields.nth(2).unwrap_or_default(), fields.next().unwrap_or_default());
        text.push_str(line);
        if tag == "F" {
            text.push('\n');
        }
    }
    text
}
