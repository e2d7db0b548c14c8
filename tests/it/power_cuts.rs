//! Power cuts: the test shuts down the filesystem of the daemon's root without flushing its journal
//! (`XFS_IOC_GOINGDOWN`, `EXT4_IOC_SHUTDOWN` with NOLOGFLUSH) while images are pulled and a tag moves from one image
//! to the next. Data that was not on the disk is lost, and the next boot has another boot id. Runs as root.
//!
//! BERTH_POWER_CUTS is the number of cuts for each filesystem. A long run has 200.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::PATIENCE;
use crate::support::registry::Registry;
use berth::server::connect;
use berth_image::{Algorithm, Digest};
use berth_proto::admin::admin_client::AdminClient;
use berth_proto::admin::{Verdict, VerifyImagesRequest};
use berth_proto::v1::image_service_client::ImageServiceClient;
use berth_proto::v1::*;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tonic::transport::Channel;

/// The default number of cuts for each filesystem.
const CUTS: u32 = 5;
/// The maximum number of images that are pulled in one boot.
const IMAGES: u32 = 12;
/// The number of boots after which older images are removed, because the disk is small.
const BOOTS_KEPT: u32 = 10;

/// A machine: a disk, and a daemon with its root folder on it.
struct Machine {
    folder: tempfile::TempDir,
    /// A process that keeps the namespaces in which the disk is mounted.
    holder: Child,
    daemon: Option<Child>,
    boots: u32,
}

impl Machine {
    fn new(filesystem: &str) -> Self {
        let folder = tempfile::Builder::new().prefix(crate::support::leftovers::FOLDER).tempdir().unwrap();
        let disk = folder.path().join("disk");
        fs::File::create(&disk).unwrap().set_len(1 << 30).unwrap();
        for name in ["mnt", "net.d"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let made = Command::new(format!("mkfs.{filesystem}")).arg("-q").arg(&disk).output();
        // tests/run installs e2fsprogs and xfsprogs.
        let made = made.unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "sh", "-c"])
            .arg("ip link set lo up && echo up && exec sleep infinity")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0_u8; 3];
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut up).unwrap();
        let path = folder.path().display();
        let config = format!(
            "socket = \"{path}/run/berth.sock\"\nroot = \"{path}/mnt/root\"\nstate = \"{path}/run\"\n\
             cni_conf_dir = \"{path}/net.d\"\ncni_bin_dirs = []\ncni_data_dir = \"{path}/addresses\"\n\
             certs_dir = \"{path}/certs.d\"\nregistries_conf = \"{path}/registries.conf\"\nauth_file = []\n\
             signature_policy = \"{path}/policy.json\"\nlog_level = \"debug\"\n\
             [nri]\nenable = false\n"
        );
        fs::write(folder.path().join("config.toml"), config).unwrap();
        Self { folder, holder, daemon: None, boots: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns a command that runs in the machine's namespaces.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let namespace = |kind: &str| format!("/proc/{}/ns/{kind}", self.holder.id());
        command.arg(format!("--net={}", namespace("net"))).arg(format!("--mount={}", namespace("mnt")));
        command.arg(program);
        command
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<(), String> {
        let output = self.command(program).args(args).output().unwrap();
        let error = || format!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.status.success().then_some(()).ok_or_else(error)
    }

    /// Mounts the disk, which replays its journal, and starts the daemon with a new boot id.
    async fn boot(&mut self) -> Channel {
        self.boots += 1;
        let (disk, mnt) = (self.path("disk"), self.path("mnt"));
        self.run("mount", &["-o", "loop", disk.to_str().unwrap(), mnt.to_str().unwrap()]).unwrap();
        let id = self.path("boot-id");
        fs::write(&id, format!("00000000-0000-4000-8000-{:012x}\n", self.boots)).unwrap();
        if self.boots == 1 {
            let file = "/proc/sys/kernel/random/boot_id";
            self.run("mount", &["--bind", id.to_str().unwrap(), file]).unwrap();
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("daemon.log")).unwrap();
        let daemon = self
            .command(env!("CARGO_BIN_EXE_berth"))
            .args(["serve", "--config"])
            .arg(self.path("config.toml"))
            .env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", self.path("bus").display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(daemon);
        let until = Instant::now() + PATIENCE;
        loop {
            if let Ok(channel) = connect(&self.path("run/berth.sock")).await {
                let mut client = ImageServiceClient::new(channel.clone());
                if client.list_images(ListImagesRequest::default()).await.is_ok() {
                    return channel;
                }
            }
            assert!(Instant::now() < until, "the daemon does not answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Cuts the power: data that is not yet on the disk is lost.
    fn cut(&self) {
        self.run("xfs_io", &["-x", "-c", "shutdown", self.path("mnt").to_str().unwrap()]).unwrap();
    }

    fn unmount(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
        let until = Instant::now() + PATIENCE;
        while let Err(busy) = self.run("umount", &[self.path("mnt").to_str().unwrap()]) {
            assert!(Instant::now() < until, "{busy}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            drop(daemon.kill());
            drop(daemon.wait());
        }
        // The mounts end with their mount namespace.
        drop(self.holder.kill());
        drop(self.holder.wait());
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("daemon.log")).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(60).collect();
            tail.iter().rev().for_each(|line| eprintln!("  {line}"));
        }
    }
}

/// Returns a layer with random content: a program, small files, and folders that it does not list.
fn layer(seed: u64) -> (Vec<u8>, Digest) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, length: usize, random: &mut StdRng| {
        let mut header = tar::Header::new_gnu();
        let mut content = vec![0; length];
        random.fill(content.as_mut_slice());
        header.set_size(length.try_into().unwrap());
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content.as_slice()).unwrap();
    };
    add("bin/program", random.random_range(10_000..2_000_000), &mut random.clone());
    for number in 0..30 {
        add(&format!("usr/share/{seed}/{number}"), random.random_range(0..20_000), &mut random);
    }
    let bytes = tar.into_inner().unwrap();
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    (bytes, digest)
}

/// The state that was acknowledged and must survive a power cut.
#[derive(Default)]
struct Acknowledged {
    /// Image ids by image name.
    images: BTreeMap<String, String>,
    /// `moving` is the last acknowledged image of the moving tag. `attempted` is the image of an unacknowledged pull,
    /// which the tag can already have.
    moving: Option<String>,
    attempted: Option<String>,
}

async fn pull(channel: &Channel, name: &str) -> Option<String> {
    let image = ImageSpec { image: name.to_owned(), ..ImageSpec::default() };
    let request = PullImageRequest { image: Some(image), ..PullImageRequest::default() };
    let answer = ImageServiceClient::new(channel.clone()).pull_image(request).await;
    answer.ok().map(|answer| answer.into_inner().image_ref)
}

/// Pulls images until the power is cut.
async fn pull_many(channel: Channel, registry: &Registry, boot: u32) -> Vec<(String, String)> {
    let mut acknowledged = Vec::new();
    for number in 0..IMAGES {
        let name = format!("image-{boot}-{number}");
        let seed = u64::from(boot) * 1000 + u64::from(number) * 10;
        // Groups of images share their first layer.
        registry.layers(&name, &[layer(seed - seed % 30), layer(seed + 1)]);
        let name = format!("{}/{name}:1", registry.address);
        match pull(&channel, &name).await {
            Some(id) => acknowledged.push((name, id)),
            None => break,
        }
    }
    acknowledged
}

/// Moves the tag until the power is cut. Returns the last acknowledged image and the unacknowledged one.
async fn move_tag(channel: Channel, registry: &Registry, boot: u32) -> (Option<String>, Option<String>) {
    let (mut acknowledged, name) = (None, format!("{}/moving:1", registry.address));
    for number in 0..IMAGES {
        let (bytes, digest) = layer(u64::from(boot) * 1000 + 500 + u64::from(number));
        registry.image("moving", &bytes, &digest);
        let attempted = config_of(registry);
        match pull(&channel, &name).await {
            Some(id) => acknowledged = Some(id),
            None => return (acknowledged, Some(attempted)),
        }
    }
    (acknowledged, None)
}

fn config_of(registry: &Registry) -> String {
    let manifest = registry.answer_of("/v2/moving/manifests/1").unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    manifest["config"]["digest"].as_str().unwrap().to_owned()
}

async fn check(channel: &Channel, registry: &Registry, acknowledged: &mut Acknowledged, context: &str) {
    let mut client = ImageServiceClient::new(channel.clone());
    let images = client.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    for (name, id) in &acknowledged.images {
        let found = images.iter().find(|image| image.repo_tags.contains(name));
        let found =
            found.unwrap_or_else(|| panic!("{context}: {name} was acknowledged as pulled and is gone"));
        assert_eq!(found.id, *id, "{context}: {name}");
    }
    let tag = format!("{}/moving:1", registry.address);
    let owners: Vec<&String> =
        images.iter().filter(|image| image.repo_tags.contains(&tag)).map(|image| &image.id).collect();
    match (&acknowledged.moving, owners.as_slice()) {
        (None, [] | [_]) => {}
        (Some(last), [owner]) => {
            let known = *owner == last || acknowledged.attempted.as_ref() == Some(owner);
            assert!(known, "{context}: the tag is on {owner}, and was acknowledged on {last}");
        }
        (last, owners) => panic!("{context}: the tag was acknowledged on {last:?} and is on {owners:?}"),
    }
    acknowledged.moving = owners.first().map(|owner| (*owner).clone());
    acknowledged.attempted = None;
    let verified = AdminClient::new(channel.clone()).verify_images(VerifyImagesRequest::default()).await;
    let parts = verified.unwrap().into_inner().parts;
    let broken: Vec<_> = parts.iter().filter(|part| part.verdict() == Verdict::Broken).collect();
    assert!(broken.is_empty(), "{context}: {broken:?}");
}

/// Frees disk space: removes all images except the image of the moving tag.
async fn remove_all(channel: &Channel, acknowledged: &mut Acknowledged) {
    let mut client = ImageServiceClient::new(channel.clone());
    let images = client.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    for image in images.into_iter().filter(|image| Some(&image.id) != acknowledged.moving.as_ref()) {
        let image = ImageSpec { image: image.id, ..ImageSpec::default() };
        client.remove_image(RemoveImageRequest { image: Some(image) }).await.unwrap();
    }
    acknowledged.images.clear();
}

async fn cuts(filesystem: &str) {
    let cuts = std::env::var("BERTH_POWER_CUTS").ok().and_then(|count| count.parse().ok()).unwrap_or(CUTS);
    let seed = std::env::var("BERTH_POWER_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut random = StdRng::seed_from_u64(seed);
    let mut machine = Machine::new(filesystem);
    let registry = Registry::start(machine.holder.id());
    let mut acknowledged = Acknowledged::default();
    let mut pulled = 0;
    for cut in 0..cuts {
        let context = format!("{filesystem}, seed {seed}, cut {cut}");
        let channel = machine.boot().await;
        check(&channel, &registry, &mut acknowledged, &context).await;
        if cut % BOOTS_KEPT == BOOTS_KEPT - 1 {
            remove_all(&channel, &mut acknowledged).await;
        }
        let boot = machine.boots;
        let power = async {
            tokio::time::sleep(Duration::from_millis(random.random_range(20..1500))).await;
            machine.cut();
        };
        let (images, (moving, attempted), ()) = tokio::join!(
            pull_many(channel.clone(), &registry, boot),
            move_tag(channel.clone(), &registry, boot),
            power
        );
        pulled += images.len();
        acknowledged.images.extend(images);
        acknowledged.moving = moving.or(acknowledged.moving);
        acknowledged.attempted = attempted;
        machine.unmount();
    }
    let channel = machine.boot().await;
    check(&channel, &registry, &mut acknowledged, &format!("{filesystem}, seed {seed}, at the end")).await;
    eprintln!("{filesystem}: {cuts} cuts, {pulled} images were acknowledged as pulled");
    assert!(pulled > 0, "no pull finished before a power cut: nothing was tested");
    machine.unmount();
}

#[tokio::test(flavor = "multi_thread")]
async fn images_and_tags_survive_power_cuts_on_ext4() {
    cuts("ext4").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_and_tags_survive_power_cuts_on_xfs() {
    cuts("xfs").await;
}
