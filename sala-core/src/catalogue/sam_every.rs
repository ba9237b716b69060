//! SAM at some steps only.

use candle_nn::Optimizer;

use super::ParamsSam;
use crate::{
    blend::Ascended,
    compose::Ascend,
    error::{Result, check},
    params::ParamSet,
    perturb::L2,
    policy::EveryK,
};

/// SAM at every k-th step, the base in between.
pub type SamEvery<B> = Ascend<B, L2, EveryK>;

/// Configuration of [`SamEvery`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamsSamEvery {
    /// Climb at the steps k, 2k, …; at least 1.
    pub k: u64,
    /// The climbing steps.
    pub sam: ParamsSam,
}

impl Default for ParamsSamEvery {
    /// Every second step with SAM's default.
    fn default() -> Self {
        Self {
            k: 2,
            sam: ParamsSam::default(),
        }
    }
}

impl ParamsSamEvery {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) that names the field; those of `sam` as [`ParamsSam`]'s.
    pub fn validate(&self) -> Result<()> {
        check::at_least_one("ParamsSamEvery", "k", self.k)?;
        self.sam.validate()
    }
}

impl<B: Optimizer + 'static> SamEvery<B> {
    /// SAM at every k-th step over `params`, which `base` trains.
    ///
    /// # Errors
    /// Those of [`ParamsSamEvery::validate`].
    ///
    /// ```
    /// # use candle_core::{Device, Var};
    /// # use sala_core::{Minimizer, ParamSet, ParamsSamEvery, ParamsSgd, Pass, SamEvery, Sgd};
    /// let w = Var::new(&[3f64], &Device::Cpu)?;
    /// let params = ParamSet::new([("w", w.clone())])?;
    /// let base = Sgd::new(&params, ParamsSgd::default())?;
    /// let mut optimizer = SamEvery::new(params, base, ParamsSamEvery::default())?;
    /// let mut climbed = |w: &Var| -> sala_core::Result<bool> {
    ///     Ok(optimizer.step(&mut |_pass: Pass| w.sqr()?.sum_all())?.ascent)
    /// };
    /// assert_eq!([climbed(&w)?, climbed(&w)?, climbed(&w)?], [false, true, false]);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(params: ParamSet, base: B, config: ParamsSamEvery) -> Result<Self> {
        config.validate()?;
        let ParamsSam {
            stable,
            direction_fraction,
            micro_batches,
            ..
        } = config.sam;
        let ascent = (L2, config.sam.radius()?);
        Self::compose(
            params,
            base,
            ascent,
            EveryK::new(config.k)?,
            Ascended { stable },
        )?
        .with_direction_fraction(direction_fraction)?
        .per_micro_batch(micro_batches)
    }
}
