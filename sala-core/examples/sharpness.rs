//! The sharpness of a candle model of one's own, before and after training, in ten lines (marked).
//!
//! ```text
//! cargo run --release -p sala-core --example sharpness
//! ```

#![allow(clippy::print_stdout)]

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Module, VarBuilder, VarMap, loss, seq};
use sala_core::{
    Minimizer, ParamSet, ParamsSam, ParamsSgd, Pass, Sam, Sgd,
    sharpness::{self, ParamsLanczos, ParamsTrace, ParamsWorst, Surface},
};

fn main() -> Result<()> {
    let device = Device::Cpu;
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &device);
    let model = seq()
        .add(candle_nn::linear(2, 32, vb.pp("in"))?)
        .add_fn(Tensor::tanh)
        .add(candle_nn::linear(32, 2, vb.pp("out"))?);
    let (x, y) = rings(256, &device)?;
    let params = ParamSet::from_varmap(&varmap)?;

    measure("at the start", &params, &model, &x, &y)?;
    let base = ParamsSgd {
        lr: 0.1,
        momentum: 0.9,
        ..Default::default()
    };
    let base = Sgd::new(&params, base)?;
    let mut sam = Sam::new(params.clone(), base, ParamsSam::default())?;
    for _ in 0..500 {
        sam.step(&mut |_: Pass| loss::cross_entropy(&model.forward(&x)?, &y))?;
    }
    measure("after training", &params, &model, &x, &y)
}

fn measure(
    when: &str,
    params: &ParamSet,
    model: &impl Module,
    x: &Tensor,
    y: &Tensor,
) -> Result<()> {
    let mut objective = |_: Pass| loss::cross_entropy(&model.forward(x)?, y); // 1: the loss to measure
    let mut surface = Surface::new(params, &mut objective); // 2: around the weights as they are
    let loss = surface.loss()?; // 3
    let worst = sharpness::worst_sharpness(&mut surface, &ParamsWorst::default())?.mean; // 4
    let top = sharpness::lanczos(&mut surface, &ParamsLanczos::default())?.largest[0]; // 5
    let trace = sharpness::trace(&mut surface, &ParamsTrace::default())?.value; // 6
    let cost = surface.cost(); // 7
    println!("{when}: loss {loss:.4}, worst rise within 0.05: {worst:.5}"); // 8
    println!(
        "  λ_max {:.3} ± {:.3}, trace {trace:.2}",
        top.value, top.error
    ); // 9
    println!(
        "  by {} gradients and {} losses",
        cost.gradients, cost.losses
    ); // 10
    Ok(())
}

/// Two wavy rings, one within the other: points (N, 2) and which ring they are of (N).
fn rings(count: u32, device: &Device) -> Result<(Tensor, Tensor)> {
    let point = |i: u32| {
        let angle = 0.37 * f64::from(i);
        let radius = 1.0 + f64::from(i % 2) + 0.3 * (7.0 * angle).sin();
        [radius * angle.cos(), radius * angle.sin()]
    };
    let points: Vec<f64> = (0..count).flat_map(point).collect();
    let points = Tensor::from_vec(points, ((), 2), device)?;
    let labels: Vec<u32> = (0..count).map(|i| i % 2).collect();
    Ok((points.to_dtype(DType::F32)?, Tensor::new(labels, device)?))
}
