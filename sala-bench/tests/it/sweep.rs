//! Searches: several processes at once, interruptions, and job arrays.

use std::{
    fs,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{
    EXPERIMENT, Place,
    common::{fail, succeed, wait_for},
};

const SEARCH: &str = r#"
    strategy = "sobol"
    trials = 2
    studies = 2
    seeds = [9]
    [space."*"]
    lr = { min = 1e-3, max = 0.1, scale = "log" }
    [space.sala]
    k = { min = 1, max = 4 }
"#;

/// An experiment of two optimizers, and a search of eight runs.
fn place() -> Place {
    let sala = EXPERIMENT.split("[[optimizers]]").nth(3).unwrap();
    let head: Vec<_> = EXPERIMENT.split("[[optimizers]]").take(2).collect();
    let place = Place::new(&[head[0], head[1], sala].join("[[optimizers]]"));
    fs::write(place.path("search.toml"), SEARCH).unwrap();
    place
}

fn sweep(place: &Place, out: &str) -> Command {
    place.command(&[
        "sweep",
        "--experiment",
        "experiment.toml",
        "--search",
        "search.toml",
        "--jobs",
        "1",
        "--out",
        out,
    ])
}

#[test]
fn a_search_reports_the_median_over_studies_and_never_reads_the_test_part() {
    let place = place();
    let (table, _) = succeed(&mut sweep(&place, "out"));
    assert!(table.contains("| sala | 2 × 2 |"), "{table}");
    let found: Value =
        serde_json::from_slice(&fs::read(place.path("out/search.json")).unwrap()).unwrap();
    let chosen = found["optimizers"][1]["chosen"].as_str().unwrap();
    assert!(chosen.starts_with("sala."), "{found}");
    assert_eq!(
        found["optimizers"][0]["studies"].as_array().unwrap().len(),
        2
    );
    let records = fs::read_to_string(place.path("out/runs.jsonl")).unwrap();
    assert_eq!(records.matches("\"test\":null").count(), 8, "{records}");
    // The plan says so itself: whoever runs it as a comparison does not read the test part either.
    let plan = fs::read_to_string(place.path("out/experiment.toml")).unwrap();
    assert!(plan.contains("test = \"never\""), "{plan}");
    let (again, progress) = succeed(&mut place.command(&["sweep", "--resume", "--out", "out"]));
    assert!(progress.contains("All 8 runs are complete"), "{progress}");
    assert_eq!(again, table);
}

// Catches a search that ends in an error, before anything is written, because one of its optimizers only diverged.
#[test]
fn an_optimizer_that_only_diverged_keeps_nothing_back() {
    let place = place();
    let search = format!("{SEARCH}\n[space.sgd]\nlr = [1e18, 1e19]\n");
    fs::write(place.path("search.toml"), search).unwrap();
    let (table, _) = succeed(&mut sweep(&place, "out"));
    assert!(table.contains("Every trial of sgd diverged"), "{table}");
    let found = fs::read(place.path("out/search.json")).unwrap();
    let found: Value = serde_json::from_slice(&found).unwrap();
    assert_eq!(found["optimizers"][0]["chosen"], Value::Null);
    assert!(found["optimizers"][1]["chosen"].is_string());
    assert!(place.path("out/tuned.toml").is_file());
}

#[test]
fn processes_share_a_sweep_and_one_that_is_killed_is_replaced() {
    let place = place();
    succeed(&mut sweep(&place, "alone"));
    let mut doomed = sweep(&place, "shared");
    let mut doomed = doomed
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let runs = place.path("shared/runs");
    wait_for("a run under way", || {
        let entries = fs::read_dir(&runs).into_iter().flatten().flatten();
        entries
            .into_iter()
            .any(|e| e.path().to_string_lossy().ends_with(".partial"))
    });
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let mut worker = sweep(&place, "shared");
            worker
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    doomed.kill().unwrap();
    doomed.wait().unwrap();
    let tables: Vec<_> = workers
        .into_iter()
        .map(|worker| {
            let output = worker.wait_with_output().unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            String::from_utf8(output.stdout).unwrap()
        })
        .collect();
    assert_eq!(tables[0], tables[1]);
    assert_eq!(place.parameters("shared"), place.parameters("alone"));
    let left = fs::read_dir(&runs).unwrap().flatten();
    let locks = left.filter(|e| e.path().extension().is_some_and(|x| x == "lock"));
    assert_eq!(locks.count(), 0, "no lock stays behind a complete run");
}

#[test]
fn the_tasks_of_an_array_find_what_one_process_finds() {
    let place = place();
    succeed(&mut sweep(&place, "alone"));
    let (said, _) = succeed(sweep(&place, "array").args([
        "--emit",
        "slurm",
        "--sbatch=--partition=short",
        "--cpus-per-task",
        "1",
    ]));
    assert!(said.contains("sbatch array/slurm/array-0.sh"), "{said}");
    let script = place.path("array/slurm/array-0.sh");
    let text = fs::read_to_string(&script).unwrap();
    assert!(text.contains("#SBATCH --partition=short\n"), "{text}");
    assert!(text.contains("#SBATCH --array=0-7\n"), "{text}");
    // What Slurm does, task after task; the script changes to the folder it was written in.
    for task in 0..8 {
        let mut bash = Command::new("bash");
        bash.arg(&script)
            .env("SLURM_ARRAY_TASK_ID", task.to_string())
            .env("SLURM_CPUS_PER_TASK", "1")
            .env("SLURMD_NODENAME", "node1");
        succeed(&mut bash);
    }
    assert!(place.path("array/slurm/node1.json").is_file());
    succeed(&mut place.command(&["sweep", "--resume", "--out", "array"]));
    assert_eq!(place.parameters("array"), place.parameters("alone"));
    let tuned = |out: &str| fs::read_to_string(place.path(out).join("tuned.toml")).unwrap();
    assert_eq!(tuned("array"), tuned("alone"));
    let message = fail(&mut place.command(&["cell", "--out", "array", "--index", "8"]));
    assert!(
        message.contains("below the 8 runs of the plan, got 8"),
        "{message}"
    );
    let message = fail(&mut place.command(&["cell", "--out", "nowhere", "--index", "0"]));
    assert!(message.contains("no runs to make"), "{message}");
}
