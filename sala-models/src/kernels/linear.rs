//! Fully connected layers as products of packed matrices.
//!
//! With `Y = X Wᵀ + b` and `G = ∂L/∂Y`:
//!
//! ```text
//! ∂L/∂X = G W        ∂L/∂W = Gᵀ X        ∂L/∂b = Σ over rows of G
//! ```

use std::ops::Range;

use candle_core::{DType, Result, Shape, Tensor};

use super::{
    access,
    custom::{Gradients, Inputs, Operation},
    element::Element,
    matmul::{self, Outer, Panels, Product},
    pieces,
};

/// Rows of a piece, at most and at least, and the number of pieces that is aimed at.
const ROWS: (usize, usize) = (256, 32);
const SHARES: usize = 16;

/// `x (…, I)`, `weight (O, I)` and `bias (O)` to `(…, O)`: contiguous tensors of one dtype.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    match x.dtype() {
        DType::F64 => Linear::<f64>::new(inputs, outputs).apply(x, weight, bias),
        _ => Linear::<f32>::new(inputs, outputs).apply(x, weight, bias),
    }
}

struct Linear<T> {
    inputs: usize,
    outputs: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> Operation for Linear<T> {
    type Element = T;

    fn name(&self) -> &'static str {
        "linear"
    }

    fn forward(&self, x: &[T], shape: &Shape, weight: &[T], bias: Option<&[T]>) -> (Vec<T>, Shape) {
        let Self {
            inputs, outputs, ..
        } = *self;
        let right = Panels::pack(inputs, outputs, weight, (1, inputs));
        let mut dims = shape.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = outputs;
        }
        (product(x, &right, bias, inputs, outputs), dims.into())
    }

    fn backward(&self, tensors: Inputs, _: &Tensor, gradient: &Tensor) -> Result<Gradients> {
        let Self {
            inputs, outputs, ..
        } = *self;
        let Inputs {
            first: x,
            second: weight,
            third: bias,
        } = tensors;
        access::read::<T, _>(gradient, |gradient| {
            let of_x = x.track_op().then(|| {
                let right = access::read(weight, |w| {
                    Ok(Panels::pack(outputs, inputs, w, (inputs, 1)))
                })?;
                let values = product(gradient, &right, None, outputs, inputs);
                access::tensor(values, x.shape())
            });
            let of_weight = weight.track_op().then(|| {
                let values = access::read(x, |x| Ok(self.weight_gradient(x, gradient)))?;
                access::tensor(values, weight.shape())
            });
            let of_bias = bias
                .filter(|bias| bias.track_op())
                .map(|bias| access::tensor(pieces::column_sums(gradient, outputs), bias.shape()));
            Ok((
                of_x.transpose()?,
                of_weight.transpose()?,
                of_bias.transpose()?,
            ))
        })
    }
}

impl<T: Element> Linear<T> {
    const fn new(inputs: usize, outputs: usize) -> Self {
        Self {
            inputs,
            outputs,
            element: std::marker::PhantomData,
        }
    }

    fn weight_gradient(&self, x: &[T], gradient: &[T]) -> Vec<T> {
        let Self {
            inputs, outputs, ..
        } = *self;
        let outer = Outer {
            left: gradient,
            bases: |rows: Range<usize>| rows.map(|row| row * outputs).collect(),
            runs: &[matmul::plain_run(outputs)],
            right: x,
            stride: inputs,
            rows: x.len() / inputs,
            columns: inputs,
        };
        let sums = outer.sums();
        pieces::filled(outputs * inputs, inputs, |o, row| sums.add_row(o, row))
    }
}

/// `left (M, depth)` times a packed `(depth, columns)`.
fn product<T: Element>(
    left: &[T],
    right: &Panels<T>,
    bias: Option<&[T]>,
    depth: usize,
    columns: usize,
) -> Vec<T> {
    let all = left.len() / depth;
    let rows = (all / SHARES).clamp(ROWS.1, ROWS.0);
    let runs = [matmul::plain_run(depth)];
    pieces::filled(all * columns, rows * columns, |i, out| {
        let first = i * rows;
        let places = matmul::plain_places(first..first + out.len() / columns, depth, columns);
        let product = Product {
            left,
            places: &places,
            runs: &runs,
            right,
            bias,
        };
        product.write(out);
    })
}
