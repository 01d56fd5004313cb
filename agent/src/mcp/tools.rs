//! The tools, and the one place where a call becomes something that can be done. Their schemas are strict: an argument that is not
//! known, missing or of another type runs nothing.

use std::sync::Arc;

use proto::{RequestId, Verb};
use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use serde::Deserialize;
use serde_json::{Value, json};

/// What a call asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// `status` or `forensics`.
    Look {
        /// Which.
        verb: Verb,
        /// Why.
        reason: String,
    },
    /// What a mutating verb would do.
    Plan {
        /// Which.
        verb: Verb,
        /// Why.
        reason: String,
    },
    /// Doing it.
    Apply {
        /// The plan's.
        token: String,
    },
    /// How something that was left ended.
    Attach {
        /// Which.
        verb: Verb,
        /// Its id.
        request_id: RequestId,
    },
}

/// Why a call is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// There is no such tool.
    NoSuchTool,
    /// Its arguments are not what it takes: why, as the client's model is told.
    Arguments(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Why {
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct What {
    verb: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    token: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whose {
    verb: String,
    request_id: String,
}

/// Reads a call.
///
/// # Errors
/// Why it is none: nothing ran.
pub(super) fn read(tool: &str, arguments: JsonObject) -> Result<Call, Bad> {
    let arguments = Value::Object(arguments);
    match tool {
        "pve_status" | "pve_forensics" => {
            let Why { reason } = parse(arguments)?;
            let verb = if tool == "pve_status" { Verb::Status } else { Verb::Forensics };
            Ok(Call::Look { verb, reason: reasoned(reason)? })
        }
        "pve_plan" => {
            let What { verb, reason } = parse(arguments)?;
            Ok(Call::Plan { verb: mutating(&verb)?, reason: reasoned(reason)? })
        }
        "pve_apply" => parse(arguments).map(|Which { token }| Call::Apply { token }),
        "pve_attach" => {
            let Whose { verb, request_id } = parse(arguments)?;
            let request_id =
                request_id.parse().map_err(|_| Bad::Arguments("request_id is the id that a result said. Nothing ran.".to_owned()))?;
            Ok(Call::Attach { verb: mutating(&verb)?, request_id })
        }
        _ => Err(Bad::NoSuchTool),
    }
}

fn parse<T: for<'de> Deserialize<'de>>(arguments: Value) -> Result<T, Bad> {
    serde_json::from_value(arguments).map_err(|error| {
        let why = proto::escape_cut(error.to_string().as_bytes(), 200);
        Bad::Arguments(format!("The arguments are not what the tool takes ({why}). Nothing ran."))
    })
}

fn mutating(word: &str) -> Result<Verb, Bad> {
    let verb = word.parse::<Verb>().ok().filter(|verb| verb.mutates());
    verb.ok_or_else(|| Bad::Arguments("verb is one of reset, stop, start, cycle. Nothing ran.".to_owned()))
}

fn reasoned(reason: String) -> Result<String, Bad> {
    if reason.trim().is_empty() {
        Err(Bad::Arguments("A reason is required, and it was empty. Nothing ran.".to_owned()))
    } else {
        Ok(reason)
    }
}

/// The tools as a client is told.
pub(super) fn definitions() -> Vec<Tool> {
    let reason = json!({ "type": "string", "minLength": 1, "maxLength": 200, "description": "Why, in one sentence: it stands in the host's record." });
    let mutating: Vec<Verb> = Verb::ALL.into_iter().filter(|verb| verb.mutates()).collect();
    let verb = json!({
        "type": "string", "enum": mutating.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "description": "reset: warm reset of the guest in the same QEMU process, which cures no stalled block layer. stop: pulls the plug. \
                        start: starts a stopped VM, resumes a paused one. cycle: stop, then start: a fresh QEMU process.",
    });
    // A read leaves a line in the host's record, and a bundle on its disk: adding to the environment is not reading only.
    let hints = |title: &str, read_only, destructive, idempotent| {
        ToolAnnotations::with_title(title).read_only(read_only).destructive(destructive).idempotent(idempotent).open_world(false)
    };
    vec![
        tool(
            "pve_status",
            "Is the VM running, and does it look healthy? One look within 3 s. Changes nothing but adds a line to the host's record.",
            &json!({ "reason": reason }),
            hints("Look at the VM", true, false, true),
        ),
        tool(
            "pve_forensics",
            "Captures and preserves the full evidence on the host within 15 s: QMP, stacks, host, both screens as pictures. The VM is not \
             changed; the bundle stays on the host's disk.",
            &json!({ "reason": reason }),
            hints("Capture evidence", false, false, false),
        ),
        tool(
            "pve_plan",
            "The first step of a mutation, within 15 s: captures and preserves evidence, says what the verb would do and whether the host \
             would refuse it, and gives a token for pve_apply. The VM is not changed. The token is good for ten minutes, for one use, and \
             only while the VM is as it was seen.",
            &json!({ "verb": verb, "reason": reason }),
            hints("Plan a mutation", false, false, false),
        ),
        tool(
            "pve_apply",
            "The second step: does what was planned, once. Looks first whether the VM is still as the plan saw it. Whoever uses it in the \
             guest loses what is not saved. Runs to its end on the host whatever becomes of this call.",
            &json!({ "token": { "type": "string", "minLength": 1, "description": "The token that pve_plan gave." } }),
            // A second call with the same token does nothing.
            hints("Do what was planned", false, true, true),
        ),
        tool(
            "pve_attach",
            "How a mutation ended that was cancelled, or whose connection was lost. Joins it where it still runs; never starts anything.",
            &json!({ "verb": verb, "request_id": { "type": "string", "description": "The request's id, as a result or a progress message said it." } }),
            hints("Ask after a mutation", true, false, true),
        ),
    ]
}

/// A tool whose every argument is required, and which takes no others.
fn tool(name: &'static str, description: &'static str, properties: &Value, annotations: ToolAnnotations) -> Tool {
    let required: Vec<&String> = properties.as_object().into_iter().flat_map(|all| all.keys()).collect();
    let schema = json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false });
    let schema = if let Value::Object(schema) = schema { schema } else { JsonObject::new() };
    Tool::new(name, description, Arc::new(schema)).with_annotations(annotations)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(tool: &str, arguments: Value) -> Result<Call, Bad> {
        let Value::Object(arguments) = arguments else { panic!("an object") };
        read(tool, arguments)
    }

    #[test]
    fn a_call_outside_its_schema_is_none() {
        assert_eq!(
            call("pve_plan", json!({"verb": "cycle", "reason": "stalled"})),
            Ok(Call::Plan { verb: Verb::Cycle, reason: "stalled".to_owned() })
        );
        for (tool, arguments) in [
            ("pve_status", json!({})),
            ("pve_status", json!({"reason": " "})),
            ("pve_status", json!({"reason": "x", "vmid": 103})),
            ("pve_forensics", json!({"reason": 1})),
            ("pve_plan", json!({"verb": "status", "reason": "x"})),
            ("pve_plan", json!({"verb": "CYCLE", "reason": "x"})),
            ("pve_plan", json!({"verb": "cycle"})),
            ("pve_apply", json!({"token": "x", "force": true})),
            ("pve_apply", json!({"verb": "cycle", "reason": "x"})),
            ("pve_attach", json!({"verb": "cycle", "request_id": "x; reboot"})),
            ("pve_cycle", json!({"reason": "x"})),
            ("bash", json!({"command": "id"})),
        ] {
            assert!(call(tool, arguments.clone()).is_err(), "{tool} {arguments}");
        }
    }

    #[test]
    fn every_tool_is_strict_and_its_hints_are_honest() {
        for tool in definitions() {
            let schema = Value::Object((*tool.input_schema).clone());
            assert_eq!(schema["additionalProperties"], json!(false), "{}", tool.name);
            assert_eq!(schema["required"].as_array().unwrap().len(), schema["properties"].as_object().unwrap().len(), "{}", tool.name);
            let hints = tool.annotations.unwrap();
            let changes_the_vm = tool.name == "pve_apply";
            assert_eq!(hints.destructive_hint, Some(changes_the_vm), "{}", tool.name);
            assert!(!changes_the_vm || hints.read_only_hint == Some(false));
        }
    }
}
