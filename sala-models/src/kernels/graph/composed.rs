//! Parts of a network that candle computes, as one operation of the graph here.

use candle_core::{Result, Shape, Storage, Tensor, Var, bail};

use super::{Input, Operation, apply, tokens::Seed};
use crate::kernels::{card, fast};

/// What `f` makes of the inputs with operations of candle. To candle's graph it is an operation of this crate, so that
/// [`backward`](super::backward()) need not leave it to candle to find its way. Its own backward computes `f` once more: it is
/// meant for what is small beside the network, and has no parameter or random number but its inputs.
///
/// # Errors
/// Those of `f`; when it uses a parameter that is not among the inputs.
pub(crate) fn composed(
    name: &'static str,
    inputs: &[&Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let Some(first) = inputs.first() else {
        bail!("{name}: no inputs");
    };
    if card::serving(first)?.is_none() && !fast(first)? {
        let inputs: Vec<Tensor> = inputs.iter().copied().cloned().collect();
        return f(&inputs);
    }
    apply(Composed { name, f }, inputs)
}

struct Composed<F> {
    name: &'static str,
    f: F,
}

impl<F> Operation for Composed<F>
where
    F: Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let inputs: Vec<Tensor> = inputs.iter().copied().cloned().collect();
        let y = (self.f)(&inputs)?;
        if y.track_op() {
            let name = self.name;
            bail!("{name}: a parameter that is not an input would get no gradient");
        }
        if y.is_contiguous() && inputs.iter().all(|input| !share_storage(&y, input)) {
            return Ok(y);
        }
        y.force_contiguous()
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let leaf = |input: &Input| input.tracked.then(|| Var::from_tensor(&input.value));
        let leaves = inputs.iter().map(|input| leaf(input).transpose());
        let leaves = leaves.collect::<Result<Vec<Option<Var>>>>()?;
        let given = inputs.iter().zip(&leaves);
        let given = given.map(|(input, leaf)| match leaf {
            Some(leaf) => leaf.as_tensor().clone(),
            None => input.value.clone(),
        });
        let y = (self.f)(&given.collect::<Vec<_>>())?;
        let gradients = y.apply_op1(Seed(dy.clone()))?.backward()?;
        let of_leaf = |leaf: &Option<Var>| gradients.get(leaf.as_ref()?).cloned();
        Ok(leaves.iter().map(of_leaf).collect())
    }
}

/// `x`, contiguous, in another shape. A copy where it is part of a graph: for what is small.
pub(crate) fn reshaped(x: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    if !x.track_op() || (card::serving(x)?.is_none() && !fast(x)?) {
        return x.reshape(shape);
    }
    apply(Reshape(shape), &[x])
}

struct Reshape(Shape);

impl Operation for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        inputs[0].reshape(&self.0)?.force_contiguous()
    }

    fn backward(&self, inputs: &[Input], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let dx = dy.reshape(inputs[0].value.shape())?;
        Ok(vec![Some(inputs[0].share(&dx)?)])
    }
}

/// Whether two tensors are views of one storage. The locks are taken one after the other.
fn share_storage(a: &Tensor, b: &Tensor) -> bool {
    let address = |t: &Tensor| std::ptr::from_ref::<Storage>(&t.storage_and_layout().0).addr();
    address(a) == address(b)
}
