//! The gradients, block of queries by block.

use std::ops::Range;

use super::{
    Attention, Backward, Gradients, Inputs,
    loops::{Scale, Slopes, SlopesOf},
    mask::Mask,
    rows::{Rows, multiply},
};
use crate::kernels::{
    functions::Functions,
    matmul::{self, Outer},
    pieces,
    scratch::Scratch,
};

impl Attention {
    pub(super) fn backward<T: Functions>(
        &self,
        inputs: Inputs<T>,
        result: &Backward<T>,
        mask: Option<Mask<T>>,
    ) -> Gradients<T> {
        let Self {
            batch,
            heads,
            groups,
            queries,
            keys,
            features,
            values,
            ..
        } = *self;
        // As forward, but heads that share keys stay together.
        let in_task = if self.packed { groups } else { 1 };
        let with_queries = in_task * self.together();
        let sizes = [
            (
                heads * queries * features,
                with_queries * queries * features,
            ),
            (groups * keys * features, in_task * keys * features),
            (groups * keys * values, in_task * keys * values),
        ];
        let [q, k, v] = pieces::filled_three(
            sizes.map(|(of_example, of_task)| (batch * of_example, of_task)),
            |task, of_q, of_k, of_v| {
                for i in 0..in_task {
                    let group = Group {
                        attention: self,
                        inputs,
                        result,
                        mask,
                        example: task * in_task / groups,
                        number: task * in_task % groups + i,
                        in_task: (i, in_task),
                    };
                    group.backward(of_q, of_k, of_v);
                }
            },
        );
        Gradients { q, k, v }
    }
}

/// The heads of one example that share keys.
struct Group<'a, T> {
    attention: &'a Attention,
    inputs: Inputs<'a, T>,
    result: &'a Backward<'a, T>,
    mask: Option<Mask<'a, T>>,
    example: usize,
    number: usize,
    /// Its number in its task, and how many the task has.
    in_task: (usize, usize),
}

impl<T: Functions> Group<'_, T> {
    fn backward(&self, of_q: &mut [T], of_k: &mut [T], of_v: &mut [T]) {
        let attention = self.attention;
        let Attention {
            heads,
            groups,
            queries,
            keys,
            features,
            values,
            scale,
            ..
        } = *attention;
        let k = &self.inputs.k[self.example * groups * keys * features..];
        let v = &self.inputs.v[self.example * groups * keys * values..];
        let k_rows = attention.rows_of(self.number, groups, keys, features);
        let by_keys = k_rows.transposed(k, keys);
        let from_keys = k_rows.packed(k, keys);
        let by_values = (attention.rows_of(self.number, groups, keys, values)).transposed(v, keys);
        let q = &self.inputs.q[self.example * heads * queries * features..];
        let y = &self.result.y[self.example * heads * queries * values..];
        let g = &self.result.g[self.example * heads * queries * values..];
        let len = attention.block() * keys;
        let (mut shares, mut slopes) = (Scratch::<T>::new(len), Scratch::<T>::new(len));
        let mut for_k = Sums::new(keys, features);
        let mut for_v = Sums::new(keys, values);
        let together = attention.together();
        let (i, in_task) = self.in_task;
        for h in 0..together {
            let head = self.number * together + h;
            let log_sums = &self.result.log_sums[(self.example * heads + head) * queries..];
            let q_rows = attention.rows_of(head, heads, queries, features);
            let y_rows = attention.rows_of(head, heads, queries, values);
            let of_q_rows =
                attention.rows_of(i * together + h, in_task * together, queries, features);
            for rows in attention.blocks() {
                let count = rows.len();
                let plain = Rows::plain(keys);
                let (shares, slopes) = (&mut shares[..count * keys], &mut slopes[..count * keys]);
                multiply(
                    (q, q_rows),
                    rows.clone(),
                    &by_keys,
                    (&mut *shares, plain),
                    0,
                );
                attention.hide((self.example, head), rows.clone(), self.mask, shares);
                multiply(
                    (g, y_rows),
                    rows.clone(),
                    &by_values,
                    (&mut *slopes, plain),
                    0,
                );
                let kept = attention.kept((self.example, head), &rows);
                if let Some(kept) = &kept {
                    pieces::compiled(Scale, (&mut *slopes, &**kept));
                }
                let arguments = SlopesOf {
                    shares: &mut *shares,
                    slopes: &mut *slopes,
                    log_sums: &log_sums[rows.clone()],
                    y,
                    g,
                    rows: y_rows,
                    first: rows.start,
                    keys,
                    scale: T::of(scale),
                };
                pieces::compiled(Slopes, arguments);
                if let Some(kept) = &kept {
                    pieces::compiled(Scale, (&mut *shares, &**kept));
                }
                for_v.add(shares, (g, y_rows), rows.clone());
                for_k.add(slopes, (q, q_rows), rows.clone());
                let to = (&mut *of_q, of_q_rows);
                multiply((&*slopes, plain), 0..count, &from_keys, to, rows.start);
            }
        }
        for_k.write(of_k, attention.rows_of(i, in_task, keys, features));
        for_v.write(of_v, attention.rows_of(i, in_task, keys, values));
    }
}

/// Sums over queries of products of a row of shares and a row of `columns` values: `(keys, columns)`, in
/// blocks of columns.
struct Sums<T: Functions> {
    values: Scratch<T>,
    keys: usize,
    columns: usize,
    width: usize,
}

impl<T: Functions> Sums<T> {
    fn new(keys: usize, columns: usize) -> Self {
        let width = matmul::width::<T>();
        Self {
            values: Scratch::zeros(keys * columns.div_ceil(width) * width),
            keys,
            columns,
            width,
        }
    }

    /// Adds the products of the rows of `left`, `(rows, keys)`, and some rows of `right`.
    fn add(&mut self, left: &[T], (right, right_rows): (&[T], Rows), rows: Range<usize>) {
        let (keys, width) = (self.keys, self.width);
        let count = rows.len();
        let outer = Outer {
            left,
            bases: |rows: Range<usize>| rows.map(|row| row * keys).collect(),
            runs: &[matmul::plain_run(keys)],
            right: &right[right_rows.at(rows.start)..],
            stride: right_rows.stride,
            rows: count,
            columns: self.columns,
        };
        let blocks = self.values.chunks_exact_mut(keys * width);
        for (block, sums) in blocks.enumerate() {
            outer.accumulate(0..count, block * width, sums);
        }
    }

    fn write(&self, out: &mut [T], rows: Rows) {
        for key in 0..self.keys {
            let row = &mut out[rows.at(key)..][..self.columns];
            for (block, row) in row.chunks_mut(self.width).enumerate() {
                let from = &self.values[(block * self.keys + key) * self.width..];
                row.copy_from_slice(&from[..row.len()]);
            }
        }
    }
}
