//! Settings of single parameters, given by rules over names.

use std::sync::Arc;

use super::{Param, ParamSet};
use crate::error::{Result, check};

impl ParamSet {
    /// Multiplies the learning rate of the parameters whose name fulfils `rule` by `scale` ≥ 0, on top
    /// of what [`ParamSet::with_layerwise_lr_decay`] does.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for a bad scale, [`Error::NoMatch`](crate::Error::NoMatch) when no parameter is matched.
    pub fn with_lr_scale(mut self, scale: f64, rule: impl Fn(&str) -> bool) -> Result<Self> {
        check::non_negative("ParamSet", "lr_scale", scale)?;
        self.set("lr_scale", |p| rule(&p.name), |p| p.lr_scale *= scale)?;
        Ok(self)
    }

    /// Layer-wise learning rates: lr · decay^(L − l) for a parameter of layer l, L the last layer's
    /// number (Clark et al. 2020, arXiv:2003.10555). `layer` tells the number from the name; parameters
    /// without one, such as a head, keep their rate.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when `decay` is outside (0, 1], [`Error::NoMatch`](crate::Error::NoMatch) when nothing has a layer.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Var};
    /// # use sala_core::ParamSet;
    /// # let var = || Var::zeros(2, DType::F32, &Device::Cpu).unwrap();
    /// let named = [("embed.w", var()), ("layer.0.w", var()), ("layer.1.w", var()), ("head.w", var())];
    /// // the embeddings count as a layer below the first
    /// let layer = |name: &str| match name.split('.').collect::<Vec<_>>()[..] {
    ///     ["embed", ..] => Some(0),
    ///     ["layer", number, ..] => Some(1 + number.parse::<u32>().ok()?),
    ///     _ => None,
    /// };
    /// let params = ParamSet::new(named)?.with_layerwise_lr_decay(0.5, layer)?;
    /// let scales: Vec<_> = params.iter().map(|p| (p.name(), p.lr_scale())).collect();
    /// assert_eq!(scales, [("embed.w", 0.25), ("head.w", 1.0), ("layer.0.w", 0.5), ("layer.1.w", 1.0)]);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn with_layerwise_lr_decay(
        mut self,
        decay: f64,
        layer: impl Fn(&str) -> Option<u32>,
    ) -> Result<Self> {
        check::fraction("ParamSet", "layerwise_lr_decay", decay)?;
        let last = self.params.iter().filter_map(|p| layer(&p.name)).max();
        let last = last.unwrap_or(0);
        let scale = |p: &mut Param| {
            let below = layer(&p.name).map_or(0, |l| last - l);
            p.lr_scale *= decay.powf(f64::from(below));
        };
        self.set("layerwise_lr_decay", |p| layer(&p.name).is_some(), scale)?;
        Ok(self)
    }

    /// Gives the parameters whose name fulfils `rule` a weight decay of their own, ≥ 0.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for a bad value, [`Error::NoMatch`](crate::Error::NoMatch) when no parameter is matched.
    pub fn with_weight_decay(mut self, decay: f64, rule: impl Fn(&str) -> bool) -> Result<Self> {
        check::non_negative("ParamSet", "weight_decay", decay)?;
        let decay = Some(decay);
        self.set(
            "weight_decay",
            |p| rule(&p.name),
            |p| p.weight_decay = decay,
        )?;
        Ok(self)
    }

    /// No weight decay for norms and biases, that is for every parameter with fewer than two
    /// dimensions, whatever its name.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Var};
    /// # use sala_core::ParamSet;
    /// # let w = Var::zeros((3, 2), DType::F32, &Device::Cpu)?;
    /// # let b = Var::zeros(3, DType::F32, &Device::Cpu)?;
    /// let params = ParamSet::new([("w", w), ("b", b)])?.without_decay_on_norms_and_biases();
    /// let decays: Vec<_> = params.iter().map(|p| (p.name(), p.weight_decay())).collect();
    /// assert_eq!(decays, [("b", Some(0.0)), ("w", None)]);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    #[must_use]
    pub fn without_decay_on_norms_and_biases(mut self) -> Self {
        for param in Arc::make_mut(&mut self.params) {
            if param.var.rank() < 2 {
                param.weight_decay = Some(0.0);
            }
        }
        self
    }

    /// Multiplies the radius ρ of the parameters whose name fulfils `rule` by `scale` ≥ 0. With 0 they
    /// are not perturbed, and the ascent is normalised over the others: this is how to perturb norm
    /// layers only (Mueller et al. 2023, arXiv:2306.04226).
    ///
    /// ```
    /// # use candle_core::{DType, Device, Var};
    /// # use sala_core::ParamSet;
    /// # let var = || Var::zeros(2, DType::F32, &Device::Cpu).unwrap();
    /// let named = [("bn1.weight", var()), ("bn1.bias", var()), ("conv1.weight", var())];
    /// let params = ParamSet::new(named)?.with_rho_scale(0.0, |name| !name.starts_with("bn"))?;
    /// let perturbed: Vec<_> = params.iter().filter(|p| p.rho_scale() > 0.0).map(|p| p.name()).collect();
    /// assert_eq!(perturbed, ["bn1.bias", "bn1.weight"]);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for a bad scale, [`Error::NoMatch`](crate::Error::NoMatch) when no parameter is matched.
    pub fn with_rho_scale(mut self, scale: f64, rule: impl Fn(&str) -> bool) -> Result<Self> {
        check::non_negative("ParamSet", "rho_scale", scale)?;
        self.set("rho_scale", |p| rule(&p.name), |p| p.rho_scale = scale)?;
        Ok(self)
    }

    /// Says for the parameters whose name fulfils `rule` whether an adaptive ascent (ASAM) scales with
    /// their magnitudes, whatever the method's default is.
    ///
    /// # Errors
    /// [`Error::NoMatch`](crate::Error::NoMatch) when no parameter is matched.
    pub fn with_adaptive(mut self, adaptive: bool, rule: impl Fn(&str) -> bool) -> Result<Self> {
        let adaptive = Some(adaptive);
        self.set("adaptive", |p| rule(&p.name), |p| p.adaptive = adaptive)?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::Error;

    fn var(len: usize) -> Var {
        Var::zeros(len, DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn settings_are_checked_and_a_rule_that_matches_nothing_is_an_error() {
        let params = || ParamSet::new([("w", var(1)), ("b", var(1))]).unwrap();
        let none = |_: &str| false;
        let unmatched = [
            params().with_lr_scale(0.5, none),
            params().with_weight_decay(0.5, none),
            params().with_rho_scale(0.5, none),
            params().with_adaptive(true, none),
            params().with_layerwise_lr_decay(0.5, |_| None),
        ];
        for outcome in unmatched {
            assert!(matches!(outcome, Err(Error::NoMatch { len: 2, .. })));
        }
        let all = |_: &str| true;
        let invalid = [
            params().with_lr_scale(f64::NAN, all),
            params().with_weight_decay(-1.0, all),
            params().with_rho_scale(f64::INFINITY, all),
            params().with_layerwise_lr_decay(0.0, |_| Some(0)),
        ];
        for outcome in invalid {
            assert!(matches!(
                outcome,
                Err(Error::Config {
                    owner: "ParamSet",
                    ..
                })
            ));
        }
    }

    #[test]
    fn rules_combine_and_a_copy_keeps_its_own_settings() {
        let params = ParamSet::new([("w", var(1)), ("b", var(1))]).unwrap();
        let changed = params
            .clone()
            .with_lr_scale(0.5, |_| true)
            .and_then(|p| p.with_lr_scale(0.5, |n| n == "w"))
            .unwrap();
        let scales = |p: &ParamSet| p.iter().map(Param::lr_scale).collect::<Vec<_>>();
        assert_eq!(
            (scales(&changed), scales(&params)),
            (vec![0.5, 0.25], vec![1.0, 1.0])
        );
    }
}
