//! Friendly SAM.

use candle_nn::Optimizer;

use super::ParamsSam;
use crate::{
    blend::Ascended,
    compose::Ascend,
    error::{Result, check},
    params::ParamSet,
    perturb::Friendly,
    policy::Always,
};

/// SAM that climbs along what is particular to the batch. See [`Friendly`] for the equations.
pub type FriendlySam<B> = Ascend<B, Friendly, Always>;

/// Configuration of [`FriendlySam`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParamsFriendlySam {
    /// Share σ ≥ 0 of the mean gradient that is taken off the direction.
    pub sigma: f64,
    /// Decay λ in [0, 1) of the mean gradient.
    pub lambda: f64,
    /// The ascent; `micro_batches` does not go with the mean.
    pub sam: ParamsSam,
}

impl Default for ParamsFriendlySam {
    /// σ = 1, λ = 0.9 and ρ = 0.2: those of the code released with the paper.
    fn default() -> Self {
        let sam = ParamsSam {
            rho: 0.2,
            ..ParamsSam::default()
        };
        Self {
            sigma: 1.0,
            lambda: 0.9,
            sam,
        }
    }
}

impl ParamsFriendlySam {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) that names the field; those of `sam` as [`ParamsSam`]'s.
    pub fn validate(&self) -> Result<()> {
        const OWNER: &str = "ParamsFriendlySam";
        check::non_negative(OWNER, "sigma", self.sigma)?;
        check::below_one(OWNER, "lambda", self.lambda)?;
        self.sam.validate()?;
        self.sam.forbid_micro_batches(OWNER)
    }
}

impl<B: Optimizer + 'static> FriendlySam<B> {
    /// Friendly SAM over `params`, which `base` trains.
    ///
    /// # Errors
    /// Those of [`ParamsFriendlySam::validate`].
    ///
    /// ```
    /// # use candle_core::{Device, Var};
    /// # use sala_core::{FriendlySam, Minimizer, ParamSet, ParamsFriendlySam, ParamsSgd, Pass, Sgd};
    /// let w = Var::new(&[3f64, 1.0], &Device::Cpu)?;
    /// let params = ParamSet::new([("w", w.clone())])?;
    /// let base = Sgd::new(&params, ParamsSgd::default())?;
    /// let mut optimizer = FriendlySam::new(params, base, ParamsFriendlySam::default())?;
    /// let report = optimizer.step(&mut |_pass: Pass| w.sqr()?.sum_all())?;
    /// assert_eq!(report.evaluations, 2.0);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn new(params: ParamSet, base: B, config: ParamsFriendlySam) -> Result<Self> {
        config.validate()?;
        let stable = config.sam.stable;
        let friendly = Friendly::new(config.sigma, config.lambda)?;
        let ascent = (friendly, config.sam.radius()?);
        Self::compose(params, base, ascent, Always, Ascended { stable })?
            .with_direction_fraction(config.sam.direction_fraction)?
            .per_micro_batch(config.sam.micro_batches)
    }
}
