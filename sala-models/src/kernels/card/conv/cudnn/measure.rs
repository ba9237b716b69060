//! How long a card works on something.

use candle_core::{Device, Error, Result, bail, cuda::cudarc::driver::sys::CUevent_flags};

use super::super::super::Card;

/// Measurements, of which the shortest counts: what else the card or the host does makes them longer only.
const ROUNDS: usize = 5;

/// Milliseconds that the device takes for what is queued.
pub(super) fn milliseconds(card: &Card, queue: impl Fn() -> Result<()>) -> Result<f32> {
    let Device::Cuda(device) = &card.device else {
        bail!("convolutions are measured on a card");
    };
    let stream = device.cuda_stream();
    let mark = || {
        let timed = Some(CUevent_flags::CU_EVENT_DEFAULT);
        stream.record_event(timed).map_err(Error::wrap)
    };
    let mut shortest = f32::INFINITY;
    for _ in 0..ROUNDS {
        let start = mark()?;
        queue()?;
        let end = mark()?;
        shortest = shortest.min(start.elapsed_ms(&end).map_err(Error::wrap)?);
    }
    Ok(shortest)
}
