//! Sharpness: how the loss lies around a solution, measured.
//!
//! Every measurement takes a [`Surface`], which is an [`Objective`](crate::Objective) around the current values of a
//! [`ParamSet`](crate::ParamSet), so it works for any model, dtype and device, and leaves the parameters as they were.
//!
//! | measurement | what it tells | cost |
//! |---|---|---|
//! | [`worst_sharpness`], [`average_sharpness`] | m-sharpness: rise of the loss within ρ, L2 or adaptive | steps gradients + 1 loss; 2 × samples + 1 losses |
//! | [`lanczos`] | both ends of the Hessian's spectrum, with bounds of their errors | a product a step |
//! | [`power_iteration`] | eigenvalues of largest magnitude, with little memory | a product a step |
//! | [`trace`] | trace of the Hessian, with an error bar | a product a sample |
//! | [`spectral_density`] | the whole spectrum | samples × steps products |
//! | [`Surface::gradient_norm`], [`gradient_noise`] | distance from a stationary point; noise scale | 1 gradient |
//! | [`Surface::losses_along`], [`losses_between`], [`losses_in_plane`] | slices of the loss | a loss a point |
//! | [`principal_plane`] | the plane of a trajectory | none |
//!
//! A product is a Hessian-vector product: 2 gradients ([`Products`]), with the first one 18 (32 in f64) to choose a
//! step. A gradient is a forward and a backward pass over everything that the objective is evaluated on, and a
//! loss a forward pass; results say what they took ([`Cost`]), and an observer hears how far they are
//! ([`Surface::observed_by`]).
//!
//! # What sharpness does not tell
//!
//! Flat minima often generalise better, and that is what the optimizers of this crate seek them for. But sharpness does not
//! predict generalisation by itself: most measures here change when a network's weights are
//! rescaled without changing its function (Dinh et al. 2017, arXiv:1703.04933), and over architectures, training
//! recipes and fine-tuned transformers the correlation can vanish or turn (Andriushchenko et al. 2023,
//! arXiv:2302.07011). Compare solutions of one network on the same data, and look at held-out data for what counts.
//!
//! # Example
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{Module, VarBuilder, VarMap, loss};
//! use sala_core::{ParamSet, Pass, sharpness::{self, ParamsLanczos, ParamsWorst, Surface}};
//!
//! let varmap = VarMap::new();
//! let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
//! let model = candle_nn::linear(4, 3, vb)?;
//! let (x, y) = (Tensor::ones((8, 4), DType::F32, &Device::Cpu)?, Tensor::zeros(8, DType::U32, &Device::Cpu)?);
//!
//! let params = ParamSet::from_varmap(&varmap)?;
//! let mut loss = |_pass: Pass| loss::cross_entropy(&model.forward(&x)?, &y);
//! let mut surface = Surface::new(&params, &mut loss);
//! let rise = sharpness::worst_sharpness(&mut surface, &ParamsWorst::default())?;
//! let ends = sharpness::lanczos(&mut surface, &ParamsLanczos::default())?;
//! println!("rise {:.4}, λ_max {:.3} ± {:.3}", rise.mean, ends.largest[0].value, ends.largest[0].error);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod density;
mod directions;
mod lanczos;
mod noise;
mod plane;
mod power;
mod product;
mod rise;
mod slice;
mod surface;
mod symmetric;
mod trace;

pub use density::{Density, Node, ParamsDensity, spectral_density};
pub use directions::{filter_normalised, gaussian, rademacher};
pub use lanczos::{ParamsLanczos, Ritz, SpectrumEnds, lanczos};
pub use noise::{GradientNoise, gradient_noise};
pub use plane::{PrincipalPlane, principal_plane};
pub use power::{Eigenpair, ParamsPower, TopEigenvalues, power_iteration};
pub use product::{ChosenStep, Products, Step};
pub use rise::{
    Ball, LossRise, ParamsAverage, ParamsWorst, Spread, average_sharpness, worst_sharpness,
};
pub use slice::{Grid, Line, losses_between, losses_in_plane};
pub use surface::{Advance, Cost, Surface};
pub use trace::{ParamsTrace, Trace, trace};

/// The mean of at least one number, and its standard error if there are more.
fn mean_and_error(samples: &[f64]) -> (f64, Option<f64>) {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    if samples.len() < 2 {
        return (mean, None);
    }
    let squares: f64 = samples.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, Some((squares / (n - 1.0) / n).sqrt()))
}
