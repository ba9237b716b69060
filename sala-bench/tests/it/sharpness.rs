//! `sharpness` on the saved solutions of a comparison.

use std::fs;

use serde_json::Value;

use crate::{
    EXPERIMENT, Place,
    common::{fail, succeed},
};

const QUICK: [&str; 12] = [
    "--images",
    "64",
    "--m",
    "16",
    "--ascent-steps",
    "2",
    "--lanczos-steps",
    "6",
    "--trace-samples",
    "2",
    "--average-samples",
    "2",
];

fn measure(place: &Place, more: &[&str]) -> std::process::Command {
    place.command(&[&["sharpness", "out"], &QUICK[..], more].concat())
}

#[test]
fn solutions_are_measured_once_and_shown_in_tables_and_figures() {
    let place = Place::new(&EXPERIMENT.replace("[24]", "[6]"));
    let words = [
        "--optimizers",
        "sgd,sala",
        "--epochs",
        "4",
        "--save-trajectory",
    ];
    succeed(&mut place.compare("out", &words));
    let (table, log) = succeed(&mut measure(&place, &[]));
    assert!(table.contains("λ_max") && table.contains("does not always predict generalisation"));
    assert!(
        log.contains("1/4 sgd-seed0") && log.contains("4/4 sala-seed1"),
        "{log}"
    );

    let folder = place.path("out/sharpness");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let json: Value = serde_json::from_str(&read("sharpness.json")).unwrap();
    let solutions = json["solutions"].as_array().unwrap();
    assert_eq!(solutions.len(), 4);
    for solution in solutions {
        let number = |name: &str| solution[name].as_f64().unwrap();
        assert!(number("lambda_max") > 0.0 && number("lambda_max") >= number("lambda_min"));
        assert!(number("worst") > 0.0 && number("worst_adaptive") > 0.0);
        assert!(number("product_error") < 1e-3, "{solution}");
        assert!(number("gradients") > 20.0 && number("losses") > 4.0);
    }
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows[1]["optimizer"], "sala");
    assert_eq!(rows[1]["lambda_max"]["n"], 2);
    assert_eq!(read("sharpness.csv").lines().count(), 5);
    let markdown = read("sharpness.md");
    for figure in ["density.svg", "profile.svg", "map-sgd.svg", "map-sala.svg"] {
        assert!(markdown.contains(&format!("]({figure})")), "{figure}");
        assert!(read(figure).starts_with("<svg"), "{figure}");
    }
    // Four epochs: the way of training has three points before the solution.
    let map = read("map-sala.svg");
    assert!(map.contains("principal component") && map.contains("of the path's variance"));
    assert_eq!(map.matches("<circle").count(), 5);

    // Nothing is measured twice, and the weights on disk are still those of the record.
    let before = fs::metadata(folder.join("sgd-seed0.json"))
        .unwrap()
        .modified()
        .unwrap();
    let (again, _) = succeed(&mut measure(&place, &[]));
    assert_eq!(again, table);
    let after = fs::metadata(folder.join("sgd-seed0.json"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(before, after);
    // Other settings are other numbers.
    let (other, _) = succeed(&mut measure(&place, &["--rho", "0.3", "--no-figures"]));
    assert_ne!(other, table);
}

// Catches a run that diverged and takes the solutions of all others along.
#[test]
fn a_run_that_diverged_is_shown_and_the_others_are_measured() {
    let place = Place::new(&EXPERIMENT.replace("[24]", "[6]"));
    let words = [
        "--optimizers",
        "sala,sgd",
        "--epochs",
        "1",
        "--save-models",
        "--set",
        "optimizers.sala.lr=1e30",
        "--set",
        "optimizers.sala.clip_norm=1e30",
    ];
    succeed(&mut place.compare("out", &words));
    let (table, log) = succeed(&mut measure(&place, &["--no-figures"]));
    assert!(
        log.contains("sala-seed0 diverged and has no solution"),
        "{log}"
    );
    assert!(
        log.contains("1/2 sgd-seed0") && log.contains("2/2 sgd-seed1"),
        "{log}"
    );
    let sala = table
        .lines()
        .find(|l| l.contains("│ sala") || l.contains("sala "))
        .unwrap();
    assert!(sala.contains("2 diverged"), "{table}");
    let text = fs::read(place.path("out/sharpness/sharpness.json")).unwrap();
    let json: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(json["solutions"].as_array().unwrap().len(), 2);
    assert_eq!(json["diverged"].as_array().unwrap().len(), 2);
    // What is missing of a later run is known before an earlier one is measured.
    fs::remove_file(place.path("out/models/sgd-seed1.safetensors")).unwrap();
    fs::remove_dir_all(place.path("out/sharpness")).unwrap();
    let said = fail(&mut measure(&place, &["--no-figures"]));
    assert!(said.contains("no weights of sgd-seed1"), "{said}");
    assert!(!place.path("out/sharpness").exists());
}

#[test]
fn what_cannot_be_measured_is_told_with_a_way_out() {
    let place = Place::new(EXPERIMENT);
    let words = ["--optimizers", "sgd", "--seeds", "0", "--epochs", "1"];
    succeed(&mut place.compare("out", &words));
    for (more, message) in [
        (&[][..], "`compare` keeps them with --save-models"),
        (&["--seeds", "5"], "has no run with seed 5"),
        (
            &["--optimizers", "sam"],
            "no optimizer `sam` in this experiment",
        ),
    ] {
        let said = fail(&mut measure(&place, more));
        assert!(said.contains(message), "{said}");
    }
    let said = fail(&mut place.command(&["sharpness", "nowhere"]));
    assert!(said.contains("nowhere is no run directory"), "{said}");
    succeed(&mut place.compare("kept", &[&words[..], &["--save-models"]].concat()));
    let mut command = place.command(&["sharpness", "kept", "--images", "512"]);
    let said = fail(&mut command);
    assert!(
        said.contains("--images must be at most the 400 training images"),
        "{said}"
    );
}
