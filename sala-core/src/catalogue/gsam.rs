//! GSAM.

use candle_nn::Optimizer;

use super::ParamsSam;
use crate::{
    blend::SurrogateGap,
    compose::Ascend,
    error::{Result, check},
    params::ParamSet,
    perturb::L2,
    policy::Always,
};

/// SAM that also lowers the gap between the losses at the perturbed weights and at the weights. See
/// [`SurrogateGap`] for the equations.
pub type Gsam<B> = Ascend<B, L2, Always, SurrogateGap>;

/// Configuration of [`Gsam`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamsGsam {
    /// Weight α ≥ 0 of the orthogonal part.
    pub alpha: f64,
    /// The ascent; `stable` does not go with the gap.
    pub sam: ParamsSam,
}

impl Default for ParamsGsam {
    /// α = 0.2, that of the example released by the paper's first author, and SAM's defaults.
    fn default() -> Self {
        Self {
            alpha: 0.2,
            sam: ParamsSam::default(),
        }
    }
}

impl ParamsGsam {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) that names the field; those of `sam` as [`ParamsSam`]'s.
    pub fn validate(&self) -> Result<()> {
        const OWNER: &str = "ParamsGsam";
        check::non_negative(OWNER, "alpha", self.alpha)?;
        self.sam.validate()?;
        self.sam.forbid_stable(OWNER)
    }
}

impl<B: Optimizer + 'static> Gsam<B> {
    /// GSAM over `params`, which `base` trains.
    ///
    /// # Errors
    /// Those of [`ParamsGsam::validate`].
    ///
    /// ```
    /// # use candle_core::{Device, Var};
    /// # use sala_core::{Gsam, Minimizer, ParamSet, ParamsGsam, ParamsSgd, Pass, Sgd};
    /// let w = Var::new(&[3f64, 1.0], &Device::Cpu)?;
    /// let params = ParamSet::new([("w", w.clone())])?;
    /// let base = Sgd::new(&params, ParamsSgd::default())?;
    /// let mut optimizer = Gsam::new(params, base, ParamsGsam::default())?;
    /// let report = optimizer.step(&mut |_pass: Pass| w.sqr()?.sum_all())?;
    /// assert_eq!(report.evaluations, 2.0);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(params: ParamSet, base: B, config: ParamsGsam) -> Result<Self> {
        config.validate()?;
        let ascent = (L2, config.sam.radius()?);
        Self::compose(
            params,
            base,
            ascent,
            Always,
            SurrogateGap::new(config.alpha)?,
        )?
        .with_direction_fraction(config.sam.direction_fraction)?
        .per_micro_batch(config.sam.micro_batches)
    }
}
