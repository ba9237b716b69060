//! LookSAM.

use candle_nn::Optimizer;

use super::ParamsSam;
use crate::{
    blend::Reuse,
    compose::Ascend,
    error::{Result, check},
    params::ParamSet,
    perturb::L2,
    policy::EveryK,
};

/// SAM at every k-th step; in between the part of its last gradient that led to flat regions is added to
/// the base's gradient. See [`Reuse`] for the equations.
pub type LookSam<B> = Ascend<B, L2, EveryK, Reuse>;

/// Configuration of [`LookSam`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamsLookSam {
    /// Climb at the steps 1, k + 1, 2k + 1, …; at least 1.
    pub k: u64,
    /// Weight α ≥ 0 of the reused part, relative to the gradient's norm.
    pub alpha: f64,
    /// The climbing steps; `stable` and `micro_batches` do not go with the reuse.
    pub sam: ParamsSam,
}

impl Default for ParamsLookSam {
    /// k = 5, α = 0.7, and SAM's defaults.
    fn default() -> Self {
        Self {
            k: 5,
            alpha: 0.7,
            sam: ParamsSam::default(),
        }
    }
}

impl ParamsLookSam {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) that names the field; those of `sam` as [`ParamsSam`]'s.
    pub fn validate(&self) -> Result<()> {
        const OWNER: &str = "ParamsLookSam";
        check::at_least_one(OWNER, "k", self.k)?;
        check::non_negative(OWNER, "alpha", self.alpha)?;
        self.sam.validate()?;
        self.sam.forbid_stable(OWNER)?;
        self.sam.forbid_micro_batches(OWNER)
    }
}

impl<B: Optimizer + 'static> LookSam<B> {
    /// LookSAM over `params`, which `base` trains.
    ///
    /// # Errors
    /// Those of [`ParamsLookSam::validate`].
    ///
    /// ```
    /// # use candle_core::{Device, Var};
    /// # use sala_core::{LookSam, Minimizer, ParamSet, ParamsLookSam, ParamsSgd, Pass, Sgd};
    /// let w = Var::new(&[3f64, 1.0], &Device::Cpu)?;
    /// let params = ParamSet::new([("w", w.clone())])?;
    /// let base = Sgd::new(&params, ParamsSgd::default())?;
    /// let mut optimizer = LookSam::new(params, base, ParamsLookSam::default())?;
    /// let first = optimizer.step(&mut |_pass: Pass| w.sqr()?.sum_all())?;
    /// let second = optimizer.step(&mut |_pass: Pass| w.sqr()?.sum_all())?;
    /// assert!(first.ascent && !second.ascent);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(params: ParamSet, base: B, config: ParamsLookSam) -> Result<Self> {
        config.validate()?;
        let ascent = (L2, config.sam.radius()?);
        let policy = EveryK::from_the_first(config.k)?;
        Self::compose(params, base, ascent, policy, Reuse::new(config.alpha)?)?
            .with_direction_fraction(config.sam.direction_fraction)?
            .per_micro_batch(config.sam.micro_batches)
    }
}
