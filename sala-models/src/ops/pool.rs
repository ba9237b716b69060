//! Max pooling with the right gradient.
//!
//! The backward of candle 0.11's own `max_pool2d` is wrong, and silently so: it multiplies the
//! gradient by the share of a window's entries that attain the maximum, that is by `1/k²` when
//! there is one winner, so each pooling layer shrinks the gradients below it by `k²`. When the
//! window does not divide the image, it also looks for the maxima in the wrong windows.

use candle_core::{D, Result, Tensor};

use crate::Error;

/// The largest value in each `size × size` window, windows side by side.
///
/// `x` is `(N, C, H, W)`, the result `(N, C, ⌊H/size⌋, ⌊W/size⌋)`; rows and columns that do not
/// fill a window are left out, as in `torch.nn.MaxPool2d(size)`. The gradient of an output goes to
/// one entry of its window, one that attains the maximum.
///
/// # Errors
/// When `x` does not have rank 4, or `size` is zero or larger than the image.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use sala_models::ops::max_pool2d;
///
/// let x = Tensor::arange(0f32, 10., &Device::Cpu)?.reshape((1, 1, 2, 5))?;
/// assert_eq!(max_pool2d(&x, 2)?.flatten_all()?.to_vec1::<f32>()?, [6., 8.]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn max_pool2d(x: &Tensor, size: usize) -> Result<Tensor> {
    let refuse = |wanted: String| Error::Argument {
        op: "max_pool2d",
        argument: "x",
        wanted,
        got: format!("shape {:?}", x.dims()),
    };
    let &[n, c, h, w] = x.dims() else {
        return Err(refuse("of shape (N, C, H, W)".into()).into());
    };
    if size == 0 || h < size || w < size {
        return Err(refuse(format!("at least one {size} × {size} window large")).into());
    }
    let (rows, columns) = (h / size, w / size);
    let windows = x
        .narrow(2, 0, rows * size)?
        .narrow(3, 0, columns * size)?
        .reshape((n * c, rows, size, columns, size))?
        .transpose(2, 3)?
        .reshape((n * c * rows * columns, size * size))?;
    // Choosing by index sends the gradient to exactly one entry. A maximum over the axis would send
    // all of it to each of several equal entries.
    let winners = windows.detach().argmax_keepdim(D::Minus1)?;
    windows
        .gather(&winners, D::Minus1)?
        .reshape((n, c, rows, columns))
}
