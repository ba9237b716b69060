//! What a user sees while runs are under way: bars, lines, logs, traces, events.

use std::{fs, process::Command};

use serde_json::Value;

use crate::{EXPERIMENT, Place, common::succeed};

const ONE_RUN: [&str; 6] = ["--optimizers", "sala", "--seeds", "1", "--epochs", "40"];

/// What a terminal would be sent.
#[cfg(target_os = "linux")]
fn in_a_terminal(place: &Place, out: &str, colour: bool) -> String {
    let compare = place.compare(out, &ONE_RUN);
    let words: Vec<_> = compare.get_args().map(|a| a.to_str().unwrap()).collect();
    let line = format!(
        "stty rows 50 cols 200 && {} {}",
        compare.get_program().to_str().unwrap(),
        words.join(" ")
    );
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &line, "/dev/null"]);
    terminal.current_dir(place.path(".")).env("TERM", "xterm");
    terminal.env_remove("NO_COLOR").env_remove("CLICOLOR");
    if !colour {
        terminal.env("NO_COLOR", "1");
    }
    succeed(&mut terminal).0
}

#[cfg(target_os = "linux")]
#[test]
fn a_terminal_shows_bars_with_the_stage_of_sala() {
    let place = Place::new(EXPERIMENT);
    let shown = in_a_terminal(&place, "colour", true);
    for words in [
        "0/1 runs",
        "sala, seed 1",
        "/40, loss ",
        "validation accuracy ",
        ", gap ",
        " to go",
        "\u{1b}[36m",
    ] {
        assert!(shown.contains(words), "{words:?} in {shown}");
    }
    assert!(shown.contains(", walking") || shown.contains(", climbing"));
    let shown = in_a_terminal(&place, "plain", false);
    assert!(shown.contains("/40, loss "), "{shown}");
    assert!(!shown.contains("\u{1b}[36m"), "{shown}");
}

#[test]
fn logs_are_one_json_object_a_line_when_asked_and_hold_progress_too() {
    let place = Place::new(EXPERIMENT);
    let mut command = place.compare("out", &ONE_RUN);
    command.args(["--log-format", "json"]);
    let (_, log) = succeed(command.env("RUST_LOG", "sala_core=debug,warn"));
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line}")))
        .collect();
    let of = |target: &'static str| lines.iter().filter(move |line| line["target"] == target);
    assert!(of("progress").any(|line| {
        let message = line["fields"]["message"].as_str().unwrap();
        message.starts_with("[ 1/1] sala, seed 1: validation ")
    }));
    let step = of("sala_core::trace").find(|line| line["span"]["name"] == "sala.step");
    let step = &step.unwrap()["span"];
    assert!(step["loss"].is_number() || step["lr"].is_number(), "{step}");

    let mut failing = place.command(&["--log-format", "json", "--experiment", "missing.toml"]);
    let output = failing.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let line: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(line["level"], "ERROR");
    let message = line["fields"]["message"].as_str().unwrap();
    assert!(message.contains("cannot read missing.toml"), "{message}");
}

#[test]
fn a_choice_of_logs_that_is_none_is_said() {
    let place = Place::new(EXPERIMENT);
    let mut command = place.compare("out", &ONE_RUN);
    let output = command.env("RUST_LOG", "sala_core=loud").output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.contains("RUST_LOG cannot be understood: `sala_core=loud`"),
        "{message}"
    );
}

#[test]
fn a_trace_nests_passes_in_steps_in_epochs_in_a_run() {
    let place = Place::new(EXPERIMENT);
    let mut command = place.compare("out", &ONE_RUN);
    succeed(command.args(["--trace", "trace.json"]));
    let text = fs::read_to_string(place.path("trace.json")).unwrap();
    let events: Vec<Value> = serde_json::from_str(&text).unwrap();
    let named = |event: &Value, name: &str| event["name"] == name;
    let run = events.iter().find(|e| named(e, "bench.run")).unwrap();
    let thread = &run["tid"];
    let mut open: Vec<&str> = Vec::new();
    let mut deepest = Vec::new();
    for event in events.iter().filter(|e| &e["tid"] == thread) {
        let name = event["name"].as_str().unwrap();
        match event["ph"].as_str() {
            Some("B") => open.push(name),
            Some("E") => assert_eq!(open.pop(), Some(name)),
            _ => {}
        }
        if open.len() > deepest.len() {
            deepest.clone_from(&open);
        }
    }
    assert_eq!(
        deepest,
        ["bench.run", "bench.epoch", "sala.step", "sala.pass"]
    );
    let count = |name: &str| {
        let begun = events.iter().filter(|e| named(e, name) && e["ph"] == "B");
        begun.count()
    };
    // 400 images in batches of 64, forty times.
    assert_eq!((count("bench.epoch"), count("sala.step")), (40, 280));
    assert_eq!((count("bench.validation"), count("bench.test")), (40, 1));
}

#[test]
fn one_run_keeps_its_weights_and_is_the_comparisons() {
    let place = Place::new(EXPERIMENT);
    let words = [
        "train",
        "--experiment",
        "experiment.toml",
        "--optimizer",
        "sala",
        "--seed",
        "1",
        "--out",
        "single",
    ];
    let (said, _) = succeed(&mut place.command(&words));
    assert!(said.contains("single/models"), "{said}");
    let mut whole = place.compare("whole", &["--save-models"]);
    succeed(&mut whole);
    let key = ("sala".to_owned(), 1);
    assert_eq!(place.parameters("single").len(), 1);
    assert_eq!(
        place.parameters("single")[&key],
        place.parameters("whole")[&key]
    );
    let model =
        |out: &str| fs::read(place.path(out).join("models/sala-seed1.safetensors")).unwrap();
    assert!(model("single") == model("whole"));
    assert_eq!(fs::read_dir(place.path("whole/models")).unwrap().count(), 6);
}
