//! `--emit slurm`: a job array in which each task makes one run, by calling `cell`.
//!
//! ```text
//! DIR/slurm/cells.tsv         every run of the plan: index, optimizer, seed
//! DIR/slurm/array-0.sh        for sbatch: the runs that were missing when it was written
//! DIR/slurm/logs/             what the tasks print
//! DIR/slurm/NODE.json         versions and processors of each node that took part
//! ```
//!
//! An index belongs to its run as long as the plan is the same, so scripts of earlier calls stay right: what
//! is complete by then is not run again.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result, ensure};

use crate::{
    compare::run_missing,
    record::{Access, Environment, PLAN, RunDir, Sharing},
    runs::{Outcome, Work},
    spec::Experiment,
    train::Trainer,
};

/// The largest array that Slurm takes unless it is configured otherwise (`MaxArraySize`, 1001).
const LARGEST_ARRAY: usize = 1000;

/// What a job asks Slurm for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    /// Processors of a task.
    pub(crate) processors: usize,
    /// Tasks at a time; all that fit unless set.
    pub(crate) at_once: Option<usize>,
    /// Further options of sbatch.
    pub(crate) options: Vec<String>,
}

/// The runs of an experiment in the order of their indices: seeds outside, optimizers inside.
fn cells(experiment: &Experiment) -> impl Iterator<Item = (&str, u64)> {
    let seeds = experiment.training.seeds.iter();
    seeds.flat_map(|&seed| {
        let names = experiment.optimizers.iter().map(|o| o.name.as_str());
        names.map(move |name| (name, seed))
    })
}

/// Writes the table of all runs and scripts for those that are missing, and says what to do with them.
pub(crate) fn emit(experiment: &Experiment, dir: &RunDir, request: &Request) -> Result<String> {
    let (mut table, mut missing) = (String::from("index\toptimizer\tseed\n"), Vec::new());
    for (index, (optimizer, seed)) in cells(experiment).enumerate() {
        writeln!(table, "{index}\t{optimizer}\t{seed}")?;
        if dir.finished(optimizer, seed)?.is_none() {
            missing.push(index);
        }
    }
    let place = dir.path().join("slurm");
    fs::create_dir_all(place.join("logs"))
        .with_context(|| format!("cannot make the folder {}", place.display()))?;
    dir.write("slurm/cells.tsv", table.as_bytes())?;
    if missing.is_empty() {
        return Ok(format!(
            "All runs are complete in {}.",
            dir.path().display()
        ));
    }
    let mut commands = format!("{} runs are missing. Submit them with\n", missing.len());
    let name = &experiment.name;
    for (number, indices) in blocks(&missing) {
        let file = format!("slurm/array-{number}.sh");
        let script = script(name, dir.path(), number, &indices, request)?;
        dir.write(&file, script.as_bytes())?;
        writeln!(commands, "  sbatch {}", dir.path().join(&file).display())?;
    }
    Ok(commands)
}

/// The indices in blocks that an array can hold, each with its number.
fn blocks(indices: &[usize]) -> Vec<(usize, Vec<usize>)> {
    let mut blocks: Vec<(usize, Vec<usize>)> = Vec::new();
    for &index in indices {
        let number = index / LARGEST_ARRAY;
        match blocks.last_mut() {
            Some((last, block)) if *last == number => block.push(index),
            _ => blocks.push((number, vec![index])),
        }
    }
    blocks
}

fn script(
    name: &str,
    dir: &Path,
    block: usize,
    indices: &[usize],
    request: &Request,
) -> Result<String> {
    let absolute = |path: &Path| {
        let path = std::path::absolute(path)?;
        let text = path.to_str().context("the path is no Unicode text")?;
        ensure!(
            !text.contains(['\n', '"', '%']),
            "Slurm cannot be given a path with a line break, a quotation mark or a per cent sign: {text}"
        );
        Ok(text.to_owned())
    };
    let (program, folder) = (std::env::current_exe()?, std::env::current_dir()?);
    let (program, folder, dir) = (absolute(&program)?, absolute(&folder)?, absolute(dir)?);
    let offset = block * LARGEST_ARRAY;
    let inside: Vec<usize> = indices.iter().map(|index| index - offset).collect();
    let limit = request
        .at_once
        .map_or_else(String::new, |n| format!("%{n}"));
    let mut options = String::new();
    for option in &request.options {
        writeln!(options, "#SBATCH {option}")?;
    }
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    Ok(format!(
        r#"#!/bin/bash
# Runs of {name}, one a task; cells.tsv beside this file says which. What is complete by then is not run again.
#SBATCH --job-name={name}
#SBATCH --array={array}{limit}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={processors}
#SBATCH --output="{dir}/slurm/logs/%A_%a.log"
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@30
{options}set -euo pipefail
cd {folder}
export RAYON_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-{processors}}}"
exec {program} cell --out {out} --index "$(({offset} + SLURM_ARRAY_TASK_ID))"
"#,
        array = ranges(&inside),
        processors = request.processors.max(1),
        folder = quoted(&folder),
        program = quoted(&program),
        out = quoted(&dir),
    ))
}

/// Ascending numbers as Slurm writes them: `0-3,7,9-10`.
fn ranges(numbers: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &n in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => ranges.push((n, n)),
        }
    }
    let text = |(first, last): (usize, usize)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    };
    let texts: Vec<_> = ranges.into_iter().map(text).collect();
    texts.join(",")
}

/// Makes one run of a directory's plan, beside other processes that make others.
pub(crate) fn cell(out: &Path, index: usize, work: &Work) -> Result<Outcome> {
    let path = out.join(PLAN);
    let plan = fs::read_to_string(&path)
        .with_context(|| format!("no runs to make: cannot read {}", path.display()))?;
    let mut experiment = Experiment::from_toml(&plan, &path.display().to_string())?;
    let count = cells(&experiment).count();
    let (optimizer, seed) = cells(&experiment).nth(index).with_context(|| {
        format!("--index must be below the {count} runs of the plan, got {index}")
    })?;
    let optimizer = optimizer.to_owned();
    experiment.select(&[optimizer])?;
    experiment.training.seeds = vec![seed];
    let device = experiment.device.to_string();
    let access = Access {
        sharing: Sharing::Shared,
        ..Access::alone(&device, false)
    };
    let dir = RunDir::open(out, &plan, access)?;
    if let Ok(node) = std::env::var("SLURMD_NODENAME")
        && out.join("slurm").is_dir()
    {
        let environment = serde_json::to_vec_pretty(&Environment::here(&device))?;
        dir.write(&format!("slurm/{node}.json"), &environment)?;
    }
    let trainer = Trainer::new(&experiment)?;
    run_missing(trainer, &dir, work).map(|(_, outcome)| outcome)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{record::tests::run, spec::tests::SMALL};

    fn dir(folder: &Path, experiment: &Experiment) -> RunDir {
        let plan = experiment.to_toml().unwrap();
        RunDir::open(folder, &plan, Access::alone("cpu", false)).unwrap()
    }

    #[test]
    fn numbers_are_written_as_slurm_reads_them() {
        assert_eq!(ranges(&[0, 1, 2, 3, 7, 9, 10]), "0-3,7,9-10");
        assert_eq!(ranges(&[5]), "5");
    }

    #[test]
    fn a_large_array_is_cut_where_slurm_ends() {
        let all: Vec<_> = (998..1003).chain([2500]).collect();
        let blocks = blocks(&all);
        assert_eq!(blocks[0], (0, vec![998, 999]));
        assert_eq!(blocks[1], (1, vec![1000, 1001, 1002]));
        assert_eq!(blocks[2], (2, vec![2500]));
        let script = script("x", Path::new("d"), 2, &[2500], &Request::default()).unwrap();
        assert!(script.contains("--array=500\n"), "{script}");
        assert!(
            script.contains("$((2000 + SLURM_ARRAY_TASK_ID))"),
            "{script}"
        );
    }

    #[test]
    fn only_what_is_missing_is_submitted_and_every_index_keeps_its_run() {
        let folder = tempfile::tempdir().unwrap();
        let experiment = Experiment::from_toml(SMALL, "small").unwrap();
        let dir = dir(folder.path(), &experiment);
        let request = Request {
            processors: 3,
            at_once: Some(2),
            options: vec!["--partition=short".into()],
        };
        let said = emit(&experiment, &dir, &request).unwrap();
        assert!(said.contains("4 runs are missing"), "{said}");
        let read = |name: &str| fs::read_to_string(folder.path().join("slurm").join(name)).unwrap();
        let table = "index\toptimizer\tseed\n0\tsgd\t0\n1\tsala\t0\n2\tsgd\t1\n3\tsala\t1\n";
        assert_eq!(read("cells.tsv"), table);
        dir.begin("sala", 0)
            .unwrap()
            .finish(&run("sala", 0))
            .unwrap();
        emit(&experiment, &dir, &request).unwrap();
        assert_eq!(read("cells.tsv"), table);
        let script = read("array-0.sh");
        for words in [
            "--array=0,2-3%2\n",
            "--cpus-per-task=3\n",
            "#SBATCH --partition=short\n",
            "cell --out '",
            "\"$((0 + SLURM_ARRAY_TASK_ID))\"",
        ] {
            assert!(script.contains(words), "{words} in {script}");
        }
        for (optimizer, seed) in cells(&experiment) {
            dir.begin(optimizer, seed)
                .unwrap()
                .finish(&run(optimizer, seed))
                .unwrap();
        }
        let said = emit(&experiment, &dir, &request).unwrap();
        assert!(said.contains("All runs are complete"), "{said}");
    }

    #[test]
    fn a_path_that_slurm_would_read_otherwise_is_refused_and_others_are_quoted() {
        let request = Request::default();
        let refused = script("x", Path::new("100%"), 0, &[0], &request).unwrap_err();
        assert!(refused.to_string().contains("per cent"), "{refused}");
        let script = script("x", Path::new("it's here"), 0, &[0], &request).unwrap();
        assert!(script.contains(r"it'\''s here'"), "{script}");
    }
}
