//! Many `status` at once: on the host's console, and through sshd with the forced command. QEMU's socket takes one client, so all but one
//! wait their turn or answer without QEMU's word, and say so; an error is an answer without a receipt, or an exit status but 0.

use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use lab::error::{Context, Error};
use lab::installed::agent;
use lab::{Answer, Result};

use crate::Bench;
use crate::measure::{Table, Times, ms, verb};

/// One answer's time; whether it is an error; whether QEMU's word is missing.
type One = (Duration, bool, bool);

fn one(mut command: Command) -> Result<One> {
    let began = Instant::now();
    // No deadline but the verb's own, and ssh's: what waits by looking again and again would be measured with it.
    let output = command.stdin(Stdio::null()).output().context("ask for the status")?;
    let wall = began.elapsed();
    let status = output.status.code().unwrap_or(255);
    let answer = Answer { status, stdout: output.stdout, stderr: output.stderr, wall, timed_out: false };
    let body = answer.receipt_body();
    let error = status != 0 || body.as_ref().is_none_or(|body| body["outcome"] != "done");
    let silent = body.is_none_or(|body| body["state_before"] != "running");
    Ok((wall, error, silent))
}

/// So many at once, each in a thread that waits for the others.
fn at_once(many: usize, command: &(dyn Fn() -> Command + Sync)) -> Result<Vec<One>> {
    let ready = Barrier::new(many);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..many)
            .map(|_| {
                scope.spawn(|| {
                    let command = command();
                    ready.wait();
                    one(command)
                })
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|end| end.unwrap_or_else(|_| Err(Error::new("A thread of the benchmark panicked", "Look above")))).collect()
    })
}

pub(crate) fn tables(bench: &Bench) -> Result<Vec<Table>> {
    bench.lab.fresh()?;
    let ssh = agent(&bench.lab)?;
    let console = || verb("status --json");
    let remote = || ssh.command(b"status --json");
    let ways: [(&str, &(dyn Fn() -> Command + Sync)); 2] = [("on the console", &console), ("through sshd", &remote)];
    let mut table = Table::new(&["`status` at once", "answers", "errors", "without QEMU's word", "median", "p99", "most"]);
    for (what, command) in ways {
        for (many, rounds) in [(1, 40), (8, 10), (64, 4)] {
            let (mut times, mut errors, mut silent) = (Times::new(), 0, 0);
            for _ in 0..bench.rounds(rounds) {
                for (took, error, without) in at_once(many, command)? {
                    times.push(took);
                    errors += usize::from(error);
                    silent += usize::from(without);
                }
            }
            let [median, p99, most] = [0.5, 0.99, 1.0].map(|part| ms(times.quantile(part)));
            let answers = (many * bench.rounds(rounds)).to_string();
            table.row(&[format!("{what}: {many}"), answers, errors.to_string(), silent.to_string(), median, p99, most]);
        }
    }
    Ok(vec![table])
}
