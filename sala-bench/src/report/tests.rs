//! Comparisons made of records that are easy to reckon with.

use std::fs;

use super::{load::Source, workload::Settings, *};
use crate::{
    metrics::{Metric, Score},
    record::{
        Access, EpochRecord, PLAN, RunRecord,
        tests::{run, score},
    },
    spec::tests::SMALL,
};

/// Two epochs of 32 steps of the two optimizers of the small experiment, on seeds 0 and 1; the second seed is
/// better by .1 in everything. Validation: SGD .4, .5; SALA .5, .7. Test: SGD .5, SALA .62 (and .73
/// for the second seed).
pub(super) fn source() -> Source {
    let folder = directory(SMALL, &all_runs());
    load(&[folder.path().into()], OnConflict::Refuse)
        .unwrap()
        .remove(0)
}

fn all_runs() -> Vec<(Vec<EpochRecord>, RunRecord)> {
    let seeds = [0, 1];
    seeds.into_iter().flat_map(|s| [sgd(s), sala(s)]).collect()
}

fn sgd(seed: u64) -> (Vec<EpochRecord>, RunRecord) {
    let shift = 0.1 * seed as f64;
    let epochs = [0.4, 0.5].map(|v| v + shift);
    let record = RunRecord {
        steps: 64,
        evaluations: 64.0,
        ascents: 0,
        cycles: None,
        train_s: 2.0,
        validation: Some(score(epochs[1])),
        test: Some(score(0.5 + shift)),
        ..run("sgd", seed)
    };
    let epoch = |(i, v): (usize, f64)| epoch(i as u64 + 1, v, 32.0, 0, 1.0, None);
    (epochs.into_iter().enumerate().map(epoch).collect(), record)
}

fn sala(seed: u64) -> (Vec<EpochRecord>, RunRecord) {
    let shift = 0.1 * seed as f64;
    let epochs = [0.5, 0.7].map(|v| v + shift);
    let record = RunRecord {
        steps: 64,
        evaluations: 80.0,
        ascents: 24,
        cycles: Some(32),
        train_s: 4.0,
        validation: Some(score(epochs[1])),
        // Not as far from SGD with every seed: without any spread there would be nothing to judge by.
        test: Some(score(0.62 + 1.1 * shift)),
        ..run("sala", seed)
    };
    let one = |i: u64, v, ascents| epoch(i, v, 40.0, ascents, 2.0, Some(0.3 / i as f64));
    (vec![one(1, epochs[0], 8), one(2, epochs[1], 16)], record)
}

fn epoch(
    epoch: u64,
    accuracy: f64,
    evaluations: f64,
    ascents: u64,
    train_s: f64,
    gap: Option<f64>,
) -> EpochRecord {
    EpochRecord {
        epoch,
        steps: 32 * epoch,
        lr: 0.05,
        train_loss: 1.0 / epoch as f64,
        grad_norm: 1.0,
        validation: score(accuracy),
        evaluations,
        ascents,
        gap,
        train_s,
        swap_s: 0.0,
    }
}

/// A run directory with these runs.
fn directory(plan: &str, runs: &[(Vec<EpochRecord>, RunRecord)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(PLAN), plan).unwrap();
    let dir = RunDir::open(folder.path(), plan, Access::alone("cpu", false)).unwrap();
    for (epochs, record) in runs {
        let mut writer = dir.begin(&record.optimizer, record.seed).unwrap();
        for epoch in epochs {
            writer.epoch(epoch).unwrap();
        }
        writer.finish(record).unwrap();
    }
    folder
}

fn workload(runs: &[(Vec<EpochRecord>, RunRecord)]) -> Workload {
    let folder = directory(SMALL, runs);
    let mut report = Report::of(
        &[folder.path().into()],
        &Settings::default(),
        OnConflict::Refuse,
    );
    report.as_mut().unwrap().workloads.remove(0)
}

fn report_of(plan: &str, settings: &Settings) -> Result<Workload> {
    let folder = directory(plan, &all_runs());
    let report = Report::of(&[folder.path().into()], settings, OnConflict::Refuse);
    report.map(|mut report| report.workloads.remove(0))
}

// Catches an interval beside a verdict that it contradicts, and a table for the terminal that has none.
#[test]
fn the_first_table_has_verdicts_and_says_what_its_intervals_are_not() {
    let mut workload = workload(&all_runs());
    let grid = tables::overview(&workload);
    let place = grid.header.iter().position(|h| h == "verdict").unwrap();
    let column: Vec<&str> = grid.rows.iter().map(|row| row[place].as_str()).collect();
    assert_eq!(column, [grid::NONE, "better"]);
    assert!(grid.terminal().contains("not adjusted"), "{}", grid.legend);
    // As many optimizers would do to its p.
    let difference = &mut workload.comparisons[0].differences[0];
    (difference.p_holm, difference.verdict) = (Some(0.09), compare::Verdict::Undecided);
    let report = Report {
        workloads: vec![workload],
        profiles: Vec::new(),
    };
    let page = html::page(&report);
    assert!(
        page.contains("; p 0.025 alone, 0.090 with Holm's correction)"),
        "{page}"
    );
}

// Catches differences of maxima with a p value: with early stopping the validation part chose what it scores.
#[test]
fn what_chose_an_epoch_does_not_judge_it() {
    let plan = SMALL.replace("epochs = 2", "epochs = 2\nearly_stopping = 1");
    let tested = report_of(&plan, &Settings::default()).unwrap();
    assert_eq!(difference(&tested).verdict, compare::Verdict::Better);
    let untested = |(epochs, r): (_, RunRecord)| {
        let validation = r.test;
        (
            epochs,
            RunRecord {
                test: None,
                validation,
                ..r
            },
        )
    };
    let runs: Vec<_> = all_runs().into_iter().map(untested).collect();
    let folder = directory(&plan, &runs);
    let settings = Settings {
        margin: Some(0.05),
        ..Settings::default()
    };
    let report = Report::of(&[folder.path().into()], &settings, OnConflict::Refuse).unwrap();
    let found = difference(&report.workloads[0]);
    assert!((found.paired.mean - 0.125).abs() < 1e-12);
    assert_eq!(
        (found.verdict, found.equivalence),
        (compare::Verdict::NotGiven, None)
    );
    assert_eq!(
        (found.paired.p, found.p_holm, found.paired.ci95),
        (None, None, None)
    );
    for text in [report.terminal(), report.markdown(), html::page(&report)] {
        assert!(text.contains("no verdict is given"), "{text}");
    }
}

#[test]
fn a_margin_in_points_is_refused_and_what_is_not_the_plans_is_marked() {
    let with = |margin: f64| Settings {
        margin: Some(margin),
        ..Settings::default()
    };
    let message = report_of(SMALL, &with(0.5)).unwrap_err().to_string();
    assert!(
        message.contains("--margin 0.5 is ±50.00 points"),
        "{message}"
    );
    assert!(
        report_of(
            &SMALL.replace("epochs = 2", "epochs = 2\nmetric = \"loss\""),
            &with(0.5)
        )
        .is_ok()
    );
    let planned = SMALL.replace(
        "[training]",
        "[report]\nmargin = 0.02\nreferences = [\"sala\"]\n[training]",
    );
    assert_eq!(report_of(&planned, &with(0.02)).unwrap().notes, [""; 0]);
    let settings = Settings {
        references: vec!["sala".into()],
        ..with(0.01)
    };
    let notes = report_of(&planned, &settings).unwrap().notes;
    assert_eq!(
        notes,
        ["The margin of ±1.00 points is not the plan's, which is ±2.00 points."]
    );
    let workload = report_of(SMALL, &settings).unwrap();
    let text = tables::overview(&workload).terminal();
    assert!(text.contains("named after the runs"), "{text}");
    assert!(
        text.contains("Differences to sala are not the plan's"),
        "{text}"
    );
    let table = tables::differences(&workload, &workload.comparisons[0]);
    assert!(
        table.header.contains(&"within ±1.00 points (p)".into()),
        "{:?}",
        table.header
    );
}

#[test]
fn a_diverged_optimizer_is_among_the_verdicts() {
    let mut runs = all_runs();
    runs[3].1.failure = Some("clean pass: the loss is not finite".into());
    let folder = directory(SMALL, &runs);
    let paths = [folder.path().into()];
    let report = Report::of(&paths, &Settings::default(), OnConflict::Refuse).unwrap();
    let page = html::page(&report);
    assert!(
        page.contains("because a run diverged: sala (1 of 2 runs)"),
        "{page}"
    );
}

// Catches numbers of solutions that are not there any more beside the scores of those that are.
#[test]
fn sharpness_of_other_solutions_is_left_out_and_that_is_said() {
    let folder = directory(SMALL, &all_runs());
    let place = folder.path().join("sharpness");
    fs::create_dir(&place).unwrap();
    let mut table = crate::sharpness::example();
    table.figures.clear();
    let report = |table: &crate::sharpness::Sharpness| {
        fs::write(
            place.join("sharpness.json"),
            serde_json::to_vec(table).unwrap(),
        )
        .unwrap();
        let paths = [folder.path().into()];
        Report::of(&paths, &Settings::default(), OnConflict::Refuse).unwrap()
    };
    assert_eq!(report(&table).workloads[0].sharpness.len(), 1);
    table.solutions[1].parameters = "of before".into();
    let found = report(&table);
    assert_eq!(found.workloads[0].sharpness.len(), 0);
    assert!(
        found
            .terminal()
            .contains("of other solutions than these runs'")
    );
}

#[test]
fn runs_on_different_data_are_not_reported_together() {
    let on =
        |data: Option<&str>, test: Option<&str>, (epochs, r): (Vec<EpochRecord>, RunRecord)| {
            let (data, test_data) = (data.map(Into::into), test.map(Into::into));
            let record = RunRecord {
                data,
                test_data,
                ..r
            };
            (epochs, record)
        };
    let read = |runs: &[(Vec<EpochRecord>, RunRecord)]| {
        let folder = directory(SMALL, runs);
        load(&[folder.path().into()], OnConflict::Refuse).map(|_| ())
    };
    // A record of an earlier version does not say.
    read(&[
        on(Some("a"), None, sgd(0)),
        on(None, None, sala(0)),
        on(Some("a"), Some("t"), sgd(1)),
    ])
    .unwrap();
    for (data, test) in [("b", "t"), ("a", "u")] {
        let runs = [
            on(Some("a"), Some("t"), sgd(0)),
            sala(0),
            on(Some(data), Some(test), sgd(1)),
        ];
        let message = read(&runs).unwrap_err().to_string();
        assert!(message.contains("sgd-seed0 of"), "{message}");
        assert!(message.contains("made of different data"), "{message}");
    }
}

fn difference(workload: &Workload) -> &compare::Difference {
    workload.to_base().unwrap().of("sala").unwrap()
}

#[test]
fn differences_are_paired_by_seed() {
    let workload = workload(&all_runs());
    assert!(workload.complete);
    assert!(workload.to_base().unwrap().of("sgd").is_none());
    // Unpaired, the spread between the seeds would hide the difference.
    let paired = difference(&workload).paired;
    assert!((paired.mean - 0.125).abs() < 1e-12);
    assert!((paired.sd.unwrap() - 0.01 / 2.0_f64.sqrt()).abs() < 1e-12);
    let sala = &workload.rows[1];
    assert!((sala.time_ratio.unwrap() - 2.0).abs() < 1e-12);
    assert!((sala.climbed.unwrap() - 0.75).abs() < 1e-12);
    assert!((sala.evaluations_per_step.unwrap() - 1.25).abs() < 1e-12);
    assert!((sala.evaluations_ratio.unwrap() - 1.25).abs() < 1e-12);
}

#[test]
fn a_diverged_seed_is_shown_and_not_averaged_away() {
    let mut runs = all_runs();
    runs[3].1.failure = Some("clean pass: the loss is not finite".into());
    let workload = workload(&runs);
    assert_eq!((workload.rows[1].failed, workload.rows[1].test), (1, None));
    assert!(workload.to_base().unwrap().of("sala").is_none());
    let text = tables::overview(&workload).markdown();
    assert!(text.contains("1 diverged"), "{text}");
}

#[test]
fn nothing_is_compared_with_a_base_that_diverged() {
    let mut runs = all_runs();
    runs[0].1.failure = Some("clean pass: the loss is not finite".into());
    let workload = workload(&runs);
    assert!(workload.to_base().unwrap().differences.is_empty());
    assert_eq!(workload.target, None);
    // Its other seed alone would say how much longer SALA takes where SGD does not diverge.
    let sala = &workload.rows[1];
    assert_eq!((sala.time_ratio, sala.evaluations_ratio), (None, None));
}

#[test]
fn an_incomplete_comparison_says_so() {
    let workload = workload(&all_runs()[..3]);
    assert!(!workload.complete);
    let text = tables::overview(&workload).terminal();
    assert!(text.contains("Not all runs are complete"), "{text}");
    assert_eq!(difference(&workload).paired.n, 1);
}

#[test]
fn without_test_scores_the_difference_is_on_validation() {
    let untested = |(epochs, r): (_, RunRecord)| (epochs, RunRecord { test: None, ..r });
    let workload = workload(&all_runs().into_iter().map(untested).collect::<Vec<_>>());
    assert!((difference(&workload).paired.mean - 0.2).abs() < 1e-12);
    let text = tables::overview(&workload).markdown();
    assert!(text.contains("validation − sgd"), "{text}");
}

#[test]
fn another_metric_has_its_own_unit() {
    let plan = SMALL.replace("epochs = 2", "epochs = 2\nmetric = \"loss\"");
    let folder = directory(&plan, &all_runs());
    let report = Report::of(
        &[folder.path().into()],
        &Settings::default(),
        OnConflict::Refuse,
    );
    let workload = &report.unwrap().workloads[0];
    assert_eq!(workload.metric, Metric::Loss);
    let text = tables::overview(workload).markdown();
    assert!(
        !text.contains("test %") && text.contains("0.5000 ± 0.0000"),
        "{text}"
    );
    assert!(text.contains("Loss of the weights at the end"), "{text}");
}

#[test]
fn directories_with_parts_of_one_comparison_become_one() {
    let half = |seed: u64| {
        let plan = SMALL.replace("seeds = [0, 1]", &format!("seeds = [{seed}]"));
        directory(&plan, &[sgd(seed), sala(seed)])
    };
    let (first, second) = (half(1), half(0));
    let paths = [first.path().into(), second.path().into()];
    let report = Report::of(&paths, &Settings::default(), OnConflict::Refuse).unwrap();
    let whole = workload(&all_runs());
    assert_eq!(report.workloads.len(), 1);
    let merged = &report.workloads[0];
    assert!(merged.complete);
    assert_eq!(
        (&merged.rows, &merged.comparisons),
        (&whole.rows, &whole.comparisons)
    );
    // The seeds' times are of two machines, each of which has its own base.
    assert_eq!(merged.views.len(), 2);
}

#[test]
fn one_optimizer_in_each_directory_is_paired_all_the_same() {
    let (head, optimizers) = SMALL.split_once("[[optimizers]]").unwrap();
    let (sgd_plan, sala_plan) = optimizers.split_once("[[optimizers]]").unwrap();
    let plan = |part: &str| format!("{head}[[optimizers]]{part}");
    let one = directory(&plan(sgd_plan), &[sgd(0), sgd(1)]);
    let other = directory(&plan(sala_plan), &[sala(0), sala(1)]);
    let paths = [one.path().into(), other.path().into()];
    let report = Report::of(&paths, &Settings::default(), OnConflict::Refuse).unwrap();
    let merged = &report.workloads[0];
    assert!((difference(merged).paired.mean - 0.125).abs() < 1e-12);
    assert_eq!(merged.rows[1].time_ratio, None, "times of two machines");
}

#[test]
fn the_same_run_twice_counts_once_and_another_one_is_a_conflict() {
    let first = directory(SMALL, &all_runs());
    let mut runs = all_runs();
    // Another machine took longer, which makes it no other run.
    runs[0].1.train_s = 99.0;
    let second = directory(SMALL, &runs);
    let paths = [first.path().into(), second.path().into()];
    let of = |on_conflict| Report::of(&paths, &Settings::default(), on_conflict);
    assert_eq!(of(OnConflict::Refuse).unwrap().workloads[0].rows[0].runs, 2);

    let record = first.path().join("runs/sala-seed1.jsonl");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace("\"abc\"", "\"def\"")).unwrap();
    let message = format!("{:#}", of(OnConflict::Refuse).unwrap_err());
    assert!(
        message.contains("different runs of sala with seed 1")
            && message.contains("--prefer-first"),
        "{message}"
    );
    assert!(of(OnConflict::TakeFirst).is_ok());
}

#[test]
fn one_name_for_two_optimizers_is_refused() {
    let first = directory(SMALL, &all_runs());
    let second = directory(&SMALL.replace("rho = 0.2", "rho = 0.3"), &[]);
    let paths = [first.path().into(), second.path().into()];
    let error = Report::of(&paths, &Settings::default(), OnConflict::Refuse).unwrap_err();
    let message = format!("{error:#}");
    assert!(message.contains("`sala` is another one in"), "{message}");
}

#[test]
fn different_comparisons_get_a_profile() {
    let first = directory(SMALL, &all_runs());
    let second = directory(&SMALL.replace("epochs = 2", "epochs = 3"), &all_runs());
    let paths = [first.path().into(), second.path().into()];
    let report = Report::of(&paths, &Settings::default(), OnConflict::Refuse).unwrap();
    assert_eq!(report.workloads.len(), 2);
    let names: Vec<&str> = report
        .workloads
        .iter()
        .map(|w| w.experiment.as_str())
        .collect();
    assert!(
        names[0].starts_with("small-") && names[0] != names[1],
        "{names:?}"
    );
    let profiles = &report.profiles;
    assert_eq!(profiles.len(), 2);
    // SGD gets to its own target on one of two seeds: not the median.
    assert_eq!(profiles[0].lines[0].ratios, [None, None]);
    assert_eq!(profiles[0].lines[1].ratios, [Some(1.0), Some(1.0)]);
}

#[test]
fn a_directory_that_is_none_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Report::of(
        &[folder.path().into()],
        &Settings::default(),
        OnConflict::Refuse,
    );
    let message = format!("{:#}", error.unwrap_err());
    assert!(message.contains("a run directory of compare"), "{message}");
}

#[test]
fn references_and_margin_of_the_plan_are_followed() {
    let plan = SMALL.replace(
        "[training]",
        "[report]\nmargin = 0.2\nreferences = [\"sala\"]\n[training]",
    );
    let folder = directory(&plan, &all_runs());
    let paths = [folder.path().into()];
    let report = Report::of(&paths, &Settings::default(), OnConflict::Refuse).unwrap();
    let comparisons = &report.workloads[0].comparisons;
    assert_eq!(comparisons.len(), 2);
    let back = comparisons[1].of("sgd").unwrap();
    assert!((back.paired.mean + 0.125).abs() < 1e-12);
    assert!(back.equivalence.unwrap().equivalent);
    let other = Settings {
        margin: Some(0.1),
        references: vec!["nobody".into()],
        base: None,
    };
    let message = format!(
        "{:#}",
        Report::of(&paths, &other, OnConflict::Refuse).unwrap_err()
    );
    assert!(
        message.contains("no optimizer `nobody` in small"),
        "{message}"
    );
}

#[test]
fn trials_of_a_search_are_summed_up_and_not_compared() {
    let (head, optimizers) = SMALL.split_once("[[optimizers]]").unwrap();
    let (sgd_plan, _) = optimizers.split_once("[[optimizers]]").unwrap();
    let trial = |i: usize, lr: &str| {
        let plan = sgd_plan
            .replace("\"sgd\"", &format!("\"sgd.{i}\""))
            .replace("0.05", lr);
        format!("[[optimizers]]{plan}")
    };
    let plan = format!("{head}{}{}", trial(0, "0.1"), trial(1, "0.2"));
    let named = |i: usize, seed: u64, accuracy: f64| {
        let validation: Option<Score> = Some(score(accuracy));
        let name = format!("sgd.{i}");
        (
            Vec::new(),
            RunRecord {
                validation,
                ..run(&name, seed)
            },
        )
    };
    let runs = [
        named(0, 0, 0.5),
        named(0, 1, 0.7),
        named(1, 0, 0.8),
        named(1, 1, 0.9),
    ];
    let folder = directory(&plan, &runs);
    let report = Report::of(
        &[folder.path().into()],
        &Settings::default(),
        OnConflict::Refuse,
    );
    let workload = &report.unwrap().workloads[0];
    assert!(workload.is_search());
    let sgd = &workload.sensitivity[0];
    assert_eq!((sgd.optimizer.as_str(), sgd.trials.len()), ("sgd", 2));
    assert!(
        (sgd.best.unwrap() - 0.85).abs() < 1e-12 && (sgd.median.unwrap() - 0.725).abs() < 1e-12
    );
    assert_eq!(sgd.parameters[0].0, "lr");
    let tables: Vec<String> = grids(workload).into_iter().map(|g| g.title).collect();
    assert_eq!(
        tables,
        ["Result", "Sensitivity to hyper-parameters", "sgd: lr"]
    );
}
