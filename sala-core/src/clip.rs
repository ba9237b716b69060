//! Clipping of the descent gradient by its global norm.
//!
//! g ← g · min(1, c / ‖g‖₂), the norm over all parameters (Pascanu, Mikolov and Bengio 2013,
//! arXiv:1211.5063). The gradient that updates the weights is clipped; the one that points an ascent
//! is not, because a perturbation normalises it anyway. Unlike `torch.nn.utils.clip_grad_norm_`
//! nothing is added to the norm, so a clipped gradient has the norm c to rounding.

/// The factor min(1, max / norm).
pub(crate) fn factor(norm: f64, max: f64) -> f64 {
    if norm > max { max / norm } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::factor;

    #[test]
    fn only_norms_above_the_limit_are_scaled_and_to_the_limit() {
        assert_eq!(factor(0.0, 1.0).to_bits(), 1f64.to_bits());
        assert_eq!(factor(1.0, 1.0).to_bits(), 1f64.to_bits());
        assert!((factor(4.0, 1.0) - 0.25).abs() < 1e-15);
    }
}
