//! A line of the audit log: its two readers (the one that writes on, the one that verifies) never understand it differently.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &[u8]| pve_verb::fuzz::audit_line(line));
