//! candle's MNIST training loop (a `VarMap`, a `VarBuilder`, `AdamW`) with SALA in it: the three places
//! that change are marked, each with the line that it replaces.
//!
//! ```text
//! cargo run --release -p sala-core --example fashion_mnist
//! ```

#![allow(clippy::print_stdout)]

use std::{io::Read, path::Path};

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType, Device, Tensor};
use candle_nn::{AdamW, Linear, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap, loss};
use sala_core::{Minimizer, ParamSet, ParamsSala, Sala}; // (1) new

const EPOCHS: usize = 10;
const BATCH: usize = 64;

struct Mlp {
    ln1: Linear,
    ln2: Linear,
}

impl Mlp {
    fn new(vb: VarBuilder) -> candle_core::Result<Self> {
        let ln1 = candle_nn::linear(784, 100, vb.pp("ln1"))?;
        let ln2 = candle_nn::linear(100, 10, vb.pp("ln2"))?;
        Ok(Self { ln1, ln2 })
    }

    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.ln2.forward(&self.ln1.forward(xs)?.relu()?)
    }
}

fn main() -> Result<()> {
    let device = Device::Cpu;
    let (train_images, train_labels) = load("train", &device)?;
    let (test_images, test_labels) = load("t10k", &device)?;

    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &device);
    let model = Mlp::new(vb)?;

    // (2) was: let mut sgd = AdamW::new(varmap.all_vars(), ParamsAdamW::default())?;
    let params = ParamSet::from_varmap(&varmap)?;
    let adamw = AdamW::new(params.vars(), ParamsAdamW::default())?;
    let mut sgd = Sala::new(params, adamw, ParamsSala::default())?;

    for epoch in 1..=EPOCHS {
        let mut sum_loss = 0.0;
        let batches = train_images.dim(0)? / BATCH;
        for batch in 0..batches {
            let images = train_images.narrow(0, batch * BATCH, BATCH)?;
            let labels = train_labels.narrow(0, batch * BATCH, BATCH)?;
            // (3) was: sgd.backward_step(&loss::cross_entropy(&model.forward(&images)?, &labels)?)?;
            let report =
                sgd.step(&mut |_| loss::cross_entropy(&model.forward(&images)?, &labels))?;
            sum_loss += report.loss;
        }
        let logits = sgd.with_slow_weights(|| model.forward(&test_images))?;
        let correct = logits
            .argmax(D::Minus1)?
            .eq(&test_labels)?
            .to_dtype(DType::F32)?;
        let accuracy = 100.0 * correct.mean_all()?.to_scalar::<f32>()?;
        let mean_loss = sum_loss / batches as f64;
        println!("epoch {epoch:2}  train loss {mean_loss:.4}  test accuracy {accuracy:.2} %");
    }
    Ok(())
}

/// Images (N, 784) in 0..1 and labels (N) of one part of the embedded Fashion-MNIST.
fn load(part: &str, device: &Device) -> Result<(Tensor, Tensor)> {
    let images = read_idx(&format!("{part}-images-idx3-ubyte.gz"), 16)?;
    let labels = read_idx(&format!("{part}-labels-idx1-ubyte.gz"), 8)?;
    let n = labels.len();
    ensure!(
        images.len() == n * 784,
        "{} bytes of images for {n} labels",
        images.len()
    );
    let images = Tensor::from_vec(images, (n, 784), device)?.to_dtype(DType::F32)?;
    Ok((
        (images / 255.)?,
        Tensor::from_vec(labels, n, device)?.to_dtype(DType::U32)?,
    ))
}

/// The data of an IDX file behind its header of so many bytes.
fn read_idx(name: &str, header: usize) -> Result<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets/fashion-mnist");
    let path = folder.join(name);
    let file = std::fs::File::open(&path).with_context(|| path.display().to_string())?;
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes)?;
    Ok(bytes.split_off(header))
}
