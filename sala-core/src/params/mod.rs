//! The parameters that an optimizer trains: named, ordered, each variable once.

mod masters;
mod settings;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use candle_core::{DType, DeviceLocation, Tensor, Var, backprop::GradStore};
use candle_nn::VarMap;

use crate::{
    error::{Error, Result, check},
    kernels::{self},
};

/// Last parts of names under which layers keep statistics in a `VarMap` beside what is trained.
const BUFFERS: [&str; 3] = ["running_mean", "running_var", "num_batches_tracked"];

/// One trainable variable and what applies to it.
#[derive(Debug, Clone)]
pub struct Param {
    name: String,
    /// What the optimizer works on: the model's variable, or an f32 master copy of it.
    var: Var,
    /// The model's variable where `var` is a master copy.
    published: Option<Var>,
    group: usize,
    lr_scale: f64,
    weight_decay: Option<f64>,
    rho_scale: f64,
    adaptive: Option<bool>,
}

impl Param {
    fn new(name: String, var: Var) -> Self {
        Self {
            name,
            var,
            published: None,
            group: 0,
            lr_scale: 1.0,
            weight_decay: None,
            rho_scale: 1.0,
            adaptive: None,
        }
    }

    /// The variable's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The variable that the optimizer works on: the model's, or its f32 master copy
    /// ([`ParamSet::with_f32_masters`]).
    pub fn var(&self) -> &Var {
        &self.var
    }

    /// The variable that the model computes with; gradients belong to it.
    pub fn model_var(&self) -> &Var {
        self.published.as_ref().unwrap_or(&self.var)
    }

    /// Index of the parameter's group in [`ParamSet::groups`].
    pub fn group(&self) -> usize {
        self.group
    }

    /// Factor of the learning rate.
    pub fn lr_scale(&self) -> f64 {
        self.lr_scale
    }

    /// Weight decay of its own; `None` is that of the base.
    pub fn weight_decay(&self) -> Option<f64> {
        self.weight_decay
    }

    /// Takes the name that another set gave to the same variable.
    pub(crate) fn take_name(&mut self, other: &Self) {
        self.name.clone_from(&other.name);
    }

    /// Whether a base has to treat the parameter in a way of its own.
    pub(crate) fn has_base_settings(&self) -> bool {
        self.weight_decay.is_some() || (self.lr_scale - 1.0).abs() > 0.0
    }

    /// Whether a base that knows `other` treats this parameter as it should.
    pub(crate) fn same_base_settings(&self, other: &Self) -> bool {
        let bits = |p: &Self| (p.lr_scale.to_bits(), p.weight_decay.map(f64::to_bits));
        bits(self) == bits(other)
    }

    /// Factor of the radius ρ; 0 leaves the parameter unperturbed.
    pub fn rho_scale(&self) -> f64 {
        self.rho_scale
    }

    /// Whether an adaptive ascent scales with this parameter's magnitudes; `None` leaves it to the
    /// method.
    pub fn adaptive(&self) -> Option<bool> {
        self.adaptive
    }
}

/// Named float variables in the order of their names, so that sums over all of them and saved states
/// do not depend on the order in which a model made them.
///
/// A variable that is listed under several names (tied weights) is kept once, under the first of
/// them. Cloning is cheap and shares the variables.
///
/// Settings of single parameters (factor of the learning rate, weight decay, radius, …) are given by
/// rules over names. Each `with_…` call is an error when its rule matches nothing, a later one overrides
/// an earlier one, and they combine freely. The learning rate's factor and the weight decay are
/// obeyed by the built-in bases, which have to be made from the finished set; other bases know nothing of
/// them, and a step over one is an error.
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
    params: Arc<Vec<Param>>,
    frozen: Arc<Vec<Param>>,
    groups: Arc<Vec<String>>,
}

impl ParamSet {
    /// From names and variables in any order.
    ///
    /// # Errors
    /// [`Error::EmptyName`], [`Error::DuplicateName`], [`Error::NotFloat`], [`Error::MixedDevices`], and
    /// [`Error::NoParameters`] for an empty list.
    pub fn new<N: Into<String>>(named: impl IntoIterator<Item = (N, Var)>) -> Result<Self> {
        let mut by_name = BTreeMap::new();
        let mut device = None;
        for (index, (name, var)) in named.into_iter().enumerate() {
            let name = name.into();
            if name.is_empty() {
                return Err(Error::EmptyName { index });
            }
            let got = var.device().location();
            let wanted = *device.get_or_insert(got);
            require_device(&name, wanted, got)?;
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
            .map(|(name, var)| Param::new(name, var))
            .collect();
        if params.is_empty() {
            return Err(Error::NoParameters { given, frozen: 0 });
        }
        Ok(Self {
            params: Arc::new(params),
            frozen: Arc::default(),
            groups: Arc::new(vec!["default".into()]),
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
    /// Not for `VarMap::all_vars`, whose order differs from one process to the next: the names in a saved
    /// state would mean other variables there. [`ParamSet::from_varmap`] keeps the map's names.
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

    /// Moves the parameters whose name fulfils `rule` into a group of their own, over which
    /// [`AscentNorm::PerGroup`](crate::perturb::AscentNorm::PerGroup) normalises.
    ///
    /// # Errors
    /// [`Error::NoMatch`] when no parameter does, [`Error::Config`] when there is a group of that name.
    pub fn group(mut self, name: &str, rule: impl Fn(&str) -> bool) -> Result<Self> {
        let fresh = self.groups.iter().all(|known| known != name);
        let wanted = "a name that no other group has";
        check::holds("ParamSet", "group", fresh, wanted, format!("`{name}`"))?;
        let index = self.groups.len();
        self.set(name, |p| rule(&p.name), |p| p.group = index)?;
        Arc::make_mut(&mut self.groups).push(name.into());
        Ok(self)
    }

    /// Freezes the parameters whose name fulfils `rule`: they are neither stepped nor perturbed, and
    /// need no gradient.
    ///
    /// # Errors
    /// [`Error::NoMatch`] when no parameter fulfils it, [`Error::NoParameters`] when all do.
    pub fn freeze(mut self, rule: impl Fn(&str) -> bool) -> Result<Self> {
        let given = self.params.len();
        let (frozen, kept): (Vec<_>, Vec<_>) =
            self.params.iter().cloned().partition(|p| rule(&p.name));
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
        Arc::make_mut(&mut self.frozen).extend(frozen);
        self.params = Arc::new(kept);
        Ok(self)
    }

    /// Changes the parameters that `matches`; `rule` names the rule in the error when none does.
    fn set(
        &mut self,
        rule: &str,
        matches: impl Fn(&Param) -> bool,
        change: impl Fn(&mut Param),
    ) -> Result<()> {
        let len = self.params.len();
        let mut matched = 0;
        for param in Arc::make_mut(&mut self.params) {
            if matches(param) {
                change(param);
                matched += 1;
            }
        }
        if matched == 0 {
            let rule = rule.into();
            return Err(Error::NoMatch { rule, len });
        }
        Ok(())
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

    /// The variables to train, in the order of their names, for constructors that take a `Vec<Var>`.
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
        let copy = |p: &Param| Ok(p.var.force_contiguous()?.detach());
        self.params.iter().map(copy).collect()
    }

    /// A copy of every parameter in f32 or wider.
    pub(crate) fn wide_snapshot(&self) -> Result<Vec<Tensor>> {
        let copy = |p: &Param| Ok(kernels::wide(&p.var.force_contiguous()?)?.detach());
        self.params.iter().map(copy).collect()
    }

    /// Writes one tensor into each parameter, and publishes.
    pub(crate) fn assign(&self, values: &[Tensor]) -> Result<()> {
        kernels::run(values, |kernels| {
            for (param, value) in self.params.iter().zip(values) {
                kernels.of(&param.var).assign(&param.var, value)?;
            }
            Ok(())
        })?;
        self.publish()
    }

    /// Drops the gradients of frozen variables, so that no base can step them.
    pub(crate) fn drop_frozen(&self, grads: &mut GradStore) {
        for param in self.frozen.iter() {
            grads.remove(param.model_var());
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

/// Whether numbers of this dtype have a short mantissa or exponent.
pub(crate) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16)
}

fn require_device(name: &str, wanted: DeviceLocation, got: DeviceLocation) -> Result<()> {
    if wanted == got {
        return Ok(());
    }
    let name = name.into();
    Err(Error::MixedDevices { name, wanted, got })
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
    fn an_empty_name_is_an_error_with_its_place() {
        let message = ParamSet::new([("w", var(1)), ("", var(1))])
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("number 1 (from 0) has an empty name"),
            "{message}"
        );
    }

    #[test]
    fn variables_on_different_devices_are_an_error_that_names_both() {
        let (cpu, gpu) = (DeviceLocation::Cpu, DeviceLocation::Cuda { gpu_id: 0 });
        assert!(require_device("w", cpu, cpu).is_ok());
        let message = require_device("w", cpu, gpu).unwrap_err().to_string();
        assert!(
            message.contains("`w` is on Cuda") && message.contains("Cpu"),
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

    // Catches two groups of one name, which are normalised apart.
    #[test]
    fn a_second_group_of_one_name_is_an_error() {
        let params = ParamSet::new([("w", var(1)), ("b", var(1))]).unwrap();
        let params = params.group("norms", |n| n == "w").unwrap();
        for name in ["norms", "default"] {
            let error = params.clone().group(name, |n| n == "b").unwrap_err();
            let wanted =
                format!("ParamSet.group must be a name that no other group has, got `{name}`");
            assert_eq!(error.to_string(), wanted);
        }
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
