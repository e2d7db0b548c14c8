//! Calls to the daemon that must succeed, and scripts that run in containers.

use super::*;

impl Berth {
    pub async fn run_pod(&mut self, config: PodSandboxConfig) -> String {
        self.try_run_pod(config).await.unwrap()
    }

    pub async fn try_run_pod(&mut self, config: PodSandboxConfig) -> Result<String, Status> {
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        Ok(self.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub async fn try_create(&mut self, pod: &str, config: ContainerConfig) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: None,
        };
        Ok(self.runtime.create_container(request).await?.into_inner().container_id)
    }

    pub async fn try_start_container(&mut self, id: &str) -> Result<(), Status> {
        let request = StartContainerRequest { container_id: id.to_owned() };
        self.runtime.start_container(request).await.map(drop)
    }

    /// Creates and starts a container.
    pub async fn run(&mut self, pod: &str, config: ContainerConfig) -> String {
        let id = self.try_create(pod, config).await.unwrap();
        self.try_start_container(&id).await.unwrap();
        id
    }

    /// Runs a shell script as a container of a pod and waits for its exit. Returns the exit code and the log.
    pub async fn script(&mut self, pod: &str, name: &str, script: &str) -> (i32, String) {
        self.run_to_end(pod, shell(name, script)).await
    }

    /// Runs a container and waits for its exit. Returns the exit code and the text of its log.
    pub async fn run_to_end(&mut self, pod: &str, config: ContainerConfig) -> (i32, String) {
        let id = self.run(pod, config).await;
        let status = self.wait_exited(&id).await;
        (status.exit_code, text_of(&fs::read_to_string(&status.log_path).unwrap_or_default()))
    }

    pub async fn status(&mut self, id: &str) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.runtime.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    pub async fn pod_status(&mut self, id: &str) -> PodSandboxStatus {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        self.runtime.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap()
    }

    /// Waits until a container has exited.
    pub async fn wait_exited(&mut self, id: &str) -> ContainerStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.status(id).await;
            if status.state() == ContainerState::ContainerExited {
                return status;
            }
            assert!(Instant::now() < until, "{id} does not end: {status:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn exec(
        &mut self,
        id: &str,
        command: &[&str],
        timeout: i64,
    ) -> Result<ExecSyncResponse, Status> {
        let cmd = command.iter().map(|&part| part.to_owned()).collect();
        let request = ExecSyncRequest { container_id: id.to_owned(), cmd, timeout };
        Ok(self.runtime.exec_sync(request).await?.into_inner())
    }

    /// Runs a shell script in a container and returns its output.
    pub async fn sh(&mut self, id: &str, script: &str) -> String {
        let answer = self.exec(id, &["sh", "-c", script], 0).await.unwrap();
        String::from_utf8_lossy(&answer.stdout).trim().to_owned()
    }

    /// Waits until the first process of a container has a handler for `signal`. Before that the kernel drops the
    /// signal, because the process is number 1 of its PID namespace (pid_namespaces(7)).
    pub async fn wait_for_handler(&mut self, id: &str, signal: rustix::process::Signal) {
        let script = format!(
            "until mask=0x$(sed -n 's/^SigCgt:[[:space:]]*//p' /proc/1/status); \
             [ $((mask >> {} & 1)) = 1 ]; do sleep 0.05; done; echo yes",
            signal.as_raw() - 1
        );
        assert_eq!(self.sh(id, &script).await, "yes");
    }

    pub async fn stop_container(&mut self, id: &str, timeout: i64) {
        let request = StopContainerRequest { container_id: id.to_owned(), timeout };
        self.runtime.stop_container(request).await.unwrap();
    }

    pub async fn remove_container(&mut self, id: &str) {
        let request = RemoveContainerRequest { container_id: id.to_owned() };
        self.runtime.remove_container(request).await.unwrap();
    }

    pub async fn stop_pod(&mut self, id: &str) {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.stop_pod_sandbox(request).await.unwrap();
    }

    pub async fn remove_pod(&mut self, id: &str) {
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.remove_pod_sandbox(request).await.unwrap();
    }
}
