# shellcheck shell=bash
# Part of tests/packaging/run, in private namespaces: installs, upgrades, removes and purges the .deb in an overlay of this
# system. The upper folder shows what is left.
work=$2

fail() {
    echo "tests/packaging: $*" >&2
    exit 1
}

mount --make-rprivate /
mount -t tmpfs tmpfs "$work/root"
root=$work/root/merged
mkdir "$work/root/upper" "$work/root/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/root/upper,workdir=$work/root/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mkdir "$root/packages"
cp "$work"/one/berth_*.deb "$root/packages/first.deb"
cp "$work"/two/berth_*.deb "$root/packages/second.deb"
upper=$work/root/upper

in_root() { DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$root" "$@"; }
install_deb() { in_root dpkg --force-confold --install "$@" >"$work/dpkg.log" 2>&1 || fail "dpkg: $(cat "$work/dpkg.log")"; }
state() { in_root dpkg-query -W -f '${db:Status-Status}' berth 2>/dev/null || echo absent; }

# A file that names another runtime remains as it is.
echo 'runtime-endpoint: unix:///run/other.sock' >"$root/etc/crictl.yaml"
install_deb /packages/first.deb
grep -q other.sock "$root/etc/crictl.yaml" || fail "the installation replaces /etc/crictl.yaml"
in_root dpkg --purge berth >"$work/dpkg.log" 2>&1 || fail "dpkg: $(cat "$work/dpkg.log")"
grep -q other.sock "$root/etc/crictl.yaml" || fail "purge removes the /etc/crictl.yaml of another runtime"
rm "$root/etc/crictl.yaml"
install_deb /packages/first.deb
grep -q berth.sock "$root/etc/crictl.yaml" || fail "no /etc/crictl.yaml"
[ "$(state)" = installed ] || fail "state after installation: $(state)"
in_root dpkg --verify berth || fail "files differ from the package"
in_root berth version | grep -q '^berth ' || fail "the program does not run"
in_root berth config check >/dev/null || fail "the installed configuration has mistakes"
if in_root which deb-systemd-helper >/dev/null; then
    [ -L "$root/etc/systemd/system/multi-user.target.wants/berth.service" ] || fail "berth.service is not enabled"
    [ -L "$root/etc/systemd/system/sockets.target.wants/berth.socket" ] || fail "berth.socket is not enabled"
fi

# An upgrade keeps what the administrator has changed.
echo 'log_level = "debug"' >"$root/etc/berth/config.toml"
echo 'parallel_pulls = 7' >"$root/etc/berth/conf.d/50-local.toml"
install_deb /packages/second.deb
in_root dpkg-query -W -f '${Version}' berth | grep -q '^99' || fail "not upgraded"
in_root berth config dump | grep -q '^log_level = "debug"' || fail "an upgrade replaces the configuration"

# Removing the package keeps the configuration and the state; pods keep running.
python3 - "$root" <<'END' &
import os, sys, time

# A keeper of this installation, and one of another daemon: programs in memory files that log below their state folder.
for state, mark in [("run/berth", "own"), ("tmp/other", "other")]:
    folder = os.path.join(sys.argv[1], state, "pods/0123456789abcdef")
    os.makedirs(folder)
    program = os.memfd_create("berth-keeper")
    with open("/bin/sleep", "rb") as source:
        os.write(program, source.read())
    if os.fork() == 0:
        os.chroot(sys.argv[1])
        os.chdir("/")
        log = os.open(f"/{state}/pods/0123456789abcdef/keeper.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 2)
        os.execve(f"/proc/self/fd/{program}", ["berth-keeper", "1000"], {})
time.sleep(1000)
END
keepers() {
    local process
    for process in "$root"/proc/[0-9]*; do
        if readlink "$process/exe" | grep -q memfd:berth-keeper; then echo "${process##*/}"; fi
    done
}
for _ in $(seq 100); do
    [ "$(keepers | wc -l)" -eq 2 ] && break
    sleep 0.1
done
[ "$(keepers | wc -l)" -eq 2 ] || fail "no keepers to test with"
mkdir -p "$root/var/lib/berth/image" "$root/var/lib/cni/networks/berth0"
touch "$root/var/lib/berth/image/blob" "$root/var/lib/cni/networks/berth0/10.83.0.2" "$root/run/berth/pods/0123456789abcdef/keeper.sock"
# A process of a container outlives its keeper. The copy of this system has no cgroups; the files of one are enough.
sleep 1000 &
member=$!
mkdir -p "$root/var/lib/berth/containers/fedcba98" "$root/sys/fs/cgroup/kubepods/berth-fedcba98.scope/init"
echo $member >"$root/sys/fs/cgroup/kubepods/berth-fedcba98.scope/init/cgroup.procs"
in_root dpkg --remove berth >"$work/dpkg.log" 2>&1 || fail "dpkg: $(cat "$work/dpkg.log")"
grep -q "pods keep running" "$work/dpkg.log" || fail "no warning about pods: $(cat "$work/dpkg.log")"
[ "$(state)" = config-files ] || fail "state after removal: $(state)"
[ -e "$root/etc/berth/config.toml" ] && [ -e "$root/var/lib/berth/image/blob" ] || fail "removal deletes state"
[ "$(keepers | wc -l)" -eq 2 ] && kill -0 $member || fail "removal ends pods"

# Purging leaves nothing: no process, and no file but those of dpkg itself.
in_root dpkg --purge berth >"$work/dpkg.log" 2>&1 || fail "dpkg: $(cat "$work/dpkg.log")"
[ "$(state)" = absent ] || [ "$(state)" = not-installed ] || fail "state after purge: $(state)"
[ "$(keepers | wc -l)" -eq 1 ] || fail "purge ends the wrong keepers: $(keepers | wc -l) are left"
! kill -0 $member 2>/dev/null || fail "purge leaves the process of a container"
[ ! -e "$root/etc/crictl.yaml" ] || fail "purge leaves /etc/crictl.yaml"
[ ! -e "$root/run/berth" ] || fail "purge leaves /run/berth"
left=$(cd "$upper" && find . -mindepth 1 ! -type d \
    ! -path './var/lib/dpkg/*' ! -path './var/log/dpkg.log' ! -path './var/log/alternatives.log' ! -path './var/cache/*' \
    ! -path './packages/*' ! -path './tmp/other/*' ! -path './sys/*' ! -path './etc/crictl.yaml')
[ -z "$left" ] || fail "purge leaves $left"
left=$(cd "$upper" && find . -name '*berth*' ! -path './packages/*' ! -path './sys/*' ! -path './var/lib/dpkg/*')
[ -z "$left" ] || fail "purge leaves $left"
! grep -rq berth "$root/var/lib/dpkg/info" "$root/var/lib/systemd" 2>/dev/null || fail "purge leaves records"
