//! One of the three products of a shape, by the first algorithm that runs.

use std::{
    cell::{Cell, RefCell},
    ffi::c_void,
    fmt, ptr,
};

use candle_core::{
    DType, Error, Result, Shape, Tensor,
    cuda::cudarc::cudnn::{
        result::{CudnnError, CudnnResult},
        sys::cudnnMathType_t,
    },
};

use super::{
    super::{
        super::Card,
        search::{ConvSearch, conv_search},
    },
    descriptors::Product,
    measure, pointer,
};
use crate::ops::conv::Geometry;

/// One of the three products of a shape, and the ways in which cuDNN can make it.
pub(super) struct Direction<A> {
    name: &'static str,
    /// Each has its own, because how products round is chosen with the algorithm.
    pub(super) product: Product,
    /// Those that yield the same bits every time, the one that is expected to be the fastest first, or has been measured
    /// to be.
    fits: RefCell<Vec<Fit<A>>>,
    measured: Cell<bool>,
}

/// An algorithm, how its products round, and the bytes of working memory that it wants.
#[derive(Clone, Copy)]
pub(super) struct Fit<A> {
    pub(super) algorithm: A,
    pub(super) math: cudnnMathType_t,
    pub(super) bytes: usize,
}

/// What a call of cuDNN is told beside its operands.
pub(super) struct Call<A> {
    pub(super) algorithm: A,
    pub(super) workspace: *mut c_void,
    pub(super) bytes: usize,
    pub(super) result: *mut c_void,
}

impl<A: Copy + fmt::Debug> Direction<A> {
    pub(super) fn new(
        name: &'static str,
        geometry: &Geometry,
        math: cudnnMathType_t,
    ) -> Result<Self> {
        Ok(Self {
            name,
            product: Product::new(geometry, math)?,
            fits: RefCell::default(),
            measured: Cell::new(false),
        })
    }

    /// Sets what has been found for a shape. Warns of one that takes the slower way.
    pub(super) fn set(&self, fits: Vec<Fit<A>>, dtype: DType, geometry: &Geometry) {
        if fits.is_empty() {
            tracing::warn!(
                what = self.name,
                ?dtype,
                ?geometry,
                "cuDNN has no algorithm that yields the same bits every time; products of gathered rows take its place"
            );
        }
        self.fits.replace(fits);
    }

    /// Makes a result by the first algorithm that runs; nothing if none does.
    pub(super) fn run(
        &self,
        card: &Card,
        shape: &Shape,
        dtype: DType,
        call: impl Fn(Call<A>) -> CudnnResult<()>,
    ) -> Result<Option<Tensor>> {
        let make = |fit: &Fit<A>| self.run_by(fit, card, (shape, dtype), &call);
        if conv_search()? == ConvSearch::Benchmark && !self.measured.replace(true) {
            self.sort(card, make)?;
        }
        for fit in self.fits.borrow().iter() {
            if let Some(result) = make(fit)? {
                return Ok(Some(result));
            }
        }
        Ok(None)
    }

    /// Makes a result by one algorithm; nothing if it cannot do that, or there is no memory for it.
    fn run_by(
        &self,
        fit: &Fit<A>,
        card: &Card,
        (shape, dtype): (&Shape, DType),
        call: impl Fn(Call<A>) -> CudnnResult<()>,
    ) -> Result<Option<Tensor>> {
        // One that wants less may follow.
        let Ok(workspace) = Workspace::new(card, fit.bytes) else {
            return Ok(None);
        };
        let result = card.empty(shape, dtype)?;
        self.product.set_math(fit.math)?;
        let ran = call(Call {
            algorithm: fit.algorithm,
            workspace: workspace.pointer(card)?,
            bytes: fit.bytes,
            result: pointer(card, &result)?,
        });
        match ran {
            Ok(()) => Ok(Some(result)),
            Err(error) if is_unsupported(error) => Ok(None),
            Err(error) => Err(Error::wrap(error)),
        }
    }

    /// Puts the algorithms in the order of the time that they take. Those that do not run come last: there may have been no
    /// memory for them.
    fn sort(&self, card: &Card, make: impl Fn(&Fit<A>) -> Result<Option<Tensor>>) -> Result<()> {
        let mut timed = Vec::new();
        for fit in self.fits.borrow().iter() {
            // The first time loads what the others run.
            let runs = make(fit)?.is_some();
            let time = || make(fit).map(drop);
            let ms = runs.then(|| measure::milliseconds(card, time));
            timed.push((ms.transpose()?.unwrap_or(f32::INFINITY), *fit));
        }
        timed.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let times: Vec<_> = timed.iter().map(|(ms, fit)| (fit.algorithm, *ms)).collect();
        tracing::debug!(what = self.name, milliseconds = ?times, "cuDNN's algorithms, measured");
        self.fits
            .replace(timed.into_iter().map(|(_, fit)| fit).collect());
        Ok(())
    }
}

/// Whether cuDNN says that it cannot do what it was asked, and not that something went wrong. Its versions differ in how
/// many words they have for that.
pub(super) fn is_unsupported(error: CudnnError) -> bool {
    says(error, &["NOT_SUPPORTED", "ARCH_MISMATCH"])
}

/// Whether one of these words is in the name of an error.
pub(super) fn says(CudnnError(status): CudnnError, words: &[&str]) -> bool {
    let name = format!("{status:?}");
    words.iter().any(|word| name.contains(word))
}

/// Memory of an algorithm, until its work is queued.
struct Workspace(Option<Tensor>);

impl Workspace {
    fn new(card: &Card, bytes: usize) -> Result<Self> {
        let memory = (bytes > 0).then(|| card.empty(bytes, DType::U8));
        Ok(Self(memory.transpose()?))
    }

    fn pointer(&self, card: &Card) -> Result<*mut c_void> {
        match &self.0 {
            Some(memory) => pointer(card, memory),
            None => Ok(ptr::null_mut()),
        }
    }
}
