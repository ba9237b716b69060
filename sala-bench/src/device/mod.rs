//! Devices, opened the way training wants them; and what is missing where they cannot be.

#[cfg(feature = "cuda")]
mod cuda;

use anyhow::{Context, Result, bail};

use crate::spec::Device;

/// What is said of a device that this program cannot have, whatever the machine.
fn not_built(device: Device, feature: &str) -> String {
    format!(
        "this program was built without support for the device {device} (build it with --features {feature}); \
         --device cpu runs on the processor"
    )
}

/// Opens a device.
///
/// # Errors
/// When this build cannot use it or this machine has none, with a way out.
pub(crate) fn open(device: Device) -> Result<candle_core::Device> {
    match device {
        Device::Cpu => Ok(candle_core::Device::Cpu),
        #[cfg(feature = "cuda")]
        Device::Cuda(number) => cuda::open(number).with_context(|| cannot(device)),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => bail!(not_built(device, "cuda")),
        Device::Metal if candle_core::utils::metal_is_available() => {
            candle_core::Device::new_metal(0).with_context(|| cannot(device))
        }
        Device::Metal => bail!(not_built(device, "metal")),
    }
}

fn cannot(device: Device) -> String {
    format!(
        "cannot open the device {device} (`sala-bench doctor` lists what is there, --device cpu runs on the \
         processor)"
    )
}

/// The devices worth trying on this machine: the processor, each graphics card, or the first one of a kind so that
/// what is missing is said.
pub(crate) fn candidates() -> Vec<Device> {
    #[cfg(feature = "cuda")]
    let cards = cuda::count().unwrap_or(1).max(1);
    #[cfg(not(feature = "cuda"))]
    let cards = 1;
    let cards = (0..cards).map(Device::Cuda);
    let all = std::iter::once(Device::Cpu).chain(cards);
    all.chain([Device::Metal]).collect()
}

/// Opens a device and says what it is.
///
/// # Errors
/// As for [`open`].
pub(crate) fn describe(device: Device) -> Result<String> {
    match open(device)? {
        #[cfg(feature = "cuda")]
        candle_core::Device::Cuda(card) => cuda::describe(&card),
        _ => Ok("there".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_the_build_lacks_is_refused_with_a_way_out() {
        let metal = candle_core::utils::metal_is_available();
        let kinds = [
            (Device::Cuda(1), "cuda", cfg!(feature = "cuda")),
            (Device::Metal, "metal", metal),
        ];
        for (device, feature, _) in kinds.into_iter().filter(|(_, _, built)| !built) {
            let message = open(device).unwrap_err().to_string();
            assert!(
                message.contains(&format!("without support for the device {device}"))
                    && message.contains(&format!("--features {feature}"))
                    && message.contains("--device cpu"),
                "{message}"
            );
        }
    }

    #[test]
    fn the_processor_and_one_device_of_each_kind_are_candidates() {
        let candidates = candidates();
        for device in [Device::Cpu, Device::Cuda(0), Device::Metal] {
            assert!(candidates.contains(&device), "{device} in {candidates:?}");
        }
    }
}
