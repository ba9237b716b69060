//! Parts of tensors and sums of tensors that repeat themselves, where networks take up and hand over features.
//!
//! ```text
//! narrow       y = x[…, start .. start + len, …]      dx = dy there, 0 elsewhere
//! pad          y = x, and 0 around it along dim       dx = dy where x is
//! scale        y = x s, s repeated to x's shape        dx = dy s
//! broadcast    y = Σᵢ xᵢ, repeated to one shape        dxᵢ = dy, summed over what xᵢ repeats
//! prepend      y[b] = first, rest[b]                   dfirst = Σ_b dy[b, 0],  drest = dy[:, 1 ..]
//! product      y = a b                                 da = dy b,  db = dy a
//! permute      y's dimensions are x's in another order  dx's are dy's in x's order
//! heads        y[b, h, t] = x[b, t, h], and back       dx[b, t, h] = dy[b, h, t]
//! mean         y[b] = Σ_t c[b, t] x[b, t] / N_b        dx[b, t] = dy[b] / N_b · c[b, t]       N_b = max(1, Σ_t c[b, t])
//! ```
//!
//! candle computes them; as operations of the graph here they hand their gradients on. Sums of half precision are taken in
//! f32 and rounded once.

use candle_core::{DType, Result, Shape, Tensor};

use super::{
    card::{self, Card, rows::swap_rows},
    fast,
    graph::{self, Input, Operation},
};

/// Whether operations like `x`'s are those of the graph here.
fn in_graph(x: &Tensor) -> Result<bool> {
    Ok(card::serving(x)?.is_some() || fast(x)?)
}

/// `x` as it is added up: candle's sums are of the elements' type, and in half precision they soon stand still.
fn summable(x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::BF16 | DType::F16 => x.to_dtype(DType::F32),
        _ => Ok(x.clone()),
    }
}

/// What candle differentiates, in f32 for half precision: it adds up the gradients of what is repeated, too.
fn composed(tensors: &[&Tensor], f: impl FnOnce(&[&Tensor]) -> Result<Tensor>) -> Result<Tensor> {
    let wide = tensors.iter().map(|x| summable(x));
    let wide = wide.collect::<Result<Vec<_>>>()?;
    f(&wide.iter().collect::<Vec<_>>())?.to_dtype(tensors[0].dtype())
}

/// `len` elements of dimension `dim`, from `start` on.
pub(crate) fn narrow(x: &Tensor, dim: usize, start: usize, len: usize) -> Result<Tensor> {
    if !in_graph(x)? {
        return x.narrow(dim, start, len);
    }
    let after = x.dim(dim)?.checked_sub(start.saturating_add(len));
    let Some(after) = after else {
        // candle says what is wrong.
        return x.narrow(dim, start, len);
    };
    let frame = Frame {
        dim,
        before: start,
        after,
        inward: true,
    };
    graph::apply(frame, &[&x.contiguous()?])
}

/// `x` with so many zeros before and after it along dimension `dim`.
pub(crate) fn pad(x: &Tensor, dim: usize, before: usize, after: usize) -> Result<Tensor> {
    if !in_graph(x)? {
        return x.pad_with_zeros(dim, before, after);
    }
    let frame = Frame {
        dim,
        before,
        after,
        inward: false,
    };
    graph::apply(frame, &[&x.contiguous()?])
}

/// What is within a frame along one dimension, or that with zeros for the frame. Each is the other's gradient.
struct Frame {
    dim: usize,
    before: usize,
    after: usize,
    /// Whether the operation takes what is within, or puts the frame around it.
    inward: bool,
}

impl Frame {
    /// A copy: nobody else has its memory.
    fn of(&self, x: &Tensor, inward: bool) -> Result<Tensor> {
        if !inward && self.before + self.after > 0 {
            // New, and of the dimensions' order.
            return x
                .pad_with_zeros(self.dim, self.before, self.after)?
                .contiguous();
        }
        let within = if inward {
            let len = x.dim(self.dim)? - self.before - self.after;
            x.narrow(self.dim, self.before, len)?
        } else {
            x.clone()
        };
        within.force_contiguous()
    }
}

impl Operation for Frame {
    fn name(&self) -> &'static str {
        if self.inward { "narrow" } else { "pad" }
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        self.of(inputs[0], self.inward)
    }

    fn backward(&self, _: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(self.of(dy, !self.inward)?)])
    }
}

/// `x` times constants that are repeated to its shape.
pub(crate) fn scale(x: &Tensor, by: &Tensor) -> Result<Tensor> {
    if !in_graph(x)? {
        return x.broadcast_mul(by);
    }
    if by.track_op() {
        candle_core::bail!("scale: factors are constants, these would get no gradient");
    }
    graph::apply(Scale(by.clone()), &[&x.contiguous()?])
}

struct Scale(Tensor);

impl Operation for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        inputs[0].broadcast_mul(&self.0)
    }

    fn backward(&self, _: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Ok(vec![Some(dy.broadcast_mul(&self.0)?)])
    }
}

/// The sum of tensors that can be repeated to one shape, from the first to the last.
pub(crate) fn broadcast_sum(tensors: &[&Tensor]) -> Result<Tensor> {
    let Some(first) = tensors.first() else {
        candle_core::bail!("broadcast_sum: no tensors");
    };
    if !in_graph(first)? {
        return composed(tensors, sum);
    }
    let tensors = tensors.iter().map(|t| t.contiguous());
    let tensors = tensors.collect::<Result<Vec<_>>>()?;
    graph::apply(BroadcastSum, &tensors.iter().collect::<Vec<_>>())
}

fn sum(tensors: &[&Tensor]) -> Result<Tensor> {
    let (first, rest) = (tensors[0].clone(), &tensors[1..]);
    rest.iter().try_fold(first, |sum, x| sum.broadcast_add(x))
}

struct BroadcastSum;

impl Operation for BroadcastSum {
    fn name(&self) -> &'static str {
        "broadcast_sum"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        match inputs {
            [single] => single.force_contiguous(),
            several => sum(several),
        }
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let of = |input: &Input| {
            let wanted = input.tracked.then(|| unrepeated(dy, input));
            wanted.transpose()
        };
        inputs.iter().map(of).collect()
    }
}

/// `dy` summed over what the input repeats.
fn unrepeated(dy: &Tensor, input: &Input) -> Result<Tensor> {
    let shape = input.value.shape();
    if shape == dy.shape() {
        return input.share(dy);
    }
    let more = dy.rank() - shape.rank();
    let repeats = |d: &usize| *d < more || shape.dims()[d - more] < dy.dims()[*d];
    let dims: Vec<usize> = (0..dy.rank()).filter(repeats).collect();
    let sum = summable(dy)?.sum_keepdim(dims)?;
    sum.to_dtype(dy.dtype())?
        .reshape(Shape::clone(shape))?
        .contiguous()
}

/// `first (1, 1, H)` in front of each of `rest (B, T, H)`.
pub(crate) fn prepend(first: &Tensor, rest: &Tensor) -> Result<Tensor> {
    if !in_graph(rest)? {
        return composed(&[first, rest], |x| Prepend::of(x[0], x[1]));
    }
    graph::apply(Prepend, &[&first.contiguous()?, &rest.contiguous()?])
}

struct Prepend;

impl Prepend {
    fn of(first: &Tensor, rest: &Tensor) -> Result<Tensor> {
        let (batch, _, size) = rest.dims3()?;
        let first = first.broadcast_as((batch, 1, size))?;
        Tensor::cat(&[&first, rest], 1)
    }
}

impl Operation for Prepend {
    fn name(&self) -> &'static str {
        "prepend"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        Self::of(inputs[0], inputs[1])?.contiguous()
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let length = inputs[1].value.dim(1)?;
        let first = summable(&dy.narrow(1, 0, 1)?)?.sum_keepdim(0)?;
        let first = first.to_dtype(dy.dtype())?;
        let rest = dy.narrow(1, 1, length)?.force_contiguous()?;
        Ok(vec![Some(first.contiguous()?), Some(rest)])
    }
}

/// The mean of `hidden (B, T, H)` over the tokens that count, by 0 or 1 in `counts (B, T)`, or all: `(B, H)`. A text
/// without tokens has the mean 0, not NaN.
pub(crate) fn token_mean(hidden: &Tensor, counts: Option<Tensor>) -> Result<Tensor> {
    let op = TokenMean { counts };
    if !in_graph(hidden)? {
        return op.of(hidden);
    }
    graph::apply(op, &[&hidden.contiguous()?])
}

struct TokenMean {
    counts: Option<Tensor>,
}

impl TokenMean {
    fn of(&self, hidden: &Tensor) -> Result<Tensor> {
        let x = summable(hidden)?;
        let mean = match &self.counts {
            None => x.mean(1)?,
            Some(counts) => {
                let counted = x.broadcast_mul(&summable(counts)?.unsqueeze(2)?)?;
                counted.sum(1)?.broadcast_div(&Self::total(counts)?)?
            }
        };
        mean.to_dtype(hidden.dtype())
    }

    /// N, f32 for half precision.
    fn total(counts: &Tensor) -> Result<Tensor> {
        summable(counts)?.sum_keepdim(1)?.maximum(1.0)
    }
}

impl Operation for TokenMean {
    fn name(&self) -> &'static str {
        "token_mean"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        self.of(inputs[0])?.contiguous()
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let shape = inputs[0].value.shape();
        let dx = match &self.counts {
            None => {
                let each = (dy / inputs[0].value.dim(1)? as f64)?.unsqueeze(1)?;
                each.broadcast_as(shape)?.contiguous()?
            }
            Some(counts) => {
                let each = summable(dy)?.broadcast_div(&Self::total(counts)?)?;
                let each = each.to_dtype(dy.dtype())?.unsqueeze(1)?;
                each.broadcast_mul(&counts.unsqueeze(2)?)?
            }
        };
        Ok(vec![Some(dx)])
    }
}

/// `a b`, element by element, of tensors of one shape.
pub(crate) fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !in_graph(a)? {
        return a * b;
    }
    graph::apply(Product, &[&a.contiguous()?, &b.contiguous()?])
}

struct Product;

impl Operation for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        inputs[0] * inputs[1]
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let of = |input: &Input, other: &Input| {
            let wanted = input.tracked.then(|| dy * &other.value);
            wanted.transpose()
        };
        let (a, b) = (&inputs[0], &inputs[1]);
        Ok(vec![of(a, b)?, of(b, a)?])
    }
}

/// `x` with its dimensions in another order, contiguous.
pub(crate) fn permute<const N: usize>(x: &Tensor, order: [usize; N]) -> Result<Tensor> {
    if !x.track_op() || !in_graph(x)? {
        return x.permute(order)?.contiguous();
    }
    graph::apply(Permute { order }, &[&x.contiguous()?])
}

struct Permute<const N: usize> {
    order: [usize; N],
}

impl<const N: usize> Operation for Permute<N> {
    fn name(&self) -> &'static str {
        "permute"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        inputs[0].permute(self.order)?.force_contiguous()
    }

    fn backward(&self, _: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let mut back = [0; N];
        for (place, &dim) in self.order.iter().enumerate() {
            back[dim] = place;
        }
        let dx = dy.permute(back)?;
        Ok(vec![Some(dx.force_contiguous()?)])
    }
}

/// The features `(B, T, heads · size)` of each token as `(B, heads, T, size)`.
pub(crate) fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, length, features) = x.dims3()?;
    let size = features / heads;
    let shape = (batch, heads, length, size);
    swapped(x, [batch, length, heads, size], shape.into())
}

/// The way back, from `(B, heads, T, size)` to `(B, T, heads · size)`.
pub(crate) fn join_heads(x: &Tensor) -> Result<Tensor> {
    let (batch, heads, length, size) = x.dims4()?;
    let shape = (batch, length, heads * size);
    swapped(x, [batch, heads, length, size], shape.into())
}

fn swapped(x: &Tensor, sizes: [usize; 4], shape: Shape) -> Result<Tensor> {
    let swap = Swap {
        card: card::serving(x)?,
        sizes,
        shape,
    };
    if !in_graph(x)? {
        return x.reshape(&sizes[..])?.transpose(1, 2)?.reshape(&swap.shape);
    }
    graph::apply(swap, &[&x.contiguous()?])
}

/// `(A, B, C, D)` to `(A, C, B, D)`, in whatever shapes these are given and wanted.
struct Swap {
    card: Option<Card>,
    sizes: [usize; 4],
    shape: Shape,
}

impl Swap {
    fn of(&self, x: &Tensor, sizes: [usize; 4], shape: &Shape) -> Result<Tensor> {
        let y = match &self.card {
            // Where nothing moves, this is `x`.
            Some(card) if sizes[1] > 1 && sizes[2] > 1 => swap_rows(card, x, sizes)?,
            _ => {
                let swapped = x.reshape(&sizes[..])?.transpose(1, 2)?;
                swapped.force_contiguous()?
            }
        };
        y.reshape(shape)
    }
}

impl Operation for Swap {
    fn name(&self) -> &'static str {
        "swap"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        self.of(inputs[0], self.sizes, &self.shape)
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let [a, b, c, d] = self.sizes;
        let dx = self.of(dy, [a, c, b, d], inputs[0].value.shape())?;
        Ok(vec![Some(dx)])
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};
    use sala_core::testing::{SCALAR, values};

    use super::*;
    use crate::{
        backward,
        kernels::{Choice, with_choice},
    };

    fn wave(shape: &[usize], pace: f64) -> Tensor {
        let count = shape.iter().product::<usize>();
        let values = (0..count).map(|i| (pace * (i as f64 + 1.0)).sin());
        let values = Tensor::from_iter(values, &Device::Cpu).unwrap();
        values.reshape(shape).unwrap()
    }

    /// Compares a value and the gradients of its inputs with those of candle's own operations.
    fn check(shapes: &[&[usize]], f: impl Fn(&[&Tensor]) -> Result<Tensor>) {
        let run = |choice| {
            with_choice(choice, || {
                let vars = shapes.iter().zip(1..);
                let vars: Vec<Var> = vars
                    .map(|(shape, i)| Var::from_tensor(&wave(shape, f64::from(i))).unwrap())
                    .collect();
                let inputs: Vec<&Tensor> = vars.iter().map(Var::as_tensor).collect();
                let y = f(&inputs).unwrap();
                let loss = (&y * wave(y.dims(), 0.7)).unwrap().sum_all().unwrap();
                let gradients = backward(&loss).unwrap();
                let of = |var: &Var| gradients.get(var).unwrap().clone();
                let mut all = vec![y.detach()];
                all.extend(vars.iter().map(of));
                all
            })
        };
        let wanted = run(Choice::Composed);
        let forms = [
            Choice::Auto,
            #[cfg(sala_emulated)]
            Choice::Emulated,
        ];
        for form in forms {
            for (i, (got, wanted)) in run(form).iter().zip(&wanted).enumerate() {
                SCALAR.assert_tensors(&format!("{form:?}, tensor {i}"), got, wanted);
            }
        }
    }

    // Catches a gradient at other places, in another shape, or that leaves out what is repeated.
    #[test]
    fn gradients_are_those_of_candles_operations() {
        check(&[&[2, 5, 3]], |x| narrow(x[0], 1, 1, 3));
        check(&[&[2, 5, 3]], |x| narrow(x[0], 1, 0, 5));
        check(&[&[2, 4, 3], &[4, 3]], broadcast_sum);
        check(&[&[4, 3], &[2, 4, 3], &[1, 1, 3]], broadcast_sum);
        check(&[&[1, 3], &[4, 1]], broadcast_sum);
        check(&[&[2, 3]], broadcast_sum);
        check(&[&[1, 1, 3], &[2, 4, 3]], |x| prepend(x[0], x[1]));
        check(&[&[2, 4, 3]], |x| pad(x[0], 1, 2, 1));
        check(&[&[2, 4, 3]], |x| pad(x[0], 2, 0, 3));
        let by = wave(&[2, 1, 1], 0.4);
        check(&[&[2, 4, 3]], |x| scale(x[0], &by));
        check(&[&[2, 3], &[2, 3]], |x| product(x[0], x[1]));
        check(&[&[2, 4, 3, 5]], |x| permute(x[0], [0, 2, 3, 1]));
        check(&[&[2, 4, 3, 5]], |x| permute(x[0], [3, 1, 0, 2]));
        check(&[&[2, 4, 6]], |x| split_heads(x[0], 3));
        check(&[&[2, 1, 6]], |x| split_heads(x[0], 3));
        check(&[&[2, 3, 4, 2]], |x| join_heads(x[0]));
        check(&[&[2, 4, 3]], |x| token_mean(x[0], None));
        let factors = Var::from_tensor(&by).unwrap();
        assert!(scale(&wave(&[2, 4, 3], 0.3), &factors).is_err());
        let counts = Tensor::new(&[[1f64, 1.0, 0.0, 1.0], [0.0; 4]], &Device::Cpu).unwrap();
        check(&[&[2, 4, 3]], |x| token_mean(x[0], Some(counts.clone())));
    }

    /// Sums over 3000 elements of this type: gradients of what is repeated, and means.
    fn check_sums(dtype: DType) {
        const LEN: usize = 3000;
        let near = |what: &str, got: &Tensor, wanted: f64| {
            for got in values(got) {
                let close = (got - wanted).abs() <= wanted / 256.0;
                assert!(close, "{what} in {dtype:?}: {got}, not {wanted}");
            }
        };
        let gradient = |y: &Tensor, of: &Var| {
            let loss = y.to_dtype(DType::F32).unwrap().sum_all().unwrap();
            backward(&loss).unwrap().get(of).unwrap().clone()
        };
        let ones = |shape: &[usize]| Var::ones(shape, dtype, &Device::Cpu).unwrap();
        let (row, rows) = (ones(&[1, 1, 2]), ones(&[LEN, 1, 2]));
        let sum = broadcast_sum(&[&row, &rows]).unwrap();
        near("gradient of a term", &gradient(&sum, &row), LEN as f64);
        let prepended = prepend(&row, &rows).unwrap();
        near(
            "gradient of the first",
            &gradient(&prepended, &row),
            LEN as f64,
        );
        // 1 in the first half and 3 in the second.
        let half = ones(&[1, LEN / 2, 2]).as_detached_tensor();
        let hidden = Tensor::cat(&[half.clone(), (half * 3.0).unwrap()], 1).unwrap();
        for counts in [None, Some(ones(&[1, LEN]).as_detached_tensor())] {
            let hidden = Var::from_tensor(&hidden).unwrap();
            let mean = token_mean(&hidden, counts).unwrap();
            near("mean", &mean, 2.0);
            near(
                "gradient of a mean",
                &gradient(&mean, &hidden),
                1.0 / LEN as f64,
            );
        }
    }

    // Catches sums that are taken in half precision: of ones, bf16's stands still at 256 and f16's at 2048.
    #[test]
    fn sums_of_half_precision_do_not_stand_still() {
        for form in [
            Choice::Composed,
            #[cfg(sala_emulated)]
            Choice::Emulated,
        ] {
            with_choice(form, || {
                check_sums(DType::BF16);
                check_sums(DType::F16);
            });
        }
    }
}
