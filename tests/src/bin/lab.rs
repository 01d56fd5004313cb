//! `lab up`, `lab exec -- CMD` and `lab demo`: a laboratory with VM 102, for a person.
#![allow(clippy::print_stdout, clippy::print_stderr)] // it talks to a person at a terminal

use std::process::{Command, ExitCode};

use lab::{Lab, Result, enter, lab::built, namespace::is_outside};

const USAGE: &str = "lab: a laboratory for Breakglass. It is not a Proxmox VE host, and its `qm` is a stand-in.

  lab image                 build the guest's image and say where it is
  lab up                    boot VM 102 and give a shell on the laboratory's host
  lab exec -- CMD [ARG...]  boot VM 102, run one command on the host, take everything down
  lab host -- CMD [ARG...]  the same with VM 102 stopped
  lab demo                  what install/demo shows
  lab page [PORT]           what install/demo page leaves running

Inside: `ssh root@devvm` logs into VM 102; `ssh breakglass@pve VERB` asks the forced command over the host's sshd.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        _ if lab::namespace::becomes_qemu() => enter().map(|_| ExitCode::FAILURE),
        ["image"] => lab::guest::image().map(|image| {
            println!("{}", image.folder.display());
            ExitCode::SUCCESS
        }),
        ["page"] => page("8102"),
        ["page", port] => page(port),
        ["demo"] => enter().and_then(lab::demo::run).map(|()| ExitCode::SUCCESS),
        ["up"] => inside(&["/bin/bash"], true),
        ["exec", "--", ref command @ ..] if !command.is_empty() => inside(command, true),
        ["host", "--", ref command @ ..] if !command.is_empty() => inside(command, false),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("lab: {error}");
        ExitCode::from(70)
    })
}

/// The port is the machine's own, which the laboratory has no way to otherwise: it is taken before and handed in.
fn page(port: &str) -> Result<ExitCode> {
    let door = if is_outside() { lab::demo::page::take(port) } else { Ok(()) };
    door.and_then(|()| enter()).and_then(lab::demo::page).map(|()| ExitCode::SUCCESS)
}

fn inside(command: &[&str], boot: bool) -> Result<ExitCode> {
    let lab = Lab::new(enter()?)?;
    eprintln!("lab: this is a laboratory on host `pve`; `qm` here is a stand-in, VM 102 is a real QEMU.");
    match (built("pve-verb"), built("qm")) {
        (Ok(pve_verb), Ok(qm)) => lab.host.install(&pve_verb, &qm)?,
        (Err(error), _) | (_, Err(error)) => eprintln!("lab: going on without the forced command. {error}"),
    }
    lab.host.authorize("agent", "")?;
    lab.names()?;
    if boot {
        let took = lab.vm.boot()?;
        eprintln!("lab: VM 102 took {:.1} s to its login.", took.as_secs_f32());
    }
    let status = Command::new(command[0]).args(&command[1..]).env("PS1", "lab(pve)# ").env_remove("BREAKGLASS_LAB_STAGE").status();
    let status = status.map_err(|error| lab::Error::new(format!("{} could not be run: {error}", command[0]), "Check its name"))?;
    lab.vm.kill()?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(128)).unwrap_or(1)))
}
