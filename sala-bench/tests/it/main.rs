//! Runs the program as a user does, on experiments of a second or two.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod comfort;
mod common;
mod data;
mod finetune;
mod kill;
mod live;
mod report;
mod sharpness;
mod sweep;
#[cfg(unix)]
mod trouble;
mod verify;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use common::{fail, succeed, wait_for};

use serde_json::Value;

const EXPERIMENT: &str = r#"
    name = "test"
    description = "A small network on few images."
    [data]
    source = "embedded"
    label_noise = 0.2
    validation = 4600
    [network]
    kind = "mlp"
    hidden = [24]
    dropout = 0.3
    [training]
    epochs = 3
    batch_size = 64
    schedule = "cosine"
    seeds = [0, 1]
    [[optimizers]]
    name = "sgd"
    base = "sgd-nesterov"
    lr = 0.05
    weight_decay = 5e-4
    method = { kind = "base" }
    [[optimizers]]
    name = "sam-of-radius-0"
    base = "sgd-nesterov"
    lr = 0.05
    weight_decay = 5e-4
    method = { kind = "sam", rho = 0.0 }
    [[optimizers]]
    name = "sala"
    base = "adamw"
    lr = 2e-3
    weight_decay = 0.01
    clip_norm = 1.0
    method = { kind = "sala", k = 3, alpha = 0.5, rho = 0.1, direction_fraction = 0.25 }
"#;

/// A folder of its own with the experiment in it.
struct Place(tempfile::TempDir);

impl Place {
    fn new(experiment: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("experiment.toml"), experiment).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sala-bench"));
        command
            .args(words)
            .current_dir(self.0.path())
            .env_remove("RUST_LOG");
        command
    }

    /// `compare` of the experiment in this place, into `out`, with further words.
    fn compare(&self, out: &str, words: &[&str]) -> Command {
        let mut command =
            self.command(&["compare", "--experiment", "experiment.toml", "--out", out]);
        command.args(words);
        command
    }

    fn parameters(&self, out: &str) -> BTreeMap<(String, u64), String> {
        let text = fs::read_to_string(self.path(out).join("runs.jsonl")).unwrap();
        let entry = |line: &str| {
            let run: Value = serde_json::from_str(line).unwrap();
            let name = run["optimizer"].as_str().unwrap().to_owned();
            (
                (name, run["seed"].as_u64().unwrap()),
                run["parameters"].as_str().unwrap().to_owned(),
            )
        };
        text.lines().map(entry).collect()
    }
}

// Catches a kind that cannot be written in an experiment, or that trains another method: each has its own
// weights in the end.
#[test]
fn every_kind_of_method_can_be_compared() {
    let kinds = [
        r#"{ kind = "base" }"#,
        r#"{ kind = "lookahead", k = 5, alpha = 0.8 }"#,
        r#"{ kind = "sam", rho = 0.1 }"#,
        r#"{ kind = "sam", rho = 0.1, stable = true }"#,
        r#"{ kind = "asam", rho = 0.5, eta = 0.01 }"#,
        r#"{ kind = "sam-every", k = 2, rho = 0.1 }"#,
        r#"{ kind = "look-sam", k = 5, alpha = 0.7, rho = 0.1 }"#,
        r#"{ kind = "gsam", alpha = 0.2, rho = 0.1 }"#,
        r#"{ kind = "friendly-sam", sigma = 1.0, lambda = 0.9, rho = 0.1 }"#,
        r#"{ kind = "momentum-sam", mu = 0.9, rho = 0.1 }"#,
        r#"{ kind = "sala", k = 2, alpha = 0.5, rho = 0.1 }"#,
    ];
    let head = EXPERIMENT.split("[[optimizers]]").next().unwrap();
    let head = head
        .replace("epochs = 3", "epochs = 1")
        .replace("[0, 1]", "[0]");
    let optimizer = |(i, kind): (usize, &&str)| {
        format!(
            "[[optimizers]]\nname = \"o{i}\"\nbase = \"sgd-nesterov\"\nlr = 0.05\n\
             weight_decay = 5e-4\nmethod = {kind}\n"
        )
    };
    let optimizers: String = kinds.iter().enumerate().map(optimizer).collect();
    let place = Place::new(&format!("{head}\n{optimizers}"));
    succeed(&mut place.compare("out", &[]));
    let weights = place.parameters("out");
    let different: std::collections::BTreeSet<_> = weights.values().collect();
    assert_eq!((weights.len(), different.len()), (kinds.len(), kinds.len()));
}

#[test]
fn a_comparison_prints_its_table_and_leaves_its_records() {
    let place = Place::new(EXPERIMENT);
    let (table, progress) = succeed(&mut place.compare("out", &[]));
    for words in [
        "sgd",
        "sala",
        "validation %",
        "test %",
        "test − sgd",
        "gradients / step",
        "time ×",
        "climbed",
    ] {
        assert!(table.contains(words), "{words} in {table}");
    }
    assert!(progress.contains("6/6]"), "{progress}");
    let json = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(place.path("out").join(name)).unwrap()).unwrap()
    };
    let summary = json("summary.json");
    assert_eq!(summary["complete"], true);
    let rows = summary["rows"].as_array().unwrap();
    // The clean pass counts 1, the direction pass of radius-0 SAM another 1.
    assert!((rows[1]["evaluations_per_step"].as_f64().unwrap() - 2.0).abs() < 1e-12);
    let sala = rows[2]["evaluations_per_step"].as_f64().unwrap();
    assert!((1.0..=1.0 + 0.25 / 3.0).contains(&sala), "{sala}");
    assert!(rows[2]["climbed"].is_number() && rows[0]["climbed"].is_null());
    assert!(
        rows[0]["test"]["mean"].as_f64().unwrap() > 0.3,
        "it learns: {summary}"
    );
    assert!(json("environment.json")["commit"].is_string());
    assert!(
        fs::read_to_string(place.path("out/summary.md"))
            .unwrap()
            .contains("| sala")
    );
    let run = fs::read_to_string(place.path("out/runs/sala-seed1.jsonl")).unwrap();
    assert_eq!(
        run.lines().count(),
        3 + 1,
        "a line an epoch and one for the run"
    );

    let (again, progress) = succeed(&mut place.compare("out", &[]));
    assert_eq!(again, table, "nothing is run again");
    assert!(progress.contains("All 6 runs are complete"), "{progress}");
}

#[test]
fn every_optimizer_meets_the_same_weights_order_masks_and_noise() {
    // SAM of radius 0 takes both passes at the same point. It ends at the bits of its base only if
    // initial weights, order, label noise and dropout masks are those of the base, the masks are the
    // same in both passes, and running statistics are tracked in one of them.
    let cnn = EXPERIMENT
        .replace("kind = \"mlp\"", "kind = \"cnn\"")
        .replace("hidden = [24]", "widths = [2]")
        .replace("validation = 4600", "validation = 4800");
    for experiment in [EXPERIMENT, &cnn] {
        let place = Place::new(experiment);
        succeed(&mut place.compare("out", &["--epochs", "2", "--seeds", "3,4"]));
        let parameters = place.parameters("out");
        let of = |name: &str, seed| &parameters[&(name.to_owned(), seed)];
        assert_eq!(of("sgd", 3), of("sam-of-radius-0", 3));
        assert_eq!(of("sgd", 4), of("sam-of-radius-0", 4));
        assert_ne!(of("sgd", 3), of("sgd", 4), "another seed is another run");
        assert_ne!(of("sgd", 3), of("sala", 3));
    }
}

#[test]
fn the_same_seed_ends_at_the_same_bits_whatever_the_threads() {
    let place = Place::new(EXPERIMENT);
    succeed(&mut place.compare("one", &["--jobs", "1"]));
    succeed(
        place
            .compare("two", &["--jobs", "3"])
            .env("RAYON_NUM_THREADS", "2")
            .env("CANDLE_NUM_THREADS", "2"),
    );
    assert_eq!(place.parameters("one"), place.parameters("two"));
}

#[test]
fn a_folder_with_the_files_gives_what_the_embedded_ones_give() {
    let place = Place::new(EXPERIMENT);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets/fashion-mnist");
    let words = ["--epochs", "1", "--optimizers", "sgd"];
    succeed(&mut place.compare("embedded", &words));
    succeed(
        place
            .compare("folder", &words)
            .arg("--data-dir")
            .arg(folder),
    );
    assert_eq!(place.parameters("embedded"), place.parameters("folder"));
}

/// Starts the comparison and waits until a run is complete and another one has begun.
fn start_and_wait(place: &Place) -> Child {
    let mut command = place.compare("killed", &["--jobs", "1"]);
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let runs = place.path("killed/runs");
    let has = |ending: &str| {
        let entries = fs::read_dir(&runs).into_iter().flatten();
        entries
            .filter_map(Result::ok)
            .any(|e| e.path().to_string_lossy().ends_with(ending))
    };
    wait_for("a second run", || has(".jsonl") && has(".partial"));
    child
}

#[test]
fn a_comparison_killed_in_the_middle_continues_to_the_same_bits() {
    let place = Place::new(EXPERIMENT);
    let mut child = start_and_wait(&place);
    child.kill().unwrap();
    child.wait().unwrap();
    let (_, progress) = succeed(&mut place.compare("killed", &[]));
    assert!(!progress.contains(" 0 complete already"), "{progress}");
    succeed(&mut place.compare("whole", &[]));
    assert_eq!(place.parameters("killed"), place.parameters("whole"));
}

/// Ends a program by Ctrl-C; yields what it said.
#[cfg(unix)]
fn interrupt(child: Child) -> String {
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{message}");
    message
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_is_complete_and_says_how_to_go_on() {
    let place = Place::new(EXPERIMENT);
    let child = start_and_wait(&place);
    let message = interrupt(child);
    assert!(message.contains("Stopped;"), "{message}");
    let summary = fs::read_to_string(place.path("killed/summary.md")).unwrap();
    assert!(summary.contains("Not all runs are complete"), "{summary}");
    succeed(&mut place.compare("killed", &[]));
    assert_eq!(place.parameters("killed").len(), 6);
}

#[test]
fn a_diverging_optimizer_is_a_result_and_not_a_failure() {
    let place = Place::new(&EXPERIMENT.replace("lr = 0.05", "lr = 1e18"));
    let (table, _) = succeed(&mut place.compare("out", &["--optimizers", "sgd,sala"]));
    assert!(table.contains("2 diverged"), "{table}");
}

#[test]
fn mistakes_are_named_with_a_way_out() {
    let place = Place::new(EXPERIMENT);
    let says = |command: &mut Command, words: &[&str]| {
        let message = fail(command);
        assert!(
            words.iter().all(|w| message.contains(w)),
            "{words:?} in {message}"
        );
    };
    says(
        &mut place.compare("x", &["--optimizers", "sgd,adan"]),
        &["`adan`", "it has sgd"],
    );
    says(
        &mut place.compare("x", &["--data-dir", "nowhere"]),
        &["nowhere is not a folder", "train-images"],
    );
    says(
        &mut place.compare("x", &["--validation", "5000"]),
        &["data.validation must be below the 5000 training images, got 5000"],
    );
    says(
        &mut place.command(&["--experiment", "missing.toml"]),
        &["cannot read missing.toml"],
    );
    if !cfg!(feature = "hub") {
        says(&mut place.compare("x", &["--hub"]), &["--features hub"]);
    }
    let quick = ["--epochs", "1", "--seeds", "0", "--optimizers", "sgd"];
    succeed(&mut place.compare("out", &quick));
    says(
        &mut place.compare("out", &["--epochs", "2"]),
        &["another experiment", "epochs = 1", "--fresh"],
    );
    fs::write(
        place.path("out/runs/sgd-seed0.jsonl"),
        "{\"record\": oops\n",
    )
    .unwrap();
    says(
        &mut place.compare("out", &quick),
        &["sgd-seed0.jsonl, line 1", "delete the file"],
    );
    succeed(place.compare("out", &quick).arg("--fresh"));
}

#[test]
fn a_search_chooses_on_validation_and_leaves_the_test_part_alone() {
    let place = Place::new(EXPERIMENT);
    let search = "seeds = [9]\n[grid.sgd]\nlr = [1e-6, 0.05]\n[grid.sam-of-radius-0]\nlr = [0.05, 1e-6]\n\
                  [grid.sala]\nrho = [0.05, 0.1]\n";
    fs::write(place.path("search.toml"), search).unwrap();
    let words = [
        "tune",
        "--experiment",
        "experiment.toml",
        "--search",
        "search.toml",
        "--out",
        "out",
    ];
    let (table, _) = succeed(&mut place.command(&words));
    assert!(table.contains("| sgd.0 | 0.000001 |"), "{table}");
    let tuned = fs::read_to_string(place.path("out/tuned.toml")).unwrap();
    assert_eq!(
        tuned.matches("lr = 0.05").count(),
        2,
        "the rate that learns is chosen: {tuned}"
    );
    let records = fs::read_to_string(place.path("out/runs.jsonl")).unwrap();
    assert_eq!(records.matches("\"test\":null").count(), 6, "{records}");
    // What was chosen can be run.
    fs::write(place.path("experiment.toml"), tuned).unwrap();
    succeed(&mut place.compare("final", &["--epochs", "1"]));
}

#[test]
fn the_log_shows_every_step_with_its_numbers_when_asked() {
    let place = Place::new(EXPERIMENT);
    let words = ["--epochs", "1", "--seeds", "0", "--optimizers", "sala"];
    let (_, quiet) = succeed(&mut place.compare("quiet", &words));
    assert!(!quiet.contains("sala.step"), "{quiet}");
    let (_, log) = succeed(place.compare("log", &words).env("RUST_LOG", "debug"));
    for words in ["sala.step", "sala.pass", "ascent", "gap", "loss"] {
        assert!(log.contains(words), "{words} in {log}");
    }
}

#[test]
fn help_shows_examples() {
    let place = Place::new(EXPERIMENT);
    let (help, _) = succeed(&mut place.command(&["--help"]));
    for words in ["Examples:", "--label-noise", "tune", "Ctrl-C"] {
        assert!(help.contains(words), "{words} in {help}");
    }
}

#[test]
fn speed_times_a_workload_and_keeps_every_time() {
    let place = Place::new(EXPERIMENT);
    let words = ["speed", "--workloads", "small-cnn", "--rounds", "1"];
    let mut command = place.command(&words);
    command.args(["--kernels", "auto,composed", "--out", "speed"]);
    let (stdout, _) = succeed(&mut command);
    assert!(stdout.contains("small-cnn") && stdout.contains("sala-composed"));
    let text = fs::read_to_string(place.path("speed/speed.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    assert!(report["ceilings"]["gemm_gflops"][0].as_f64().unwrap() > 0.0);
    let participants = report["workloads"][0]["participants"].as_array().unwrap();
    assert_eq!(participants.len(), 2);
    for participant in participants {
        let round = &participant["rounds"][0];
        let (forward, step) = (&round["forward_ms"], &round["step_ms"]);
        assert_eq!(forward.as_array().unwrap().len(), 5);
        assert!(step[0].as_f64().unwrap() > forward[0].as_f64().unwrap());
        // Untrained: about ln 10, and finite after some steps.
        let loss = round["loss"].as_f64().unwrap();
        assert!(loss > 0.0 && loss < 5.0, "{loss}");
    }
    let table = fs::read_to_string(place.path("speed/speed.md")).unwrap();
    assert!(table.contains("| small-cnn"), "{table}");
}

#[test]
fn speed_says_what_is_wrong_with_the_other_side() {
    let place = Place::new(EXPERIMENT);
    let words = ["speed", "--workloads", "small-cnn", "--rounds", "1"];
    let mut command = place.command(&words);
    let text = fail(command.args(["--python", "no-such-python"]));
    assert!(
        text.contains("small-cnn") && text.contains("cannot start no-such-python"),
        "{text}"
    );
    let text = fail(place.command(&words).args(["--python", "true"]));
    assert!(text.contains("torch ended before it answered"), "{text}");
}
