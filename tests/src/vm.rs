//! Throw-away QEMU guests for the tests that need a real driver: a guest kernel and fio judge what the target did.
//!
//! [`Lab`] finds what `tests/vm/setup` made. [`Machine::boot`] starts a guest that runs one shell script and is then gone;
//! the two sides talk by lines on the serial console (the protocol is described in `tests/vm/guest/init`). Guests are
//! emulated (TCG), so that nothing depends on the host's virtualisation: they judge correctness and never speed.
//!
//! Every wait has a limit. What ends badly panics with the whole console, which holds the guest's kernel log where there
//! was one to be had, and no QEMU outlives its [`Guest`].

mod console;
mod cpio;
mod kernel_log;
mod lab;
mod programs;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

pub use kernel_log::{KernelMessage, Level};
pub use lab::{Lab, Qemu};

use console::Console;

/// Memory of every guest, MiB: the unpacked initramfs, a kernel and fio, with room.
const GUEST_MEMORY_MIB: u32 = 512;
/// How long a guest that has gone quiet gets to print its kernel log.
const DUMP_WAIT: Duration = Duration::from_secs(10);
/// How long QEMU may take to end after the guest has switched itself off.
const POWER_OFF_WAIT: Duration = Duration::from_secs(20);
/// The kernel's command line. The emulated processors' clocks and a busy host make the kernel's own watchdogs cry wolf, so
/// these are off; the hung task detector, which judges I/O, stays on.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet loglevel=1 panic=-1 tsc=reliable no_timer_check nowatchdog \
                                rcupdate.rcu_cpu_stall_suppress=1";

/// What is added for a guest that gives a device to a process.
const IOMMU_ARGUMENTS: &str = "intel_iommu=on iommu=nopt";

/// A vhost-user-blk disk of a guest. The guest sees the disks as vda, vdb, … in the order given.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The back-end's socket; QEMU connects to it and reconnects whenever it is lost.
    pub socket: PathBuf,
    /// Virtqueues that QEMU asks for; the guest driver uses at most one per CPU.
    pub queues: u16,
    /// QEMU lets the driver use packed rings, where the back-end offers them.
    pub packed: bool,
}

/// An NVMe controller of a guest, behind an IOMMU that the guest's kernel uses for all its devices.
#[derive(Debug, Clone)]
pub struct NvmeDrive {
    /// Its namespaces, from identifier 1 on: the image, and the bytes of a block.
    pub namespaces: Vec<(PathBuf, u32)>,
}

/// What to boot.
#[derive(Debug)]
pub struct Machine {
    /// Which QEMU.
    pub qemu: Qemu,
    /// Virtual CPUs.
    pub cpus: u16,
    /// The disks.
    pub disks: Vec<Disk>,
    /// An NVMe controller, which the guest's own driver finds first.
    pub nvme: Option<NvmeDrive>,
    /// Programs of this machine that the script can run, by the names of their files.
    pub programs: Vec<PathBuf>,
    /// A reboot inside the guest starts it again, with the same script, instead of ending it.
    pub reboots: bool,
    /// What the guest runs as root, in busybox's shell.
    pub script: String,
}

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    qemu: Child,
    keyboard: ChildStdin,
    console: Console,
    /// Where QEMU is asked to pull a drive.
    monitor: PathBuf,
    /// The connection over which it was asked.
    asked: Option<UnixStream>,
    /// The initramfs that QEMU was started with; it is read again at a reboot.
    _files: tempfile::TempDir,
}

/// How a guest ended.
#[derive(Debug)]
pub struct Ended {
    /// The script's exit code.
    pub exit_code: i32,
    /// Every kernel message since the guest's init began.
    pub kernel_log: Vec<KernelMessage>,
    /// Everything the guest and QEMU printed, QEMU's own lines after `qemu: `.
    pub console: Vec<String>,
}

impl Machine {
    /// Starts the guest and returns at once.
    pub fn boot(self, lab: &Lab) -> Guest {
        let files = tempfile::tempdir_in(lab.directory()).expect("a directory for a guest");
        let initramfs = files.path().join("initramfs");
        self.write_initramfs(lab, &initramfs);
        let monitor = files.path().join("monitor");
        let mut command = self.command(lab, &initramfs, &monitor);
        let mut qemu = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let keyboard = qemu.stdin.take().expect("stdin was piped");
        let stdout = qemu.stdout.take().expect("stdout was piped");
        let stderr = qemu.stderr.take().expect("stderr was piped");
        Guest { qemu, keyboard, console: Console::new(stdout, stderr), monitor, asked: None, _files: files }
    }

    /// QEMU's command line.
    fn command(&self, lab: &Lab, initramfs: &Path, monitor: &Path) -> Command {
        let memory = format!("memory-backend-memfd,id=memory,size={GUEST_MEMORY_MIB}M,share=on");
        let mut command = Command::new(lab.qemu(self.qemu));
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", &self.cpus.to_string()])
            // A vhost-user back-end maps the guest's memory, which must be a shared file for that.
            .args(["-m", &GUEST_MEMORY_MIB.to_string(), "-object", &memory])
            .args(["-machine", "q35,memory-backend=memory", "-append"])
            .arg(if self.nvme.is_some() {
                format!("{KERNEL_ARGUMENTS} {IOMMU_ARGUMENTS}")
            } else {
                KERNEL_ARGUMENTS.into()
            })
            .arg("-kernel")
            .arg(lab.kernel())
            .arg("-initrd")
            .arg(initramfs);
        if !self.reboots {
            command.arg("-no-reboot");
        }
        if let Some(NvmeDrive { namespaces }) = &self.nvme {
            command.args(["-device", "intel-iommu,intremap=on,caching-mode=on"]);
            // In a slot, from which it can be pulled; and it tells when it is given shadow doorbells.
            command.args(["-device", "pcie-root-port,id=root-port,chassis=1,slot=1"]);
            command.args(["-device", "nvme,id=nvme,bus=root-port,serial=REPRISE-VM"]);
            command.args(["-trace", "pci_nvme_dbbuf_config"]);
            command.args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())]);
            for (index, (image, block)) in namespaces.iter().enumerate() {
                // Past the host's page cache, which lets a read see half of a write to the same block: a drive does not.
                let image = format!("file={},if=none,id=image{index},format=raw,cache=none", image.display());
                command.args(["-drive", &image]);
                let block = format!("logical_block_size={block},physical_block_size=4096");
                let nsid = index + 1;
                command
                    .args(["-device", &format!("nvme-ns,bus=nvme,drive=image{index},nsid={nsid},{block}")]);
            }
        }
        // Since QEMU 9.2 the interval is given in milliseconds; the option in seconds is gone from newer ones.
        let reconnect =
            if lab.qemu_version(self.qemu) >= (9, 2) { "reconnect-ms=200" } else { "reconnect=1" };
        for (index, disk) in self.disks.iter().enumerate() {
            let (socket, queues) = (disk.socket.display(), disk.queues);
            let packed = if disk.packed { "on" } else { "off" };
            command.args(["-chardev", &format!("socket,id=disk{index},path={socket},{reconnect}")]).args([
                "-device",
                &format!("vhost-user-blk-pci,chardev=disk{index},num-queues={queues},packed={packed}"),
            ]);
        }
        command
    }

    /// The lab's files with this guest's init and script behind them: the kernel unpacks one archive after the other.
    fn write_initramfs(&self, lab: &Lab, path: &Path) {
        let mut archive = cpio::Archive::default();
        archive.file("init", 0o755, include_bytes!("../vm/guest/init"));
        archive.file("root/functions", 0o644, include_bytes!("../vm/guest/functions"));
        archive.file("root/script", 0o644, self.script.as_bytes());
        programs::add(&mut archive, &self.programs);
        std::fs::copy(lab.guest_files(), path)
            .and_then(|_| std::fs::OpenOptions::new().append(true).open(path))
            .and_then(|mut file| file.write_all(&archive.finish()))
            .unwrap_or_else(|error| panic!("cannot make the initramfs {}: {error}", path.display()));
    }
}

impl Guest {
    /// Waits until the guest's script says `mark WORDS`, and gives what follows the words on that line.
    pub fn wait_mark(&mut self, words: &str, limit: Duration) -> String {
        let prefix = format!("MARK {words}");
        let found = self.console.wait(limit, |line| {
            if line.starts_with("EXIT ") {
                return Some(Err(line.to_owned()));
            }
            let rest = line.strip_prefix(&prefix)?;
            (rest.is_empty() || rest.starts_with(' ')).then(|| Ok(rest.trim().to_owned()))
        });
        match found {
            Ok(Ok(rest)) => rest,
            Ok(Err(exit)) => self.fail(&format!("the guest ended with `{exit}` before `{prefix}`")),
            Err(why) => self.fail(&format!("no `{prefix}`: {why}")),
        }
    }

    /// Fails the test if the guest's script has ended.
    pub fn assert_runs(&mut self) {
        if let Some(exit) = self.console.lines().into_iter().find(|line| line.starts_with("EXIT ")) {
            self.fail(&format!("the guest ended with `{exit}` before it was asked to"));
        }
    }

    /// Says one word to the guest's script, which waits for it with `hear WORD`.
    pub fn say(&mut self, word: &str) {
        if let Err(error) = writeln!(self.keyboard, "{word}") {
            self.fail(&format!("cannot say `{word}` to the guest: {error}"));
        }
    }

    /// Pulls the NVMe controller out of its slot. The guest's kernel is asked first, as by the button beside a slot.
    pub fn pull_nvme(&mut self) {
        // QEMU takes commands behind its greeting and after the first one; its answers say nothing more than the console.
        let commands = b"{\"execute\": \"qmp_capabilities\"}\n\
                         {\"execute\": \"device_del\", \"arguments\": {\"id\": \"nvme\"}}\n";
        let asked = UnixStream::connect(&self.monitor)
            .and_then(|mut connection| connection.write_all(commands).map(|()| connection));
        match asked {
            // Kept open: what was written and not read goes with a connection.
            Ok(connection) => self.asked = Some(connection),
            Err(error) => self.fail(&format!("QEMU cannot be asked to pull the drive: {error}")),
        }
    }

    /// Waits for the script's end and for QEMU's.
    pub fn end(mut self, limit: Duration) -> Ended {
        let exit = self.console.wait(limit, |line| line.strip_prefix("EXIT ")?.trim().parse().ok());
        let exit_code = match exit {
            Ok(code) => code,
            Err(why) => self.fail(&format!("the guest's script did not end: {why}")),
        };
        if let Err(why) = self.console.wait_closed(POWER_OFF_WAIT) {
            self.fail(&format!("QEMU goes on after the guest's end: {why}"));
        }
        let console = self.console.lines();
        let kernel_log = console.iter().filter_map(|line| KernelMessage::parse(line)).collect();
        Ended { exit_code, kernel_log, console }
    }

    /// Ends the test with the whole console, and with the guest's kernel log and blocked tasks if it still answers.
    fn fail(&mut self, what: &str) -> ! {
        if writeln!(self.keyboard, "dump").is_ok() {
            // The dump is for the reader of the panic below, who also sees when there was none.
            let _ = self.console.wait(DUMP_WAIT, |line| line.starts_with("DUMP ends").then_some(()));
        }
        panic!("{what}; the console:\n{}", quoted(&self.console.lines()));
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only if QEMU has ended and was waited for already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Ended {
    /// The kernel's messages of level warning or worse (but of its clock: the host may be busy). That holds I/O errors, `id N is not a head!` (a completion that is
    /// double or made up), hung tasks, and every WARN and BUG.
    pub fn complaints(&self) -> Vec<&KernelMessage> {
        self.kernel_log.iter().filter(|message| message.is_complaint()).collect()
    }

    /// Panics unless the script succeeded and the guest's kernel had nothing to complain of.
    pub fn assert_clean(&self) {
        self.assert_complaints(|complaints| complaints.is_empty());
    }

    /// Panics unless the script succeeded and the guest's kernel complained, as the script made it, in these words and of
    /// nothing else.
    pub fn assert_complained_of(&self, words: &str) {
        self.assert_complaints(|complaints| {
            !complaints.is_empty() && complaints.iter().all(|complaint| complaint.text.contains(words))
        });
    }

    fn assert_complaints(&self, are_right: impl FnOnce(&[&KernelMessage]) -> bool) {
        let complaints = self.complaints();
        assert!(
            self.exit_code == 0 && are_right(&complaints),
            "the guest's script ended with {} and its kernel complained {} times: {complaints:#?}; the console:\n{}",
            self.exit_code,
            complaints.len(),
            quoted(&self.console)
        );
    }
}

/// A guest's console inside a message: marked, so that nobody takes a result printed in the guest for one of this run's.
fn quoted(console: &[String]) -> String {
    console.iter().flat_map(|line| ["| ", line, "\n"]).collect()
}
