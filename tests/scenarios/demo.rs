//! Runs `install/demo` as a person would, with the programs that are built, and looks at what it leaves behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a scenario fails by panicking

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::process::{run, start};
use libtest_mimic::{Arguments, Failed, Trial};

/// After the build; the promise is 90 s, and other work on the machine may double that.
const PROMISED: Duration = Duration::from_secs(180);

fn main() {
    let trial = Trial::test("when_the_demo_is_run_then_the_vm_is_cured_and_the_evidence_survives_the_laboratory", demo);
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit();
}

fn demo() -> Result<(), Failed> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let shown = run(Command::new(root.join("install/demo")).arg("--built").current_dir("/"), PROMISED)?;
    let text = shown.text();
    let errors = String::from_utf8_lossy(&shown.stderr);
    assert_eq!(shown.status, 0, "{text}\n{errors}");
    for promised in ["This is a LABORATORY", "STAND-INS: `qm`", "block-stalled", "qm-start done", "VM 102 is recovered"] {
        assert!(text.contains(promised), "it does not show {promised}:\n{text}");
    }
    // The last line is the folder, and the namespace that wrote it is gone.
    let kept = Path::new(text.trim_end().lines().last().unwrap());
    assert!(kept.join("summary.txt").is_file() && kept.join("console/screen-1.png").is_file(), "{}", kept.display());
    for (file, namespace) in [("manifest.json", "pve-verb-manifest"), ("receipt.json", "pve-verb-receipt"), ("head.json", "pve-verb-log")] {
        let arguments = ["-Y", "verify", "-f", "allowed_signers", "-I", "pve-verb@pve", "-n", namespace, "-s", &format!("{file}.sig")];
        let signed = std::fs::read(kept.join(file))?;
        let verified = start(Command::new("ssh-keygen").args(arguments).current_dir(kept), &signed)?.finish(Duration::from_secs(10))?;
        assert_eq!(verified.status, 0, "{file}: {}", String::from_utf8_lossy(&verified.stderr));
    }
    std::fs::remove_dir_all(kept)?;
    Ok(())
}
