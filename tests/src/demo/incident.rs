//! The acts of the incident: a healthy VM, its disk stalls, it is diagnosed, cycled, and shown to be back.

use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::{Code, Outcome, ReceiptBody, VmState};
use serde_json::{Value, json};

use super::Demo;
use crate::error::{Context, Error, Result};
use crate::vm::BOOT;
use crate::wedge;

const BUNDLES: &str = "/var/lib/pve-verb/evidence/102";
const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

/// The VM as it should be, and what it will be recognised by afterwards.
pub(super) fn before(demo: &mut Demo) -> Result<()> {
    let said = demo.types("ssh breakglass@pve status")?;
    demo.pid = demo.lab.vm.pid().unwrap_or_default();
    demo.boot_id = demo.lab.vm.guest(BOOT_ID)?.text();
    demo.holds(one_line(&said).contains("running: VM 102 looks healthy"), &format!("the VM is well; its QEMU is process {}", demo.pid))
}

/// The block layer stops completing anything; nothing anywhere logs a line.
pub(super) fn stall(demo: &mut Demo) -> Result<()> {
    demo.screen.say("The guest writes to its disk, and QEMU's block layer is throttled to 1 byte a second.");
    // Never undone: the cure has to end it, with the QEMU process that it is in.
    wedge::block_stall(&demo.lab.vm)?.forget();
    let first = demo.lab.vm.writes()?;
    std::thread::sleep(Duration::from_secs(2));
    let (second, state) = (demo.lab.vm.writes()?, demo.lab.vm.qmp("query-status", json!({}))?);
    let block = demo.lab.vm.qmp("query-block", json!({}))?;
    let hidden = state["status"] == "running" && block[0]["io-status"] == "ok";
    demo.holds(
        first == second && hidden,
        &format!("{first} writes and 2 s later {second}, while QEMU says `running` and io-status `ok`: no alarm anywhere"),
    )
}

/// Nobody is told what was done to it: the verbs have to find out.
pub(super) fn diagnose(demo: &mut Demo) -> Result<()> {
    demo.screen.say("`status` compares with the look before it, and that one was before the stall. So look twice, as a watch does:");
    demo.types("ssh breakglass@pve status")?;
    std::thread::sleep(Duration::from_secs(3));
    let said = demo.types("ssh breakglass@pve status")?;
    demo.holds(one_line(&said).contains("block-stalled"), "status says block-stalled")?;
    demo.types("ssh breakglass@pve forensics")?;
    // Beside the bundles lies their index.
    let all = std::fs::read_dir(BUNDLES).context("read the evidence")?.flatten().map(|entry| entry.path());
    let newest = all.filter(|path| path.is_dir()).max().unwrap_or_default();
    let judged = json_of(&newest.join("assessment.json"))?;
    let evidence = judged["findings"][0]["evidence"].as_array().map_or(0, Vec::len);
    demo.holds(
        judged["code"] == "block-stalled" && judged["recommend"]["verb"] == "cycle" && evidence > 0,
        &format!("the assessment is block-stalled with {evidence} pieces of evidence, and it recommends cycle"),
    )
}

/// One verb; then its receipt, by asking again with the same id.
pub(super) fn cure(demo: &mut Demo) -> Result<()> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("make a request id")?;
    let id = id.trim();
    demo.types(&format!("ssh breakglass@pve 'cycle --reason=disk%20stalled --request-id={id}'"))?;
    demo.screen.say("Asking again with the same id never acts twice. It gives the signed receipt, here for the file `answer`:");
    demo.types(&format!("ssh breakglass@pve 'cycle --json --attach --request-id={id}' > answer"))?;
    let body = receipt(&demo.desk.join("answer"))?;
    let pids = [body.qemu_before, body.qemu_after].map(|process| process.map_or(0, |process| process.pid));
    demo.bundle = PathBuf::from(BUNDLES).join(body.bundle.as_ref().map(ToString::to_string).unwrap_or_default());
    let told = body.request_id.to_string() == id && body.outcome == Outcome::Done && body.replayed;
    let seen = pids[0] == demo.pid && Some(pids[1]) == demo.lab.vm.pid() && pids[0] != pids[1];
    demo.holds(
        told && body.assessment == Some(Code::BlockStalled),
        "the receipt says block-stalled, cycled, done; and that it is a replay",
    )?;
    demo.holds(seen && body.state_after != VmState::Stopped, &format!("QEMU was process {}, and is process {}", pids[0], pids[1]))
}

/// Not QEMU's word, but the guest's own.
pub(super) fn back(demo: &mut Demo) -> Result<()> {
    demo.lab.vm.wait_for_ssh(BOOT)?;
    let said = demo.types("ssh root@devvm 'hostname; cut -d\" \" -f1 /proc/uptime'")?;
    demo.holds(said.contains("devvm\n"), "the guest lets us in over SSH")?;
    let again = demo.lab.vm.guest(BOOT_ID)?.text();
    demo.holds(again != demo.boot_id && !again.is_empty(), "the guest booted anew (its boot id is another)")?;
    demo.types("ssh root@devvm 'dd if=/dev/zero of=/data/alive bs=64k count=16 oflag=direct && sync'")?;
    demo.holds(true, "its disk takes writes")?;
    let said = demo.types("ssh breakglass@pve status")?;
    demo.holds(one_line(&said).contains("running: VM 102 looks healthy"), "status says healthy")
}

/// The body of the receipt that ends an answer. Its signature is checked in the next act, by ssh-keygen.
fn receipt(answer: &Path) -> Result<ReceiptBody> {
    let text = std::fs::read_to_string(answer).context("read the answer")?;
    let event: Value = serde_json::from_str(text.lines().last().unwrap_or_default()).context("read the answer's last line")?;
    let body = proto::decode_body(event["body"].as_str().unwrap_or_default());
    body.map(|(body, _)| body).map_err(|why| Error::new(format!("The answer has no receipt: {why:?}"), "Look at its last line"))
}

fn json_of(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).context(format!("read {}", path.display()))?;
    serde_json::from_str(&text).context(format!("understand {}", path.display()))
}

/// Answers are wrapped for a phone.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
