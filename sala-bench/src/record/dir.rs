//! The folder of an experiment's runs.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{ErrorKind, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use sala_core::checkpoint::write_atomically;

use super::{
    Environment, RunRecord,
    file::{RunWriter, read_run},
    run_name,
};
use crate::{
    claim::Claim,
    runs::checkpoint::{CheckpointFile, Owner},
    spec::fingerprint,
};

/// The file that says what is run.
pub(crate) const PLAN: &str = "experiment.toml";
const ENVIRONMENT: &str = "environment.json";
const RUNS: &str = "runs";
const MODELS: &str = "models";
const TENSORBOARD: &str = "tensorboard";
const LOCK: &str = ".lock";
/// What is the runs', what commands have found of them, and what a scheduler was given.
const FOLDERS: [&str; 5] = [RUNS, MODELS, TENSORBOARD, "sharpness", "slurm"];
/// Files that would be of other runs than those that come.
const MADE_OF_RUNS: [&str; 14] = [
    ENVIRONMENT,
    "runs.jsonl",
    "summary.json",
    "summary.csv",
    "summary.md",
    "report.html",
    "report.md",
    "report.csv",
    "report.json",
    "base.toml",
    "search.toml",
    "search.json",
    "search.md",
    "tuned.toml",
];

/// A run directory, locked while it is open.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    /// Fingerprint of the plan.
    experiment: String,
    /// Where its runs compute.
    device: String,
    /// Held until it is dropped.
    lock: File,
}

/// How a run directory is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access<'a> {
    /// Where its runs compute, for `environment.json`.
    pub(crate) device: &'a str,
    pub(crate) sharing: Sharing,
    /// Whether to remove first what an earlier plan has left there.
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
        let runs = path.join(RUNS);
        let no_folder = || {
            format!(
                "cannot make the folder {}; choose another --out",
                runs.display()
            )
        };
        fs::create_dir_all(&runs).with_context(no_folder)?;
        let (lock, first) = lock(path, access)?;
        let dir = Self {
            path: path.into(),
            experiment: fingerprint(plan),
            device: access.device.into(),
            lock,
        };
        if access.fresh {
            dir.clear()?;
        }
        dir.claim(plan)?;
        if first {
            dir.sweep()?;
            if access.sharing == Sharing::Shared {
                (dir.lock.lock_shared())
                    .with_context(|| format!("cannot share {}", path.display()))?;
            }
        }
        Ok(dir)
    }

    /// Takes a run for this process; nothing while another one is at it.
    pub(crate) fn claim_run(&self, optimizer: &str, seed: u64) -> Result<Option<Claim>> {
        Claim::take(self.run_file(optimizer, seed).with_extension("lock"))
    }

    /// Removes what the program has left and last the plan, if there is one: a folder without is none of this
    /// program's.
    fn clear(&self) -> Result<()> {
        let plan = self.path.join(PLAN);
        if !plan.is_file() {
            return Ok(());
        }
        for name in FOLDERS.iter().chain(&MADE_OF_RUNS) {
            let path = self.path.join(name);
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            match removed {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", path.display()));
                }
                _ => {}
            }
        }
        fs::create_dir(self.path.join(RUNS))
            .and_then(|()| fs::remove_file(&plan))
            .with_context(|| format!("cannot begin anew in {}", self.path.display()))
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
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let runs = self.path.join(RUNS);
                let mut entries = fs::read_dir(&runs)
                    .with_context(|| format!("cannot read {}", runs.display()))?;
                ensure!(
                    entries.next().is_none(),
                    "{} holds runs but no {PLAN} that says of what; choose another --out, or remove them",
                    self.path.display()
                );
                self.write(PLAN, plan.as_bytes())
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }

    /// Removes what processes that were killed have left: contents written aside, claims of runs.
    fn sweep(&self) -> Result<()> {
        for folder in [
            self.path.clone(),
            self.path.join(RUNS),
            self.path.join(MODELS),
        ] {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                let claim = folder.ends_with(RUNS) && name.ends_with(LOCK);
                if claim || is_left_aside(&entry.path()) {
                    fs::remove_file(entry.path())
                        .with_context(|| format!("cannot remove {}", entry.path().display()))?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file of the directory in one step.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        write_atomically(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Says where runs are made, before the first one is. What says so of complete runs stays: it is theirs, and
    /// the record of a run that is made later has its own program.
    pub(crate) fn describe_environment(&self) -> Result<()> {
        if self.path.join(ENVIRONMENT).is_file() && self.has_complete_runs()? {
            return Ok(());
        }
        let environment = serde_json::to_vec_pretty(&Environment::here(&self.device))?;
        self.write(ENVIRONMENT, &environment)
    }

    fn has_complete_runs(&self) -> Result<bool> {
        let runs = self.path.join(RUNS);
        let entries =
            fs::read_dir(&runs).with_context(|| format!("cannot read {}", runs.display()))?;
        let is_record =
            |entry: fs::DirEntry| entry.path().extension().is_some_and(|e| e == "jsonl");
        Ok(entries.flatten().any(is_record))
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

    /// Where a run on the data with this fingerprint keeps what it takes to go on with it.
    pub(crate) fn checkpoint(&self, optimizer: &str, seed: u64, data: &str) -> CheckpointFile {
        CheckpointFile {
            path: (self.run_file(optimizer, seed)).with_extension("checkpoint.safetensors"),
            owner: Owner {
                experiment: self.experiment.clone(),
                run: run_name(optimizer, seed),
                data: data.into(),
            },
        }
    }

    /// The folder of the models, made if needed.
    pub(crate) fn models(&self) -> Result<PathBuf> {
        let folder = self.path.join(MODELS);
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        Ok(folder)
    }

    /// The folder of a run's events.
    pub(crate) fn tensorboard(&self, optimizer: &str, seed: u64) -> PathBuf {
        self.path.join(TENSORBOARD).join(run_name(optimizer, seed))
    }

    /// The record of a complete run; nothing when it has not been completed.
    ///
    /// # Errors
    /// When the file is there and not whole, with the line, or holds another run.
    pub(crate) fn finished(&self, optimizer: &str, seed: u64) -> Result<Option<RunRecord>> {
        let path = self.run_file(optimizer, seed);
        let record = read_run(&path)?.map(|(_, record)| record);
        if let Some(record) = &record {
            ensure!(
                (record.optimizer.as_str(), record.seed) == (optimizer, seed),
                "{} holds the run {}; delete it to run it again",
                path.display(),
                run_name(&record.optimizer, record.seed)
            );
        }
        Ok(record)
    }

    /// Begins the record of a run.
    pub(crate) fn begin(&self, optimizer: &str, seed: u64) -> Result<RunWriter> {
        RunWriter::begin(self.run_file(optimizer, seed))
    }
}

/// Where the record of a run is, or would be.
pub(crate) fn run_file(directory: &Path, optimizer: &str, seed: u64) -> PathBuf {
    let name = format!("{}.jsonl", run_name(optimizer, seed));
    directory.join(RUNS).join(name)
}

/// Locks a run directory for this process, and says whether it has it alone (who shares it has it so for a moment).
/// The system releases the lock however the process ends.
fn lock(folder: &Path, access: Access<'_>) -> Result<(File, bool)> {
    let path = folder.join(LOCK);
    let no_folder = || {
        format!(
            "cannot write in the run directory {}; choose another --out",
            folder.display()
        )
    };
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(&path).with_context(no_folder)?;
    match file.try_lock() {
        Ok(()) => {
            let holder = format!("process {}", std::process::id());
            file.set_len(0)
                .and_then(|()| file.write_all(holder.as_bytes()))
                .with_context(no_folder)?;
            Ok((file, true))
        }
        Err(TryLockError::WouldBlock)
            if access.sharing == Sharing::Shared && !access.fresh && join(&file) =>
        {
            Ok((file, false))
        }
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Who it is is a help; without it the message still says what is the matter.
            let holder = match file.read_to_string(&mut holder) {
                Ok(_) if !holder.is_empty() => holder,
                _ => "another process".into(),
            };
            bail!(
                "{} is in use by {holder}; wait for it or choose another --out",
                folder.display()
            )
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| {
            format!(
                "cannot lock {}: its file system may have no locks; choose another --out",
                path.display()
            )
        }),
    }
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

/// Whether a file has a name under which contents are written before they get their own.
fn is_left_aside(path: &Path) -> bool {
    let hidden = (path.file_name()).is_some_and(|name| name.to_string_lossy().starts_with('.'));
    hidden && (path.extension()).is_some_and(|ending| ending == "partial" || ending == "tmp")
}

/// The first line in which two plans differ.
fn difference(there: &str, here: &str) -> String {
    let pair = there.lines().zip(here.lines()).find(|(a, b)| a != b);
    match pair {
        Some((a, b)) => format!("there: `{a}`, here: `{b}`"),
        None => "one is longer than the other".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::run;

    const TOML: &str = "epochs = 2\nlr = 0.1\n";

    fn open(path: &Path) -> Result<RunDir> {
        RunDir::open(path, TOML, Access::alone("cpu", false))
    }

    fn access(sharing: Sharing) -> Access<'static> {
        Access {
            sharing,
            ..Access::alone("cpu", false)
        }
    }

    #[test]
    fn a_directory_belongs_to_one_experiment_and_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path()).unwrap();
        let wanted = format!("is in use by process {}; wait", std::process::id());
        for fresh in [false, true] {
            let message = RunDir::open(folder.path(), TOML, Access::alone("cpu", fresh))
                .unwrap_err()
                .to_string();
            assert!(message.contains(&wanted), "{message}");
        }
        drop(first);
        open(folder.path()).unwrap();
        for sharing in [Sharing::Alone, Sharing::Shared] {
            let plan = TOML.replace('2', "3");
            let message = RunDir::open(folder.path(), &plan, access(sharing))
                .unwrap_err()
                .to_string();
            assert!(
                message.contains("there: `epochs = 2`, here: `epochs = 3`"),
                "{message}"
            );
        }
    }

    #[test]
    fn a_shared_directory_is_shared_with_those_who_share_it_alone() {
        let folder = tempfile::tempdir().unwrap();
        let shared = || RunDir::open(folder.path(), TOML, access(Sharing::Shared));
        let (first, second) = (shared().unwrap(), shared().unwrap());
        assert!(open(folder.path()).is_err());
        let claim = first.claim_run("sgd", 0).unwrap().unwrap();
        assert!(second.claim_run("sgd", 0).unwrap().is_none());
        assert!(second.claim_run("sgd", 1).unwrap().is_some());
        drop(claim);
        assert!(second.claim_run("sgd", 0).unwrap().is_some());
        drop((first, second));
        let alone = open(folder.path()).unwrap();
        assert!(shared().unwrap_err().to_string().contains("in use"));
        drop(alone);
    }

    #[test]
    fn to_begin_anew_waits_for_the_lock_and_then_removes_what_is_the_programs() {
        let folder = tempfile::tempdir().unwrap();
        let dir = open(folder.path()).unwrap();
        dir.begin("sgd", 0).unwrap().finish(&run("sgd", 0)).unwrap();
        let model = dir.models().unwrap().join("sgd-seed0.safetensors");
        fs::write(&model, "weights").unwrap();
        fs::write(folder.path().join("notes.txt"), "mine").unwrap();
        let left = [
            "sharpness/sharpness.json",
            "slurm/cells.tsv",
            "search.md",
            "tuned.toml",
            "report.html",
        ];
        for name in left {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "of the runs before").unwrap();
        }
        RunDir::open(folder.path(), TOML, Access::alone("cpu", true)).unwrap_err();
        assert_eq!(dir.finished("sgd", 0).unwrap(), Some(run("sgd", 0)));
        drop(dir);
        let dir = RunDir::open(folder.path(), "epochs = 3\n", Access::alone("cpu", true)).unwrap();
        assert_eq!(dir.finished("sgd", 0).unwrap(), None);
        assert!(!model.exists() && folder.path().join("notes.txt").exists());
        assert!(left.iter().all(|name| !folder.path().join(name).exists()));
    }

    #[test]
    fn where_runs_were_made_is_said_by_what_made_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(ENVIRONMENT);
        let open_and_describe = || {
            let dir = open(folder.path()).unwrap();
            assert!(!file.exists() || fs::read_to_string(&file).unwrap() == "of then");
            dir.describe_environment().unwrap();
            dir
        };
        let dir = open_and_describe();
        assert!(fs::read_to_string(&file).unwrap().contains("\"commit\""));
        fs::write(&file, "of then").unwrap();
        dir.begin("sgd", 0).unwrap().finish(&run("sgd", 0)).unwrap();
        drop(dir);
        let dir = open_and_describe();
        assert_eq!(fs::read_to_string(&file).unwrap(), "of then");
        // Without a run, there is nothing that it would be true of.
        fs::remove_file(dir.run_file("sgd", 0)).unwrap();
        dir.describe_environment().unwrap();
        assert!(fs::read_to_string(&file).unwrap().contains("\"commit\""));
    }

    #[test]
    fn a_record_under_another_runs_name_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let dir = open(folder.path()).unwrap();
        dir.begin("sgd", 0).unwrap().finish(&run("sgd", 1)).unwrap();
        let message = dir.finished("sgd", 0).unwrap_err().to_string();
        assert!(message.contains("holds the run sgd-seed1"), "{message}");
    }

    #[test]
    fn runs_of_nobody_knows_what_are_not_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let dir = open(folder.path()).unwrap();
        dir.begin("sgd", 0).unwrap().finish(&run("sgd", 0)).unwrap();
        drop(dir);
        fs::remove_file(folder.path().join(PLAN)).unwrap();
        let message = open(folder.path()).unwrap_err().to_string();
        assert!(message.contains("no experiment.toml"), "{message}");
    }

    #[test]
    fn what_a_killed_process_had_written_aside_is_swept_away() {
        let folder = tempfile::tempdir().unwrap();
        drop(open(folder.path()).unwrap());
        let left = [
            "runs/.tmpX1.partial",
            ".tmpX2.partial",
            "runs/.X3.tmp",
            "runs/sgd-seed0.lock",
        ];
        let kept = ["runs/sgd-seed0.jsonl.partial", "runs/a.tmp", ".lock"];
        for name in left.iter().chain(&kept) {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        open(folder.path()).unwrap();
        assert!(left.iter().all(|name| !folder.path().join(name).exists()));
        assert!(kept.iter().all(|name| folder.path().join(name).exists()));
    }
}
