//! Sessions with a terminal.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_with_a_terminal_has_window_size_and_control_keys() {
    let (inside, ids) = Inside::start(vec![sleeper("c")]).await;
    let script = "tty; stty size; trap 'stty size' WINCH; trap 'echo interrupted; exit 5' INT; \
                  echo ready; while true; do sleep 0.05; done";
    let mut exec = inside.exec(&ids[0], script, TERMINAL).await;
    let start = until(&mut exec.streams.stdout, "ready").await;
    assert!(start.contains("/dev/pts/"), "{start}");
    exec.control.resize(TerminalSize { width: 132, height: 43 }).await.unwrap();
    until(&mut exec.streams.stdout, "43 132").await;
    write(&mut exec.streams.stdin, "\u{3}").await;
    until(&mut exec.streams.stdout, "interrupted").await;
    assert_eq!(within(exec.end()).await, SessionEnd::Exited(5));
    all(&mut exec.streams.stdout).await;

    let mut cat = inside.exec(&ids[0], "cat; echo over", TERMINAL).await;
    write(&mut cat.streams.stdin, "line").await;
    drop(cat.streams.stdin.take());
    until(&mut cat.streams.stdout, "over").await;
    assert_eq!(
        within(cat.end()).await,
        SessionEnd::Exited(0),
        "the end of the input must reach the terminal"
    );

    let size = TerminalSize { width: 101, height: 33 };
    let command = ["stty", "size"].map(str::to_owned).to_vec();
    let mut sized =
        session::exec_with_size(&ContainerAccess::of(&inside.daemon), &ids[0], command, TERMINAL, Some(size))
            .await
            .unwrap();
    assert_eq!(
        all(&mut sized.streams.stdout).await.trim(),
        "33 101",
        "the size must be set before the command starts"
    );
    inside.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_survives_the_daemon() {
    let script = "trap 'stty size' WINCH; stty -echo; while true; do read line && echo got $line; done";
    let config = interactive(shell("tty", script), false, true);
    // The daemon that created the terminal was already killed.
    let (inside, ids) = Inside::start(vec![config]).await;
    let mut first = inside.attach(&ids[0], TERMINAL).await;
    assert!(first.streams.stderr.is_none());
    write(&mut first.streams.stdin, "one\n").await;
    until(&mut first.streams.stdout, "got one").await;
    first.control.resize(TerminalSize { width: 91, height: 17 }).await.unwrap();
    until(&mut first.streams.stdout, "17 91").await;
    let inside = inside.reopen().await;
    let mut second = inside.attach(&ids[0], TERMINAL).await;
    write(&mut second.streams.stdin, "two\n").await;
    until(&mut second.streams.stdout, "got two").await;
    let mut sizes = inside
        .exec(
            &ids[0],
            "stty size </proc/1/fd/0",
            RequestedStreams { stdout: true, ..RequestedStreams::default() },
        )
        .await;
    assert_eq!(all(&mut sizes.streams.stdout).await, "17 91\n");
    drop((first, second, sizes));
    assert!(inside.log("tty").contains("got two"), "the log must contain the output");
    inside.finish().await;
}

/// The terminal comes from the devpts of the container. Anything else at its path is refused (CVE-2025-52565).
#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_comes_only_from_the_containers_devpts() {
    let mut mounts_over = crate::support::with_security(sleeper("c"), |security| security.privileged = true);
    mounts_over.tty = true;
    let (inside, ids) = Inside::start(vec![mounts_over]).await;
    for script in [
        "mount -t tmpfs none /dev/pts && ln -s /dev/null /dev/pts/ptmx",
        "umount /dev/pts && umount -l /dev/pts; rmdir /dev/pts && mkdir /dev/real && ln -s real /dev/pts && \
         mount -t devpts -o newinstance,ptmxmode=0666 none /dev/real",
    ] {
        let mut prepare = inside.exec(&ids[0], script, ALL).await;
        let stderr = all(&mut prepare.streams.stderr).await;
        assert_eq!(within(prepare.end()).await, SessionEnd::Exited(0), "{stderr}");
        let command = vec!["true".to_owned()];
        let refused = session::exec(&ContainerAccess::of(&inside.daemon), &ids[0], command, TERMINAL)
            .await
            .unwrap_err();
        assert!(refused.to_string().contains("make the terminal"), "{refused}");
    }
    let Inside { mut berth, daemon, threads, pod } = inside;
    end(daemon, threads).await;
    berth.restart().await;
    let folder = berth.path("pts");
    fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink("/dev/null", folder.join("ptmx")).unwrap();
    let mut volume = sleeper("volume");
    volume.tty = true;
    volume.mounts.push(Mount {
        container_path: "/dev/pts".to_owned(),
        host_path: folder.display().to_string(),
        ..Mount::default()
    });
    let security = volume.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap().network = NamespaceMode::Node.into();
    let refused = berth.try_create(&pod, volume).await.unwrap_err();
    assert!(refused.message().contains("make the terminal"), "{refused}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
