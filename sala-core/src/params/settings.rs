//! Settings of single parameters, given by rules over names.

use std::{collections::HashMap, sync::Arc};

use candle_core::{DType, Var};

use super::{Param, ParamSet, is_half};
use crate::{
    error::{Error, Result, check},
    kernels,
};

impl ParamSet {
    /// Multiplies the learning rate of the parameters whose name fulfils `rule` by `scale` ≥ 0, on top
    /// of what [`ParamSet::with_layerwise_lr_decay`] does.
    ///
    /// # Errors
    /// [`Error::Config`] for a bad scale, [`Error::NoMatch`] when no parameter is matched.
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
    /// [`Error::Config`] when `decay` is outside (0, 1], [`Error::NoMatch`] when nothing has a layer.
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
    /// [`Error::Config`] for a bad value, [`Error::NoMatch`] when no parameter is matched.
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
    /// [`Error::Config`] for a bad scale, [`Error::NoMatch`] when no parameter is matched.
    pub fn with_rho_scale(mut self, scale: f64, rule: impl Fn(&str) -> bool) -> Result<Self> {
        check::non_negative("ParamSet", "rho_scale", scale)?;
        self.set("rho_scale", |p| rule(&p.name), |p| p.rho_scale = scale)?;
        Ok(self)
    }

    /// Says for the parameters whose name fulfils `rule` whether an adaptive ascent (ASAM) scales with
    /// their magnitudes, whatever the method's default is.
    ///
    /// # Errors
    /// [`Error::NoMatch`] when no parameter is matched.
    pub fn with_adaptive(mut self, adaptive: bool, rule: impl Fn(&str) -> bool) -> Result<Self> {
        let adaptive = Some(adaptive);
        self.set("adaptive", |p| rule(&p.name), |p| p.adaptive = adaptive)?;
        Ok(self)
    }

    /// Keeps an f32 copy of every bf16 and f16 parameter, which the optimizer works on; the model's
    /// variable receives its rounded value after each change. Without it an update that is smaller
    /// than half the distance of two half-precision numbers is lost.
    ///
    /// Make it the last rule, before a base is built from the set. The masters are part of the
    /// optimizer's state. Whoever changes the model's variables afterwards calls
    /// [`Minimizer::weights_replaced`](crate::Minimizer::weights_replaced).
    ///
    /// # Errors
    /// Those of converting tensors.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Var};
    /// # use sala_core::ParamSet;
    /// let w = Var::ones(3, DType::BF16, &Device::Cpu)?;
    /// let params = ParamSet::new([("w", w)])?.with_f32_masters()?;
    /// let w = params.iter().next().unwrap();
    /// assert_eq!((w.var().dtype(), w.model_var().dtype()), (DType::F32, DType::BF16));
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn with_f32_masters(self) -> Result<Self> {
        self.with_masters(|param| {
            let value = kernels::cast(&param.var, DType::F32)?.detach();
            Ok(Var::from_tensor(&value)?)
        })
    }

    /// The same with these variables as masters, such as published weights that half precision would round: a bf16 or
    /// f16 parameter without a master gets the one of its name, and takes its value, rounded. Other names are passed
    /// over.
    ///
    /// # Errors
    /// [`Error::Master`] when there is none of a parameter's name, or it has another shape or
    /// device, or is not f32; no variable has changed then. Those of converting tensors.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Var};
    /// # use sala_core::ParamSet;
    /// let w = Var::zeros(1, DType::BF16, &Device::Cpu)?;
    /// let published = Var::new(&[1.001f32], &Device::Cpu)?;
    /// let params = ParamSet::new([("w", w.clone())])?.with_f32_masters_of([("w", published)])?;
    /// assert_eq!(params.vars()[0].to_vec1::<f32>()?, [1.001]);
    /// assert_eq!(w.to_dtype(DType::F32)?.to_vec1::<f32>()?, [1.0]);
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn with_f32_masters_of<N: Into<String>>(
        self,
        masters: impl IntoIterator<Item = (N, Var)>,
    ) -> Result<Self> {
        let masters = masters.into_iter().map(|(name, var)| (name.into(), var));
        let masters: HashMap<String, Var> = masters.collect();
        let params = self.with_masters(|param| fitting(param, masters.get(&param.name)))?;
        params.publish()?;
        Ok(params)
    }

    /// Gives each parameter of half precision that has no master the one that `master` makes.
    fn with_masters(mut self, master: impl Fn(&Param) -> Result<Var>) -> Result<Self> {
        for param in Arc::make_mut(&mut self.params) {
            if is_half(param.var.dtype()) && param.published.is_none() {
                let master = master(param)?;
                param.published = Some(std::mem::replace(&mut param.var, master));
            }
        }
        Ok(self)
    }
}

/// The variable that was given as a parameter's master, if it can be that.
fn fitting(param: &Param, master: Option<&Var>) -> Result<Var> {
    let kind = |dtype: DType, var: &Var| {
        format!(
            "{dtype:?} {:?} on {:?}",
            var.dims(),
            var.device().location()
        )
    };
    let wanted = kind(DType::F32, &param.var);
    let got = master.map(|var| kind(var.dtype(), var));
    match master {
        Some(master) if got.as_ref() == Some(&wanted) => Ok(master.clone()),
        _ => Err(Error::Master {
            name: param.name.clone(),
            wanted,
            got: got.unwrap_or_else(|| "none".into()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

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

    #[test]
    fn masters_that_are_given_must_fit_and_are_kept_to_the_last_bit() {
        let half = |len: usize| Var::zeros(len, DType::BF16, &Device::Cpu).unwrap();
        let (w, b, whole) = (half(2), half(2), var(2));
        let named = || [("w", w.clone()), ("b", b.clone()), ("whole", whole.clone())];
        let params = || ParamSet::new(named()).unwrap();
        let ones = |len: usize, dtype| Var::ones(len, dtype, &Device::Cpu).unwrap();
        let wrong = [
            (vec![("w", ones(2, DType::F32))], "`b`", "got none"),
            (
                vec![("w", ones(2, DType::F32)), ("b", ones(3, DType::F32))],
                "`b`",
                "got F32 [3]",
            ),
            (
                vec![("b", ones(2, DType::F32)), ("w", ones(2, DType::F64))],
                "`w`",
                "got F64 [2]",
            ),
        ];
        for (masters, name, got) in wrong {
            let error = params()
                .with_f32_masters_of(masters)
                .unwrap_err()
                .to_string();
            assert!(error.contains(name) && error.contains(got), "{error}");
            let changed = w.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(changed, [0.0, 0.0]);
        }
        let fine = Var::new(&[1.0f32 + 2f32.powi(-20), -3.0], &Device::Cpu).unwrap();
        let masters = [
            ("w", fine.clone()),
            ("b", ones(2, DType::F32)),
            ("other", var(1)),
        ];
        let params = params().with_f32_masters_of(masters).unwrap();
        let of = |name: &str| params.iter().find(|p| p.name() == name).unwrap();
        assert_eq!(of("w").var().id(), fine.id());
        assert_eq!(crate::testing::values(of("w").model_var()), [1.0, -3.0]);
        assert_eq!(of("whole").var().id(), whole.id());
    }
}
