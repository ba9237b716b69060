//! The inner loops of the fused kernels, and how they are split over threads.
//!
//! A rule works on a bundle of equally long slices. [`drive`] halves the bundle at multiples of
//! [`Rule::PIECE`] until no part is longer, and adds up what the pieces yield along the same
//! tree. The tree depends on the length alone; threads only take its branches. So the result has the
//! same bits for any number of threads, and nothing is allocated.
//!
//! Within a piece the loops are plain Rust that the compiler vectorises, compiled once for each
//! instruction set and chosen at run time (`pulp`). Rust never contracts a multiplication and an
//! addition into one rounding, and sums run in [`LANES`] lanes whatever the width of the registers, so
//! the instruction set does not show in the results either. All that must be inlined for this to
//! work is marked `#[inline(always)]`.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use std::ops::{Add, Div, Mul, Neg, Sub};

use super::Fast;

/// Elements of a piece. At 16 Ki the arrays of one piece fit a second-level cache, and handing a
/// piece to another thread costs a hundredth of the work in it.
pub(super) const CHUNK: usize = 16 * 1024;

/// Partial sums that a loop keeps side by side.
const LANES: usize = 8;

/// Arithmetic of f32 and f64 that the rules need.
pub(super) trait Real:
    Copy
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + PartialOrd
{
    fn of(x: f64) -> Self;
    fn wide(self) -> f64;
    fn root(self) -> Self;
    fn magnitude(self) -> Self;
}

impl Real for f32 {
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "constants are rounded to the tensors' precision, as candle does"
    )]
    fn of(x: f64) -> Self {
        x as Self
    }

    #[inline(always)]
    fn wide(self) -> f64 {
        self.into()
    }

    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }

    #[inline(always)]
    fn magnitude(self) -> Self {
        self.abs()
    }
}

impl Real for f64 {
    #[inline(always)]
    fn of(x: f64) -> Self {
        x
    }

    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }

    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }

    #[inline(always)]
    fn magnitude(self) -> Self {
        self.abs()
    }
}

/// Equally long slices that are cut together; pairs nest.
pub(super) trait Bundle: Send + Sized {
    fn len(&self) -> usize;
    fn cut(self, at: usize) -> (Self, Self);
}

impl<T: Sync> Bundle for &[T] {
    fn len(&self) -> usize {
        <[T]>::len(self)
    }

    fn cut(self, at: usize) -> (Self, Self) {
        self.split_at(at)
    }
}

impl<T: Send> Bundle for &mut [T] {
    fn len(&self) -> usize {
        <[T]>::len(self)
    }

    fn cut(self, at: usize) -> (Self, Self) {
        self.split_at_mut(at)
    }
}

impl<A: Bundle, B: Bundle> Bundle for (A, B) {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn cut(self, at: usize) -> (Self, Self) {
        let ((a, c), (b, d)) = (self.0.cut(at), self.1.cut(at));
        ((a, b), (c, d))
    }
}

/// Slices that may not be there; never the first of a bundle, whose length counts.
impl<A: Bundle> Bundle for Option<A> {
    fn len(&self) -> usize {
        self.as_ref().map_or(0, Bundle::len)
    }

    fn cut(self, at: usize) -> (Self, Self) {
        self.map(|all| all.cut(at)).unzip()
    }
}

/// A loop over one piece; what it yields is summed, 0 if it has nothing to say.
pub(super) trait Rule<D>: Copy + Send + Sync {
    /// Elements of a piece.
    const PIECE: usize = CHUNK;

    fn run(self, data: D) -> f64;
}

/// Runs a rule over the whole bundle, in parallel from two pieces on.
pub(super) fn drive<D: Bundle, R: Rule<D>>(rule: R, data: D) -> f64 {
    let len = data.len();
    if len <= R::PIECE {
        return pulp::Arch::new().dispatch(Piece(rule, data));
    }
    let (head, tail) = data.cut(len.div_ceil(R::PIECE) / 2 * R::PIECE);
    let (a, b) = if super::parallel() {
        rayon::join(|| drive(rule, head), || drive(rule, tail))
    } else {
        (drive(rule, head), drive(rule, tail))
    };
    a + b
}

struct Piece<R, D>(R, D);

impl<D, R: Rule<D>> pulp::WithSimd for Piece<R, D> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> f64 {
        self.0.run(self.1)
    }
}

/// The first and the second buffer of a base, if it has them.
type Buffers<'a, T> = (Option<&'a mut [T]>, Option<&'a mut [T]>);

/// How a base changes the weights of a piece, starting from others if so told.
pub(super) trait Update<T: Real>: Copy + Send + Sync {
    fn update(self, weights: &mut [T], from: Option<&[T]>, gradient: &[T], buffers: Buffers<T>);
}

/// weights ← step(start, …), element by element, with start either `from` or the weights themselves.
#[inline(always)]
fn each<T: Real, R>(
    weights: &mut [T],
    from: Option<&[T]>,
    rest: impl Iterator<Item = R>,
    step: impl Fn(T, R) -> T,
) {
    match from {
        Some(from) => {
            for ((w, &start), rest) in weights.iter_mut().zip(from).zip(rest) {
                *w = step(start, rest);
            }
        }
        None => {
            for (w, rest) in weights.iter_mut().zip(rest) {
                *w = step(*w, rest);
            }
        }
    }
}

/// A base's update with what goes beside it. A piece stays in cache between the three loops, so memory
/// sees each array once.
#[derive(Clone, Copy)]
pub(super) struct Step<U, T> {
    pub(super) update: U,
    /// α, and what becomes of the fast weights, where there are slow weights to pull.
    pub(super) after: Option<(T, Fast)>,
}

/// Weights and gradient; buffers; the weights to start from and the slow weights.
type StepData<'a, T> = (
    ((&'a mut [T], &'a [T]), Buffers<'a, T>),
    (Option<&'a [T]>, Option<&'a mut [T]>),
);

impl<'a, T: Real, U: Update<T>> Rule<StepData<'a, T>> for Step<U, T> {
    #[inline(always)]
    fn run(self, (((weights, gradient), buffers), (from, slow)): StepData<'a, T>) -> f64 {
        self.update.update(weights, from, gradient, buffers);
        match (slow, self.after) {
            (Some(slow), Some((alpha, Fast::Stay))) => Pull(alpha).run((slow, &*weights)),
            (Some(slow), Some((alpha, Fast::Return))) => {
                PullAndReturn(Pull(alpha)).run((slow, weights))
            }
            _ => 0.0,
        }
    }
}

/// A rule's constants, rounded to the tensors' precision.
#[derive(Clone, Copy)]
pub(super) struct Sgd<T> {
    pub(super) lr: T,
    /// λ of coupled decay.
    pub(super) decay: Option<T>,
    /// 1 − η λ of decoupled decay, else 1.
    pub(super) shrink: T,
    pub(super) momentum: T,
    /// 1 − τ.
    pub(super) undamped: T,
    pub(super) nesterov: bool,
    /// The buffer holds nothing yet.
    pub(super) first: bool,
}

/// The buffer is the momentum; without one there is none.
impl<T: Real> Update<T> for Sgd<T> {
    #[inline(always)]
    fn update(self, weights: &mut [T], from: Option<&[T]>, gradient: &[T], buffers: Buffers<T>) {
        let (coupled, decay) = (self.decay.is_some(), self.decay.unwrap_or(self.lr));
        let direction = |w: T, g: T| if coupled { g + w * decay } else { g };
        let Some(buffer) = buffers.0 else {
            each(weights, from, gradient.iter(), |w, &g| {
                w * self.shrink - direction(w, g) * self.lr
            });
            return;
        };
        each(weights, from, gradient.iter().zip(buffer), |w, (&g, b)| {
            let d = direction(w, g);
            *b = if self.first {
                d
            } else {
                *b * self.momentum + d * self.undamped
            };
            let d = if self.nesterov {
                d + *b * self.momentum
            } else {
                *b
            };
            w * self.shrink - d * self.lr
        });
    }
}

/// Adam's constants, rounded to the tensors' precision.
#[derive(Clone, Copy)]
pub(super) struct Adam<T> {
    /// λ of coupled decay.
    pub(super) decay: Option<T>,
    /// 1 − η λ of decoupled decay, else 1.
    pub(super) shrink: T,
    /// β₁ and 1 − β₁.
    pub(super) first: (T, T),
    /// β₂ and 1 − β₂.
    pub(super) second: (T, T),
    /// 1 / √(1 − β₂ᵗ).
    pub(super) unbias: T,
    pub(super) eps: T,
    /// η / (1 − β₁ᵗ).
    pub(super) step: T,
}

/// The buffers are the moments, which are always there.
impl<T: Real> Update<T> for Adam<T> {
    #[inline(always)]
    fn update(self, weights: &mut [T], from: Option<&[T]>, gradient: &[T], moments: Buffers<T>) {
        let (Some(first), Some(second)) = moments else {
            return;
        };
        let (coupled, decay) = (self.decay.is_some(), self.decay.unwrap_or(self.eps));
        let rest = gradient.iter().zip(first).zip(second);
        each(weights, from, rest, |w, ((&g, m), v)| {
            let g = if coupled { g + w * decay } else { g };
            *m = *m * self.first.0 + g * self.first.1;
            *v = *v * self.second.0 + g * g * self.second.1;
            let root = v.root() * self.unbias + self.eps;
            w * self.shrink - *m / root * self.step
        });
    }
}

/// Σ xᵢ².
#[derive(Clone, Copy)]
pub(super) struct SquaredNorm;

/// One stream of reads leaves memory idle at each page's end: this many run side by side.
const STREAMS: usize = 4;

impl<T: Real> Rule<&[T]> for SquaredNorm {
    // One array instead of several: longer pieces move as many bytes.
    const PIECE: usize = STREAMS * CHUNK;

    #[inline(always)]
    fn run(self, x: &[T]) -> f64 {
        let mut sums = [[0.0; LANES]; STREAMS];
        let (rows, rest) = x.as_chunks::<LANES>();
        let (side_by_side, last) = rows.split_at(rows.len() / STREAMS * STREAMS);
        let (front, back) = side_by_side.split_at(side_by_side.len() / 2);
        let (a, b) = front.split_at(front.len() / 2);
        let (c, d) = back.split_at(back.len() / 2);
        for (((a, b), c), d) in a.iter().zip(b).zip(c).zip(d) {
            add_products(&mut sums[0], *a, *a);
            add_products(&mut sums[1], *b, *b);
            add_products(&mut sums[2], *c, *c);
            add_products(&mut sums[3], *d, *d);
        }
        for row in last {
            add_products(&mut sums[0], *row, *row);
        }
        for &x in rest {
            add_products(&mut sums[0], [x], [x]);
        }
        sums.map(total).iter().sum()
    }
}

/// Adds the products of a row to the first N sums. Whole rows by value: the compiler makes vectors of
/// those, and of slices it does not.
#[inline(always)]
fn add_products<T: Real, const N: usize>(sums: &mut [f64; LANES], x: [T; N], y: [T; N]) {
    for i in 0..N {
        sums[i] += x[i].wide() * y[i].wide();
    }
}

#[inline(always)]
fn total(sums: [f64; LANES]) -> f64 {
    sums.iter().sum()
}

/// Σ xᵢ yᵢ.
#[derive(Clone, Copy)]
pub(super) struct Dot;

impl<T: Real> Rule<(&[T], &[T])> for Dot {
    #[inline(always)]
    fn run(self, (x, y): (&[T], &[T])) -> f64 {
        let mut sums = [0.0; LANES];
        let (x, x_rest) = x.as_chunks::<LANES>();
        let (y, y_rest) = y.as_chunks::<LANES>();
        for (x, y) in x.iter().zip(y) {
            add_products(&mut sums, *x, *y);
        }
        for (&x, &y) in x_rest.iter().zip(y_rest) {
            add_products(&mut sums, [x], [y]);
        }
        total(sums)
    }
}

/// sum ← sum + factor · x.
#[derive(Clone, Copy)]
pub(super) struct Accumulate<T>(pub(super) T);

impl<T: Real> Rule<(&mut [T], &[T])> for Accumulate<T> {
    #[inline(always)]
    fn run(self, (sum, x): (&mut [T], &[T])) -> f64 {
        for (sum, &x) in sum.iter_mut().zip(x) {
            *sum = *sum + x * self.0;
        }
        0.0
    }
}

/// result ← a x + b y, or a x.
#[derive(Clone, Copy)]
pub(super) struct Combine<T>(pub(super) T, pub(super) T);

/// Where the result goes, x, and y if there is one.
impl<T: Real> Rule<((&mut [T], &[T]), Option<&[T]>)> for Combine<T> {
    #[inline(always)]
    fn run(self, ((result, x), y): ((&mut [T], &[T]), Option<&[T]>)) -> f64 {
        let Self(a, b) = self;
        match y {
            Some(y) => {
                for ((result, &x), &y) in result.iter_mut().zip(x).zip(y) {
                    *result = x * a + y * b;
                }
            }
            None => {
                for (result, &x) in result.iter_mut().zip(x) {
                    *result = x * a;
                }
            }
        }
        0.0
    }
}

/// result ← min(max(x, −limit), limit).
#[derive(Clone, Copy)]
pub(super) struct Clamp<T>(pub(super) T);

/// Where the result goes, and x.
impl<T: Real> Rule<(&mut [T], &[T])> for Clamp<T> {
    #[inline(always)]
    fn run(self, (result, x): (&mut [T], &[T])) -> f64 {
        for (result, &x) in result.iter_mut().zip(x) {
            let at_least = if x < -self.0 { -self.0 } else { x };
            *result = if at_least > self.0 { self.0 } else { at_least };
        }
        0.0
    }
}

/// direction ← T² g; yields Σ (T g)² with T = |w| + η.
#[derive(Clone, Copy)]
pub(super) struct Adaptive<T>(pub(super) T);

impl<T: Real> Adaptive<T> {
    /// The direction of a row.
    #[inline(always)]
    fn row<const N: usize>(
        self,
        weights: [T; N],
        gradient: [T; N],
        sums: &mut [f64; LANES],
    ) -> [T; N] {
        let mut direction = gradient;
        for i in 0..N {
            let magnitude = weights[i].magnitude() + self.0;
            let scaled = magnitude * gradient[i];
            direction[i] = magnitude * scaled;
            sums[i] += scaled.wide() * scaled.wide();
        }
        direction
    }
}

/// Direction, weights, gradient.
impl<T: Real> Rule<((&mut [T], &[T]), &[T])> for Adaptive<T> {
    #[inline(always)]
    fn run(self, ((direction, weights), gradient): ((&mut [T], &[T]), &[T])) -> f64 {
        let mut sums = [0.0; LANES];
        let (d, d_rest) = direction.as_chunks_mut::<LANES>();
        let (w, w_rest) = weights.as_chunks::<LANES>();
        let (g, g_rest) = gradient.as_chunks::<LANES>();
        for ((d, w), g) in d.iter_mut().zip(w).zip(g) {
            *d = self.row(*w, *g, &mut sums);
        }
        for ((d, w), g) in d_rest.iter_mut().zip(w_rest).zip(g_rest) {
            [*d] = self.row([*w], [*g], &mut sums);
        }
        total(sums)
    }
}

/// new ← w + scale · direction.
#[derive(Clone, Copy)]
pub(super) struct Offset<T>(pub(super) T);

/// Where the sum goes, the weights, and the direction.
impl<T: Real> Rule<((&mut [T], &[T]), &[T])> for Offset<T> {
    #[inline(always)]
    fn run(self, ((new, weights), direction): ((&mut [T], &[T]), &[T])) -> f64 {
        for ((new, &w), &d) in new.iter_mut().zip(weights).zip(direction) {
            *new = w + d * self.0;
        }
        0.0
    }
}

/// destination ← source.
#[derive(Clone, Copy)]
pub(super) struct Assign;

impl<T: Real> Rule<(&mut [T], &[T])> for Assign {
    #[inline(always)]
    fn run(self, (destination, source): (&mut [T], &[T])) -> f64 {
        destination.copy_from_slice(source);
        0.0
    }
}

/// φ ← φ + α (θ − φ); yields Σ (θ − φ)².
#[derive(Clone, Copy)]
pub(super) struct Pull<T>(pub(super) T);

impl<T: Real> Pull<T> {
    /// The new slow weights of a row. Whole rows by value: between slices the compiler would have to
    /// allow for overlap, and not vectorise.
    #[inline(always)]
    fn row<const N: usize>(self, slow: [T; N], fast: [T; N], sums: &mut [f64; LANES]) -> [T; N] {
        let mut new = slow;
        for i in 0..N {
            let difference = fast[i] - slow[i];
            new[i] = slow[i] + difference * self.0;
            sums[i] += difference.wide() * difference.wide();
        }
        new
    }
}

/// Slow weights, fast weights.
impl<T: Real> Rule<(&mut [T], &[T])> for Pull<T> {
    #[inline(always)]
    fn run(self, (slow, fast): (&mut [T], &[T])) -> f64 {
        let mut sums = [0.0; LANES];
        let (slow, slow_rest) = slow.as_chunks_mut::<LANES>();
        let (fast, fast_rest) = fast.as_chunks::<LANES>();
        for (slow, fast) in slow.iter_mut().zip(fast) {
            *slow = self.row(*slow, *fast, &mut sums);
        }
        for (slow, fast) in slow_rest.iter_mut().zip(fast_rest) {
            [*slow] = self.row([*slow], [*fast], &mut sums);
        }
        total(sums)
    }
}

/// As [`Pull`], and θ ← φ.
#[derive(Clone, Copy)]
pub(super) struct PullAndReturn<T>(pub(super) Pull<T>);

/// Slow weights, fast weights.
impl<T: Real> Rule<(&mut [T], &mut [T])> for PullAndReturn<T> {
    #[inline(always)]
    fn run(self, (slow, fast): (&mut [T], &mut [T])) -> f64 {
        let mut sums = [0.0; LANES];
        let (slow, slow_rest) = slow.as_chunks_mut::<LANES>();
        let (fast, fast_rest) = fast.as_chunks_mut::<LANES>();
        for (slow, fast) in slow.iter_mut().zip(fast) {
            *slow = self.0.row(*slow, *fast, &mut sums);
            *fast = *slow;
        }
        for (slow, fast) in slow_rest.iter_mut().zip(fast_rest) {
            [*slow] = self.0.row([*slow], [*fast], &mut sums);
            *fast = *slow;
        }
        total(sums)
    }
}
