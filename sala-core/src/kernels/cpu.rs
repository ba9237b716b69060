//! The updates fused for f32 and f64 on the CPU: one pass over memory, in place, in parallel.
//!
//! This file prepares constants and reaches the storages; the loops are in [`loops`](super::loops).
//! Locks are taken from the weights inwards, each on a storage of its own (see
//! [`access`](super::access)).

use std::marker::PhantomData;

use candle_core::{Result, Tensor, Var};

pub(super) use super::loops::CHUNK;
use super::{
    Beside, Fast, Kernels, Pull, Scalar,
    access::{Element, exchange, read, read_some, separate, write, write_some},
    decay,
    loops::{self, Real, Update, drive},
    wide,
};
use crate::base::{ParamsAdam, ParamsSgd};

/// Kernels of one element type.
pub(super) struct Cpu<T>(PhantomData<T>);

pub(super) static F32: Cpu<f32> = Cpu(PhantomData);
pub(super) static F64: Cpu<f64> = Cpu(PhantomData);

/// A step with what goes beside it: locks everything and runs the loop once. The gradient is separate
/// from the weights.
fn step<T: Element + Real, U: Update<T>>(
    update: U,
    weights: &Var,
    gradient: &Tensor,
    (first, second): (Option<&Tensor>, Option<&Tensor>),
    beside: Beside,
) -> Result<Option<Scalar>> {
    let Beside { from, pull } = beside;
    let from = from.map(|from| separate(from, &[weights])).transpose()?;
    let (slow, after) = match &pull {
        Some(Pull { slow, alpha, fast }) => (Some(&**slow), Some((T::of(*alpha), *fast))),
        None => (None, None),
    };
    let rule = loops::Step { update, after };
    let sum = write::<T, _>(weights, |w| {
        write_some(first, |first| {
            write_some(second, |second| {
                write_some(slow, |slow| {
                    read(gradient, |g| {
                        read_some(from.as_ref(), |from| {
                            Ok(drive(rule, (((w, g), (first, second)), (from, slow))))
                        })
                    })
                })
            })
        })
    })?;
    Ok(slow.map(|_| Scalar::Host(sum)))
}

impl<T: Element + Real> Kernels for Cpu<T> {
    fn sgd(
        &self,
        config: &ParamsSgd,
        weights: &Var,
        gradient: &Tensor,
        buffer: &mut Option<Tensor>,
        beside: Beside,
    ) -> Result<Option<Scalar>> {
        let (decay, shrink) = decay(config.lr, config.weight_decay, config.decoupled);
        let (decay, shrink) = (decay.map(T::of), T::of(shrink));
        let update = loops::Sgd {
            lr: T::of(config.lr),
            decay,
            shrink,
            momentum: T::of(config.momentum),
            undamped: T::of(1.0 - config.dampening),
            nesterov: config.nesterov,
            first: buffer.is_none(),
        };
        let gradient = separate(gradient, &[weights])?;
        if config.momentum > 0.0 {
            if buffer.is_none() {
                *buffer = Some(weights.zeros_like()?);
            }
        } else {
            *buffer = None;
        }
        step(update, weights, &gradient, (buffer.as_ref(), None), beside)
    }

    fn adam(
        &self,
        (config, t): (&ParamsAdam, u64),
        weights: &Var,
        gradient: &Tensor,
        moments: &mut Option<(Tensor, Tensor)>,
        beside: Beside,
    ) -> Result<Option<Scalar>> {
        let ParamsAdam {
            lr, beta1, beta2, ..
        } = *config;
        let (decay, shrink) = decay(lr, config.weight_decay, config.decoupled);
        let (decay, shrink) = (decay.map(T::of), T::of(shrink));
        let t = t as f64;
        let update = loops::Adam {
            decay,
            shrink,
            first: (T::of(beta1), T::of(1.0 - beta1)),
            second: (T::of(beta2), T::of(1.0 - beta2)),
            unbias: T::of(1.0 / (1.0 - beta2.powf(t)).sqrt()),
            eps: T::of(config.eps),
            step: T::of(lr / (1.0 - beta1.powf(t))),
        };
        let gradient = separate(gradient, &[weights])?;
        let zeros = || weights.zeros_like();
        let (m, v) = match moments {
            Some(moments) => moments,
            None => moments.insert((zeros()?, zeros()?)),
        };
        step(update, weights, &gradient, (Some(m), Some(v)), beside)
    }

    fn squared_norm(&self, x: &Tensor) -> Result<Scalar> {
        let sum = read::<T, _>(&x.contiguous()?, |x| Ok(drive(loops::SquaredNorm, x)))?;
        Ok(Scalar::Host(sum))
    }

    fn dot(&self, x: &Tensor, y: &Tensor) -> Result<Scalar> {
        let (x, y) = (x.contiguous()?, y.contiguous()?);
        let sum = read::<T, _>(&x, |x| read(&y, |y| Ok(drive(loops::Dot, (x, y)))))?;
        Ok(Scalar::Host(sum))
    }

    fn accumulate(&self, sum: &mut Tensor, x: &Tensor, factor: f64) -> Result<()> {
        let x = separate(&wide(x)?, &[sum])?;
        let rule = loops::Accumulate(T::of(factor));
        write::<T, _>(sum, |sum| read(&x, |x| Ok(drive(rule, (sum, x)))))?;
        Ok(())
    }

    fn combine(
        &self,
        result: &mut Tensor,
        (a, x): (f64, &Tensor),
        by: Option<(f64, &Tensor)>,
    ) -> Result<()> {
        let rule = loops::Combine(T::of(a), T::of(by.map_or(0.0, |(b, _)| b)));
        let x = separate(x, &[result])?;
        let y = by.map(|(_, y)| separate(y, &[result])).transpose()?;
        write::<T, _>(result, |to| {
            read(&x, |x| {
                read_some(y.as_ref(), |y| Ok(drive(rule, ((to, x), y))))
            })
        })?;
        Ok(())
    }

    fn clamp(&self, result: &mut Tensor, x: &Tensor, limit: f64) -> Result<()> {
        let x = separate(x, &[result])?;
        let rule = loops::Clamp(T::of(limit));
        write::<T, _>(result, |to| read(&x, |x| Ok(drive(rule, (to, x)))))?;
        Ok(())
    }

    fn adaptive(
        &self,
        direction: &mut Tensor,
        weights: &Var,
        gradient: &Tensor,
        eta: f64,
    ) -> Result<Scalar> {
        let gradient = separate(gradient, &[direction])?;
        let rule = loops::Adaptive(T::of(eta));
        let sum = write::<T, _>(direction, |d| {
            read(weights, |w| {
                read(&gradient, |g| Ok(drive(rule, ((d, w), g))))
            })
        })?;
        Ok(Scalar::Host(sum))
    }

    fn perturb(
        &self,
        weights: &Var,
        saved: &mut Option<Tensor>,
        direction: &Tensor,
        scale: f64,
    ) -> Result<()> {
        let direction = separate(direction, &[weights])?;
        let beside = match saved {
            Some(saved) => saved,
            None => saved.insert(weights.zeros_like()?),
        };
        let rule = loops::Offset(T::of(scale));
        write::<T, _>(beside, |new| {
            read(weights, |w| {
                read(&direction, |d| Ok(drive(rule, ((new, w), d))))
            })
        })?;
        exchange::<T>(weights, beside)
    }

    fn exchange(&self, weights: &Var, saved: &mut Tensor) -> Result<()> {
        exchange::<T>(weights, saved)
    }

    fn assign(&self, weights: &Var, values: &Tensor) -> Result<()> {
        let values = separate(values, &[weights])?;
        write::<T, _>(weights, |w| {
            read(&values, |v| Ok(drive(loops::Assign, (w, v))))
        })?;
        Ok(())
    }

    fn pull(&self, weights: &Var, pull: Pull) -> Result<Scalar> {
        let Pull { slow, alpha, fast } = pull;
        let rule = loops::Pull(T::of(alpha));
        let sum = match fast {
            Fast::Stay => write::<T, _>(slow, |slow| read(weights, |w| Ok(drive(rule, (slow, w))))),
            Fast::Return => write::<T, _>(slow, |slow| {
                write(weights, |w| {
                    Ok(drive(loops::PullAndReturn(rule), (slow, w)))
                })
            }),
        };
        Ok(Scalar::Host(sum?))
    }
}
