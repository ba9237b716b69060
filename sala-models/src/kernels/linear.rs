//! Fully connected layers as products of packed matrices.
//!
//! With `Y = X Wᵀ + b` and `G = ∂L/∂Y`:
//!
//! ```text
//! ∂L/∂X = G W        ∂L/∂W = Gᵀ X        ∂L/∂b = Σ over rows of G
//! ```

use candle_core::{DType, Result, Tensor};

use super::{
    access,
    element::Element,
    graph::{self, Input, Operation},
    matmul::{self, Panels, Product},
    pieces, transpose,
};

/// Tiles of a piece, at least and at most, and bytes of its rows: they stay in a second-level cache. With more
/// tiles the last piece of the slower thread would be waited for.
const LEAST: usize = 2;
const MOST: usize = 16;
const CACHE: usize = 400 << 10;

/// `x (…, I)`, `weight (O, I)` and `bias (O)` to `(…, O)`: contiguous tensors of one dtype.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let tensors: Vec<&Tensor> = [x, weight].into_iter().chain(bias).collect();
    match x.dtype() {
        DType::F64 => graph::apply(Linear::<f64>::new(inputs, outputs), &tensors),
        _ => graph::apply(Linear::<f32>::new(inputs, outputs), &tensors),
    }
}

struct Linear<T> {
    inputs: usize,
    outputs: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> Operation for Linear<T> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn forward(&self, tensors: &[&Tensor]) -> Result<Tensor> {
        let Self {
            inputs, outputs, ..
        } = *self;
        let (x, weight) = (access::view::<T>(tensors[0])?, access::view(tensors[1])?);
        let right = Panels::pack_turned(inputs, outputs, &weight, inputs);
        let y = match tensors.get(2) {
            Some(bias) => product(&x, &right, Some(&access::view(bias)?)),
            None => product(&x, &right, None),
        };
        let mut dims = tensors[0].dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = outputs;
        }
        access::tensor(y, dims)
    }

    fn backward(
        &self,
        tensors: &[Input],
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let Self {
            inputs, outputs, ..
        } = *self;
        let gradient = access::view::<T>(gradient)?;
        let gradient_of = |i: usize, input: &Input| {
            let values = match i {
                0 => {
                    let weight = access::view(&tensors[1].value)?;
                    let right = Panels::pack(outputs, inputs, &weight, inputs);
                    product(&gradient, &right, None)
                }
                1 => self.weight_gradient(&access::view(&tensors[0].value)?, &gradient),
                _ => pieces::column_sums(&gradient, outputs),
            };
            access::tensor(values, input.value.shape())
        };
        (tensors.iter().enumerate())
            .map(|(i, input)| input.tracked.then(|| gradient_of(i, input)).transpose())
            .collect()
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

    /// The larger matrix is the turned one, of which little is in use at a time; the smaller is packed whole.
    fn weight_gradient(&self, x: &[T], gradient: &[T]) -> Vec<T> {
        let Self {
            inputs, outputs, ..
        } = *self;
        let rows = x.len() / inputs;
        if inputs <= outputs {
            return matmul::turned_product(gradient, &Panels::pack(rows, inputs, x, inputs));
        }
        let right = Panels::pack(rows, outputs, gradient, outputs);
        transpose::batches(&matmul::turned_product(x, &right), inputs, outputs)
    }
}

/// `left (M, depth)` times a packed `(depth, columns)`.
fn product<T: Element>(left: &[T], right: &Panels<T>, bias: Option<&[T]>) -> Vec<T> {
    let (depth, columns) = right.sizes();
    let all = left.len() / depth;
    let rows = rows_of_piece::<T>(all, depth);
    let runs = [matmul::plain_run(depth)];
    pieces::made(all * columns, rows * columns, |i, out| {
        let first = i * rows;
        let places = matmul::plain_places(first..first + out.len() / columns, depth, columns);
        let product = Product {
            left,
            places: &places,
            runs: &runs,
            right,
            bias,
        };
        product.write_new(out)
    })
}

/// Rows of a piece: whole tiles that fit the cache, so many that the threads finish together. Values do not
/// depend on it.
fn rows_of_piece<T: Element>(all: usize, depth: usize) -> usize {
    let tile = matmul::tile_rows();
    let most = (CACHE / (depth * size_of::<T>()) / tile).clamp(LEAST, MOST);
    let threads = rayon::current_num_threads();
    // The tiles of the thread that has the most of them.
    let longest = |tiles: usize| {
        let full = (all - 1) / (tiles * tile);
        let last = (all - full * tiles * tile).div_ceil(tile);
        if full.is_multiple_of(threads) {
            full / threads * tiles + last
        } else {
            full.div_ceil(threads) * tiles
        }
    };
    let tiles = (LEAST..=most).rev().min_by_key(|&tiles| longest(tiles));
    tiles.unwrap_or(LEAST) * tile
}
