//! QEMU's command line for our guests, and which accelerator works on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

use super::guest::Guest;
use super::process::Lifetime;
use crate::image::Image;
use crate::progress::Progress;
use crate::{paths, setup};

/// How long a guest may take to boot on KVM before we call KVM broken. A working one needs a second or two.
const KVM_BOOT_LIMIT: Duration = Duration::from_secs(12);

/// Memory of a guest unless told otherwise.
const MEMORY_MIB: u32 = 256;

/// How QEMU runs the guest's instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accelerator {
    /// Hardware virtualisation.
    Kvm,
    /// Translation, works everywhere.
    Tcg,
}

impl Accelerator {
    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }

    /// The best one that works here. The device node alone proves nothing (nested virtualisation may open it and then hang),
    /// so a guest is booted; the answer is kept until the machine or the image changes.
    pub fn probe(image: &Image, progress: &Progress) -> anyhow::Result<Accelerator> {
        if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
            return Ok(Accelerator::Tcg);
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let made = fs::metadata(&image.initrd)?.modified()?.duration_since(std::time::UNIX_EPOCH)?;
        let key = format!("{} {}", boot.trim(), made.as_nanos());
        let memory = paths::target().join("guest/accelerator");
        if let Some((known, name)) =
            fs::read_to_string(&memory).ok().as_deref().and_then(|text| text.split_once('\n'))
            && known == key
        {
            return Ok(if name == "kvm" { Accelerator::Kvm } else { Accelerator::Tcg });
        }
        progress.note("trying KVM");
        let dir = tempfile::tempdir()?;
        let spec = GuestSpec::new("probe", image, Accelerator::Kvm);
        let booted = Guest::start(&spec, dir.path(), Lifetime::Ours)
            .and_then(|mut guest| guest.wait_ready(KVM_BOOT_LIMIT));
        super::interrupted()?;
        let answer = if booted.is_ok() { Accelerator::Kvm } else { Accelerator::Tcg };
        fs::write(&memory, format!("{key}\n{}", answer.name()))?;
        Ok(answer)
    }
}

/// A vhost-user block device.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// Virtqueues.
    pub queues: u16,
}

/// A vhost-user network device.
#[derive(Clone, Debug)]
pub struct Nic {
    /// The socket between QEMU and the switch.
    pub socket: PathBuf,
    /// QEMU listens on it, and the switch connects; otherwise the other way round.
    pub qemu_listens: bool,
    /// The guest's address.
    pub mac: String,
}

/// What a guest consists of.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    /// Name of the guest and of its files.
    pub name: String,
    /// What it boots.
    pub image: Image,
    /// How it runs.
    pub accelerator: Accelerator,
    /// Disks in the order of `/dev/vda`, `/dev/vdb`, ...; their device ids are `disk0`, ...
    pub disks: Vec<Disk>,
    /// Network devices in the order of `eth0`, ...; their device ids are `nic0`, ...
    pub nics: Vec<Nic>,
    /// An empty slot for a device that is plugged in later, the bus `slot0`.
    pub free_slot: bool,
    /// Whether the guest's `reboot` starts it again; otherwise it ends QEMU.
    pub may_reboot: bool,
    /// Whether QEMU waits for a guest that migrates here, instead of booting one.
    pub incoming: bool,
}

impl GuestSpec {
    /// A guest without any device.
    pub fn new(name: &str, image: &Image, accelerator: Accelerator) -> GuestSpec {
        GuestSpec {
            name: name.into(),
            image: image.clone(),
            accelerator,
            disks: Vec::new(),
            nics: Vec::new(),
            free_slot: false,
            may_reboot: false,
            incoming: false,
        }
    }

    /// Adds a disk with `queues` virtqueues.
    pub fn disk(mut self, socket: &Path, queues: u16) -> GuestSpec {
        self.disks.push(Disk { socket: socket.into(), queues });
        self
    }

    /// Adds a network device.
    pub fn nic(mut self, socket: &Path, qemu_listens: bool, mac: &str) -> GuestSpec {
        self.nics.push(Nic { socket: socket.into(), qemu_listens, mac: mac.into() });
        self
    }

    /// The command line; console, agent and QMP lie in `dir`.
    pub fn command(&self, dir: &Path) -> anyhow::Result<Command> {
        let program = paths::find_program("qemu-system-x86_64")
            .context("QEMU is not installed; `cargo xtask setup` does it")?;
        let file = |suffix: &str| dir.join(format!("{}.{suffix}", self.name)).display().to_string();
        let mut command = Command::new(program);
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]).args(["-name", &self.name]);
        command.args(["-machine", &format!("q35,accel={},memory-backend=mem", self.accelerator.name())]);
        if self.accelerator == Accelerator::Kvm {
            command.args(["-cpu", "host"]);
        }
        // The daemons map the guest's memory: it must be a shared file.
        command.args(["-m", &format!("{MEMORY_MIB}M")]);
        command.args(["-object", &format!("memory-backend-memfd,id=mem,size={MEMORY_MIB}M,share=on")]);
        command.arg("-kernel").arg(&self.image.kernel).arg("-initrd").arg(&self.image.initrd);
        // Without it the guest waits seconds for its first random numbers.
        command.args(["-device", "virtio-rng-pci"]);
        // no_timer_check: on a loaded host the kernel's timer test fails now and then under TCG.
        command.args(["-append", "console=ttyS0 loglevel=4 no_timer_check panic=-1"]);
        if !self.may_reboot {
            command.arg("-no-reboot");
        }
        command.args(["-chardev", &format!("file,id=console,path={}", file("console"))]);
        command.args(["-chardev", &format!("socket,id=agent,path={},server=on,wait=off", file("agent"))]);
        command.args(["-serial", "chardev:console", "-serial", "chardev:agent"]);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", file("qmp"))]);
        for (index, disk) in self.disks.iter().enumerate() {
            command.args([
                "-chardev",
                &format!("socket,id=chardisk{index},path={}{}", disk.socket.display(), reconnect()),
            ]);
            let queues = disk.queues;
            command.args([
                "-device",
                &format!("vhost-user-blk-pci,id=disk{index},chardev=chardisk{index},num-queues={queues}"),
            ]);
        }
        for (index, nic) in self.nics.iter().enumerate() {
            let role = if nic.qemu_listens { ",server=on,wait=off".into() } else { reconnect() };
            command
                .args(["-chardev", &format!("socket,id=charnic{index},path={}{role}", nic.socket.display())]);
            command.args(["-netdev", &format!("vhost-user,id=net{index},chardev=charnic{index}")]);
            let mac = &nic.mac;
            command.args([
                "-device",
                &format!("virtio-net-pci,id=nic{index},netdev=net{index},mac={mac},romfile="),
            ]);
        }
        if self.incoming {
            command.args(["-incoming", "defer"]);
        }
        if self.free_slot {
            command.args(["-device", "pcie-root-port,id=slot0,chassis=1,slot=1"]);
        }
        Ok(command)
    }
}

/// The option of a socket that makes QEMU connect again when the daemon comes back.
pub fn reconnect() -> String {
    // Milliseconds came with 9.2, and the old name goes.
    match setup::qemu_version() {
        Some(version) if version >= (9, 2) => ",reconnect-ms=200".into(),
        _ => ",reconnect=1".into(),
    }
}
