//! Records: what a run leaves on disk.
//!
//! ```text
//! DIR/experiment.toml           what is run
//! DIR/environment.json          where and by which version
//! DIR/runs/sgd-seed0.jsonl      one line an epoch, then one line for the run
//! DIR/runs/….checkpoint.safetensors   to go on with a fine-tuning that was interrupted
//! DIR/runs.jsonl                the last line of every complete run
//! DIR/summary.{json,md,csv}     the report
//! ```
//!
//! A run that is under way writes to `….jsonl.partial`, flushed after every line, and gets its name
//! when it is complete. So whatever has the final name is whole, and everything else is run again or
//! gone on with: runs are deterministic, and end at the same bits.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use sala_core::checkpoint::write_atomically;
use serde::{Deserialize, Serialize};

use crate::{claim::Claim, metrics::Score};

/// The file that says what is run.
pub(crate) const PLAN: &str = "experiment.toml";

/// One epoch of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct EpochRecord {
    /// From 1.
    pub(crate) epoch: u64,
    /// Steps taken since the beginning of the run.
    pub(crate) steps: u64,
    /// Learning rate of the epoch's last step.
    pub(crate) lr: f64,
    /// Mean over the epoch's steps of the first pass's loss.
    pub(crate) train_loss: f64,
    /// Mean over the epoch's steps of the norm of the gradient that updated the weights.
    pub(crate) grad_norm: f64,
    pub(crate) validation: Score,
    /// Gradient evaluations of a whole batch in this epoch.
    pub(crate) evaluations: f64,
    /// Steps of this epoch that climbed.
    pub(crate) ascents: u64,
    /// Last gap of the epoch, for methods with one.
    pub(crate) gap: Option<f64>,
    /// Seconds of training in this epoch, changes to slow weights and back included, evaluation not.
    pub(crate) train_s: f64,
}

/// A complete run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    pub(crate) optimizer: String,
    pub(crate) seed: u64,
    /// Nothing when the run went to its end; else why it stopped (it diverged), in words.
    pub(crate) failure: Option<String>,
    pub(crate) steps: u64,
    /// Gradient evaluations of a whole batch, all steps together.
    pub(crate) evaluations: f64,
    pub(crate) ascents: u64,
    /// Cycles at whose end the method could have climbed, if it decides that as it goes.
    pub(crate) cycles: Option<u64>,
    pub(crate) train_s: f64,
    /// The epoch whose weights were scored last, where that was chosen on the validation part (early
    /// stopping); nothing for the weights at the end of training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) epoch: Option<u64>,
    /// Of those weights, as the test score.
    pub(crate) validation: Option<Score>,
    /// If the test part was to be read.
    pub(crate) test: Option<Score>,
    /// SHA-256 over those parameters: equal for equal bits.
    pub(crate) parameters: String,
}

/// What the files of a run are called by.
pub(crate) fn run_name(optimizer: &str, seed: u64) -> String {
    format!("{optimizer}-seed{seed}")
}

/// A line of a run's file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "lowercase")]
enum Line {
    Epoch(EpochRecord),
    Run(RunRecord),
}

/// Where the numbers were made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Environment {
    pub(crate) version: String,
    pub(crate) commit: String,
    pub(crate) candle: String,
    pub(crate) os: String,
    pub(crate) arch: String,
    pub(crate) threads: usize,
    pub(crate) device: String,
}

impl Environment {
    pub(crate) fn here(device: &str) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            commit: env!("SALA_COMMIT").into(),
            candle: env!("CANDLE_VERSION").into(),
            os: std::env::consts::OS.into(),
            arch: std::env::consts::ARCH.into(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            device: device.into(),
        }
    }
}

/// A run directory, locked while it is open.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    /// Held until it is dropped.
    lock: File,
}

/// How a run directory is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access<'a> {
    /// Where its runs compute, for `environment.json`.
    pub(crate) device: &'a str,
    pub(crate) sharing: Sharing,
    /// Whether to remove the records of an earlier plan.
    pub(crate) fresh: bool,
}

impl<'a> Access<'a> {
    /// With nobody else in it.
    pub(crate) fn alone(device: &'a str, fresh: bool) -> Self {
        Self {
            device,
            sharing: Sharing::Alone,
            fresh,
        }
    }
}

/// Who else may work in a run directory at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    Alone,
    /// Other processes that share it too; each run is made by one of them.
    Shared,
}

impl RunDir {
    /// Opens or makes the directory of what `plan` (TOML) says in full.
    ///
    /// # Errors
    /// When it belongs to another experiment, when another process has it open and one of them does not share,
    /// or when it cannot be written.
    pub(crate) fn open(path: &Path, plan: &str, access: Access<'_>) -> Result<Self> {
        let Access {
            device,
            sharing,
            fresh,
        } = access;
        fs::create_dir_all(path)
            .with_context(|| format!("cannot make the folder {}", path.display()))?;
        let lock_path = path.join(".lock");
        let lock = File::create(&lock_path)
            .with_context(|| format!("cannot write in the run directory {}", path.display()))?;
        let first = lock.try_lock().is_ok();
        if !first && (fresh || sharing == Sharing::Alone || !join(&lock)) {
            bail!(
                "{} is in use by another process; wait for it or choose another --out",
                path.display()
            );
        }
        let dir = Self {
            path: path.into(),
            lock,
        };
        if fresh {
            dir.forget()?;
        }
        let runs = path.join("runs");
        fs::create_dir_all(&runs)
            .with_context(|| format!("cannot make the folder {}", runs.display()))?;
        dir.claim(plan)?;
        if first {
            let environment = serde_json::to_vec_pretty(&Environment::here(device))?;
            dir.write("environment.json", &environment)?;
        }
        if first && sharing == Sharing::Shared {
            dir.lock
                .lock_shared()
                .with_context(|| format!("cannot share {}", path.display()))?;
        }
        Ok(dir)
    }

    /// Removes the records of an earlier plan; a folder that is no run directory is left as it is.
    fn forget(&self) -> Result<()> {
        let (plan, runs) = (self.path.join(PLAN), self.path.join("runs"));
        if !plan.is_file() {
            return Ok(());
        }
        if runs.is_dir() {
            fs::remove_dir_all(&runs)
                .with_context(|| format!("cannot remove {}", runs.display()))?;
        }
        fs::remove_file(&plan)
            .with_context(|| format!("cannot begin anew in {}", self.path.display()))
    }

    /// Takes a run for this process; nothing while another one is at it.
    pub(crate) fn claim_run(&self, optimizer: &str, seed: u64) -> Result<Option<Claim>> {
        Claim::take(self.run_file(optimizer, seed).with_extension("lock"))
    }

    /// Writes the plan into a new directory, or checks that it is the one that is there.
    fn claim(&self, plan: &str) -> Result<()> {
        let file = self.path.join(PLAN);
        match fs::read_to_string(&file) {
            Ok(there) => {
                ensure!(
                    there == plan,
                    "{} holds another experiment ({}); choose another --out, or --fresh to begin anew",
                    self.path.display(),
                    difference(&there, plan)
                );
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => self.write(PLAN, plan.as_bytes()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file of the directory in one step.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        write_atomically(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Writes the last line of every run into one file, in this order.
    pub(crate) fn write_runs(&self, records: &[RunRecord]) -> Result<()> {
        let lines: Vec<String> = records
            .iter()
            .map(serde_json::to_string)
            .collect::<Result<_, _>>()?;
        self.write("runs.jsonl", (lines.join("\n") + "\n").as_bytes())
    }

    fn run_file(&self, optimizer: &str, seed: u64) -> PathBuf {
        run_file(&self.path, optimizer, seed)
    }

    /// Where a run keeps what it takes to go on with it.
    pub(crate) fn checkpoint_file(&self, optimizer: &str, seed: u64) -> PathBuf {
        self.run_file(optimizer, seed)
            .with_extension("checkpoint.safetensors")
    }

    /// The record of a complete run; nothing when it has not been completed.
    ///
    /// # Errors
    /// When the file is there and not whole, with the line.
    pub(crate) fn finished(&self, optimizer: &str, seed: u64) -> Result<Option<RunRecord>> {
        let run = read_run(&self.run_file(optimizer, seed))?;
        Ok(run.map(|(_, record)| record))
    }

    /// Begins the record of a run.
    pub(crate) fn begin(&self, optimizer: &str, seed: u64) -> Result<RunWriter> {
        let path = self.run_file(optimizer, seed);
        let partial = path.with_extension("jsonl.partial");
        let file = File::create(&partial)
            .with_context(|| format!("cannot write {}", partial.display()))?;
        Ok(RunWriter {
            file,
            partial,
            path,
        })
    }
}

/// Where the record of a run is, or would be.
pub(crate) fn run_file(directory: &Path, optimizer: &str, seed: u64) -> PathBuf {
    let name = format!("{}.jsonl", run_name(optimizer, seed));
    directory.join("runs").join(name)
}

/// The epochs and the record of a complete run; nothing where there is no file.
///
/// # Errors
/// When the file is there and not whole, with the line.
pub(crate) fn read_run(path: &Path) -> Result<Option<(Vec<EpochRecord>, RunRecord)>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let (mut epochs, mut run) = (Vec::new(), None);
    for (number, line) in text.lines().enumerate() {
        let line: Line = serde_json::from_str(line).with_context(|| {
            let place = format!("{}, line {}", path.display(), number + 1);
            format!("{place}, is no record; delete the file to run it again")
        })?;
        match line {
            Line::Epoch(record) => epochs.push(record),
            Line::Run(record) => run = Some(record),
        }
    }
    let run = run.with_context(|| {
        format!(
            "{} has no last line; delete it to run it again",
            path.display()
        )
    })?;
    Ok(Some((epochs, run)))
}

/// Joins those who share a directory. Whoever opens it first has it alone for a moment.
fn join(lock: &File) -> bool {
    (0..50).any(|attempt| {
        if attempt > 0 {
            std::thread::sleep(Duration::from_millis(40));
        }
        lock.try_lock_shared().is_ok()
    })
}

/// The first line in which two plans differ.
fn difference(there: &str, here: &str) -> String {
    let pair = there.lines().zip(here.lines()).find(|(a, b)| a != b);
    match pair {
        Some((a, b)) => format!("there: `{a}`, here: `{b}`"),
        None => "one is longer than the other".into(),
    }
}

/// Writes a run line by line.
#[derive(Debug)]
pub(crate) struct RunWriter {
    file: File,
    partial: PathBuf,
    path: PathBuf,
}

impl RunWriter {
    pub(crate) fn epoch(&mut self, record: &EpochRecord) -> Result<()> {
        self.line(&Line::Epoch(record.clone()))
    }

    /// The last line; the file gets its final name.
    pub(crate) fn finish(mut self, record: &RunRecord) -> Result<()> {
        self.line(&Line::Run(record.clone()))?;
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.partial, &self.path))
            .with_context(|| format!("cannot complete {}", self.path.display()))
    }

    fn line(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        let written = self
            .file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.flush());
        written.with_context(|| format!("cannot write {}", self.partial.display()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn score(accuracy: f64) -> Score {
        Score {
            loss: 0.5,
            accuracy: Some(accuracy),
            ..Score::default()
        }
    }

    pub(crate) fn run(optimizer: &str, seed: u64) -> RunRecord {
        RunRecord {
            optimizer: optimizer.into(),
            seed,
            failure: None,
            steps: 10,
            evaluations: 12.5,
            ascents: 5,
            cycles: Some(5),
            train_s: 1.5,
            epoch: None,
            validation: Some(score(0.8)),
            test: Some(score(0.1 + 0.2)),
            parameters: "abc".into(),
        }
    }

    fn open(path: &Path) -> Result<RunDir> {
        RunDir::open(path, PLAN_TEXT, Access::alone("cpu", false))
    }

    fn access(sharing: Sharing) -> Access<'static> {
        Access {
            sharing,
            ..Access::alone("cpu", false)
        }
    }

    const PLAN_TEXT: &str = "epochs = 2\nlr = 0.1\n";

    #[test]
    fn a_run_exists_only_once_it_is_complete_and_comes_back_exactly() {
        let folder = tempfile::tempdir().unwrap();
        let dir = open(folder.path()).unwrap();
        let writer = dir.begin("sgd", 0).unwrap();
        assert_eq!(dir.finished("sgd", 0).unwrap(), None);
        writer.finish(&run("sgd", 0)).unwrap();
        assert_eq!(dir.finished("sgd", 0).unwrap(), Some(run("sgd", 0)));
        assert_eq!(dir.finished("sgd", 1).unwrap(), None);
    }

    #[test]
    fn a_spoiled_record_is_refused_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let dir = open(folder.path()).unwrap();
        dir.begin("sgd", 0).unwrap().finish(&run("sgd", 0)).unwrap();
        let path = folder.path().join("runs/sgd-seed0.jsonl");
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{{\"record\":\"ep\n{whole}")).unwrap();
        let message = format!("{:#}", dir.finished("sgd", 0).unwrap_err());
        assert!(message.contains("sgd-seed0.jsonl, line 1"), "{message}");
        fs::write(&path, "").unwrap();
        assert!(
            dir.finished("sgd", 0)
                .unwrap_err()
                .to_string()
                .contains("no last line")
        );
    }

    #[test]
    fn a_directory_belongs_to_one_experiment_and_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path()).unwrap();
        let message = open(folder.path()).unwrap_err().to_string();
        assert!(message.contains("in use by another process"), "{message}");
        drop(first);
        open(folder.path()).unwrap();
        for sharing in [Sharing::Alone, Sharing::Shared] {
            let plan = PLAN_TEXT.replace('2', "3");
            let message = RunDir::open(folder.path(), &plan, access(sharing)).unwrap_err();
            let message = message.to_string();
            assert!(
                message.contains("there: `epochs = 2`, here: `epochs = 3`"),
                "{message}"
            );
        }
    }

    #[test]
    fn a_shared_directory_is_shared_with_those_who_share_it_alone() {
        let folder = tempfile::tempdir().unwrap();
        let shared = || RunDir::open(folder.path(), PLAN_TEXT, access(Sharing::Shared));
        let (first, second) = (shared().unwrap(), shared().unwrap());
        assert!(open(folder.path()).is_err());
        let claim = first.claim_run("sgd", 0).unwrap().unwrap();
        assert!(second.claim_run("sgd", 0).unwrap().is_none());
        assert!(second.claim_run("sgd", 1).unwrap().is_some());
        drop(claim);
        assert!(second.claim_run("sgd", 0).unwrap().is_some());
        drop((first, second));
        let alone = open(folder.path()).unwrap();
        let fresh = Access::alone("cpu", true);
        assert!(RunDir::open(folder.path(), PLAN_TEXT, fresh).is_err());
        assert!(folder.path().join(PLAN).is_file(), "records of others stay");
        assert!(shared().unwrap_err().to_string().contains("in use"));
        drop(alone);
    }
}
