//! A lab as scenarios use it: one host and one VM, shared, and put right again between them.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};

use crate::client::Ssh;
use crate::error::{Context, Result};
use crate::host::Host;
use crate::namespace::{Inside, enter};
use crate::process::until;
use crate::snapshot;
use crate::vm::{BOOT, Vm};

/// A host and its VM 102.
#[derive(Debug)]
pub struct Lab {
    /// The host.
    pub host: Host,
    /// VM 102.
    pub vm: Vm,
}

impl Lab {
    /// Lays out the host; the VM is not started yet.
    pub fn new(inside: Inside) -> Result<Self> {
        let vm = Vm::new(&inside.image);
        Ok(Self { host: Host::prepare(inside)?, vm })
    }

    /// Makes `ssh breakglass@pve VERB` (the forced command, with the key `agent`) and `ssh root@devvm` work for root on the host.
    pub fn names(&self) -> Result<()> {
        let section = |name: &str, ssh: Ssh| {
            let options: String = ssh.settings().iter().map(|(key, value)| format!("    {key} {value}\n")).collect();
            format!("Host {name}\n{options}")
        };
        std::fs::create_dir_all("/root/.ssh").context("create root's folder for ssh")?;
        let text = section("pve", self.host.ssh("agent")?) + &section("devvm", self.vm.ssh().clone());
        crate::host::write("/root/.ssh/config", &text, 0o600)
    }

    /// The VM, healthy and with the configuration and quorum of a fresh lab: the running one if it is, else as it was after the lab's
    /// first boot.
    pub fn fresh(&self) -> Result<&Vm> {
        let plain = self.host.conf().is_ok_and(|conf| conf.to_text() == Host::default_conf());
        self.host.set_quorum(true)?;
        self.host.set_ha(None)?;
        if !(plain && self.vm.healthy_within(Duration::from_secs(8))) {
            self.vm.kill()?;
            self.host.restore()?;
            if snapshot::is_there() {
                snapshot::load(&self.vm)?;
            } else {
                self.vm.boot()?;
                until("a healthy guest", BOOT, || self.vm.healthy().then_some(()))?;
                snapshot::take(&self.vm)?;
            }
        }
        Ok(&self.vm)
    }

    /// The VM stopped, with the configuration and the disk of a fresh lab.
    pub fn stopped(&self) -> Result<&Vm> {
        self.vm.kill()?;
        self.host.set_quorum(true)?;
        self.host.set_ha(None)?;
        self.host.restore()?;
        Ok(&self.vm)
    }
}

/// What a scenario is: a name `when_X_then_Y` and a function that fails by panicking or by an error.
pub type Scenario = (&'static str, fn(&Lab) -> Result<()>);

/// `main` of a scenario file: enters a lab, prepares it, runs the scenarios one after the other on the same VM.
///
/// `--list` needs no lab. A scenario that panics leaves the others a VM: each starts with [`Lab::fresh`].
#[allow(clippy::print_stderr)] // it is the main of a test: there is nowhere else to say why there is no lab
pub fn run_scenarios(scenarios: &[Scenario], prepare: fn(&Lab) -> Result<()>) -> ! {
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let lab: &'static Mutex<Option<Lab>> = Box::leak(Box::new(Mutex::new(None)));
    if !arguments.list {
        let entered = enter().and_then(Lab::new).and_then(|lab| prepare(&lab).map(|()| lab));
        match entered {
            Ok(made) => *lab.lock().unwrap_or_else(PoisonError::into_inner) = Some(made),
            Err(error) => {
                say(&error);
                std::process::exit(101);
            }
        }
    }
    let trial = |&(name, scenario): &Scenario| {
        Trial::test(name, move || {
            let lab = lab.lock().unwrap_or_else(PoisonError::into_inner);
            let lab = lab.as_ref().ok_or("there is no lab")?;
            let began = Instant::now();
            let end = scenario(lab).map_err(Failed::from);
            took(began.elapsed());
            end
        })
    };
    libtest_mimic::run(&arguments, scenarios.iter().map(trial).collect()).exit()
}

/// Why there is no lab goes to the person at the terminal.
#[allow(clippy::print_stderr)]
fn say(error: &crate::Error) {
    eprintln!("{error}");
}

/// Where a run's minutes go, in the line of each scenario.
#[allow(clippy::print_stderr)]
fn took(time: Duration) {
    eprint!("{:.1} s ", time.as_secs_f64());
}

/// A program that cargo built beside the running one: `pve-verb` and `qm`, from the release profile if they are there.
///
/// `BREAKGLASS_BIN` names another folder, for binaries built elsewhere. Only the lab reads it.
pub fn built(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().unwrap_or_default();
    // target/TRIPLE/debug/deps/scenario-HASH -> target/TRIPLE
    let triple = own.ancestors().find(|folder| folder.join("release").is_dir() || folder.join("debug").is_dir());
    let chosen = std::env::var_os("BREAKGLASS_BIN").map(PathBuf::from);
    let candidates = chosen.into_iter().chain(triple.into_iter().flat_map(|folder| [folder.join("release"), folder.join("debug")]));
    candidates.map(|folder| folder.join(name)).find(|path| path.is_file()).ok_or_else(|| {
        crate::Error::new(format!("No {name} was built"), "Run `cargo build --release` first, or set BREAKGLASS_BIN to the folder it is in")
    })
}
