//! The bytes of an event file: TFRecord frames around protocol buffers.
//!
//! ```text
//! frame    u64 length | u32 masked CRC-32C of the length | data | u32 masked CRC-32C of the data    little-endian
//! mask     rotate_right(crc, 15) + 0xa282ead8
//! Event    1: double wall_time   2: int64 step   3: string file_version   5: Summary
//! Summary  1: repeated Value     Value  1: string tag   2: float simple_value
//! ```
//!
//! After TensorFlow's `record_writer.h`, `event.proto` and `summary.proto`. These few fields are all that scalars
//! need, so they are written by hand.

/// What an event file begins with.
const FILE_VERSION: &str = "brain.Event:2";

/// Bytes of a frame before its data.
const HEAD: usize = 12;
/// Bytes of a frame after its data.
const TAIL: usize = 4;

/// The first event of a file, framed.
pub(super) fn head(wall_time: f64) -> Vec<u8> {
    let mut event = begin(wall_time, 0);
    bytes(&mut event, 3, FILE_VERSION.as_bytes());
    frame(&event)
}

/// Scalars at a step, framed. `wall_time` is in seconds since 1970.
#[expect(
    clippy::cast_possible_truncation,
    reason = "scalars of this format are f32"
)]
pub(super) fn scalars(wall_time: f64, step: u64, values: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut entry = Vec::new();
        bytes(&mut entry, 1, tag.as_bytes());
        key(&mut entry, 2, Wire::Fixed32);
        entry.extend((*value as f32).to_le_bytes());
        bytes(&mut summary, 1, &entry);
    }
    let mut event = begin(wall_time, step);
    bytes(&mut event, 5, &summary);
    frame(&event)
}

/// The data of the first frame and what follows it; nothing where no whole frame is.
pub(super) fn split(file: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = file.split_first_chunk::<8>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    if masked_crc(length) != u32::from_le_bytes(*sum) {
        return None;
    }
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (data, rest) = rest.split_at_checked(length)?;
    let (sum, rest) = rest.split_first_chunk::<TAIL>()?;
    (masked_crc(data) == u32::from_le_bytes(*sum)).then_some((data, rest))
}

/// The step of an event that was written here.
pub(super) fn step(event: &[u8]) -> Option<u64> {
    // The wall time and the key of the step come first.
    let mut step = 0;
    for (place, &byte) in event.get(10..)?.iter().take(10).enumerate() {
        step |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            return Some(step);
        }
    }
    None
}

fn begin(wall_time: f64, step: u64) -> Vec<u8> {
    let mut event = Vec::new();
    key(&mut event, 1, Wire::Fixed64);
    event.extend(wall_time.to_le_bytes());
    key(&mut event, 2, Wire::Varint);
    varint(&mut event, step);
    event
}

fn frame(data: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD + data.len() + TAIL);
    let length = (data.len() as u64).to_le_bytes();
    frame.extend(length);
    frame.extend(masked_crc(&length).to_le_bytes());
    frame.extend(data);
    frame.extend(masked_crc(data).to_le_bytes());
    frame
}

fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// How a field is encoded.
#[derive(Debug, Clone, Copy)]
enum Wire {
    Varint = 0,
    Fixed64 = 1,
    Bytes = 2,
    Fixed32 = 5,
}

fn key(to: &mut Vec<u8>, field: u64, wire: Wire) {
    varint(to, field << 3 | wire as u64);
}

fn bytes(to: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(to, field, Wire::Bytes);
    varint(to, value.len() as u64);
    to.extend(value);
}

/// Seven bits a byte, the lowest first; the highest bit says that more follow.
#[expect(clippy::cast_possible_truncation, reason = "the lowest byte is meant")]
fn varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_that_of_the_standard_and_masked_as_the_format_says() {
        // RFC 3720, appendix B.4: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        // Its upper and lower bits exchanged, 0x6d55_1522, and 0xa282_ead8 added.
        assert_eq!(masked_crc(&[0; 32]), 0x0fd7_fffa);
    }

    #[test]
    fn an_event_has_the_bytes_of_its_fields() {
        let event = scalars(1.5, 300, &[("a", 0.5)]);
        let wanted = [
            &[0x09, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f][..], // 1: 1.5
            &[0x10, 0xac, 0x02],                       // 2: 300
            &[0x2a, 0x0a],                             // 5: ten bytes
            &[0x0a, 0x08],                             // 1: eight bytes
            &[0x0a, 0x01, b'a'],                       // 1: "a"
            &[0x15, 0, 0, 0, 0x3f],                    // 2: 0.5
        ]
        .concat();
        let (data, rest) = split(&event).unwrap();
        assert_eq!((data, rest), (&wanted[..], &[][..]));
        assert_eq!(event[..8], 24_u64.to_le_bytes());
    }

    #[test]
    fn steps_come_back_and_spoiled_or_cut_frames_do_not() {
        for n in [0, 1, 127, 128, 300, 1 << 40, u64::MAX] {
            let event = scalars(1e9, n, &[("a", 1.0)]);
            assert_eq!(split(&event).and_then(|(data, _)| step(data)), Some(n));
        }
        let whole = [head(0.0), scalars(1.0, 7, &[("tag", 2.0)])].concat();
        let (_, rest) = split(&whole).unwrap();
        assert!(split(rest).is_some());
        for length in 0..rest.len() {
            assert!(split(&rest[..length]).is_none(), "{length}");
        }
        for place in 0..rest.len() {
            let mut spoiled = rest.to_vec();
            spoiled[place] ^= 1;
            assert!(split(&spoiled).is_none(), "{place}");
        }
    }
}
