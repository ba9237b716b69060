//! Other numbers than f32.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor, safetensors};

use super::{Place, reviews, stopped::start_and_wait};
use crate::common::{fail, succeed};

/// The tensors of a file.
fn tensors(path: &Path) -> HashMap<String, Tensor> {
    safetensors::load(path, &Device::Cpu).unwrap()
}

/// The greatest difference between two tensors, in f32.
fn apart(a: &Tensor, b: &Tensor) -> f32 {
    let wide = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
    let difference = (wide(a) - wide(b)).unwrap().abs().unwrap();
    difference.max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn bf16_learns_goes_on_to_the_same_bits_and_keeps_what_was_scored() {
    let place = reviews();
    let words =
        "--precision bf16 --optimizers sala --rho 0.05 --epochs 8 --checkpoint-every 5 --test 0.2";
    let mut child = start_and_wait(&place, words);
    child.kill().unwrap();
    child.wait().unwrap();
    succeed(&mut place.command("finetune --out killed --resume"));
    succeed(&mut place.finetune("whole", words));
    assert_eq!(place.parameters("killed"), place.parameters("whole"));
    let test = &place.json("whole/summary.json")["rows"][0]["test"]["mean"];
    assert!(test.as_f64().unwrap() > 0.8, "it learns: {test}");
    let model = "whole/models/sala-seed0";
    let saved = tensors(&place.path(model).join("model.safetensors"));
    assert!(saved.values().all(|t| t.dtype() == DType::BF16));

    let labels = |precision: &str| -> Vec<String> {
        let words =
            format!("predict --model {model} --input train.csv --text-column review --format csv");
        let (said, _) = succeed(&mut place.command(&format!("{words} --precision {precision}")));
        let label = |line: &str| line.split(',').nth(1).unwrap().to_owned();
        said.lines().skip(1).map(label).collect()
    };
    let (half, double) = (labels("bf16"), labels("f64"));
    let same = half.iter().zip(&double).filter(|(a, b)| a == b).count();
    assert!(same > 230, "{same} of {} labels", half.len());
}

#[test]
fn masters_of_bf16_start_from_the_published_weights() {
    let place = reviews();
    // In the first of many steps of warm-up the learning rate is a few billionths.
    let words = "--precision bf16 --optimizers sala --rho 0.05 --epochs 9000 --warm-up 0.9 --checkpoint-every 1";
    let mut child = start_and_wait(&place, words);
    child.kill().unwrap();
    child.wait().unwrap();
    let checkpoint = tensors(&place.path("killed/runs/sala-seed0.checkpoint.safetensors"));
    let mut rounded = 0;
    for (name, published) in tensors(&place.path("bert/model.safetensors")) {
        let mut masters = checkpoint.iter();
        let master = masters.find(|(key, _)| key.contains("master.") && key.ends_with(&name));
        let Some((_, master)) = master else {
            // The pooler, which the mean over the tokens takes the place of.
            assert!(name.contains("pooler"), "no master of {name}");
            continue;
        };
        assert_eq!(master.dtype(), DType::F32);
        let moved = apart(master, &published);
        assert!(moved < 2e-6, "{name} moved by {moved}");
        let half = published.to_dtype(DType::BF16).unwrap();
        rounded += usize::from(apart(&half, &published) > 1e-4);
    }
    assert!(
        rounded > 10,
        "bf16 rounds the weights of this model: {rounded}"
    );
}

#[test]
fn what_a_device_does_not_have_is_said_before_anything_runs() {
    let place = Place::new();
    place.bert();
    place.texts("train.csv", 20, 1);
    let message = fail(&mut place.finetune("x", "--precision tf32"));
    assert!(
        message.contains("tf32 is for the device cuda alone"),
        "{message}"
    );
    let message =
        fail(&mut place.command("predict --model bert --input train.csv --precision tf32"));
    assert!(
        message.contains("tf32 is for the device cuda alone"),
        "{message}"
    );
    #[cfg(not(feature = "cuda"))]
    {
        let message = fail(&mut place.finetune("x", "--device cuda"));
        assert!(message.contains("--features cuda"), "{message}");
        assert!(!place.path("x").exists(), "{message}");
    }
}
