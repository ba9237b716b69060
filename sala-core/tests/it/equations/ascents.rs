//! Methods without slow weights.

use sala_core::{
    ParamsAsam, ParamsFriendlySam, ParamsGsam, ParamsLookSam, ParamsMomentumSam, ParamsSam,
    ParamsSamEvery, catalogue::Method, perturb::RhoScale,
};

use super::{follow_everywhere, follow_on_rows, sam};

// Catches a wrong radius, sign or norm, a descent from the perturbed weights, a gradient of the wrong
// pass, and a norm of the wrong gradient in the stable form.
#[test]
fn sam_climbs_along_the_gradient_and_descends_from_below() {
    let cases = [
        ("SAM", sam()),
        (
            "stable SAM",
            ParamsSam {
                stable: true,
                ..sam()
            },
        ),
        (
            "SAM, ρ of ‖w‖",
            ParamsSam {
                scale: RhoScale::ParameterNorm,
                ..sam()
            },
        ),
        (
            "SAM, ρ of the learning rate",
            ParamsSam {
                scale: RhoScale::LearningRate { reference: 0.02 },
                ..sam()
            },
        ),
    ];
    for (name, config) in cases {
        follow_everywhere(name, &Method::Sam(config));
    }
}

// Catches a direction pass that counts as a whole one, and a perturbed pass on a share of the batch.
#[test]
fn a_direction_on_half_the_batch_points_the_ascent_only() {
    let half = ParamsSam {
        direction_fraction: 0.5,
        ..sam()
    };
    let stable = ParamsSam {
        stable: true,
        ..half
    };
    let asam = ParamsAsam {
        direction_fraction: 0.5,
        ..Default::default()
    };
    let friendly = ParamsFriendlySam {
        sam: half,
        ..Default::default()
    };
    let gsam = ParamsGsam {
        alpha: 0.4,
        sam: half,
    };
    let look_sam = ParamsLookSam {
        k: 3,
        alpha: 0.5,
        sam: half,
    };
    for (name, method) in [
        ("SAM", Method::Sam(half)),
        ("stable SAM", Method::Sam(stable)),
        ("ASAM", Method::Asam(asam)),
        ("Friendly SAM", Method::FriendlySam(friendly)),
        ("GSAM", Method::Gsam(gsam)),
        ("LookSAM", Method::LookSam(look_sam)),
    ] {
        follow_on_rows(&format!("{name} with half a direction"), &method, 1);
    }
}

// Catches one ascent for all micro-batches, a sum in place of the mean, a blend of the sums in place of
// the sum of the blends, and a step count or cost that counts micro-batches.
#[test]
fn m_sam_perturbs_each_micro_batch_on_its_own() {
    for parts in [2, 4] {
        let sam = ParamsSam {
            micro_batches: parts,
            ..sam()
        };
        let stable = ParamsSam {
            stable: true,
            ..sam
        };
        let half = ParamsSam {
            direction_fraction: 0.5,
            ..sam
        };
        for (name, method) in [
            ("m-SAM", Method::Sam(sam)),
            ("stable m-SAM", Method::Sam(stable)),
            ("m-SAM with half a direction", Method::Sam(half)),
            (
                "m-SAM every 3",
                Method::SamEvery(ParamsSamEvery { k: 3, sam }),
            ),
            (
                "GSAM per micro-batch",
                Method::Gsam(ParamsGsam { alpha: 0.4, sam }),
            ),
        ] {
            follow_on_rows(name, &method, parts);
        }
    }
}

// Catches an ascent from the last part's gradient, and a mean over the wrong number of parts.
#[test]
fn sam_on_an_accumulated_gradient_climbs_once_along_the_mean() {
    for method in [Method::Sam(sam()), Method::Gsam(ParamsGsam::default())] {
        follow_on_rows("accumulated", &method, 4);
    }
}

// Catches T once where it enters twice, a norm of T² g or of g, |w| without its bars, and η or the
// rule for names left out.
#[test]
fn asam_scales_the_ascent_with_the_weights_magnitudes() {
    let asam = ParamsAsam::default();
    let cases = [
        asam,
        ParamsAsam {
            weights_only: true,
            eta: 0.1,
            ..asam
        },
        ParamsAsam {
            stable: true,
            scale: RhoScale::ParameterNorm,
            ..asam
        },
    ];
    for (number, config) in cases.into_iter().enumerate() {
        follow_everywhere(&format!("ASAM {number}"), &Method::Asam(config));
    }
}

// Catches steps that are counted from 0.
#[test]
fn sam_every_k_climbs_at_the_multiples_of_k() {
    for k in [1, 2, 5] {
        let method = Method::SamEvery(ParamsSamEvery { k, sam: sam() });
        follow_everywhere(&format!("SAM every {k}"), &method);
    }
}

// Catches an orthogonal part of g in place of that of g', its addition at climbing steps, a weight
// without ‖g‖ / ‖v‖, and climbs at the multiples of k.
#[test]
fn look_sam_reuses_the_orthogonal_part_between_its_ascents() {
    for (k, alpha) in [(1, 0.7), (2, 0.3), (5, 0.7)] {
        let sam = sam();
        let method = Method::LookSam(ParamsLookSam { k, alpha, sam });
        follow_everywhere(&format!("LookSAM {k}"), &method);
    }
}

// Catches g in place of g⊥, the orthogonal part of g' in place of that of g, and a wrong sign.
#[test]
fn gsam_takes_off_the_orthogonal_part_of_the_first_gradient() {
    for alpha in [0.2, 1.0] {
        let method = Method::Gsam(ParamsGsam { alpha, sam: sam() });
        follow_everywhere(&format!("GSAM {alpha}"), &method);
    }
}

// Catches λ and 1 − λ exchanged, a mean of before the step, one that starts at g, and σ left out.
#[test]
fn friendly_sam_climbs_along_the_gradient_less_its_mean() {
    let stable = ParamsSam {
        stable: true,
        ..sam()
    };
    for (sigma, lambda, sam) in [(1.0, 0.9, sam()), (0.6, 0.3, sam()), (1.3, 0.8, stable)] {
        let method = Method::FriendlySam(ParamsFriendlySam { sigma, lambda, sam });
        follow_everywhere(&format!("Friendly SAM {sigma}"), &method);
    }
}

// Catches a displacement along the momentum, one in the first step, a momentum that does not decay, and
// a loss that is reported elsewhere than at the displaced weights.
#[test]
fn momentum_sam_goes_against_the_accumulated_gradients() {
    let absolute = ParamsMomentumSam {
        rho: 0.2,
        ..Default::default()
    };
    let of_the_lr = ParamsMomentumSam {
        scale: RhoScale::LearningRate { reference: 0.02 },
        mu: 0.6,
        ..absolute
    };
    let of_the_norm = ParamsMomentumSam {
        scale: RhoScale::ParameterNorm,
        ..absolute
    };
    for config in [absolute, of_the_lr, of_the_norm] {
        follow_everywhere("Momentum SAM", &Method::MomentumSam(config));
    }
}
