//! The program itself, on a made-up machine, against a fake kubelet.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tombolo_fake_kubelet::{FakeKubelet, SOON};
use tombolo_fake_machine::{MINORS, Machine};

use crate::ground::{file, roots};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// The program, which does not outlive its test.
struct Program(Child);

impl Program {
    fn start(machine: &Machine, text: &str) -> Self {
        fs::create_dir_all(machine.path("plugins")).unwrap();
        let child = command(machine, text).arg("--directory").arg(machine.path("plugins")).spawn().unwrap();
        Self(child)
    }

    async fn terminate(mut self) {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM).unwrap();
        let ended = async {
            loop {
                if let Some(status) = self.0.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let status = tokio::time::timeout(SOON, ended).await.expect("it ends");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(machine: &Machine, text: &str) -> Command {
    let config = machine.path("generic.toml");
    fs::write(&config, format!("{}{text}", roots(machine))).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tombolo-device-plugin-generic"));
    command.arg("--config").arg(config);
    command
}

fn sockets(directory: &Path) -> usize {
    let socket =
        |entry: &fs::DirEntry| entry.file_type().unwrap().is_socket() && entry.file_name() != "kubelet.sock";
    fs::read_dir(directory).unwrap().flatten().filter(socket).count()
}

#[tokio::test]
async fn devices_are_plugged_allocated_and_unplugged() {
    let Some(machine) = Machine::new() else { return };
    machine.mknod("video0", MINORS[1]);
    let text = "[[resource]]\nname = \"example.com/camera\"\nat = \"/dev/camera{n}\"\npermissions = \"r\"\n\
                env = { CAMERAS = \"{paths}\", IDS = \"{ids}\" }\n\
                mounts = [{ host = \"/lib\", container = \"/opt/lib\", read_only = true }]\n\
                [[resource.match]]\npath = \"/dev/video*\"\n";
    let program = Program::start(&machine, text);
    let mut kubelet = FakeKubelet::start(&machine.path("plugins")).await;
    let mut plugin = kubelet.plugin("example.com/camera").await;
    plugin.list(&[("video0", "Healthy")]).await;
    machine.mknod("video1", MINORS[0]);
    plugin.list(&[("video0", "Healthy"), ("video1", "Healthy")]).await;

    let given = plugin.allocate(&["video0", "video1"]).await.unwrap();
    let [first, second] = given.devices.as_slice() else { panic!("{given:?}") };
    assert_eq!((&*first.container_path, &*first.permissions), ("/dev/camera0", "r"));
    assert_eq!(second.container_path, "/dev/camera1");
    assert_eq!(
        (&*given.envs["CAMERAS"], &*given.envs["IDS"]),
        ("/dev/camera0,/dev/camera1", "video0,video1")
    );
    assert_eq!((&*given.mounts[0].container_path, given.mounts[0].read_only), ("/opt/lib", true));
    let mut zero = [1];
    OpenOptions::new().read(true).open(&first.host_path).unwrap().read_exact(&mut zero).unwrap();
    assert_eq!(zero, [0], "the node is the one that was plugged: it reads as zero");
    assert_eq!(fs::metadata(&second.host_path).unwrap().rdev(), fs::metadata("/dev/null").unwrap().rdev());

    fs::remove_file(machine.path("dev/video0")).unwrap();
    plugin.list(&[("video1", "Healthy")]).await;
    let status = plugin.allocate(&["video0"]).await.unwrap_err();
    assert!(status.message().contains("there is no device \"video0\""), "{status}");

    drop(kubelet);
    let mut kubelet = FakeKubelet::start(&machine.path("plugins")).await;
    kubelet.plugin("example.com/camera").await.list(&[("video1", "Healthy")]).await;
    program.terminate().await;
    assert_eq!(sockets(&machine.path("plugins")), 0, "it leaves no socket");
}

#[tokio::test]
async fn an_accelerator_that_comes_back_under_another_id_stays_one_device() {
    let Some(machine) = Machine::new() else { return };
    let before = machine.usb("1-4", "1a6e:089a", None, 4);
    let _program = Program::start(&machine, &file("usb = [\"1a6e:089a\", \"18d1:9302\"]"));
    let mut kubelet = FakeKubelet::start(&machine.path("plugins")).await;
    let mut plugin = kubelet.plugin("example.com/thing").await;
    plugin.list(&[("usb-1-4", "Healthy")]).await;
    let node = |given: tombolo_device_api::v1beta1::ContainerAllocateResponse| {
        given.devices[0].container_path.clone()
    };
    assert_eq!(node(plugin.allocate(&["usb-1-4"]).await.unwrap()), "/dev/bus/usb/001/004");
    machine.unplug(&before, &["bus/usb/001/004"]);
    machine.usb("1-4", "18d1:9302", None, 5);
    // Whether or not it was seen to be away: the node that a container has is worth nothing any more.
    assert_eq!(plugin.next_list().await, Some(BTreeMap::new()));
    plugin.list(&[("usb-1-4", "Healthy")]).await;
    assert_eq!(node(plugin.allocate(&["usb-1-4"]).await.unwrap()), "/dev/bus/usb/001/005");
}

#[tokio::test]
async fn a_shared_device_is_many_to_the_kubelet_and_once_in_a_container() {
    let Some(machine) = Machine::new() else { return };
    machine.mknod("gpiochip0", MINORS[0]);
    machine.mknod("gpiochip1", MINORS[1]);
    let text = "[[resource]]\nname = \"example.com/gpio\"\nshared = 2\n[[resource.match]]\npath = \"/dev/gpiochip*\"\n";
    let _program = Program::start(&machine, text);
    let mut kubelet = FakeKubelet::start(&machine.path("plugins")).await;
    let mut plugin = kubelet.plugin("example.com/gpio").await;
    let all = ["gpiochip0::0", "gpiochip0::1", "gpiochip1::0", "gpiochip1::1"];
    plugin.list(&all.map(|id| (id, "Healthy"))).await;
    let given = plugin.allocate(&all[..2]).await.unwrap();
    assert_eq!(given.devices.len(), 1, "{given:?}");
    let chosen = plugin.prefer(&all, &[], 2).await.unwrap();
    assert_eq!(chosen, ["gpiochip0::0", "gpiochip1::0"], "two devices, not one twice");
    assert_eq!(plugin.prefer(&all[1..], &[], 1).await.unwrap(), ["gpiochip1::0"], "the one with more left");
    assert_eq!(plugin.prefer(&all, &["gpiochip1::1"], 2).await.unwrap(), ["gpiochip1::1", "gpiochip0::0"]);
}

#[tokio::test]
async fn what_is_in_the_way_is_said_once() {
    let Some(machine) = Machine::new() else { return };
    let (plugins, log) = (machine.path("plugins"), machine.path("log"));
    let mut command = command(&machine, &file("path = \"/dev/video*\""));
    command.arg("--directory").arg(&plugins).stderr(fs::File::create(&log).unwrap());
    let program = Program(command.spawn().unwrap());
    let count = |words: &str| fs::read_to_string(&log).unwrap().matches(words).count();
    let said = async |words: &str| {
        let said = async {
            while count(words) == 0 {
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::time::timeout(SOON, said).await.unwrap_or_else(|_| panic!("{words}"));
    };
    said("there is no directory").await;
    fs::create_dir(&plugins).unwrap();
    said("there is no kubelet at").await;
    // Several attempts long.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!((count("there is no directory"), count("there is no kubelet at")), (1, 1));
    let mut kubelet = FakeKubelet::start(&plugins).await;
    kubelet.refuse(Some("requested API version \"v1beta1\" is not supported by kubelet"));
    said("the kubelet refuses the resource: requested API version").await;
    said("this plugin speaks version v1beta1").await;
    kubelet.refuse(None);
    kubelet.registered("example.com/thing").await;
    program.terminate().await;
}

#[test]
fn checking_shows_what_is_there_and_what_is_wrong() {
    let Some(machine) = Machine::new() else { return };
    machine.mknod("video0", MINORS[0]);
    let check = |text: &str| {
        let output = command(&machine, text).arg("--check").stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.success(), text)
    };
    let camera = file("path = \"/dev/video*\"");
    assert_eq!(check(&camera), (true, "example.com/thing:\n  video0  /dev/video0  healthy\n".to_owned()));
    let none = file("path = \"/dev/radio*\"");
    assert_eq!(check(&none), (true, "example.com/thing: no device here now\n".to_owned()));
    let (good, text) = check(&(camera.clone() + &camera.replace("thing", "other")));
    assert!(!good && text.contains("offered as video0 of example.com/thing too"), "{text}");
    let (good, text) = check(&camera.replace("example.com/", ""));
    assert!(!good && text.contains("generic.toml") && text.contains("write vendor-domain/name"), "{text}");
}
