//! Batches that a card puts together, against those of the processor, bit for bit.

use anyhow::{Error, Result};
use candle_core::{DType, Device};
use sala_core::testing::read;
use sala_models::{images::ImageSet, kernels::Choice};

use super::{
    check::{Section, Verdict},
    repetition::{Named, same},
    task::Task,
};
use crate::{
    data::{
        self, Source,
        augment::Pipeline,
        batches::{Selection, channel_stats},
        feed::Feed,
    },
    spec::Augmentation,
};

/// Images, the first of a part that is at hand everywhere, and those of a batch: the last one is shorter.
const IMAGES: usize = 300;
const BATCH: usize = 128;
const SEED: u64 = 11;

/// Everything that a card does itself.
const PIPELINES: [&[&str]; 3] = [
    &["crop", "flip", "cutout", "random-erasing", "mixup"],
    &["flip", "crop", "cutmix"],
    &[],
];

pub(super) fn tasks(device: &Device) -> Vec<Task> {
    if !ImageSet::fits(device).unwrap_or(false) {
        return vec![];
    }
    let task = |names: &'static [&'static str]| {
        let name = match names {
            [] => "images as they are".to_owned(),
            names => format!("images with {}", names.join(", ")),
        };
        let device = device.clone();
        let work = move || agreement(names, &device);
        Task::new(Section::Repetition, name, DType::F32, Choice::Auto, work)
    };
    PIPELINES.into_iter().map(task).collect()
}

fn agreement(names: &[&str], device: &Device) -> Result<Verdict> {
    same(&epoch(names, device)?, &epoch(names, &Device::Cpu)?)
}

/// The batches of an epoch, and their targets.
fn epoch(names: &[&str], device: &Device) -> Result<Named> {
    let split = data::load_train(&Source::Embedded)?;
    let images: Vec<usize> = (0..IMAGES).collect();
    let statistics = channel_stats(&split, &images)?;
    let selection = Selection::new(split, images, &statistics, device)?;
    let list = names.iter().map(|name| name.parse().map_err(Error::msg));
    let list: Vec<Augmentation> = list.collect::<Result<_>>()?;
    let feed = Feed::new(selection, Pipeline::new(&list, SEED)?, BATCH, SEED)?;
    let mut values = vec![];
    for (i, batch) in feed.epoch(1, 0)?.enumerate() {
        let batch = batch?;
        values.push((format!("batch {i}"), read(&batch.images)?));
        values.push((format!("targets {i}"), read(&batch.targets)?));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use sala_models::kernels::with_choice;

    use super::*;

    #[test]
    fn the_kernels_agree_with_the_processor_and_other_draws_do_not() {
        let names = PIPELINES[0];
        let on_card = with_choice(Choice::Emulated, || epoch(names, &Device::Cpu)).unwrap();
        let wanted = epoch(names, &Device::Cpu).unwrap();
        assert!(same(&on_card, &wanted).unwrap().passed());
        let plain = epoch(&["mixup"], &Device::Cpu).unwrap();
        assert!(!same(&plain, &wanted).unwrap().passed());
        assert!(tasks(&Device::Cpu).is_empty());
    }
}
