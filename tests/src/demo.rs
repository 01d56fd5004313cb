//! The demonstration: VM 102 is wedged, diagnosed and cured over the real sshd, and the evidence of it is checked with stock tools.
//!
//! It is a list of acts. Each shows the commands that a person would type, runs exactly those, and checks what came of them;
//! the first thing that is not as it should be ends the demonstration with an error. What the admin types is what README.md
//! says, word for word: see [`crate::readme`]. Nothing here decides whether a test passes; `scenarios/demo.rs` runs it all.

mod evidence;
mod incident;
mod install;
pub mod page;
mod screen;

use std::path::{Path, PathBuf};

use screen::Screen;

use crate::error::{Context, Error, Result};
use crate::host::Host;
use crate::lab::Lab;
use crate::namespace::Inside;
use crate::process::Running;
use crate::vm::Vm;

/// The acts, in order. Whoever adds a way to direct the recovery (the runbook, a model, the web page) adds it here: an act finds
/// a wedged VM after [`incident::stall`], and has to leave a recovered one and `answer` for [`incident::back`].
const ACTS: [(&str, Act); 8] = [
    ("A laboratory", install::laboratory),
    ("Install, as README.md says", install::install),
    ("Before: is the VM well?", incident::before),
    ("The VM's disk stalls", incident::stall),
    ("What is wrong?", incident::diagnose),
    ("Cure it: a fresh QEMU process", incident::cure),
    ("Is the guest back?", incident::back),
    ("The evidence, checked with stock tools", evidence::check),
];

type Act = fn(&mut Demo) -> Result<()>;

/// What the acts share.
struct Demo {
    lab: Lab,
    screen: Screen,
    /// Where the admin sits, on the host.
    desk: PathBuf,
    /// What stays for the person who watches, outside the laboratory.
    kept: PathBuf,
    /// QEMU's process and the boot of the guest, before.
    pid: u32,
    boot_id: String,
    /// The evidence of the cure, on the host.
    bundle: PathBuf,
    /// The page's process, where there is one.
    page: Option<Running>,
}

/// Runs all acts inside a lab whose host has nothing of ours yet.
pub fn run(inside: Inside) -> Result<()> {
    play(inside, &ACTS)?.farewell();
    Ok(())
}

/// The same up to the stall, which is then the person's to cure, in a browser. Ends when it is interrupted.
pub fn page(inside: Inside) -> Result<()> {
    play(inside, &page::ACTS).map(drop)
}

fn play(inside: Inside, acts: &[(&str, Act)]) -> Result<Demo> {
    let kept = crate::guest::lab_folder().canonicalize().context("find the lab's folder")?.join("demo");
    std::fs::create_dir_all(&kept).context("create the folder for the evidence")?;
    let vm = Vm::new(&inside.image);
    let lab = Lab { host: Host::bare(inside)?, vm };
    lab.names()?;
    let mut demo = Demo {
        lab,
        screen: Screen::new(),
        desk: PathBuf::from("/run/lab/desk"),
        kept,
        pid: 0,
        boot_id: String::new(),
        bundle: PathBuf::new(),
        page: None,
    };
    std::fs::create_dir_all(&demo.desk).context("give the admin a desk")?;
    let played = acts.iter().zip(1..).try_for_each(|((title, act), number)| {
        demo.screen.section(number, title);
        act(&mut demo)
    });
    let ended = demo.lab.vm.kill();
    played.and(ended)?;
    Ok(demo)
}

impl Demo {
    /// Shows a command and runs it at the admin's desk; it has to succeed.
    fn types(&self, command: &str) -> Result<String> {
        self.types_in(&self.desk, command)
    }

    /// The same in another folder.
    fn types_in(&self, folder: &Path, command: &str) -> Result<String> {
        let (status, text) = self.screen.shell(folder, command)?;
        if status == 0 { Ok(text) } else { Err(Error::new(format!("`{command}` ended with {status}"), "Look at what it printed above")) }
    }

    /// What has to be true for the demonstration to go on; it is said either way.
    fn holds(&self, true_that: bool, what: &str) -> Result<()> {
        if true_that {
            self.screen.checked(what);
            return Ok(());
        }
        Err(Error::new(
            format!("It is not so that {what}"),
            "Look at what was printed above; `lab up` gives a shell in the same laboratory",
        ))
    }

    fn farewell(&self) {
        self.screen.done(&format!(
            "Everything that was shown was observed to be so. The laboratory is gone; this stays, and the commands above can be repeated in it:\n\n{}",
            self.kept.display()
        ));
    }
}
