//! Mixup (Zhang et al. 2018, arXiv:1710.09412): a batch is mixed with the same batch in another order `π`,
//!
//! ```text
//! x̃_i = λ x_i + (1 − λ) x_π(i)        ỹ_i = λ y_i + (1 − λ) y_π(i)        λ ~ Beta(α, α)
//! ```
//!
//! with one `λ` and one uniformly drawn order a batch, as the authors do it.

use anyhow::{Context, Result, ensure};
use sala_models::{images::Mixture, rng::Stream};
use statrs::distribution::{Beta, ContinuousCDF};

use super::OnBatch;

/// Draws `λ` from Beta(α, α).
#[derive(Debug)]
pub(super) struct Lambda(Beta);

impl Lambda {
    /// `name` is the augmentation's, for the error.
    pub(super) fn new(name: &str, alpha: f64) -> Result<Self> {
        ensure!(
            alpha > 0.0 && alpha.is_finite(),
            "data.augment: {name}.alpha must be finite and > 0, got {alpha}"
        );
        let beta = Beta::new(alpha, alpha);
        Ok(Self(beta.with_context(|| format!("{name}.alpha {alpha}"))?))
    }

    /// By inversion of the distribution function: a single uniform number decides.
    pub(super) fn draw(&self, draws: Stream) -> f64 {
        self.0.inverse_cdf(draws.uniform(0)).clamp(0.0, 1.0)
    }
}

#[derive(Debug)]
pub(super) struct Mixup {
    lambda: Lambda,
}

impl Mixup {
    pub(super) fn new(alpha: f64) -> Result<Self> {
        Ok(Self {
            lambda: Lambda::new("mixup", alpha)?,
        })
    }
}

impl OnBatch for Mixup {
    fn mixture(&self, images: usize, _: (usize, usize), draws: Stream) -> Mixture {
        Mixture::Blend {
            share: self.lambda.draw(draws.at(0)),
            order: draws.at(1).permutation(images),
        }
    }
}

#[cfg(test)]
mod tests {
    use sala_models::Rng;

    use super::{super::Shares, *};

    #[test]
    fn images_and_targets_are_mixed_by_the_same_share_with_the_same_partner() {
        // Image i holds 4^i, so that a mixture says what it is made of.
        let before: Vec<f32> = (0..4).map(|i| 4_f32.powi(i)).collect();
        let mixup = Mixup::new(1.0).unwrap();
        let stream = Rng::new(6).stream("mixup");
        let mut partners = [0; 4];
        for batch in 0..400 {
            let draws = stream.at(batch);
            let mut images = before.clone();
            let mut shares = Shares::of(&[0, 1, 2, 3], 4);
            mixup.apply(&mut images, [1, 1, 1], &mut shares, draws);
            for (i, row) in shares.values().chunks(4).enumerate() {
                let sum: f32 = row.iter().sum();
                assert!((sum - 1.0).abs() < 1e-6, "{row:?}");
                let mixed: f32 = row.iter().zip(&before).map(|(s, x)| s * x).sum();
                assert!((images[i] - mixed).abs() < 1e-4, "{i}: {images:?} {row:?}");
            }
            // Where the first image has a partner, its own share is λ.
            let lambda = mixup.lambda.draw(draws.at(0));
            let order = draws.at(1).permutation(4);
            partners[order[0]] += 1;
            if order[0] != 0 {
                assert!((f64::from(shares.values()[0]) - lambda).abs() < 1e-6);
            }
        }
        // 100 expected, standard deviation 9.
        assert!(
            partners.iter().all(|n| (60..140).contains(n)),
            "{partners:?}"
        );
    }

    /// The largest distance between the distribution function of the draws and that of Beta(α, α).
    fn distance(alpha: f64, n: u64) -> f64 {
        let lambda = Lambda::new("mixup", alpha).unwrap();
        let stream = Rng::new(7).stream("lambda");
        let mut draws: Vec<f64> = (0..n).map(|i| lambda.draw(stream.at(i))).collect();
        draws.sort_by(f64::total_cmp);
        let beta = Beta::new(alpha, alpha).unwrap();
        let steps = (1_u32..).zip(draws);
        steps
            .map(|(i, x)| (beta.cdf(x) - f64::from(i) / n as f64).abs())
            .fold(0.0, f64::max)
    }

    #[test]
    fn shares_are_those_of_the_beta_distribution() {
        // Kolmogorov and Smirnov: above 1.95/√n with a probability of 0.001.
        for alpha in [0.2, 1.0, 2.0] {
            let distance = distance(alpha, 4_000);
            assert!(distance < 1.95 / 4_000_f64.sqrt(), "α {alpha}: {distance}");
        }
    }

    #[test]
    fn an_alpha_that_is_no_number_above_zero_is_refused() {
        for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let message = Mixup::new(alpha).unwrap_err().to_string();
            assert!(message.contains("mixup.alpha"), "{message}");
        }
    }
}
