//! One random number generator for everything: initialisation, shuffling, augmentation and dropout.
//!
//! The generator is Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as
//! easy as 1, 2, 3", SC 2011, doi:10.1145/2063384.2063405). It is *counter-based*: a block of four
//! 32-bit words is a pure function `philox(counter, key)` of a 128-bit counter and a 64-bit key.
//! Nothing is carried from one draw to the next, so value number `i` does not depend on which other
//! values were drawn, in which order, on which thread or on which device.
//!
//! # How seed, name, sub-stream and index are laid out
//!
//! | part of the block | bits | holds |
//! |---|---|---|
//! | key | 64 | the seed, as it is |
//! | counter words 2 and 3 | 64 | a tag, hashed from the name and from each [`Stream::at`] |
//! | counter words 0 and 1 | 64 | the number of the block inside the stream |
//!
//! - Two **seeds** never share a block's input: the key differs.
//! - Two **names** (or two chains of `at`) under one seed share blocks only if their 64-bit tags
//!   collide. Among `m` streams that has a probability of about `m²/2⁶⁵`: 3 in 10⁸ for a million
//!   streams.
//! - The sub-streams `at(0), at(1), …` of **one** stream never collide with each other: for a fixed
//!   parent the tag is a bijection of the number.
//! - One stream holds 2⁶⁴ blocks, so an index never runs into another stream.
//!
//! All methods of a [`Stream`] read the same words: [`Stream::uniform`] number `i` is made of words
//! `2i` and `2i + 1`, and normals `2k` and `2k + 1` of uniforms `2k` and `2k + 1`. A stream should
//! therefore serve one purpose; take another name for another purpose.

/// Multipliers of the two halves of a Philox4x32 round (Salmon et al. 2011, section 5.3).
const PHILOX_M: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Additive constants of the key schedule (the golden ratio and √3 − 1, as fractions of 2³²).
const PHILOX_W: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Ten rounds: the variant that the paper recommends with a safety margin.
const PHILOX_ROUNDS: usize = 10;

/// Where the hash of a name starts, and what keeps a nested `at` from cancelling its parent.
const TAG_START: u64 = 0x243F_6A88_85A3_08D3;
const TAG_STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// A seed: the root of all random streams of a run.
///
/// ```
/// use sala_models::rng::Rng;
///
/// let rng = Rng::new(7);
/// let order = rng.stream("shuffle").at(0).permutation(4); // the first epoch's order
/// assert_eq!(order.len(), 4);
/// assert_eq!(rng.seed(), 7);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rng {
    seed: u64,
}

impl Rng {
    /// The generator of `seed`. Every seed is as good as any other, zero included.
    ///
    /// ```
    /// # use sala_models::rng::Rng;
    /// assert_eq!(Rng::new(3).stream("mask"), Rng::new(3).stream("mask"));
    /// assert_ne!(Rng::new(3).stream("mask"), Rng::new(4).stream("mask"));
    /// ```
    pub const fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The seed it was made from.
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// The stream called `name`. Streams with different names are independent.
    pub fn stream(&self, name: &str) -> Stream {
        Stream {
            seed: self.seed,
            tag: tag_of_name(name),
        }
    }
}

/// An endless sequence of random values, addressed by index.
///
/// Value `i` is a pure function of the seed, the name, the chain of [`at`](Self::at) and `i`; there
/// is no state to advance, so a `Stream` is `Copy` and can be shared freely.
///
/// ```
/// use sala_models::rng::Rng;
///
/// let noise = Rng::new(1).stream("noise");
/// assert_eq!(noise.uniform(5), noise.uniform(5));          // asking twice changes nothing
/// assert_ne!(noise.at(0).uniform(5), noise.at(1).uniform(5)); // another epoch, another value
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    seed: u64,
    tag: u64,
}

impl Stream {
    /// The sub-stream number `sub`: that of one epoch, one step or one call of a layer.
    ///
    /// It is independent of its parent and of its siblings. Calls nest: `at(3).at(4)`,
    /// `at(4).at(3)` and `at(34)` are three different streams.
    #[must_use]
    pub const fn at(&self, sub: u64) -> Self {
        Self {
            seed: self.seed,
            tag: mix64(mix64(self.tag.wrapping_add(TAG_STEP)).wrapping_add(sub)),
        }
    }

    /// Word number `i`: 32 uniformly distributed bits.
    pub fn bits(&self, i: u64) -> u32 {
        let [a, b, c, d] = self.block(i >> 2);
        match i & 3 {
            0 => a,
            1 => b,
            2 => c,
            _ => d,
        }
    }

    /// Words `0..n`: the same values as [`bits`](Self::bits) one by one, at a quarter of the cost,
    /// because each block is computed once for its four words.
    pub fn words(&self, n: usize) -> Vec<u32> {
        let blocks = n.div_ceil(4) as u64;
        let mut all: Vec<u32> = (0..blocks).flat_map(|block| self.block(block)).collect();
        all.truncate(n);
        all
    }

    /// Uniform number `i` in `[0, 1)`: a multiple of 2⁻⁵³ (53 random bits, the resolution of an
    /// `f64` just below one).
    pub fn uniform(&self, i: u64) -> f64 {
        unit(self.bits64(i))
    }

    /// Standard normal number `i` (mean 0, variance 1), by the Box–Muller transform.
    ///
    /// Logarithm, sine and cosine come from `libm` in pure Rust and not from the system's C
    /// library, so the bits are the same on every platform. The largest magnitude is
    /// √(2 · 53 · ln 2) ≈ 8.57.
    pub fn normal(&self, i: u64) -> f64 {
        let (radius, angle) = self.polar(i >> 1);
        if i & 1 == 0 {
            radius * libm::cos(angle)
        } else {
            radius * libm::sin(angle)
        }
    }

    /// [Normals](Self::normal) `2k` and `2k + 1`, at little more than the cost of one.
    pub(crate) fn normal_pair(&self, k: u64) -> [f64; 2] {
        let (radius, angle) = self.polar(k);
        [radius * libm::cos(angle), radius * libm::sin(angle)]
    }

    /// [Uniforms](Self::uniform) `2k` and `2k + 1`, at the cost of one.
    pub(crate) fn uniform_pair(&self, k: u64) -> [f64; 2] {
        let (first, second) = split(self.block(k));
        [unit(first), unit(second)]
    }

    /// The point in the plane whose coordinates are normals `2k` and `2k + 1`.
    fn polar(&self, k: u64) -> (f64, f64) {
        let (first, second) = split(self.block(k));
        // 1 − u lies in (0, 1], where the logarithm is finite.
        let radius = (-2.0 * libm::log(1.0 - unit(first))).sqrt();
        (radius, std::f64::consts::TAU * unit(second))
    }

    /// Integer number `i` in `0..n`, by multiplying 64 random bits with `n` and keeping the high
    /// half. No value is rejected, so index `i` always costs one block; the price is a bias of at
    /// most `n/2⁶⁴` in each probability, far below what any experiment can see.
    ///
    /// The range `0..0` is empty; the result is then 0, which the caller must not use as an index.
    pub fn below(&self, i: u64, n: u64) -> u64 {
        let wide = u128::from(self.bits64(i)) * u128::from(n);
        low64(wide >> 64)
    }

    /// A random order of `0..n`: the Fisher–Yates shuffle, with integer number `j` deciding which
    /// of the first `j + 1` items goes to place `j`.
    pub fn permutation(&self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for j in (1..n).rev() {
            let other = self.below(j as u64, j as u64 + 1);
            // `other <= j`, so it fits into a usize.
            order.swap(j, usize::try_from(other).unwrap_or(j));
        }
        order
    }

    /// 64 random bits: words `2i` (low) and `2i + 1` (high).
    fn bits64(&self, i: u64) -> u64 {
        let (first, second) = split(self.block(i >> 1));
        if i & 1 == 0 { first } else { second }
    }

    /// Words `0..4` of blocks `first..first + N`, one array for each of the four. The same values as
    /// [`words`](Self::words), in a loop that the compiler makes vectors of.
    #[expect(
        clippy::inline_always,
        reason = "what is not inlined is not compiled for the chosen instruction set"
    )]
    #[inline(always)]
    pub(crate) fn blocks<const N: usize>(&self, first: u64) -> [[u32; N]; 4] {
        let ([t0, t1], [k0, k1]) = (words(self.tag), words(self.seed));
        let [mut a, mut b, mut c, mut d] = [[0; N]; 4];
        for i in 0..N {
            let [c0, c1] = words(first + i as u64);
            let mut block = [c0, c1, t0, t1];
            let mut key = [k0, k1];
            for _ in 0..PHILOX_ROUNDS {
                block = philox_round(block, key);
                key = next_key(key);
            }
            [a[i], b[i], c[i], d[i]] = block;
        }
        [a, b, c, d]
    }

    /// What all blocks have in common: the words of the seed and of the tag, the low ones first.
    pub(crate) const fn words_of_key_and_tag(&self) -> [u32; 4] {
        let ([k0, k1], [t0, t1]) = (words(self.seed), words(self.tag));
        [k0, k1, t0, t1]
    }

    fn block(&self, block: u64) -> [u32; 4] {
        let ([c0, c1], [c2, c3]) = (words(block), words(self.tag));
        philox4x32([c0, c1, c2, c3], words(self.seed))
    }
}

/// Philox4x32-10: one block of four words for a counter and a key, least significant word first.
fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..PHILOX_ROUNDS {
        counter = philox_round(counter, key);
        key = next_key(key);
    }
    counter
}

/// The key of the next round.
#[inline]
const fn next_key([k0, k1]: [u32; 2]) -> [u32; 2] {
    [k0.wrapping_add(PHILOX_W[0]), k1.wrapping_add(PHILOX_W[1])]
}

#[expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]
#[inline(always)]
fn philox_round([c0, c1, c2, c3]: [u32; 4], [k0, k1]: [u32; 2]) -> [u32; 4] {
    let [lo0, hi0] = words(u64::from(PHILOX_M[0]) * u64::from(c0));
    let [lo1, hi1] = words(u64::from(PHILOX_M[1]) * u64::from(c2));
    [hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0]
}

/// Hash of a name. The length goes in first, so that a name and the same name followed by zero
/// bytes differ.
fn tag_of_name(name: &str) -> u64 {
    let start = mix64(TAG_START ^ name.len() as u64);
    name.as_bytes().chunks(8).fold(start, |tag, chunk| {
        let mut eight = [0; 8];
        eight[..chunk.len()].copy_from_slice(chunk);
        mix64(tag.wrapping_add(TAG_STEP) ^ u64::from_le_bytes(eight))
    })
}

/// A bijection of 64-bit words whose every output bit depends on every input bit: the finaliser of
/// `SplitMix64` (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195), variant 13 of Stafford.
const fn mix64(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The 53 high bits as a fraction of one.
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[expect(clippy::cast_possible_truncation, reason = "both halves are kept")]
#[inline]
const fn words(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the caller shifted the high half down"
)]
const fn low64(x: u128) -> u64 {
    x as u64
}

const fn split([a, b, c, d]: [u32; 4]) -> (u64, u64) {
    (a as u64 | ((b as u64) << 32), c as u64 | ((d as u64) << 32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_known_answers() {
        // Random123, tests/kat_vectors, philox4x32-10.
        let cases = [
            (
                [0; 4],
                [0; 2],
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [u32::MAX; 4],
                [u32::MAX; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, wanted) in cases {
            assert_eq!(philox4x32(counter, key), wanted);
        }
    }

    #[test]
    fn words_of_a_stream_are_the_blocks_in_order() {
        let stream = Rng::new(0x0123_4567_89ab_cdef).stream("x");
        let [t0, t1] = words(stream.tag);
        for block in 0..3 {
            let wanted = philox4x32([block, 0, t0, t1], [0x89ab_cdef, 0x0123_4567]);
            let got = [0, 1, 2, 3].map(|k| stream.bits(4 * u64::from(block) + k));
            assert_eq!(got, wanted);
        }
        // Two of these blocks lie on either side of 2^32.
        let far = u64::from(u32::MAX) - 1;
        let together = stream.blocks::<5>(far);
        for i in 0..5 {
            let wanted = [0, 1, 2, 3].map(|k| stream.bits(4 * (far + i as u64) + k));
            assert_eq!(together.map(|words| words[i]), wanted);
        }
        for n in [0, 1, 4, 7] {
            let one_by_one: Vec<u32> = (0..n).map(|i| stream.bits(i)).collect();
            assert_eq!(stream.words(usize::try_from(n).unwrap()), one_by_one);
        }
        // Index 2^34 reaches counter word 1, which a 32-bit block number would drop.
        let far = philox4x32([0, 1, t0, t1], [0x89ab_cdef, 0x0123_4567]);
        assert_eq!(stream.bits(1 << 34), far[0]);
        let u = stream.uniform(1);
        let wanted = u64::from(stream.bits(2)) | (u64::from(stream.bits(3)) << 32);
        assert_eq!(u.to_bits(), unit(wanted).to_bits());
    }

    /// Computed by a separate implementation in another language. These numbers may change only
    /// with an entry under "Numerics" in the change log.
    #[test]
    #[expect(clippy::float_cmp, reason = "the bits are what is promised")]
    fn values_are_pinned() {
        let stream = Rng::new(7).stream("pinned").at(3).at(4);
        let words = [0x5c31_192e, 0xdfe7_add1, 0x7722_4668, 0xdf43_eb4a];
        assert_eq!(stream.words(4), words);
        let uniforms = [0.874_628_890_622_436_1, 0.872_130_113_296_528_9];
        assert_eq!([0, 1].map(|i| stream.uniform(i)), uniforms);
        let normals = [1.414_781_645_241_691_5, -1.466_747_090_134_478_6];
        assert_eq!([0, 1].map(|i| stream.normal(i)), normals);
        assert_eq!(stream.permutation(8), [0, 1, 5, 4, 2, 6, 3, 7]);
    }

    #[test]
    fn uniforms_have_the_moments_of_the_unit_interval() {
        let stream = Rng::new(11).stream("u");
        let n = 40_000_u64;
        let values: Vec<f64> = (0..n).map(|i| stream.uniform(i)).collect();
        assert!(values.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = values.iter().sum::<f64>() / n as f64;
        let var = values.iter().map(|u| (u - 0.5).powi(2)).sum::<f64>() / n as f64;
        // Five standard errors: sd/√n = 0.00144 for the mean, 0.00037 for the variance.
        assert!((mean - 0.5).abs() < 0.0072, "{mean}");
        assert!((var - 1.0 / 12.0).abs() < 0.0019, "{var}");
        assert!(unit(u64::MAX) < 1.0);
        assert!(unit(0).to_bits() == 0);
    }

    #[test]
    fn normals_have_four_right_moments_and_no_correlated_neighbours() {
        let stream = Rng::new(5).stream("n");
        let n = 40_000_u64;
        let z: Vec<f64> = (0..n).map(|i| stream.normal(i)).collect();
        let moment = |k: i32| z.iter().map(|x| x.powi(k)).sum::<f64>() / n as f64;
        // Five standard errors of each moment.
        assert!(moment(1).abs() < 0.025, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.036, "{}", moment(2));
        assert!(moment(3).abs() < 0.097, "{}", moment(3));
        assert!((moment(4) - 3.0).abs() < 0.25, "{}", moment(4));
        // Both halves of a Box–Muller pair, and pairs with pairs.
        for lag in 1..4 {
            let cov = z.windows(lag + 1).map(|w| w[0] * w[lag]).sum::<f64>() / n as f64;
            assert!(cov.abs() < 0.025, "lag {lag}: {cov}");
        }
    }

    #[test]
    fn below_stays_in_range_and_is_even() {
        let stream = Rng::new(2).stream("b");
        let mut counts = [0_u32; 10];
        for i in 0..50_000 {
            counts[usize::try_from(stream.below(i, 10)).unwrap()] += 1;
        }
        assert!(chi_square(&counts, 5_000.0) < 27.9, "{counts:?}"); // 9 d.o.f., p = 0.001
        assert_eq!(stream.below(0, 0), 0);
        assert_eq!(stream.below(0, 1), 0);
        assert!(stream.below(3, u64::MAX) < u64::MAX);
    }

    #[test]
    fn a_permutation_holds_every_item_once() {
        let stream = Rng::new(9).stream("p");
        for n in [0, 1, 2, 3, 17, 1000] {
            let mut order = stream.permutation(n);
            order.sort_unstable();
            assert_eq!(order, (0..n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_item_reaches_every_place_equally_often() {
        const N: usize = 5;
        let stream = Rng::new(13).stream("p");
        let mut counts = [[0_u32; N]; N];
        for epoch in 0..10_000 {
            for (place, item) in stream.at(epoch).permutation(N).into_iter().enumerate() {
                counts[place][item] += 1;
            }
        }
        // Each row is a multinomial with 4 degrees of freedom; p = 0.001 is at 18.5.
        for row in &counts {
            assert!(chi_square(row, 2_000.0) < 18.5, "{counts:?}");
        }
    }

    #[test]
    fn streams_differ_by_seed_name_sub_and_order_of_nesting() {
        let s = Rng::new(0).stream("a");
        let all = [
            s,
            Rng::new(1).stream("a"),
            Rng::new(1 << 32).stream("a"),
            Rng::new(0).stream("b"),
            Rng::new(0).stream("a\0"),
            Rng::new(0).stream(""),
            Rng::new(0).stream("aaaaaaaab"),
            Rng::new(0).stream("baaaaaaaa"),
            s.at(0),
            s.at(0).at(0),
            s.at(3).at(4),
            s.at(4).at(3),
            s.at(34),
            s.at(7),
            s.at(12),
        ];
        for (i, one) in all.iter().enumerate() {
            for other in &all[i + 1..] {
                let same = (0..64).filter(|&k| one.bits(k) == other.bits(k)).count();
                assert_eq!(same, 0, "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn sibling_streams_are_uncorrelated() {
        let s = Rng::new(4).stream("s");
        let n = 20_000_u64;
        // The same index in consecutive sub-streams: what dropout reads from step to step.
        let cov = (0..n)
            .map(|k| (s.at(k).uniform(0) - 0.5) * (s.at(k + 1).uniform(0) - 0.5))
            .sum::<f64>()
            / n as f64;
        assert!(cov.abs() < 5.0 / 12.0 / (n as f64).sqrt(), "{cov}");
    }

    fn chi_square(counts: &[u32], wanted: f64) -> f64 {
        counts
            .iter()
            .map(|&c| (f64::from(c) - wanted).powi(2) / wanted)
            .sum()
    }
}
