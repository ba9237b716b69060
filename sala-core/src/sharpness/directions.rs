//! Directions in the space of the parameters: one tensor for each, in the order of their names.
//!
//! Random ones are drawn on the CPU from `ChaCha8`, in f64, and rounded to the parameters' precision, so a
//! seed gives the same direction on every device. Each direction has a stream of the generator of its
//! own; it does not depend on how many were drawn before it.

use candle_core::{DType, Device, Tensor};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use rand_distr::{Distribution, StandardNormal};

use crate::{
    error::{Error, Result},
    kernels,
    params::{Param, ParamSet, is_half},
    vector,
};

/// Each element is 1 or −1, with equal probability: E v vᵀ = I, with the least variance that an estimate of
/// a trace can have.
///
/// # Errors
/// Those of making tensors.
///
/// ```
/// # use candle_core::{DType, Device, Var};
/// # use sala_core::{ParamSet, sharpness::rademacher};
/// let w = Var::zeros((2, 3), DType::F32, &Device::Cpu)?;
/// let direction = rademacher(&ParamSet::new([("w", w)])?, 7, 0)?;
/// assert!(direction[0].abs()?.flatten_all()?.to_vec1::<f32>()?.iter().all(|&x| x == 1.0));
/// # Ok::<(), sala_core::Error>(())
/// ```
pub fn rademacher(params: &ParamSet, seed: u64, number: u64) -> Result<Vec<Tensor>> {
    let mut rng = generator(seed, number);
    draw(params, || if rng.next_u32() & 1 == 0 { 1.0 } else { -1.0 })
}

/// Each element is drawn from the normal distribution of mean 0 and variance 1.
///
/// # Errors
/// Those of making tensors.
///
/// ```
/// # use candle_core::{DType, Device, Var};
/// # use sala_core::{ParamSet, sharpness::gaussian};
/// let w = Var::zeros((2, 3), DType::F32, &Device::Cpu)?;
/// assert_eq!(gaussian(&ParamSet::new([("w", w)])?, 7, 0)?[0].dims(), [2, 3]);
/// # Ok::<(), sala_core::Error>(())
/// ```
pub fn gaussian(params: &ParamSet, seed: u64, number: u64) -> Result<Vec<Tensor>> {
    let mut rng = generator(seed, number);
    draw(params, || StandardNormal.sample(&mut rng))
}

/// Scales a direction to the weights filter by filter (Li et al. 2018, arXiv:1712.09913, section 4):
///
/// ```text
/// dᵢⱼ ← dᵢⱼ ‖θᵢⱼ‖ / ‖dᵢⱼ‖          0 where dᵢⱼ = 0
/// ```
///
/// with θᵢⱼ row j, along the first dimension, of parameter i: a convolution's filter, a neuron's weights. Then
/// slices of networks whose weights differ in scale can be compared. Parameters of fewer than two
/// dimensions (biases, norm layers) are left where they are: their part of the result is zero.
///
/// # Errors
/// [`Error::Direction`] when `direction` does not fit the parameters.
///
/// ```
/// # use candle_core::{Device, Tensor, Var};
/// # use sala_core::{ParamSet, sharpness::filter_normalised};
/// let w = Var::new(&[[3f64, 4.0], [0.0, 5.0]], &Device::Cpu)?;
/// let d = Tensor::new(&[[0f64, 1.0], [8.0, 6.0]], &Device::Cpu)?;
/// let d = filter_normalised(&ParamSet::new([("w", w)])?, &[d])?;
/// assert_eq!(d[0].to_vec2::<f64>()?, [[0.0, 5.0], [4.0, 3.0]]);
/// # Ok::<(), sala_core::Error>(())
/// ```
pub fn filter_normalised(params: &ParamSet, direction: &[Tensor]) -> Result<Vec<Tensor>> {
    let direction = fitting(params, direction)?;
    let normalised = |(param, d): (&Param, &Tensor)| {
        if d.rank() < 2 {
            return Ok(d.zeros_like()?);
        }
        let rows = |x: &Tensor| x.flatten_from(1)?.sqr()?.sum_keepdim(1)?.sqrt();
        let weights = kernels::wide(&param.var().detach())?;
        // A row of zeros has no direction; it stays one. To divide by its norm would give 0 · ∞.
        let own = rows(d)?;
        let there = own.gt(0.0)?.to_dtype(own.dtype())?;
        let nothing = there.affine(-1.0, 1.0)?;
        let factors = ((rows(&weights)? / (own + nothing)?)? * there)?;
        let scaled = d.flatten_from(1)?.broadcast_mul(&factors)?;
        Ok(scaled.reshape(d.shape())?)
    };
    params.iter().zip(&direction).map(normalised).collect()
}

/// One stream for each number.
fn generator(seed: u64, number: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(number);
    rng
}

fn draw(params: &ParamSet, mut next: impl FnMut() -> f64) -> Result<Vec<Tensor>> {
    let mut one = |param: &Param| {
        let var = param.var();
        let values: Vec<f64> = (0..var.elem_count()).map(|_| next()).collect();
        let host = Tensor::from_vec(values, var.shape(), &Device::Cpu)?;
        Ok(host
            .to_dtype(wide_dtype(var.dtype()))?
            .to_device(var.device())?)
    };
    params.iter().map(&mut one).collect()
}

/// The dtype of a direction of a parameter.
fn wide_dtype(dtype: DType) -> DType {
    if is_half(dtype) { DType::F32 } else { dtype }
}

/// Checks that a direction fits the parameters; hands out its tensors, contiguous.
pub(super) fn fitting(params: &ParamSet, direction: &[Tensor]) -> Result<Vec<Tensor>> {
    if direction.len() != params.len() {
        return Err(Error::Direction {
            what: "the number of tensors".into(),
            wanted: format!("{}, one for each parameter", params.len()),
            got: direction.len().to_string(),
        });
    }
    let check = |(param, d): (&Param, &Tensor)| {
        let var = param.var();
        let dtype = wide_dtype(var.dtype());
        let fits = d.dims() == var.dims() && d.dtype() == dtype;
        if !fits || !d.device().same_device(var.device()) {
            let kind = |shape: &[usize], dtype, device: &Device| {
                format!("{shape:?}, {dtype:?} on {:?}", device.location())
            };
            return Err(Error::Direction {
                what: format!("the tensor for `{}`", param.name()),
                wanted: kind(var.dims(), dtype, var.device()),
                got: kind(d.dims(), d.dtype(), d.device()),
            });
        }
        Ok(d.detach().contiguous()?)
    };
    params.iter().zip(direction).map(check).collect()
}

/// v / ‖v‖; nothing for v = 0.
pub(super) fn unit(v: &[Tensor]) -> Result<Option<Vec<Tensor>>> {
    let norm = vector::norm(v)?;
    if norm > 0.0 && norm.is_finite() {
        vector::scaled(v, 1.0 / norm).map(Some)
    } else {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::testing::values;

    fn params() -> ParamSet {
        let var = |shape: &[usize]| Var::zeros(shape, DType::F64, &Device::Cpu).unwrap();
        ParamSet::new([("w", var(&[40, 50])), ("b", var(&[50]))]).unwrap()
    }

    // Catches 0 · ∞: the norm of these weights over the least f32 is no f32 any more.
    #[test]
    fn a_row_of_zeros_stays_one_in_f32() {
        let w = Var::new(&[[30f32, 40.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let params = ParamSet::new([("w", w)]).unwrap();
        let d = Tensor::new(&[[0f32, 0.0], [0.0, 2.0]], &Device::Cpu).unwrap();
        let d = filter_normalised(&params, &[d]).unwrap();
        assert_eq!(values(&d[0]), [0.0, 0.0, 0.0, 5.0]);
    }

    #[test]
    fn a_direction_depends_on_seed_and_number_alone() {
        let flat = |d: Vec<Tensor>| d.iter().flat_map(values).collect::<Vec<_>>();
        for draw in [rademacher, gaussian] {
            let of = |seed, number| flat(draw(&params(), seed, number).unwrap());
            assert_eq!(of(1, 2), of(1, 2));
            assert_ne!(of(1, 2), of(1, 3));
            assert_ne!(of(1, 2), of(2, 2));
        }
    }

    #[test]
    fn random_directions_have_unit_variance_and_no_mean() {
        for draw in [rademacher, gaussian] {
            let direction = draw(&params(), 0, 0).unwrap();
            let all: Vec<f64> = direction.iter().flat_map(values).collect();
            let n = all.len() as f64;
            let mean = all.iter().sum::<f64>() / n;
            let square = all.iter().map(|x| x * x).sum::<f64>() / n;
            // Four standard errors of 2,050 draws.
            assert!(mean.abs() < 0.09, "{mean}");
            assert!((square - 1.0).abs() < 0.125, "{square}");
        }
    }

    #[test]
    fn a_direction_that_does_not_fit_is_refused_with_its_place() {
        let mut direction = rademacher(&params(), 0, 0).unwrap();
        direction[1] = direction[1].t().unwrap();
        let message = fitting(&params(), &direction).unwrap_err().to_string();
        let wanted =
            "direction: the tensor for `w` must be [40, 50], F64 on Cpu, got [50, 40], F64 on Cpu";
        assert_eq!(message, wanted);
        let message = fitting(&params(), &direction[..1]).unwrap_err().to_string();
        assert!(
            message.contains("must be 2, one for each parameter, got 1"),
            "{message}"
        );
    }

    #[test]
    fn filters_without_weights_or_direction_stay_and_biases_too() {
        let w = Var::new(&[[0f64, 0.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let b = Var::new(&[1f64, 1.0], &Device::Cpu).unwrap();
        let params = ParamSet::new([("w", w), ("b", b)]).unwrap();
        let d = Tensor::new(&[[1f64, 1.0], [0.0, 0.0]], &Device::Cpu).unwrap();
        let ones = Tensor::ones(2, DType::F64, &Device::Cpu).unwrap();
        let direction = filter_normalised(&params, &[ones, d]).unwrap();
        assert_eq!(values(&direction[0]), [0.0, 0.0]);
        assert_eq!(values(&direction[1]), [0.0; 4]);
    }
}
