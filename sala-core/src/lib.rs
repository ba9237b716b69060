//! Sharpness-aware optimizers for candle: [`Sala`] (Sharpness-Aware Lookahead), [`Sam`], [`Asam`],
//! [`SamEvery`], [`LookSam`], [`Gsam`], [`FriendlySam`], [`MomentumSam`] and [`Lookahead`] over any
//! [`candle_nn::Optimizer`], with [`Sgd`] and [`Adam`] as built-in bases.
//!
//! A step hands the optimizer a closure that computes the loss, because these methods may evaluate
//! it twice:
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{AdamW, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap, loss};
//! use sala_core::{Minimizer, ParamSet, ParamsSala, Pass, Sala};
//!
//! let device = Device::Cpu;
//! let varmap = VarMap::new();
//! let vb = VarBuilder::from_varmap(&varmap, DType::F32, &device);
//! let model = candle_nn::linear(4, 3, vb)?;
//! let (images, labels) = (Tensor::ones((8, 4), DType::F32, &device)?, Tensor::zeros(8, DType::U32, &device)?);
//!
//! let params = ParamSet::from_varmap(&varmap)?;
//! let base = AdamW::new(params.vars(), ParamsAdamW::default())?;
//! let mut optimizer = Sala::new(params, base, ParamsSala::default())?;
//! for _ in 0..4 {
//!     let report = optimizer.step(&mut |_pass: Pass| {
//!         loss::cross_entropy(&model.forward(&images)?, &labels)
//!     })?;
//!     println!("step {} loss {:.4}", report.step, report.loss);
//! }
//! let logits = optimizer.with_slow_weights(|| model.forward(&images))?;
//! # assert_eq!(logits.dims(), [8, 3]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The algebra
//!
//! A method is a **base rule** ([`base`]) × **slow weights** ([`slow`]) × a **perturbation**
//! ([`perturb`]) × a **policy** that says when to climb ([`policy`]) × a **blend** that says which gradient
//! updates the weights then ([`blend`]). The types of [`compose`] put the factors together; the
//! [`catalogue`] names the usual combinations and lists their costs.
//!
//! # What a training loop must know
//!
//! - The closure is told what its gradient is for ([`Pass`]). Within a step every pass must see the
//!   same batch and the same dropout masks, and batch-norm statistics must not be updated at perturbed
//!   weights ([`Pass::tracks_statistics`]). `candle_nn::BatchNorm` and `candle_nn::Dropout` cannot do
//!   either; the layers of `sala-models` can.
//! - Every trainable parameter must receive a gradient. Several layers of candle have no backward and
//!   cut gradients without a word; here that is [`Error::MissingGradient`].
//! - Evaluate Lookahead and SALA on their slow weights ([`Minimizer::with_slow_weights`]).
//! - [`ParamSet::from_varmap`] leaves out running statistics, which candle keeps among the variables.
//! - Make the base over [`ParamSet::vars`], after the set's last rule: a base over other variables is an error.
//! - Whoever loads other weights into the model calls [`Minimizer::weights_replaced`]: slow weights and masters
//!   would bring the old ones back. To go on with a saved run, load its weights first, then its state.
//!
//! # Half precision
//!
//! bf16 and f16 parameters are updated in f32 and rounded once; [`ParamSet::with_f32_masters`] keeps f32
//! copies so that small updates add up, and [`LossScaler`] keeps small gradients of f16 from vanishing.
//! Saved states convert: a run may go on in another precision, with or without masters, or on another device,
//! within the rounding of the saved numbers (f64 ↔ f32: the tolerance of f32 trajectories). Masters that a
//! state lacks are taken from the model's weights, which are therefore loaded before it.
//!
//! # Speed
//!
//! On the CPU the updates are fused into one pass over memory each, in place ([`kernels`]). The
//! environment variable `SALA_KERNELS=composed` forces plain candle operations instead.
//!
//! # Features
//!
//! `testing`: named tolerances, comparisons and gradient checks for tests.

mod accumulate;
pub mod base;
pub mod blend;
pub mod catalogue;
pub mod checkpoint;
mod clip;
pub mod compose;
mod diagnostics;
mod displaced;
mod error;
mod gradients;
pub mod kernels;
mod loss_scale;
mod memory;
mod minimizer;
mod objective;
mod params;
pub mod perturb;
pub mod policy;
pub mod schedule;
pub mod sharpness;
pub mod slow;
pub mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod trace;
mod vector;

pub use accumulate::MicroBatches;
pub use base::{Adam, ParamsAdam, ParamsSgd, Sgd};
pub use catalogue::{
    Asam, FriendlySam, Gsam, LookSam, MomentumSam, ParamsAsam, ParamsFriendlySam, ParamsGsam,
    ParamsLookSam, ParamsMomentumSam, ParamsSala, ParamsSam, ParamsSamEvery, Sala, Sam, SamEvery,
};
pub use clip::Clip;
pub use compose::{Ascend, Descend, SlowAscend};
pub use diagnostics::{Coverage, Stages};
pub use error::{Error, Result};
pub use gradients::Gradients;
pub use loss_scale::{LossScaler, ParamsLossScaler};
pub use memory::Memory;
pub use minimizer::{Minimizer, Progress, Resumable, StepReport};
pub use objective::{Backward, Differentiated, Evaluation, Objective, Pass};
pub use params::{Param, ParamSet};
pub use slow::{
    Average, Averaged, Lookahead, MomentumAtPull, ParamsAveraged, ParamsLookahead, SlowInit,
    SlowView, SlowWeights,
};
pub use state::Stateful;
