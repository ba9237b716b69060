//! The shape of candle's MNIST training loop, with SALA in place of AdamW: it must learn, and its
//! loss must come from gradients that reach every layer.

use candle_core::{DType, Device, Tensor};
use candle_nn::{AdamW, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap, loss};
use sala_core::{Minimizer, ParamSet, ParamsSala, Sala};

#[test]
fn a_varmap_and_candles_adamw_train_with_sala() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::Cpu;
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &device);
    let hidden = candle_nn::linear(2, 16, vb.pp("hidden"))?;
    let output = candle_nn::linear(16, 2, vb.pp("output"))?;
    // Four points of the exclusive or.
    let x = Tensor::new(&[[0f32, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], &device)?;
    let y = Tensor::new(&[0u32, 1, 1, 0], &device)?;

    let config = ParamsAdamW {
        lr: 0.05,
        ..Default::default()
    };
    let base = AdamW::new(varmap.all_vars(), config)?;
    let mut sala = Sala::new(ParamSet::from_varmap(&varmap)?, base, ParamsSala::default())?;
    let mut last = f64::INFINITY;
    for _ in 0..300 {
        let report = sala.step(&mut |_| {
            let logits = output.forward(&hidden.forward(&x)?.tanh()?)?;
            loss::cross_entropy(&logits, &y)
        })?;
        last = report.loss;
    }
    assert!(last < 0.1, "loss {last}");
    Ok(())
}
