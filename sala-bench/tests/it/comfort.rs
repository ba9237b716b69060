//! What makes the program pleasant: every field from the command line, plans before they are run, tools.

use std::fs;

use serde_json::Value;

use crate::{
    EXPERIMENT, Place,
    common::{fail, succeed},
};

fn runs(place: &Place, out: &str) -> Vec<Value> {
    let text = fs::read_to_string(place.path(out).join("runs.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn the_file_of_a_run_directory_repeats_a_run_that_was_made_with_options() {
    let place = Place::new(EXPERIMENT);
    let words = [
        "--steps",
        "9",
        "--seeds",
        "5",
        "--optimizers",
        "sgd,sala",
        "--schedule",
        "linear",
        "--set",
        "optimizers.sala.k=2",
        "--set",
        "network.hidden=[8]",
    ];
    succeed(&mut place.compare("typed", &words));
    let words = [
        "compare",
        "--experiment",
        "typed/experiment.toml",
        "--out",
        "file",
    ];
    succeed(&mut place.command(&words));
    assert_eq!(place.parameters("typed"), place.parameters("file"));
    let run = &runs(&place, "typed")[0];
    // 400 images in batches of 64 are 7 steps an epoch: the second epoch ends in its middle.
    assert_eq!(run["steps"], 9);
}

#[test]
fn a_budget_of_gradient_evaluations_ends_the_dearer_method_after_fewer_steps() {
    let place = Place::new(EXPERIMENT);
    let words = ["--evaluations", "20", "--seeds", "0"];
    succeed(&mut place.compare(
        "out",
        &[&words[..], &["--optimizers", "sgd,sam-of-radius-0"]].concat(),
    ));
    let runs = runs(&place, "out");
    assert_eq!(
        (&runs[0]["steps"], &runs[0]["evaluations"]),
        (&20.into(), &20.0.into())
    );
    assert_eq!(
        (&runs[1]["steps"], &runs[1]["evaluations"]),
        (&10.into(), &20.0.into())
    );
    // The schedule goes over the whole budget for both: a cosine ends near zero.
    let last_lr = |name: &str| {
        let text = fs::read_to_string(place.path("out/runs").join(name)).unwrap();
        let line = text.lines().rev().nth(1).unwrap();
        serde_json::from_str::<Value>(line).unwrap()["lr"]
            .as_f64()
            .unwrap()
    };
    for name in ["sgd-seed0.jsonl", "sam-of-radius-0-seed0.jsonl"] {
        assert!(last_lr(name) < 0.05 * 0.05, "{name}: {}", last_lr(name));
    }
}

#[test]
fn networks_learn_in_every_precision() {
    let cnn = EXPERIMENT
        .replace("kind = \"mlp\"", "kind = \"cnn\"")
        .replace("hidden = [24]", "widths = [4]")
        .replace("validation = 4600", "validation = 4800");
    let mut ends = Vec::new();
    for experiment in [EXPERIMENT, &cnn] {
        let place = Place::new(experiment);
        for precision in ["f32", "f64", "bf16"] {
            let words = ["--precision", precision, "--seeds", "0"];
            succeed(&mut place.compare(precision, &words));
            for run in runs(&place, precision) {
                let (first, score) = (&run["failure"], &run["validation"]["accuracy"]);
                assert!(
                    first.is_null() && score.as_f64().unwrap() > 0.2,
                    "{precision}: {run}"
                );
            }
            // Radius-0 SAM is its base in any precision: both passes see the same.
            let weights = place.parameters(precision);
            let of = |name: &str| &weights[&(name.to_owned(), 0)];
            assert_eq!(of("sgd"), of("sam-of-radius-0"), "{precision}");
            ends.push(of("sgd").clone());
        }
    }
    ends.sort();
    ends.dedup();
    assert_eq!(ends.len(), 6, "each precision rounds differently");
}

#[test]
fn a_device_that_is_not_there_is_refused_with_a_way_out() {
    let place = Place::new(EXPERIMENT);
    let message = fail(&mut place.compare("out", &["--device", "metal"]));
    assert!(
        message.contains("metal") && message.contains("--device cpu"),
        "{message}"
    );
}

#[test]
fn a_dry_run_tells_the_plan_and_leaves_nothing() {
    let place = Place::new(EXPERIMENT);
    let (plan, _) = succeed(&mut place.compare("out", &["--dry-run"]));
    for words in ["6 runs, 0 complete", "sam-of-radius-0", "42", "of training"] {
        assert!(plan.contains(words), "{words} in {plan}");
    }
    assert!(!place.path("out").exists());
    let (json, _) = succeed(&mut place.compare("out", &["--dry-run", "--json"]));
    let plan: Value = serde_json::from_str(&json).unwrap();
    // Three epochs of 7 steps, twice the gradients.
    assert_eq!(plan["optimizers"][1]["evaluations"][0], 42.0);
    assert!(plan["seconds"][0].as_f64().unwrap() > 0.0, "{plan}");
}

#[test]
fn doctor_tells_what_is_there_and_fails_when_something_is_wrong() {
    let place = Place::new(EXPERIMENT);
    let (text, _) = succeed(&mut place.command(&["doctor"]));
    for words in [
        "version",
        "threads",
        "instructions",
        "allocator",
        "kernels",
        "cpu: there",
    ] {
        assert!(text.contains(words), "{words} in {text}");
    }
    let (json, _) = succeed(&mut place.command(&["doctor", "--json"]));
    let findings: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        findings["problems"].as_array().unwrap().len(),
        0,
        "{findings}"
    );
    assert!(findings["data"][0]["ok"].as_bool().unwrap(), "{findings}");
    let message = fail(place.command(&["doctor"]).env("SALA_KERNELS", "fastest"));
    assert!(message.contains("problems found: 1"), "{message}");
    let message = fail(&mut place.command(&["doctor", "--data-dir", "nowhere"]));
    assert!(message.contains("problems found: 1"), "{message}");
}

#[test]
fn shells_and_manuals_know_every_command() {
    let place = Place::new(EXPERIMENT);
    for shell in ["bash", "zsh", "fish"] {
        let (script, _) = succeed(&mut place.command(&["completions", shell]));
        assert!(
            script.contains("label-noise") && script.contains("sweep"),
            "{shell}"
        );
    }
    let (page, _) = succeed(&mut place.command(&["man"]));
    assert!(
        page.contains(".TH sala-bench") && page.contains("Exit codes"),
        "{page}"
    );
    succeed(&mut place.command(&["man", "--out", "pages"]));
    assert!(place.path("pages/sala-bench-sweep.1").is_file());
    assert!(
        !place.path("pages/sala-bench-speed-worker.1").exists(),
        "hidden commands have no page"
    );
}

#[test]
fn every_command_shows_examples() {
    let place = Place::new(EXPERIMENT);
    let commands = [
        "compare",
        "train",
        "sweep",
        "tune",
        "finetune",
        "predict",
        "speed",
        "cell",
        "doctor",
        "completions",
        "man",
    ];
    for command in commands {
        let (help, _) = succeed(&mut place.command(&[command, "--help"]));
        assert!(help.contains("Examples:\n  "), "{command}: {help}");
    }
}

#[test]
fn a_wrong_command_line_has_a_code_of_its_own_and_a_hint() {
    let place = Place::new(EXPERIMENT);
    let output = place.command(&["swep"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("sweep"), "{message}");
    let output = place
        .command(&["--steps", "3", "--epochs", "1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "one budget at a time");
}

#[test]
fn no_colour_is_written_where_none_is_wanted() {
    let place = Place::new(EXPERIMENT);
    let words = ["--epochs", "1", "--seeds", "0", "--optimizers", "sgd"];
    let mut command = place.compare("out", &words);
    let (table, log) = succeed(command.env("RUST_LOG", "debug").env("NO_COLOR", "1"));
    assert!(log.contains("sala.step"), "{log}");
    assert!(
        !log.contains('\u{1b}') && !table.contains('\u{1b}'),
        "{log}"
    );
}
