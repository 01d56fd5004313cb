//! A verb through the agent on its warm session, against what OpenSSH's multiplexing costs to the same sshd.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use lab::error::{Context, Error};
use lab::lab::built;
use lab::process::{Running, start, until};
use lab::{Result, Ssh};

use crate::Bench;
use crate::desk::{Desk, desk};
use crate::measure::{Table, Target, Times, whole};

/// The name of the key with which there is nothing to do.
const NOTHING: &str = "nothing";
/// Where the ssh-agent is that has it.
const SOCKET: &str = "/run/lab/nothing.sock";

/// The process in which the agent's calls are made.
pub(crate) struct Warm {
    child: Child,
    says: ChildStdin,
    hears: BufReader<ChildStdout>,
    _desk: Desk,
    nothing: Option<Running>,
}

impl Warm {
    /// Starts it, with a keyholder and a configuration.
    pub(crate) fn start(bench: &Bench) -> Result<Self> {
        let desk = desk(&bench.lab, "")?;
        let nothing = Some(agent_of_nothing(bench)?);
        let mut command = Command::new(built("bench-warm")?);
        command.arg(SOCKET);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start bench-warm")?;
        let gone = || Error::new("bench-warm has no pipes", "Look at it");
        let (says, hears) = (child.stdin.take().ok_or_else(gone)?, BufReader::new(child.stdout.take().ok_or_else(gone)?));
        let mut warm = Self { child, says, hears, _desk: desk, nothing };
        let word = warm.hear()?;
        if word == "ready" { Ok(warm) } else { Err(Error::new(word, "Look at the keyholder and the configuration")) }
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.hears.read_line(&mut line).context("hear bench-warm")?;
        Ok(line.trim().to_owned())
    }

    /// Has it do something; how long that took, by its own clock.
    pub(crate) fn takes(&mut self, what: &str) -> Result<Duration> {
        writeln!(self.says, "{what}").context("tell bench-warm")?;
        let word = self.hear()?;
        word.parse().map(Duration::from_micros).map_err(|_| Error::new(format!("`{what}`: {word}"), "Look at /run/lab/sshd.log"))
    }

    /// The next call finds its session logged in, as one does that does not come at once.
    pub(crate) fn settles(bench: &Bench) {
        std::thread::sleep(Duration::from_millis(if bench.once { 3_000 } else { 1_500 }));
    }
}

impl Drop for Warm {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
        let _gone = self.nothing.take().map(Running::kill);
    }
}

/// OpenSSH's master connection to an account, and calls through it.
struct Multiplexed {
    master: Child,
    ssh: Ssh,
    socket: String,
}

impl Multiplexed {
    fn open(ssh: Ssh, name: &str) -> Result<Self> {
        let socket = format!("/run/lab/{name}.mux");
        let mut command = ssh.command(b"");
        // Before the account, which is the last word.
        let words: Vec<_> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
        command = Command::new("ssh");
        command.args(["-M", "-N", "-S", &socket]).args(words).stdin(Stdio::null()).stdout(Stdio::null());
        let master = command.spawn().context("start ssh's master")?;
        until("ssh's master connection", Duration::from_secs(20), || Path::new(&socket).exists().then_some(()))?;
        Ok(Self { master, ssh, socket })
    }

    fn call(&self, words: &str) -> Result<Duration> {
        let plain = self.ssh.command(words.as_bytes());
        let mut command = Command::new("ssh");
        command.args(["-S", &self.socket]).args(plain.get_args());
        whole(&mut command)
    }
}

impl Drop for Multiplexed {
    fn drop(&mut self) {
        let _gone = self.master.kill();
        let _reaped = self.master.wait();
    }
}

/// A key of the same account whose forced command is `true`: the same sshd, the same shell, and nothing to do.
fn nothing(bench: &Bench) -> Result<Ssh> {
    let public = fs::read_to_string(bench.lab.host.key(NOTHING)?.with_extension("pub")).context("read a client's key")?;
    bench.lab.host.authorize_line(&format!("restrict,command=\"true\" {}", public.trim_end()))?;
    bench.lab.host.ssh(NOTHING)
}

/// An ssh-agent with that key alone, for the agent's SSH.
fn agent_of_nothing(bench: &Bench) -> Result<Running> {
    let _from_before = fs::remove_file(SOCKET);
    let running = start(Command::new("ssh-agent").args(["-D", "-a", SOCKET]), &[])?;
    until("the ssh-agent's socket", Duration::from_secs(20), || Path::new(SOCKET).exists().then_some(()))?;
    whole(Command::new("ssh-add").arg("-q").arg(bench.lab.host.key(NOTHING)?).env("SSH_AUTH_SOCK", SOCKET))?;
    Ok(running)
}

pub(crate) fn tables(bench: &Bench) -> Result<Vec<Table>> {
    bench.lab.fresh()?;
    let forced = lab::installed::agent(&bench.lab)?;
    let to_true = Multiplexed::open(nothing(bench)?, NOTHING)?;
    let to_verbs = Multiplexed::open(forced.clone(), "breakglass")?;
    let mut warm = Warm::start(bench)?;
    let names = [
        "`status` through the agent, warm, receipt checked and kept",
        "`true` through OpenSSH's multiplexing",
        "`status` through OpenSSH's multiplexing",
        "`true` through the agent's SSH, warm",
        "`pve-verb status` on the host's console",
        "`status` by a new ssh connection",
    ];
    let mut times = [const { Times::new() }; 6];
    for round in 0..=bench.rounds(15) {
        Warm::settles(bench);
        let took = [
            warm.takes("status")?,
            to_true.call("true")?,
            to_verbs.call("status --json")?,
            warm.takes("command true")?,
            whole(&mut crate::measure::verb("status --json"))?,
            whole(&mut forced.command(b"status --json"))?,
        ];
        if round > 0 {
            times.iter_mut().zip(took).for_each(|(times, took)| times.push(took));
        }
    }
    let mut table = Table::of_times("one call, by turns");
    names.iter().zip(&times).for_each(|(what, times)| table.times(what, times));
    let [verb, mux, mux_verb, wire, console, _] = &times;
    table.target("a warm verb over multiplexed `true`", verb.over(mux), Target::AtMost(1.3));
    table.note(format!("The same work, a warm `status` over a multiplexed one: {:.3}.", verb.over(mux_verb)));
    table.note(format!("The same command, `true` over the agent's SSH over a multiplexed one: {:.3}.", wire.over(mux)));
    table.note(format!("A warm verb over the verb alone on the host: {:.3}.", verb.over(console)));
    Ok(vec![table])
}
