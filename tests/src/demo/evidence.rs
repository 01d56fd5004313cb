//! The last act: the bundle leaves the laboratory, and stock tools say that it, the receipt and the log's head are what the host signed.

use super::Demo;
use crate::error::{Context, Error, Result};
use crate::readme;

/// README.md's section of that name, in a folder that stays.
pub(super) fn check(demo: &mut Demo) -> Result<()> {
    demo.kept = take_out(demo)?;
    let kept = demo.kept.clone();
    let section = readme::blocks("Check the evidence");
    let own = demo.bundle.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // What needs another machine is shown by the scenarios.
    let here = section.iter().filter(|block| !block.contains("HOST"));
    for block in here.map(|block| block.replace("NODE", "pve").replace("BUNDLE", &own)) {
        let said = demo.types_in(&kept, &block)?;
        if block.contains("ssh-keygen") {
            demo.holds(said.contains("Good \"pve-verb-"), "ssh-keygen accepts it")?;
        } else if block.contains("breakglass receipt") {
            demo.holds(said.contains("cycle of VM 102 was done and observed"), "and breakglass says so")?;
        }
    }
    demo.screen.say("The same manifest with one word changed:");
    let (status, _) = demo.screen.shell(
        &kept,
        "sed 's/cycle/reset/' manifest.json | ssh-keygen -Y verify -f allowed_signers -I pve-verb@pve -n pve-verb-manifest -s manifest.json.sig",
    )?;
    demo.holds(status != 0, "ssh-keygen rejects it")?;
    demo.screen.say("What happened to the VM, as its bundle tells it:");
    demo.types_in(&kept, "sed '/^Not captured/,$d' summary.txt")?;
    let said = demo.types("ssh root@devvm 'cut -d\" \" -f1 /proc/uptime'")?;
    let uptime: f32 = said.trim().parse().unwrap_or(f32::MAX);
    let now = demo.lab.vm.pid().unwrap_or_default();
    let lasted = now != 0 && now != demo.pid && uptime < 600.0;
    demo.holds(lasted, &format!("VM 102 is recovered: QEMU {} before, {now} now, the guest up for {uptime:.0} s", demo.pid))
}

/// Copies the bundle of the cure to where it survives the laboratory, and beside it what is needed to check it.
fn take_out(demo: &Demo) -> Result<std::path::PathBuf> {
    let name = demo.bundle.file_name().ok_or_else(|| Error::new("The receipt names no bundle", "Look at the answer above"))?;
    let kept = demo.kept.join(name);
    std::fs::create_dir(&kept).context(format!("create {}", kept.display()))?;
    demo.screen
        .say(&format!("The bundle is on the host at {}. For whoever watches, it is copied out of the laboratory:", demo.bundle.display()));
    demo.types(&format!("cp -a {}/. \\\n  {}/", demo.bundle.display(), kept.display()))?;
    demo.types(&format!("pve-verb log head > head; cp allowed_signers answer head \\\n  {}/", kept.display()))?;
    Ok(kept)
}
