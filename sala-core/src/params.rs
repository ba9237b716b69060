//! The parameters that an optimizer trains: named, ordered, each variable once.

use std::collections::{BTreeMap, HashSet};

use candle_core::{Tensor, Var, backprop::GradStore};
use candle_nn::VarMap;

use crate::{
    error::{Error, Result},
    kernels,
};

/// Last parts of names under which layers keep statistics in a `VarMap` beside what is trained.
const BUFFERS: [&str; 3] = ["running_mean", "running_var", "num_batches_tracked"];

/// One trainable variable.
#[derive(Debug, Clone)]
pub struct Param {
    name: String,
    var: Var,
    group: usize,
}

impl Param {
    /// The variable's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The variable.
    pub fn var(&self) -> &Var {
        &self.var
    }

    /// Index of the parameter's group in [`ParamSet::groups`].
    pub fn group(&self) -> usize {
        self.group
    }
}

/// Named float variables in the order of their names, so that sums over all of them and saved states
/// do not depend on the order in which a model made them.
///
/// A variable that is listed under several names (tied weights) is kept once, under the first of
/// them. Cloning is cheap and shares the variables.
///
/// ```
/// # use candle_core::{DType, Device, Var};
/// # use sala_core::ParamSet;
/// let w = Var::zeros((3, 2), DType::F32, &Device::Cpu)?;
/// let b = Var::zeros(3, DType::F32, &Device::Cpu)?;
/// let params = ParamSet::new([("w", w), ("b", b)])?;
/// assert_eq!(params.names().collect::<Vec<_>>(), ["b", "w"]);
/// assert_eq!(params.num_elements(), 9);
/// # Ok::<(), sala_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ParamSet {
    params: Vec<Param>,
    frozen: Vec<Param>,
    groups: Vec<String>,
}

impl ParamSet {
    /// From names and variables in any order.
    ///
    /// # Errors
    /// [`Error::DuplicateName`], [`Error::NotFloat`], and [`Error::NoParameters`] for an empty list.
    pub fn new<N: Into<String>>(named: impl IntoIterator<Item = (N, Var)>) -> Result<Self> {
        let mut by_name = BTreeMap::new();
        for (name, var) in named {
            let name = name.into();
            if !var.dtype().is_float() {
                return Err(Error::NotFloat {
                    name,
                    dtype: var.dtype(),
                });
            }
            if let Some(earlier) = by_name.insert(name.clone(), var.clone())
                && earlier.id() != var.id()
            {
                return Err(Error::DuplicateName { name });
            }
        }
        let given = by_name.len();
        let mut seen = HashSet::new();
        let params: Vec<_> = by_name
            .into_iter()
            .filter(|(_, var)| seen.insert(var.id()))
            .map(|(name, var)| Param {
                name,
                var,
                group: 0,
            })
            .collect();
        if params.is_empty() {
            return Err(Error::NoParameters { given, frozen: 0 });
        }
        Ok(Self {
            params,
            frozen: Vec::new(),
            groups: vec!["default".into()],
        })
    }

    /// The trainable variables of a `VarMap`: its float variables without batch norm's running
    /// statistics, which candle keeps in the same map.
    ///
    /// # Errors
    /// [`Error::NoParameters`] when nothing is left.
    ///
    /// ```
    /// # use candle_core::{DType, Device};
    /// # use candle_nn::{VarBuilder, VarMap};
    /// # use sala_core::ParamSet;
    /// let varmap = VarMap::new();
    /// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
    /// candle_nn::batch_norm(4, 1e-5, vb.pp("bn"))?;
    /// let params = ParamSet::from_varmap(&varmap)?;
    /// assert_eq!(params.names().collect::<Vec<_>>(), ["bn.bias", "bn.weight"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_varmap(varmap: &VarMap) -> Result<Self> {
        // A poisoned lock means that another thread panicked while it held the map; the map itself
        // is still whole, since its entries are only ever inserted.
        let data = varmap
            .data()
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        Self::new(
            data.iter()
                .filter(|(name, var)| var.dtype().is_float() && !is_buffer(name))
                .map(|(name, var)| (name.clone(), var.clone())),
        )
    }

    /// From variables without names; they are called `var.0000`, `var.0001`, … in the order given.
    /// Non-float variables are left out, as candle's own optimizers do.
    ///
    /// # Errors
    /// [`Error::NoParameters`] when no float variable is given.
    ///
    /// ```
    /// # use candle_core::{DType, Device, Var};
    /// # use sala_core::ParamSet;
    /// let w = Var::zeros(2, DType::F64, &Device::Cpu)?;
    /// assert_eq!(ParamSet::from_vars(vec![w])?.names().next(), Some("var.0000"));
    /// # Ok::<(), sala_core::Error>(())
    /// ```
    pub fn from_vars(vars: Vec<Var>) -> Result<Self> {
        let floats = vars.into_iter().filter(|var| var.dtype().is_float());
        Self::new(
            floats
                .enumerate()
                .map(|(i, var)| (format!("var.{i:04}"), var)),
        )
    }

    /// Moves the parameters whose name fulfils `rule` into a group of their own.
    ///
    /// # Errors
    /// [`Error::NoMatch`] when no parameter does.
    pub fn group(mut self, name: &str, rule: impl Fn(&str) -> bool) -> Result<Self> {
        let index = self.groups.len();
        let mut matched = 0;
        for param in self.params.iter_mut().filter(|p| rule(&p.name)) {
            param.group = index;
            matched += 1;
        }
        if matched == 0 {
            return Err(Error::NoMatch {
                rule: name.into(),
                len: self.params.len(),
            });
        }
        self.groups.push(name.into());
        Ok(self)
    }

    /// Freezes the parameters whose name fulfils `rule`: they are neither stepped nor perturbed, and
    /// need no gradient.
    ///
    /// # Errors
    /// [`Error::NoMatch`] when no parameter fulfils it, [`Error::NoParameters`] when all do.
    pub fn freeze(mut self, rule: impl Fn(&str) -> bool) -> Result<Self> {
        let given = self.params.len();
        let (frozen, kept): (Vec<_>, Vec<_>) = self.params.into_iter().partition(|p| rule(&p.name));
        if frozen.is_empty() {
            return Err(Error::NoMatch {
                rule: "frozen".into(),
                len: given,
            });
        }
        if kept.is_empty() {
            return Err(Error::NoParameters {
                given,
                frozen: given,
            });
        }
        self.frozen.extend(frozen);
        self.params = kept;
        Ok(self)
    }

    /// The trainable parameters in the order of their names.
    pub fn iter(&self) -> std::slice::Iter<'_, Param> {
        self.params.iter()
    }

    /// Number of trainable variables, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a ParamSet is never empty")]
    pub fn len(&self) -> usize {
        self.params.len()
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.params.iter().map(Param::name)
    }

    /// The variables in the order of their names, for constructors that take a `Vec<Var>`.
    pub fn vars(&self) -> Vec<Var> {
        self.params.iter().map(|p| p.var.clone()).collect()
    }

    /// Names of the groups; group 0 is `default`.
    pub fn groups(&self) -> &[String] {
        &self.groups
    }

    /// The variables' tensors.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.params.iter().map(|p| &*p.var)
    }

    /// Number of trainable scalars.
    pub fn num_elements(&self) -> usize {
        self.params.iter().map(|p| p.var.elem_count()).sum()
    }

    /// A copy of every parameter, in storage of its own.
    pub(crate) fn snapshot(&self) -> Result<Vec<Tensor>> {
        self.params
            .iter()
            .map(|p| Ok(p.var.copy()?.detach()))
            .collect()
    }

    /// Writes one tensor into each parameter.
    pub(crate) fn assign(&self, values: &[Tensor]) -> Result<()> {
        kernels::run(values, |kernels| {
            for (param, value) in self.params.iter().zip(values) {
                kernels.of(&param.var).assign(&param.var, value)?;
            }
            Ok(())
        })
    }

    /// Drops the gradients of frozen variables, so that no base can step them.
    pub(crate) fn drop_frozen(&self, grads: &mut GradStore) {
        for param in &self.frozen {
            grads.remove(&param.var);
        }
    }
}

impl<'a> IntoIterator for &'a ParamSet {
    type Item = &'a Param;
    type IntoIter = std::slice::Iter<'a, Param>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

fn is_buffer(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    BUFFERS.contains(&last)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn var(len: usize) -> Var {
        Var::zeros(len, DType::F32, &Device::Cpu).unwrap()
    }

    #[test]
    fn parameters_are_sorted_by_name_whatever_their_order() {
        let (a, b) = (var(1), var(2));
        let one = ParamSet::new([("a", a.clone()), ("b", b.clone())]).unwrap();
        let two = ParamSet::new([("b", b), ("a", a)]).unwrap();
        assert!(one.names().eq(["a", "b"]) && two.names().eq(["a", "b"]));
    }

    #[test]
    fn a_tied_variable_is_kept_once_under_its_first_name() {
        let w = var(3);
        let params = ParamSet::new([("head", w.clone()), ("embedding", w)]).unwrap();
        assert_eq!((params.len(), params.num_elements()), (1, 3));
        assert!(params.names().eq(["embedding"]));
    }

    #[test]
    fn one_name_for_two_variables_is_an_error_and_for_the_same_one_is_not() {
        let w = var(1);
        let message = ParamSet::new([("w", w.clone()), ("w", var(1))])
            .unwrap_err()
            .to_string();
        assert!(message.contains("`w` is given twice"), "{message}");
        assert_eq!(
            ParamSet::new([("w", w.clone()), ("w", w)]).unwrap().len(),
            1
        );
    }

    #[test]
    fn an_integer_variable_is_an_error_that_names_it() {
        let ids = Var::zeros(2, DType::U32, &Device::Cpu).unwrap();
        let message = ParamSet::new([("ids", ids)]).unwrap_err().to_string();
        assert!(
            message.contains("`ids`") && message.contains("U32"),
            "{message}"
        );
    }

    #[test]
    fn nothing_to_train_is_an_error() {
        assert!(matches!(
            ParamSet::from_vars(vec![]),
            Err(Error::NoParameters {
                given: 0,
                frozen: 0
            })
        ));
        let all = ParamSet::new([("w", var(1))]).unwrap().freeze(|_| true);
        assert!(matches!(
            all,
            Err(Error::NoParameters {
                given: 1,
                frozen: 1
            })
        ));
    }

    #[test]
    fn rules_that_match_nothing_are_errors() {
        let params = ParamSet::new([("w", var(1)), ("b", var(1))]).unwrap();
        assert!(matches!(
            params.clone().group("norms", |n| n == "x"),
            Err(Error::NoMatch { .. })
        ));
        assert!(matches!(
            params.freeze(|n| n == "x"),
            Err(Error::NoMatch { .. })
        ));
    }

    #[test]
    fn frozen_parameters_leave_the_trainable_ones_and_their_gradients_are_dropped() {
        let (w, b) = (var(2), var(2));
        let params = ParamSet::new([("w", w.clone()), ("b", b.clone())]).unwrap();
        let params = params.freeze(|name| name == "w").unwrap();
        assert!(params.names().eq(["b"]));
        let mut grads = (w.as_tensor() + b.as_tensor())
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        params.drop_frozen(&mut grads);
        assert!(grads.get(&w).is_none() && grads.get(&b).is_some());
    }
}
