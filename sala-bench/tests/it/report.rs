//! Reports of run directories, rivals with longer budgets, and statistics that are taken anew.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{
    EXPERIMENT, Place,
    common::{fail, succeed},
};

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The lines of a run's record.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

#[test]
fn a_rival_trains_as_much_longer_as_it_is_told_and_its_schedule_with_it() {
    let rival = r#"
    [[optimizers]]
    name = "sgd-1.5x"
    base = "sgd-nesterov"
    lr = 0.05
    weight_decay = 5e-4
    budget = 1.5
    method = { kind = "base" }
    "#;
    let experiment = EXPERIMENT.replace("epochs = 3", "epochs = 2");
    let place = Place::new(&format!("{experiment}{rival}"));
    let words = ["--optimizers", "sgd,sgd-1.5x", "--seeds", "0"];
    let (table, _) = succeed(&mut place.compare("out", &words));
    assert!(table.contains("sgd-1.5x"), "{table}");
    let sgd = lines(&place.path("out/runs/sgd-seed0.jsonl"));
    let rival = lines(&place.path("out/runs/sgd-1.5x-seed0.jsonl"));
    assert_eq!((sgd.len(), rival.len()), (2 + 1, 3 + 1));
    // 400 images in batches of 64: seven steps an epoch.
    assert_eq!(
        (&sgd[2]["steps"], &rival[3]["steps"]),
        (&14.into(), &21.into())
    );
    // A cosine over 14 and over 21 steps, at the last step of each.
    let end =
        |steps: f64| 0.05 * 0.5 * (1.0 + (std::f64::consts::PI * (steps - 1.0) / steps).cos());
    for (run, steps) in [(&sgd, 14.0), (&rival, 21.0)] {
        let lr = run[run.len() - 2]["lr"].as_f64().unwrap();
        assert!((lr - end(steps)).abs() < 1e-12, "{lr} after {steps} steps");
    }
    let summary = json(&place.path("out/summary.json"));
    assert_eq!(summary["rows"][1]["evaluations_ratio"], 1.5);
}

#[test]
fn statistics_taken_anew_change_what_slow_weights_score_and_nothing_else() {
    let plain = EXPERIMENT
        .replace("kind = \"mlp\"", "kind = \"cnn\"")
        .replace("hidden = [24]", "widths = [4]")
        .replace("epochs = 3", "epochs = 2")
        .replace("[0, 1]", "[0]");
    let anew = plain.replace("[training]", "[training]\n    recalibrate_batch_norm = 3");
    let runs = [&plain, &anew].map(|experiment| {
        let place = Place::new(experiment);
        succeed(&mut place.compare("out", &["--optimizers", "sgd,sala"]));
        ["sgd", "sala"].map(|name| lines(&place.path(&format!("out/runs/{name}-seed0.jsonl"))))
    });
    let [[sgd, sala], [sgd_anew, sala_anew]] = runs;
    // There are no slow weights, so there is nothing to take anew.
    assert_eq!(sgd[2]["parameters"], sgd_anew[2]["parameters"]);
    assert_eq!(sgd[1]["validation"], sgd_anew[1]["validation"]);
    // Statistics are put back: the second epoch trains as if nothing had happened.
    assert_eq!(sala[1]["train_loss"], sala_anew[1]["train_loss"]);
    assert_eq!(sala[1]["grad_norm"], sala_anew[1]["grad_norm"]);
    assert_ne!(sala[0]["validation"], sala_anew[0]["validation"]);
    assert_ne!(sala[2]["test"], sala_anew[2]["test"]);
    // What it takes is part of the training time, and told.
    let seconds = |run: &[Value], what: &str| run[0][what].as_f64().unwrap();
    assert!(seconds(&sala_anew, "swap_s") > seconds(&sala, "swap_s"));
    assert!(seconds(&sala_anew, "train_s") > seconds(&sala_anew, "swap_s"));
    assert!(seconds(&sala, "swap_s") > 0.0);
}

#[test]
fn two_halves_of_a_comparison_report_as_the_whole() {
    let experiment = EXPERIMENT.replace("epochs = 3", "epochs = 1");
    let place = Place::new(&experiment);
    succeed(&mut place.compare("whole", &[]));
    succeed(&mut place.compare("first", &["--seeds", "0"]));
    succeed(&mut place.compare("second", &["--seeds", "1"]));
    let (text, _) = succeed(&mut place.command(&["report", "second", "first", "--out", "report"]));
    assert!(
        text.contains("Differences to sgd") && text.contains("report.html"),
        "{text}"
    );
    for file in ["report.html", "report.md", "report.csv", "report.json"] {
        assert!(place.path("report").join(file).is_file(), "{file}");
    }
    let (merged, whole) = (
        json(&place.path("report/report.json")),
        json(&place.path("whole/summary.json")),
    );
    let merged = &merged["workloads"][0];
    assert_eq!(merged["complete"], true);
    for (a, b) in merged["rows"]
        .as_array()
        .unwrap()
        .iter()
        .zip(whole["rows"].as_array().unwrap())
    {
        for field in [
            "optimizer",
            "runs",
            "validation",
            "test",
            "scores",
            "evaluations_ratio",
        ] {
            assert_eq!(a[field], b[field], "{field}");
        }
    }
    assert_eq!(merged["comparisons"], whole["comparisons"]);
    // The page of the whole directory is made by the comparison itself.
    let page = fs::read_to_string(place.path("whole/report.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("sala"));
    let message = fail(&mut place.command(&["report", "whole", "nowhere"]));
    assert!(message.contains("nowhere"), "{message}");
    let message = fail(&mut place.command(&["report", "whole", "--reference", "adam"]));
    assert!(message.contains("no optimizer `adam`"), "{message}");
}
