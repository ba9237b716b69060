//! What it takes to go on with a run at the same bits: weights, optimizer, and where the loop stands.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use sala_core::{
    Resumable,
    checkpoint::Checkpoint,
    state::{State, StateReader},
};
use sala_models::VarStore;
use serde::{Deserialize, Serialize};

use crate::{metrics::Score, record::EpochRecord, tally::Tally};

const WEIGHTS: &str = "Weights";
const PROGRESS: &str = "Progress";

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

/// Writes the file aside and renames it. `data` is the fingerprint of the examples.
pub(crate) fn save(
    path: &Path,
    data: &str,
    progress: &Progress,
    store: &VarStore,
    optimizer: &dyn Resumable,
    best: Option<&State>,
) -> Result<()> {
    let mut state = State::new(PROGRESS);
    state.set("data", data);
    state.set("progress", serde_json::to_string(progress)?);
    let mut checkpoint = Checkpoint::new()
        .with("run", state)
        .with("model", weights(store)?)
        .with("optimizer", optimizer.state()?);
    if let Some(best) = best {
        checkpoint = checkpoint.with("best", best.clone());
    }
    Ok(checkpoint.save(path)?)
}

/// Puts a run where the file says, if there is one: sets weights and optimizer, and returns the progress and
/// the best weights so far.
///
/// # Errors
/// When the file is damaged or belongs to another network or optimizer, or the data have changed since.
pub(crate) fn load(
    path: &Path,
    data: &str,
    store: &VarStore,
    optimizer: &mut dyn Resumable,
) -> Result<Option<(Progress, Option<State>)>> {
    if !path.exists() {
        return Ok(None);
    }
    let checkpoint = Checkpoint::load(path, &Device::Cpu)?;
    let mut reader = StateReader::new(PROGRESS, checkpoint.section("run")?)?;
    let (there, progress): (String, String) = (reader.get("data")?, reader.get("progress")?);
    reader.finish()?;
    let place = || format!("{}; --fresh begins anew", path.display());
    ensure!(
        there == data,
        "the data have changed since the checkpoint {}",
        place()
    );
    let progress: Progress = serde_json::from_str(&progress).with_context(place)?;
    set_weights(store, checkpoint.section("model")?).with_context(place)?;
    optimizer
        .load_state(checkpoint.section("optimizer")?)
        .with_context(place)?;
    let best = progress.best.map(|_| checkpoint.section("best").cloned());
    Ok(Some((progress, best.transpose()?)))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Tensor, Var};
    use sala_core::{
        ParamSet, ParamsAdam, ParamsSala, Pass,
        catalogue::{Base, Method, build},
    };
    use sala_models::ops::Linear;

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

    #[test]
    fn a_run_goes_on_at_the_same_bits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.safetensors");
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
        save(&path, "d", &progress, &store, &*optimizer, Some(&best)).unwrap();
        let at_three = bits(&weight);
        steps(&store, &mut *optimizer, 4);

        let (other, mut fresh, var) = run(2);
        let (there, kept) = load(&path, "d", &other, &mut *fresh).unwrap().unwrap();
        assert_eq!((there, bits(&var)), (progress, at_three.clone()));
        steps(&other, &mut *fresh, 4);
        assert_eq!(bits(&var), bits(&weight));
        set_weights(&other, &kept.unwrap()).unwrap();
        assert_eq!(bits(&var), at_three);
    }

    #[test]
    fn other_data_are_refused_and_nothing_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.safetensors");
        let (store, mut optimizer, _) = run(1);
        assert!(load(&path, "d", &store, &mut *optimizer).unwrap().is_none());
        save(&path, "d", &Progress::default(), &store, &*optimizer, None).unwrap();
        let message = load(&path, "e", &store, &mut *optimizer).unwrap_err();
        assert!(
            message.to_string().contains("data have changed"),
            "{message}"
        );
    }
}
