//! Runs that are stopped in the middle, and go on.

use std::{
    fs,
    process::{Child, Stdio},
};

use serde_json::Value;

use super::{Place, reviews};
use crate::common::{succeed, wait_for};

/// Starts a run that writes checkpoints, and waits until it has written another in the middle of an epoch.
pub(super) fn start_and_wait(place: &Place, words: &str) -> Child {
    let checkpoint = place.path("killed/runs/sala-seed0.checkpoint.safetensors");
    let written = || fs::metadata(&checkpoint).and_then(|m| m.modified()).ok();
    let before = written();
    let mut command = place.finetune("killed", words);
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("a checkpoint", || written() != before);
    child
}

const RESUMED: &str = "--optimizers sala --rho 0.05 --seeds 1 --epochs 20 --checkpoint-every 5 \
     --early-stopping 19 --test 0.2";

#[test]
fn a_run_killed_in_the_middle_continues_to_the_same_bits() {
    let place = reviews();
    succeed(&mut place.finetune("whole", RESUMED));
    for _ in 0..3 {
        let mut child = start_and_wait(&place, RESUMED);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            !place.path("killed/runs/sala-seed0.jsonl").exists(),
            "it was still running"
        );
    }
    succeed(&mut place.command("finetune --out killed --resume"));
    assert_eq!(place.parameters("killed"), place.parameters("whole"));
    let epochs = |out: &str| -> Vec<Value> {
        let text = fs::read_to_string(place.path(out).join("runs/sala-seed0.jsonl")).unwrap();
        let mut lines: Vec<Value> = text
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        for line in &mut lines {
            // Seconds alone differ from one run to the next.
            let fields = line.as_object_mut().unwrap();
            fields.retain(|name, _| !name.ends_with("_s"));
        }
        lines
    };
    assert_eq!(
        epochs("killed"),
        epochs("whole"),
        "records too, but for the times"
    );
    let weights =
        |out: &str| fs::read(place.path(out).join("models/sala-seed0/model.safetensors")).unwrap();
    assert!(weights("killed") == weights("whole"));
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_where_the_run_is() {
    let place = reviews();
    let words = "--optimizers sala --rho 0.05 --epochs 20 --checkpoint-every 3";
    let child = start_and_wait(&place, words);
    let message = crate::interrupt(child);
    assert!(message.contains("Stopped; 0 of 1 runs"), "{message}");
    succeed(&mut place.finetune("killed", words));
    succeed(&mut place.finetune("whole", words));
    assert_eq!(place.parameters("killed"), place.parameters("whole"));
}
