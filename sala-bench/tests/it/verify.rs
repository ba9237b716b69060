//! `verify`, and training without fast kernels, which is what accelerators without kernels of their own do.

use std::fs;

use serde_json::Value;

use crate::{
    EXPERIMENT, Place,
    common::{fail, succeed},
};

#[test]
fn verify_checks_an_operation_and_keeps_every_number() {
    let place = Place::new(EXPERIMENT);
    let (stdout, _) = succeed(&mut place.command(&["verify", "--only", "gelu", "--out", "v.json"]));
    assert!(
        stdout.contains("gelu_tanh") && stdout.contains(": 0 failed"),
        "{stdout}"
    );
    let json: Value =
        serde_json::from_str(&fs::read_to_string(place.path("v.json")).unwrap()).unwrap();
    let checks = json["checks"].as_array().unwrap();
    // Two operations, each by both kinds of kernels: differences, and four dtypes.
    assert_eq!(checks.len(), 2 * 2 * 5);
    for check in checks {
        assert_eq!(check["passed"], true, "{check}");
        assert!(check["compared"].as_u64().unwrap() > 0, "{check}");
    }
    assert_eq!(json["machine"]["device"], "cpu");
}

#[test]
fn verify_looks_whether_its_report_can_be_written_before_it_begins() {
    let place = Place::new("");
    for (out, words) in [
        ("nowhere/v.json", "there is no folder"),
        (".", "that is a folder"),
    ] {
        let said = fail(&mut place.command(&["verify", "--only", "relu", "--out", out]));
        assert!(said.contains(words), "{said}");
        assert!(!said.contains('…'), "{said}");
    }
}

#[test]
fn verify_says_what_it_cannot_do() {
    let place = Place::new(EXPERIMENT);
    let text = fail(&mut place.command(&["verify", "--only", "nonsense"]));
    assert!(
        text.contains("no check has a name with that in it"),
        "{text}"
    );
    let text = fail(&mut place.command(&["verify", "--device", "cuda:7"]));
    assert!(
        text.contains("cuda:7") && text.contains("--device cpu"),
        "{text}"
    );
}

// Composed operations are all that Metal has: a training with them must come to the same.
#[test]
fn a_comparison_without_fast_kernels_has_the_same_losses() {
    let place = Place::new(EXPERIMENT);
    let losses = |out: &str, kernels: &str| -> Vec<f64> {
        let mut command = place.compare(out, &["--seeds", "0", "--epochs", "1"]);
        succeed(command.env("SALA_KERNELS", kernels));
        let names = ["sgd", "sam-of-radius-0", "sala"];
        let of = |name: &str| {
            let file = place.path(out).join(format!("runs/{name}-seed0.jsonl"));
            let text = fs::read_to_string(file).unwrap();
            let epoch: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
            epoch["train_loss"].as_f64().unwrap()
        };
        names.map(of).into()
    };
    let (fast, composed) = (losses("fast", "auto"), losses("composed", "composed"));
    for (fast, composed) in fast.iter().zip(&composed) {
        assert!((fast / composed - 1.0).abs() < 1e-3, "{fast} {composed}");
    }
}
