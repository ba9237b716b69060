//! What it takes to go on with a run at the same bits: weights, optimizer, and where the loop stands.

use std::{io::ErrorKind, path::PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use sala_core::{
    Resumable,
    checkpoint::Checkpoint,
    state::{State, StateReader},
};
use sala_models::VarStore;
use serde::{Deserialize, Serialize};

use super::tally::Tally;
use crate::{
    metrics::Score,
    record::{EpochRecord, PROGRAM},
};

const WEIGHTS: &str = "Weights";
const PROGRESS: &str = "Progress";
/// The one value of a progress.
const CONTENT: &str = "content";

/// Where a loop stands. Order and masks follow from the numbers of epoch and step, so there is no state of a
/// random generator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// The epoch under way, from 1; beyond the last when training has ended.
    pub(crate) epoch: u64,
    pub(crate) tally: Tally,
    /// Of the epochs that are complete.
    pub(crate) records: Vec<EpochRecord>,
    /// With early stopping, the best epoch so far.
    pub(crate) best: Option<Best>,
}

impl Default for Progress {
    /// At the beginning.
    fn default() -> Self {
        Self {
            epoch: 1,
            tally: Tally::default(),
            records: Vec::new(),
            best: None,
        }
    }
}

/// An epoch and what its weights scored on the validation part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    pub(crate) epoch: u64,
    pub(crate) score: Score,
}

/// A copy of every variable, running statistics too.
pub(crate) fn weights(store: &VarStore) -> Result<State> {
    let mut state = State::new(WEIGHTS);
    for (name, var) in store.all() {
        state.set_tensor(name, &var)?;
    }
    Ok(state)
}

/// Sets every variable to what [`weights`] copied.
pub(crate) fn set_weights(store: &VarStore, state: &State) -> Result<()> {
    let mut reader = StateReader::new(WEIGHTS, state)?;
    let mut values = Vec::new();
    for (name, var) in store.all() {
        let value = reader.tensor(&name, &var)?;
        values.push((var, value));
    }
    reader.finish()?;
    for (var, value) in values {
        var.set(&value)?;
    }
    Ok(())
}

/// The file of a run's checkpoint, and what it must belong to.
#[derive(Debug, Clone)]
pub(crate) struct CheckpointFile {
    pub(crate) path: PathBuf,
    pub(crate) owner: Owner,
}

/// What a checkpoint belongs to: it is of no use to anything else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// Fingerprint of the experiment.
    pub(crate) experiment: String,
    /// Name of the run.
    pub(crate) run: String,
    /// Fingerprint of the data.
    pub(crate) data: String,
}

/// What a checkpoint holds beside weights and optimizer.
#[derive(Debug, Serialize, Deserialize)]
struct Content<P> {
    owner: Owner,
    /// Version and commit of the program.
    program: String,
    progress: P,
}

impl CheckpointFile {
    /// Writes the file aside and renames it.
    ///
    /// # Errors
    /// With what can be done; an earlier checkpoint is then still whole.
    pub(crate) fn save(
        &self,
        progress: &Progress,
        store: &VarStore,
        optimizer: &dyn Resumable,
        best: Option<&State>,
    ) -> Result<()> {
        let content = Content {
            owner: self.owner.clone(),
            program: PROGRAM.to_owned(),
            progress,
        };
        let mut state = State::new(PROGRESS);
        state.set(CONTENT, serde_json::to_string(&content)?);
        let mut checkpoint = Checkpoint::new()
            .with("run", state)
            .with("model", weights(store)?)
            .with("optimizer", optimizer.state()?);
        if let Some(best) = best {
            checkpoint = checkpoint.with("best", best.clone());
        }
        checkpoint.save(&self.path).context(
            "cannot save where the run stands; make room or check the folder, then give the same command again: it \
             goes on from the checkpoint before",
        )
    }

    /// Puts a run where the file says, if there is one: sets weights and optimizer, and returns the progress
    /// and the best weights so far.
    ///
    /// # Errors
    /// When the file is damaged, belongs to another experiment or run, or the data have changed since. It
    /// stays where it is.
    pub(crate) fn load(
        &self,
        store: &VarStore,
        optimizer: &mut dyn Resumable,
    ) -> Result<Option<(Progress, Option<State>)>> {
        if !self.path.exists() {
            return Ok(None);
        }
        let loaded = self.read(store, optimizer).with_context(|| {
            format!(
                "{} cannot be gone on from; remove it to make this run from its beginning, or give another --out",
                self.path.display()
            )
        });
        loaded.map(Some)
    }

    fn read(
        &self,
        store: &VarStore,
        optimizer: &mut dyn Resumable,
    ) -> Result<(Progress, Option<State>)> {
        let checkpoint = Checkpoint::load(&self.path, &Device::Cpu)?;
        let mut reader = StateReader::new(PROGRESS, checkpoint.section("run")?)?;
        let content: String = reader.get(CONTENT)?;
        reader.finish()?;
        let content: Content<Progress> =
            serde_json::from_str(&content).context("its progress is of another version")?;
        self.owner.check(&content.owner)?;
        if content.program != PROGRAM {
            tracing::warn!(
                checkpoint = %self.path.display(),
                written_by = content.program,
                this = PROGRAM,
                "the checkpoint was written by another version: the run may end at other bits"
            );
        }
        set_weights(store, checkpoint.section("model")?)?;
        optimizer.load_state(checkpoint.section("optimizer")?)?;
        let best = (content.progress.best).map(|_| checkpoint.section("best").cloned());
        Ok((content.progress, best.transpose()?))
    }

    /// Removes the file, if there is one.
    pub(crate) fn remove(&self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

impl Owner {
    fn check(&self, there: &Self) -> Result<()> {
        ensure!(
            there.experiment == self.experiment,
            "it belongs to another experiment: its fingerprint is {}, this one's {}",
            there.experiment,
            self.experiment
        );
        ensure!(
            there.run == self.run,
            "it belongs to another run: {}, this one is {}",
            there.run,
            self.run
        );
        ensure!(
            there.data == self.data,
            "the data have changed since it was written"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Tensor, Var};
    use sala_core::{
        ParamSet, ParamsAdam, ParamsSala, Pass,
        catalogue::{Base, Method, build},
    };
    use sala_models::ops::Linear;

    use std::path::Path;

    use super::*;

    fn run(seed: u64) -> (VarStore, Box<dyn Resumable>, Var) {
        let store = VarStore::new(seed, DType::F32, &Device::Cpu);
        Linear::new(3, 2, store.builder()).unwrap();
        let params = ParamSet::new(store.trainable()).unwrap();
        let base = Base::Adam(ParamsAdam::adamw());
        let method = Method::Sala(ParamsSala::default());
        let optimizer = build(params, &base, &method, None).unwrap();
        let weight = store.get("weight").unwrap();
        (store, optimizer, weight)
    }

    fn steps(store: &VarStore, optimizer: &mut dyn Resumable, count: usize) {
        let vars = store.trainable();
        for _ in 0..count {
            let mut loss = |_: Pass| {
                let squares: Result<Vec<Tensor>, _> =
                    vars.iter().map(|(_, v)| v.sqr()?.sum_all()).collect();
                Tensor::stack(&squares?, 0)?.sum_all()
            };
            optimizer.step(&mut loss).unwrap();
        }
    }

    fn bits(var: &Var) -> Vec<u32> {
        let values: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    }

    fn file(folder: &Path) -> CheckpointFile {
        CheckpointFile {
            path: folder.join("c.safetensors"),
            owner: Owner {
                experiment: "e".into(),
                run: "sala-seed1".into(),
                data: "d".into(),
            },
        }
    }

    #[test]
    fn a_run_goes_on_at_the_same_bits() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        let (store, mut optimizer, weight) = run(1);
        steps(&store, &mut *optimizer, 3);
        let best = weights(&store).unwrap();
        let score = Score {
            loss: 1.0 / 3.0,
            ..Score::default()
        };
        let progress = Progress {
            epoch: 2,
            best: Some(Best { epoch: 1, score }),
            ..Progress::default()
        };
        file.save(&progress, &store, &*optimizer, Some(&best))
            .unwrap();
        let at_three = bits(&weight);
        steps(&store, &mut *optimizer, 4);

        let (other, mut fresh, var) = run(2);
        let (there, kept) = file.load(&other, &mut *fresh).unwrap().unwrap();
        assert_eq!((there, bits(&var)), (progress, at_three.clone()));
        steps(&other, &mut *fresh, 4);
        assert_eq!(bits(&var), bits(&weight));
        set_weights(&other, &kept.unwrap()).unwrap();
        assert_eq!(bits(&var), at_three);
    }

    #[test]
    fn what_belongs_to_something_else_is_refused_and_nothing_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        let (store, mut optimizer, weight) = run(1);
        assert!(file.load(&store, &mut *optimizer).unwrap().is_none());
        let saved = file.save(&Progress::default(), &store, &*optimizer, None);
        saved.unwrap();
        let before = bits(&weight);
        let owner = |experiment: &str, run: &str, data: &str| Owner {
            experiment: experiment.into(),
            run: run.into(),
            data: data.into(),
        };
        for (owner, words) in [
            (owner("f", "sala-seed1", "d"), "another experiment"),
            (owner("e", "sala-seed2", "d"), "another run: sala-seed1"),
            (owner("e", "sala-seed1", "g"), "data have changed"),
        ] {
            let mut other = file.clone();
            other.owner = owner;
            let error = other.load(&store, &mut *optimizer).unwrap_err();
            let message = format!("{error:#}");
            assert!(message.contains(words), "{message}");
            assert!(message.contains("remove it to make this run"), "{message}");
        }
        assert_eq!(bits(&weight), before);
        file.load(&store, &mut *optimizer).unwrap().unwrap();
    }

    #[test]
    fn a_file_that_was_cut_short_or_is_no_checkpoint_is_refused_with_a_way_out() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        let (store, mut optimizer, _) = run(1);
        let saved = file.save(&Progress::default(), &store, &*optimizer, None);
        saved.unwrap();
        let whole = std::fs::read(&file.path).unwrap();
        for spoiled in [&whole[..whole.len() / 2], &whole[..0], b"hello"] {
            std::fs::write(&file.path, spoiled).unwrap();
            let error = file.load(&store, &mut *optimizer).unwrap_err();
            let message = format!("{error:#}");
            assert!(
                message.contains("c.safetensors cannot be gone on from; remove it"),
                "{message}"
            );
        }
    }

    #[test]
    fn to_remove_what_is_not_there_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = file(folder.path());
        file.remove().unwrap();
        std::fs::write(&file.path, "x").unwrap();
        file.remove().unwrap();
        assert!(!file.path.exists());
    }
}
