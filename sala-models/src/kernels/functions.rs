//! Exponentials and the normal distribution, in a form that the compiler turns into vectors.
//!
//! A call into a mathematics library ends every vector loop. For f32 there are forms here without calls
//! or branches, so that a loop over them is compiled for whole registers. Multiplications and additions are
//! fused, one rounding for two, in hardware where the processor has it (all of this century's second decade):
//! so no step depends on the width of a register, and bits are the same on every processor. For f64
//! exactness comes first: its functions are those of the libraries, one element at a time.
//!
//! ```text
//! exp(x) = 2ᵏ exp(r)        k = round(x / ln 2)        r = x − k ln 2,  |r| ≤ ln 2 / 2
//! ```
//!
//! with the polynomial of Cephes' `expf` for `exp(r)` (S. L. Moshier, *Methods and Programs for
//! Mathematical Functions*, 1989; netlib.org/cephes). Its error is below 2 units in the last place, with
//! gradual underflow, and what is not finite goes where it should.
//!
//! ```text
//! Φ(−y) = exp(−y²/2) Q(s) / (y + c)        s = (y − c) / (y + c),  c = 5/2,  y ≥ 0
//! ```
//!
//! is how Shepherd and Laframboise write the error function (Math. Comp. 36, 1981,
//! doi:10.2307/2007742). The polynomial `Q` was fitted here for Φ: 1.6e-8 relative on `0 ≤ y ≤ 14.5`,
//! beyond which f32 has no numbers left. For `|x| < 1` the roundings of this form would show, and there
//! `Φ(x) = 1/2 + x R(x²)` with a fitted `R`, to 8e-9. In f32 Φ is off by at most 1e-7; its lower tail
//! keeps five digits, where `1 + erf` would keep none.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the chosen instruction set"
)]

use super::element::Element;

/// Functions beyond arithmetic.
pub(crate) trait Functions: Element {
    fn exp(self) -> Self;
    /// exp(−x²/2) and Φ(x), the density (but for a factor) and the distribution function of the normal
    /// distribution.
    fn normal(self) -> (Self, Self);

    /// 1 / (1 + exp(−x)).
    #[inline(always)]
    fn sigmoid(self) -> Self {
        let one = Self::of(1.0);
        one / (one + Functions::exp(-self))
    }

    /// The natural logarithm, for a value in each row: not for the inner loop.
    fn ln(self) -> Self {
        Self::of(self.wide().ln())
    }
}

/// Added to a number below 2²² it rounds it to an integer, which then is in the lowest bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts. The first has so few digits that its product with k is exact.
const LN_2: [f32; 2] = [355.0 / 512.0, -2.121_944_4e-4];
/// (exp(r) − 1 − r) / r², lowest power first.
const EXP: [f32; 6] = [
    0.5,
    1.666_666_5e-1,
    4.166_579_6e-2,
    8.333_452e-3,
    1.398_2e-3,
    1.987_569_2e-4,
];
/// Where exp has left the range of f32: it rounds to 0 and overflows there.
const EXP_RANGE: [f32; 2] = [-104.0, 89.0];
/// Q, lowest power first.
const NORMAL: [f32; 10] = [
    0.706_656_64,
    -0.433_692,
    0.131_986_96,
    0.009_235_915,
    -0.016_386_02,
    -0.001_600_961_1,
    0.002_523_296_8,
    0.000_684_344_27,
    -0.000_310_864_36,
    -0.000_157_266_38,
];
/// R, lowest power first.
const NORMAL_NEAR: [f32; 5] = [
    0.398_942_2,
    -0.066_488_73,
    0.009_964_167,
    -0.001_165_350_8,
    9.246_838e-5,
];
/// c.
const NORMAL_CENTRE: f32 = 2.5;

/// Horner's scheme.
#[inline(always)]
fn polynomial<const N: usize>(coefficients: [f32; N], x: f32) -> f32 {
    let mut sum = coefficients[N - 1];
    for i in (0..N - 1).rev() {
        sum = sum.mul_add(x, coefficients[i]);
    }
    sum
}

/// 2ᵏ for |k| ≤ 126; any number for others.
#[inline(always)]
fn power_of_two(k: i32) -> f32 {
    f32::from_bits((k.wrapping_add(127) << 23).cast_unsigned())
}

impl Functions for f32 {
    #[inline(always)]
    fn exp(self) -> Self {
        // Written so that NaN passes.
        let x = if self < EXP_RANGE[0] {
            EXP_RANGE[0]
        } else {
            self
        };
        let x = if x > EXP_RANGE[1] { EXP_RANGE[1] } else { x };
        let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
        let rounded = shifted - ROUND;
        let r = rounded.mul_add(-LN_2[1], rounded.mul_add(-LN_2[0], x));
        let exp = polynomial(EXP, r).mul_add(r * r, r) + 1.0;
        // k reaches from −150 to 128, beyond the exponents of f32: in two steps, of which only the
        // second rounds.
        let bits = shifted.to_bits().cast_signed();
        let k = bits.wrapping_sub(ROUND.to_bits().cast_signed());
        let half = k >> 1;
        exp * power_of_two(half) * power_of_two(k.wrapping_sub(half))
    }

    #[inline(always)]
    fn normal(self) -> (Self, Self) {
        let y = self.abs();
        let density = Functions::exp(y * y * -0.5);
        let inverse = 1.0 / (y + NORMAL_CENTRE);
        let s = inverse.mul_add(-2.0 * NORMAL_CENTRE, 1.0);
        let below = density * (inverse * polynomial(NORMAL, s));
        let far = if self < 0.0 { below } else { 1.0 - below };
        let near = self.mul_add(polynomial(NORMAL_NEAR, y * y), 0.5);
        (density, if y < 1.0 { near } else { far })
    }
}

impl Functions for f64 {
    #[inline(always)]
    fn exp(self) -> Self {
        self.exp()
    }

    #[inline(always)]
    fn normal(self) -> (Self, Self) {
        let above = libm::erfc(-self * std::f64::consts::FRAC_1_SQRT_2);
        ((self * self * -0.5).exp(), above * 0.5)
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "what has to be exact is compared exactly")]
mod tests {
    use super::*;

    /// Every 997th number of f32, of both signs: 4 million, all exponents among them.
    fn all() -> impl Iterator<Item = f32> {
        (0..u32::MAX / 997)
            .map(|i| f32::from_bits(i * 997))
            .filter(|x| x.is_finite())
    }

    /// The distance to what is right in units of the last place of f32, which are constant below the
    /// normal numbers.
    #[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
    fn units(got: f32, wanted: f64) -> f64 {
        let rounded = wanted as f32;
        if got == rounded || (got.is_nan() && rounded.is_nan()) {
            return 0.0;
        }
        let size = f64::from(rounded.abs().max(f32::MIN_POSITIVE));
        (f64::from(got) - wanted).abs() / (size.log2().floor() - 23.0).exp2()
    }

    #[test]
    fn the_exponential_of_f32_is_right_to_two_units_in_the_last_place() {
        let mut worst = (0.0, 0.0);
        for x in all() {
            let off = units(Functions::exp(x), libm::exp(x.into()));
            if off > worst.0 || off.is_nan() {
                worst = (off, x);
            }
        }
        assert!(worst.0 <= 2.0, "{worst:?}");
    }

    #[test]
    fn the_exponential_knows_the_numbers_at_the_ends() {
        let exp = |x: f32| Functions::exp(x);
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::MAX), f32::INFINITY);
        assert_eq!(exp(f32::MIN), 0.0);
        assert!(exp(f32::NAN).is_nan() && exp(-f32::NAN).is_nan());
        // The last before overflow, the first number that is not normal, the last before 0.
        assert!(exp(88.722_83).is_finite() && exp(88.722_84) == f32::INFINITY);
        assert!((1e-39..1.1754e-38).contains(&exp(-87.4)));
        assert_eq!(exp(-103.9), f32::from_bits(1));
        assert_eq!(exp(-104.0), 0.0);
    }

    #[test]
    fn the_normal_distribution_of_f32_is_right_to_seven_digits_and_five_in_the_lower_tail() {
        for x in all() {
            let (density, below) = x.normal();
            let (wanted_density, wanted) = f64::from(x).normal();
            let off = |got: f32, wanted: f64| (f64::from(got) - wanted).abs();
            assert!(off(below, wanted) <= 1e-7, "{x:e} {below:e} {wanted:e}");
            let tail = off(below, wanted) / wanted;
            assert!(wanted < 1e-37 || tail < 1e-5, "{x} {below:e} {wanted:e}");
            assert!(off(density, wanted_density) <= 3e-7, "{x} {density}");
        }
        let of = |x: f32| x.normal().1;
        assert_eq!([of(f32::NEG_INFINITY), of(f32::INFINITY)], [0.0, 1.0]);
        assert_eq!([of(-40.0), of(40.0)], [0.0, 1.0]);
        assert!(of(f32::NAN).is_nan());
    }

    #[test]
    fn the_sigmoid_has_no_number_that_it_fears() {
        for x in all() {
            let wanted = 1.0 / (1.0 + libm::exp(-f64::from(x)));
            let off = units(x.sigmoid(), wanted);
            // Where exp overflows, half a unit of the smallest numbers is nothing.
            assert!(off <= 4.0 || wanted < 3e-39, "{x:e} {off}");
        }
        assert_eq!(f32::INFINITY.sigmoid(), 1.0);
        assert_eq!(f32::NEG_INFINITY.sigmoid(), 0.0);
        assert!(f32::NAN.sigmoid().is_nan());
    }
}
