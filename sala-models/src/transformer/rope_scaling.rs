//! Rotary angles that are stretched, so that a model reads longer texts than it was first trained on.
//!
//! Pair `i` of a head of `D` features turns by `f_i = base^(−2i/D)` a position. With a factor `s` and the
//! first training's length `L`:
//!
//! ```text
//! linear    f_i / s                                                              (Chen et al. 2023, arXiv:2306.15595)
//! llama3    γ f_i + (1 − γ) f_i / s,   γ = (L f_i / 2π − low) / (high − low)     (Llama 3's release, 2024)
//! yarn      γ f_i + (1 − γ) f_i / s,   γ = 1 − (i − c(fast)) / (c(slow) − c(fast))
//!           c(r) = D ln(L / 2πr) / (2 ln base)                                   (Peng et al. 2023, arXiv:2309.00071)
//! dynamic   f_i up to L positions
//! ```
//!
//! with every `γ` cut to `[0, 1]`. `L f_i / 2π` and `r` are numbers of turns within `L`: pairs that turn
//! often keep their speed, those that turn rarely are slowed down. `YaRN` also multiplies both cosine and sine
//! by a number, which sharpens the attention. Dynamic scaling changes the base with the length of a text
//! beyond `max_position_embeddings`; no text here is longer.

use std::f64::consts::TAU;

use crate::{Error, Result, error::check_positive};

const CONFIG: &str = "RopeScaling";

/// How a model's rotary angles are stretched.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    None,
    /// All alike.
    Linear {
        /// How many times longer texts are.
        factor: f64,
    },
    /// Only for texts of more than `max_position_embeddings`, which the networks here refuse: not at all.
    Dynamic {
        /// How many times longer texts may be.
        factor: f64,
    },
    /// Llama 3's: by the number of turns within the first training's length.
    Llama3 {
        /// How many times longer texts are.
        factor: f64,
        /// Pairs with fewer turns are slowed down by `factor`.
        low_freq_factor: f64,
        /// Pairs with more turns keep their speed.
        high_freq_factor: f64,
        /// The first training's length, in tokens.
        original_max_position_embeddings: usize,
    },
    /// `YaRN`: along the pairs, between those of two numbers of turns.
    Yarn {
        /// How many times longer texts are.
        factor: f64,
        /// What multiplies cosine and sine; `0.1 ln factor + 1` in the paper, see
        /// [`yarn_attention`](Self::yarn_attention).
        attention_factor: f64,
        /// Turns within the first training's length from which on pairs keep their speed; 32 in the paper.
        beta_fast: f64,
        /// Turns up to which they are slowed down by `factor`; 1 in the paper.
        beta_slow: f64,
        /// The first training's length, in tokens.
        original_max_position_embeddings: usize,
        /// Whether the bounds are rounded outwards to whole pairs, as is usual.
        truncate: bool,
    },
}

impl RopeScaling {
    /// What multiplies cosine and sine in `YaRN` when nothing else is said: `0.1 m ln s + 1` for the factor
    /// `s`, and 1 for factors up to 1.
    ///
    /// ```
    /// use sala_models::transformer::RopeScaling;
    ///
    /// assert_eq!(RopeScaling::yarn_attention(1.0, 1.0), 1.0);
    /// assert!((RopeScaling::yarn_attention(4.0, 1.0) - 1.138_629).abs() < 1e-6);
    /// ```
    pub fn yarn_attention(factor: f64, m: f64) -> f64 {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * m * factor.ln() + 1.0
        }
    }

    /// Checks that numbers are positive and finite, factors at least 1, and bounds in order.
    ///
    /// # Errors
    /// [`Error::Config`], naming the field.
    ///
    /// ```
    /// use sala_models::transformer::RopeScaling;
    ///
    /// let bad = RopeScaling::Linear { factor: 0.5 };
    /// assert!(bad.validate().unwrap_err().to_string().contains("RopeScaling.factor"));
    /// ```
    pub fn validate(&self) -> Result<()> {
        match *self {
            Self::None => Ok(()),
            Self::Linear { factor } | Self::Dynamic { factor } => check_factor(factor),
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: length,
            } => {
                check_factor(factor)?;
                check_positive(CONFIG, "low_freq_factor", low)?;
                check_positive(CONFIG, "high_freq_factor", high)?;
                check_order("high_freq_factor", "more than low_freq_factor", high, low)?;
                check_length(length)
            }
            Self::Yarn {
                factor,
                attention_factor,
                beta_fast,
                beta_slow,
                original_max_position_embeddings: length,
                ..
            } => {
                check_factor(factor)?;
                check_positive(CONFIG, "attention_factor", attention_factor)?;
                check_positive(CONFIG, "beta_fast", beta_fast)?;
                check_positive(CONFIG, "beta_slow", beta_slow)?;
                check_order("beta_fast", "more than beta_slow", beta_fast, beta_slow)?;
                check_length(length)
            }
        }
    }

    /// What each pair of a head of `features` turns by a position, in radians, and what multiplies cosine
    /// and sine.
    ///
    /// ```
    /// use sala_models::transformer::RopeScaling;
    ///
    /// let (speeds, scale) = RopeScaling::Linear { factor: 2.0 }.speeds(4, 10_000.0);
    /// assert_eq!((speeds, scale), (vec![0.5, 0.005], 1.0));
    /// ```
    pub fn speeds(&self, features: usize, base: f64) -> (Vec<f64>, f64) {
        let plain = (0..features / 2).map(|i| base.powf(-2.0 * i as f64 / features as f64));
        match *self {
            Self::None | Self::Dynamic { .. } => (plain.collect(), 1.0),
            Self::Linear { factor } => (plain.map(|f| f / factor).collect(), 1.0),
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: length,
            } => {
                let stretched = plain.map(|f| {
                    let turns = length as f64 * f / TAU;
                    mixed(f, factor, (turns - low) / (high - low))
                });
                (stretched.collect(), 1.0)
            }
            Self::Yarn {
                factor,
                attention_factor,
                ..
            } => {
                let (first, last) = self.yarn_bounds(features, base);
                let stretched = plain
                    .enumerate()
                    .map(|(i, f)| mixed(f, factor, 1.0 - (i as f64 - first) / (last - first)));
                (stretched.collect(), attention_factor)
            }
        }
    }

    /// Up to which pair the speed is kept, and from which on it is divided by the factor.
    fn yarn_bounds(&self, features: usize, base: f64) -> (f64, f64) {
        let Self::Yarn {
            beta_fast,
            beta_slow,
            original_max_position_embeddings: length,
            truncate,
            ..
        } = *self
        else {
            return (0.0, 1.0);
        };
        let pair =
            |turns: f64| features as f64 * (length as f64 / (turns * TAU)).ln() / (2.0 * base.ln());
        let (mut first, mut last) = (pair(beta_fast), pair(beta_slow));
        if truncate {
            (first, last) = (first.floor(), last.ceil());
        }
        (first, last) = (first.max(0.0), last.min(features as f64 - 1.0));
        if (last - first).abs() < f64::EPSILON {
            // A step between two pairs, as the library has it.
            last += 0.001;
        }
        (first, last)
    }
}

/// Between a speed and a `factor`-th of it.
fn mixed(speed: f64, factor: f64, kept: f64) -> f64 {
    let kept = kept.clamp(0.0, 1.0);
    kept * speed + (1.0 - kept) * speed / factor
}

fn check_factor(factor: f64) -> Result<()> {
    check_positive(CONFIG, "factor", factor)?;
    check_order("factor", "at least 1", factor, 1.0_f64.next_down())
}

fn check_order(field: &'static str, wanted: &'static str, value: f64, bound: f64) -> Result<()> {
    if value > bound {
        return Ok(());
    }
    Err(Error::Config {
        config: CONFIG,
        field,
        wanted,
        got: value.to_string(),
    })
}

fn check_length(length: usize) -> Result<()> {
    let field = "original_max_position_embeddings";
    crate::error::check_sizes(CONFIG, [(field, length)])
}
