//! Norms and combinations of all parameters seen as one vector.
//!
//! Sums run over the parameters in the order of their names, each parameter's own sum first, so a
//! result does not depend on the order in which a model made its variables. All numbers that one
//! decision needs are read from the device together: one synchronisation.

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Device, Tensor};

use crate::{
    error::{Error, Result},
    kernels::{self, Kernels, Scalar},
    params::is_half,
};

/// Checks that there is one tensor for each of `like`, of its shape: what follows would take the first ones
/// only, or read past them.
pub(crate) fn check_shapes<'a>(
    like: impl Iterator<Item = &'a Tensor>,
    got: &[Tensor],
) -> Result<()> {
    let shape = |x: &Tensor| format!("of shape {:?}", x.dims());
    let like: Vec<_> = like.collect();
    if like.len() != got.len() {
        return Err(Error::Direction {
            what: "the number of tensors".into(),
            wanted: format!("{}, one for each parameter", like.len()),
            got: got.len().to_string(),
        });
    }
    let mut pairs = like.into_iter().zip(got).enumerate();
    match pairs.find(|(_, (like, got))| like.dims() != got.dims()) {
        None => Ok(()),
        Some((i, (like, got))) => Err(Error::Direction {
            what: format!("the tensor for parameter {i} (from 0)"),
            wanted: shape(like),
            got: shape(got),
        }),
    }
}

/// Σ xᵢ² of each tensor.
pub(crate) fn squared_norms(tensors: &[Tensor]) -> Result<Vec<Scalar>> {
    kernels::run(tensors, |kernels| {
        let norm = |x| Ok(kernels.of(x).squared_norm(x)?);
        tensors.iter().map(norm).collect()
    })
}

/// Σ xᵢ yᵢ of each pair of tensors.
pub(crate) fn dots(xs: &[Tensor], ys: &[Tensor]) -> Result<Vec<Scalar>> {
    kernels::run(xs, |kernels| {
        let dot = |(x, y)| Ok(kernels.of(x).dot(x, y)?);
        xs.iter().zip(ys).map(dot).collect()
    })
}

/// sumᵢ ← sumᵢ + factor · xᵢ, with xᵢ of the sum's precision or half of it.
pub(crate) fn accumulate(sums: &mut [Tensor], xs: &[Tensor], factor: f64) -> Result<()> {
    kernels::run(xs, |kernels| {
        for (sum, x) in sums.iter_mut().zip(xs) {
            kernels.of(sum).accumulate(sum, x, factor)?;
        }
        Ok(())
    })
}

/// The numbers on the host; those that are still on a device are brought with one synchronisation.
pub(crate) fn read_scalars(scalars: Vec<Scalar>) -> Result<Vec<f64>> {
    Gathered::new(scalars)?.read()
}

/// Numbers, those that are still on a device together in one tensor there.
pub(crate) struct Gathered {
    places: Vec<Place>,
    tensor: Option<Tensor>,
}

/// Where a number is.
enum Place {
    Known(f64),
    /// In the tensor.
    At(usize),
}

impl Gathered {
    pub(crate) fn new(scalars: Vec<Scalar>) -> Result<Self> {
        let mut unread = Unread::default();
        let places = scalars.into_iter().map(|scalar| unread.add(scalar));
        Ok(Self {
            places: places.collect::<Result<_>>()?,
            tensor: unread.together()?,
        })
    }

    /// The tensor on the device, if it has all numbers in their order and nothing else.
    pub(crate) fn in_order(&self) -> Option<&Tensor> {
        let at = |(i, place): (usize, &Place)| matches!(place, Place::At(at) if *at == i);
        let tensor = self.tensor.as_ref()?;
        let all = tensor.elem_count() == self.places.len();
        (all && self.places.iter().enumerate().all(at)).then_some(tensor)
    }

    /// Brings the numbers to the host.
    pub(crate) fn read(self) -> Result<Vec<f64>> {
        let read = match self.tensor {
            None => Vec::new(),
            Some(tensor) => {
                #[cfg(any(test, feature = "testing"))]
                crate::testing::count_synchronisation();
                // f64 exists on the CPU even where the device (Metal) has none.
                let host = tensor.to_device(&Device::Cpu)?;
                host.to_dtype(DType::F64)?.to_vec1()?
            }
        };
        let number = |place| match place {
            Place::Known(number) => number,
            Place::At(at) => read[at],
        };
        Ok(self.places.into_iter().map(number).collect())
    }
}

/// Tensors of numbers to be read together, each once.
#[derive(Default)]
struct Unread {
    tensors: Vec<Tensor>,
    /// How many numbers they hold.
    len: usize,
    /// Sums of launches, with the place of their first number.
    sums: Vec<(Arc<OnceLock<Tensor>>, usize)>,
}

impl Unread {
    fn add(&mut self, scalar: Scalar) -> Result<Place> {
        Ok(match scalar {
            Scalar::Host(number) => Place::Known(number),
            Scalar::Device(tensor) => Place::At(self.push(tensor)),
            Scalar::Summed(sums, at) => {
                let known = self.sums.iter().find(|(s, _)| Arc::ptr_eq(s, &sums));
                if let Some((_, first)) = known {
                    return Ok(Place::At(first + at));
                }
                let Some(tensor) = sums.get().cloned() else {
                    let problem = "sums are read before their launch";
                    return Err(candle_core::Error::msg(problem).into());
                };
                let first = self.push(tensor);
                self.sums.push((sums, first));
                Place::At(first + at)
            }
        })
    }

    fn push(&mut self, tensor: Tensor) -> usize {
        let first = self.len;
        self.len += tensor.elem_count();
        self.tensors.push(tensor);
        first
    }

    /// The elements of all tensors, in f64 if one of them has it.
    fn together(self) -> Result<Option<Tensor>> {
        if self.tensors.is_empty() {
            return Ok(None);
        }
        let f64 = self.tensors.iter().any(|t| t.dtype() == DType::F64);
        let dtype = if f64 { DType::F64 } else { DType::F32 };
        let flat = self.tensors.iter();
        let flat = flat.map(|t| t.to_dtype(dtype)?.flatten_all());
        let flat = flat.collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Some(Tensor::cat(&flat, 0)?))
    }
}

/// ⟨x, y⟩ over all tensors, read on the host.
pub(crate) fn dot(xs: &[Tensor], ys: &[Tensor]) -> Result<f64> {
    Ok(read_scalars(dots(xs, ys)?)?.iter().sum())
}

/// factor · xᵢ, in storage of its own; f32 for half precision.
pub(crate) fn scaled(xs: &[Tensor], factor: f64) -> Result<Vec<Tensor>> {
    each(xs, |kernels, i, result| {
        kernels.combine(result, (factor, &xs[i]), None)
    })
}

/// a xᵢ + b yᵢ, for as many y as x; f32 for half precision.
pub(crate) fn combined(
    (a, xs): (f64, &[Tensor]),
    (b, ys): (f64, &[Tensor]),
) -> Result<Vec<Tensor>> {
    check_shapes(xs.iter(), ys)?;
    each(xs, |kernels, i, result| {
        kernels.combine(result, (a, &xs[i]), Some((b, &ys[i])))
    })
}

/// The elements of xᵢ, none of them further from 0 than the limit; f32 for half precision.
pub(crate) fn clamped(xs: &[Tensor], limit: f64) -> Result<Vec<Tensor>> {
    each(xs, |kernels, i, result| {
        kernels.clamp(result, &xs[i], limit)
    })
}

/// A result for each tensor, written by an update that is given its number.
fn each(
    xs: &[Tensor],
    update: impl Fn(&dyn Kernels, usize, &mut Tensor) -> candle_core::Result<()> + Sync,
) -> Result<Vec<Tensor>> {
    let results = xs.iter().map(kernels::like);
    let mut results = results.collect::<candle_core::Result<Vec<_>>>()?;
    kernels::run(xs, |kernels| {
        for (i, (x, result)) in xs.iter().zip(&mut results).enumerate() {
            update(kernels.of(x), i, result)?;
        }
        Ok(())
    })?;
    Ok(results)
}

/// xᵢ in a precision to compute with: f32 for half precision, else as it is.
pub(crate) fn widened(xs: Vec<Tensor>) -> Result<Vec<Tensor>> {
    let half: Vec<_> = xs.iter().filter(|x| is_half(x.dtype())).cloned().collect();
    if half.is_empty() {
        return Ok(xs);
    }
    let mut wide = scaled(&half, 1.0)?.into_iter();
    let widen = |x: Tensor| {
        if is_half(x.dtype()) {
            return wide.next().unwrap_or(x);
        }
        x
    };
    Ok(xs.into_iter().map(widen).collect())
}

/// ‖x‖₂ over all tensors, read on the host.
pub(crate) fn norm(tensors: &[Tensor]) -> Result<f64> {
    Ok(norm_of(&read_scalars(squared_norms(tensors)?)?))
}

/// √Σ sᵢ of squared norms.
pub(crate) fn norm_of(squared: &[f64]) -> f64 {
    squared.iter().sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_runs_over_all_tensors() {
        let a = Tensor::new(&[[3f32, 0.0], [0.0, 0.0]], &Device::Cpu).unwrap();
        let b = Tensor::new(&[4f32], &Device::Cpu).unwrap();
        assert!((norm(&[a, b]).unwrap() - 5.0).abs() < 1e-12);
    }

    #[test]
    fn squares_of_half_precision_values_do_not_overflow() {
        // 300² = 90 000 is above f16's largest value, 65 504.
        let a = Tensor::new(&[300f32], &Device::Cpu)
            .unwrap()
            .to_dtype(DType::F16)
            .unwrap();
        assert!((norm(&[a]).unwrap() - 300.0).abs() < 1e-12);
    }

    #[test]
    fn scalars_of_different_dtypes_are_read_together_without_loss() {
        let a = Tensor::new(0.1f64, &Device::Cpu).unwrap();
        let b = Tensor::new(0.5f32, &Device::Cpu).unwrap();
        let scalars = vec![Scalar::Device(a), Scalar::Host(0.2), Scalar::Device(b)];
        assert_eq!(read_scalars(scalars).unwrap(), [0.1, 0.2, 0.5]);
    }
}
