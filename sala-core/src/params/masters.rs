//! f32 master copies of parameters in half precision: made, published, saved.

use std::{collections::HashMap, sync::Arc};

use candle_core::{DType, Tensor, Var};

use super::{Param, ParamSet, is_half};
use crate::{
    error::{Error, Result},
    kernels::{self, Guard},
    state::{State, StateReader},
};

impl ParamSet {
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

    /// Brings the model's variables up to date with their master copies.
    pub(crate) fn publish(&self) -> Result<()> {
        self.publish_under(None)
    }

    /// As [`ParamSet::publish`], of copies that were updated under a guard.
    pub(crate) fn publish_under(&self, guard: Option<&Guard>) -> Result<()> {
        let params = self.params.iter();
        let published: Vec<_> = params
            .filter_map(|p| p.published.as_ref().map(|to| (to, &p.var)))
            .collect();
        let to = published.iter().map(|(to, _)| to.as_tensor());
        kernels::run_under(guard, to, |kernels| {
            for (to, master) in &published {
                kernels.of(to).assign(to, master)?;
            }
            Ok(())
        })
    }

    /// Adds the master copies, if there are any, to a state.
    pub(crate) fn save_masters(&self, state: &mut State) -> Result<()> {
        for param in self.params.iter().filter(|p| p.published.is_some()) {
            state.set_tensor(format!("master.{}", param.name), &param.var)?;
        }
        Ok(())
    }

    /// Reads what [`ParamSet::save_masters`] wrote, maybe in a run of another precision;
    /// [`ParamSet::assign_masters`] puts it to use. Where this set has master copies and the other had none,
    /// they are taken from the model's variables; where the other had some that this set has not, they are the
    /// weights.
    pub(crate) fn read_masters(&self, reader: &mut StateReader) -> Result<Vec<Option<Tensor>>> {
        let read = |p: &Param| reader.optional_tensor(&format!("master.{}", p.name), &p.var);
        let mut masters = self.params.iter().map(read).collect::<Result<Vec<_>>>()?;
        let own = |p: &Param| p.published.is_some();
        let wanted = self.params.iter().filter(|p| own(p)).count();
        let both = self.params.iter().zip(&masters);
        let found = both.filter(|(p, m)| own(p) && m.is_some()).count();
        if found != 0 && found != wanted {
            return Err(Error::State {
                owner: "ParamSet".into(),
                problem: format!("master copies of {found} of {wanted} parameters"),
            });
        }
        if found == 0 {
            for (param, master) in self.params.iter().zip(&mut masters) {
                if let Some(model_var) = &param.published {
                    *master = Some(kernels::wide(model_var)?.detach());
                }
            }
        }
        Ok(masters)
    }

    pub(crate) fn assign_masters(&self, masters: &[Option<Tensor>]) -> Result<()> {
        for (param, master) in self.params.iter().zip(masters) {
            if let Some(master) = master {
                param.var.set(master)?;
            }
        }
        self.publish()
    }

    /// Takes the master copies from the model's variables, which have been changed from outside.
    pub(crate) fn renew_masters(&self) -> Result<()> {
        for param in self.params.iter() {
            if let Some(model_var) = &param.published {
                let values = kernels::wide(model_var)?.detach();
                param.var.set(&values)?;
            }
        }
        Ok(())
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
    fn a_master_copy_is_published_rounded() {
        let w = Var::new(&[1f32], &Device::Cpu).unwrap();
        let half = Var::from_tensor(&w.to_dtype(DType::BF16).unwrap()).unwrap();
        let params = ParamSet::new([("w", half.clone())]).unwrap();
        let params = params.with_f32_masters().unwrap();
        // 1 + 2⁻¹⁰ is between bf16's 1 and 1 + 2⁻⁷.
        let value = Tensor::new(&[1.0f32 + 2f32.powi(-10)], &Device::Cpu).unwrap();
        params.assign(std::slice::from_ref(&value)).unwrap();
        assert_eq!(crate::testing::values(&half), [1.0]);
        assert_eq!(
            params.vars()[0].to_vec1::<f32>().unwrap(),
            [1.0 + 2f32.powi(-10)]
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
