//! From what was observed to what the judgement takes: one struct to another, nothing decided.

use serde_json::Value;

use crate::assess::{self, Facts, LockOwner, Qmp};
use crate::capture::Unresponsive;
use crate::probe::Answer;
use crate::pve::{self, Observation};
use crate::run::Run;
use crate::{host, operation};
