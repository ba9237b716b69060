//! The updates fused for f32 and f64 on the CPU: one pass over memory, in place, in parallel.
//!
//! This file prepares constants and reaches the storages; the loops are in [`loops`](super::loops).
//! Locks are taken from the weights inwards, each on a storage of its own (see
//! [`access`](super::access)).

use std::marker::PhantomData;

use candle_core::{Result, Tensor, Var};

pub(super) use super::loops::CHUNK;
use super::{
    Fast, Kernels, Scalar,
    access::{Element, read, separate, write},
    loops::{self, Real, drive},
};
use crate::base::{ParamsAdam, ParamsSgd};

/// Kernels of one element type.
pub(super) struct Cpu<T>(PhantomData<T>);

pub(super) static F32: Cpu<f32> = Cpu(PhantomData);
pub(super) static F64: Cpu<f64> = Cpu(PhantomData);

/// λ of coupled decay, and the factor of the weights: 1 − η λ of decoupled decay or 1.
fn decay<T: Real>(lr: f64, weight_decay: f64, decoupled: bool) -> (Option<T>, T) {
    let shrink = if decoupled {
        1.0 - lr * weight_decay
    } else {
        1.0
    };
    let coupled = weight_decay > 0.0 && !decoupled;
    (coupled.then(|| T::of(weight_decay)), T::of(shrink))
}

impl<T: Element + Real> Kernels for Cpu<T> {
    fn sgd(
        &self,
        config: &ParamsSgd,
        weights: &Var,
        gradient: &Tensor,
        buffer: &mut Option<Tensor>,
    ) -> Result<()> {
        let (decay, shrink) = decay(config.lr, config.weight_decay, config.decoupled);
        let rule = loops::Sgd {
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
            let buffer = match buffer {
                Some(buffer) => buffer,
                None => buffer.insert(weights.zeros_like()?),
            };
            write::<T, _>(weights, |w| {
                write::<T, _>(buffer, |b| {
                    read(&gradient, |g| Ok(drive(rule, ((w, g), b))))
                })
            })?;
        } else {
            *buffer = None;
            write::<T, _>(weights, |w| read(&gradient, |g| Ok(drive(rule, (w, g)))))?;
        }
        Ok(())
    }

    fn adam(
        &self,
        config: &ParamsAdam,
        t: u64,
        weights: &Var,
        gradient: &Tensor,
        moments: &mut Option<(Tensor, Tensor)>,
    ) -> Result<()> {
        let ParamsAdam {
            lr, beta1, beta2, ..
        } = *config;
        let (decay, shrink) = decay(lr, config.weight_decay, config.decoupled);
        let t = t as f64;
        let rule = loops::Adam {
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
        write::<T, _>(weights, |w| {
            write::<T, _>(m, |m| {
                write::<T, _>(v, |v| {
                    read(&gradient, |g| Ok(drive(rule, ((w, g), (m, v)))))
                })
            })
        })?;
        Ok(())
    }

    fn squared_norm(&self, x: &Tensor) -> Result<Scalar> {
        let sum = read::<T, _>(&x.contiguous()?, |x| Ok(drive(loops::SquaredNorm, x)))?;
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
        let saved = match saved {
            Some(saved) => saved,
            None => saved.insert(weights.zeros_like()?),
        };
        let rule = loops::Perturb {
            scale: T::of(scale),
        };
        write::<T, _>(weights, |w| {
            write::<T, _>(saved, |s| {
                read(&direction, |d| Ok(drive(rule, ((w, s), d))))
            })
        })?;
        Ok(())
    }

    fn assign(&self, weights: &Var, values: &Tensor) -> Result<()> {
        let values = separate(values, &[weights])?;
        write::<T, _>(weights, |w| {
            read(&values, |v| Ok(drive(loops::Assign, (w, v))))
        })?;
        Ok(())
    }

    fn pull(&self, slow: &mut Tensor, weights: &Var, alpha: f64, fast: Fast) -> Result<Scalar> {
        let rule = loops::Pull {
            alpha: T::of(alpha),
        };
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
