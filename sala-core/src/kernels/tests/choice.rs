//! Which form is taken.

use super::*;

// Catches half precision or a forced choice that is sent to kernels that cannot or must not do it.
#[test]
fn only_f32_and_f64_on_the_cpu_are_fused_and_only_if_that_is_allowed() {
    let is_fused = |choice: Choice, t: &Tensor| {
        matches!(
            Session::new(choice).of(t).squared_norm(t).unwrap(),
            Scalar::Host(_)
        )
    };
    for dtype in [DType::F16, DType::BF16] {
        assert!(!is_fused(Choice::Auto, &wave(3, 0.1, dtype)));
    }
    for dtype in DTYPES {
        assert!(is_fused(Choice::Auto, &wave(3, 0.1, dtype)));
        assert!(!is_fused(Choice::Composed, &wave(3, 0.1, dtype)));
    }
}

#[test]
fn the_environment_allows_two_values_and_names_them() {
    assert_eq!(Choice::parse(None).unwrap(), Choice::Auto);
    assert_eq!(Choice::parse(Some("auto")).unwrap(), Choice::Auto);
    assert_eq!(Choice::parse(Some("composed")).unwrap(), Choice::Composed);
    let message = Choice::parse(Some("fast")).unwrap_err().to_string();
    assert_eq!(
        message,
        "environment.SALA_KERNELS must be `auto` or `composed`, got fast"
    );
}
