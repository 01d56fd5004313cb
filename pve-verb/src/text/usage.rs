//! The six verbs and how to call them: what an empty request is answered with.

/// For a person who has just connected and does not know what to say.
pub const fn usage() -> &'static str {
    "\
pve-verb: six verbs on one VM. Evidence first, never a shell.

  status     is the VM well? Changes nothing.
  forensics  capture and keep a bundle. Changes nothing.
  reset      warm reset; the same QEMU process.
  stop       pull the plug.
  start      start it, or resume it where paused.
  cycle      stop, then start: a fresh QEMU process.

Call:  ssh breakglass@HOST status
       ssh breakglass@HOST cycle --reason=no%20answer

All:   --json --request-id=UUID --origin=human|model|
       runbook|mcp --actor=WHO --reason=WHY
       --witness=SEQ:HEAD
Json:  --inline
Forensics: --tar --bundle=NAME
Mutating:  --dry-run --attach --grant=GRANT

Spaces in values are %20. One space between words.
Not sure? status first, then do what its advice says.
"
}
