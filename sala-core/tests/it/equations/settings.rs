//! Settings of groups and of single parameters, and clipping, in every method that they reach.

use sala_core::{
    Clip, ParamsAsam, ParamsFriendlySam, ParamsGsam, ParamsLookSam, ParamsLookahead,
    ParamsMomentumSam, ParamsSala, ParamsSam, catalogue::Method, perturb::AscentNorm,
};

use super::{STEPS, bases, config, follow, plain::Setting, problems, sam, usual};

/// Every way of climbing once, with this radius and norm.
fn climbing(rho: f64, norm: AscentNorm) -> Vec<(&'static str, Method)> {
    let sam = ParamsSam {
        rho,
        norm,
        ..Default::default()
    };
    let sala = ParamsSala {
        rho: 10.0 * rho,
        norm,
        ..Default::default()
    };
    let friendly = ParamsFriendlySam {
        sam,
        ..Default::default()
    };
    vec![
        ("SAM", Method::Sam(sam)),
        (
            "ASAM",
            Method::Asam(ParamsAsam {
                rho,
                norm,
                ..Default::default()
            }),
        ),
        ("GSAM", Method::Gsam(ParamsGsam { alpha: 0.3, sam })),
        ("Friendly SAM", Method::FriendlySam(friendly)),
        (
            "Momentum SAM",
            Method::MomentumSam(ParamsMomentumSam {
                rho,
                norm,
                ..Default::default()
            }),
        ),
        ("SALA", Method::Sala(sala)),
    ]
}

/// Methods with settings of single parameters.
fn follow_with(name: &str, methods: &[(&str, Method)], change: impl Fn(&mut [Setting])) {
    for problem in problems::all() {
        for (base_name, base) in bases(&*problem) {
            for (method_name, method) in methods {
                let mut config = config(&*problem, &base, method.clone());
                change(&mut config.settings);
                let what = format!("{method_name} over {base_name}, {name},");
                let reports = follow(&what, &*problem, &config, 1);
                let level = matches!(method, Method::Base | Method::Lookahead(_));
                assert_ne!(reports.iter().any(|r| r.ascent), level, "{what} climbs");
            }
        }
    }
}

// Catches one norm for all groups, and norms by parameter where a group has several.
#[test]
fn norms_per_group_move_every_group_by_rho() {
    let methods = climbing(0.1, AscentNorm::PerGroup);
    for own in [0, 1] {
        follow_with("two groups", &methods, |s| s[own].group = 1);
    }
    follow_with("one group", &methods, |_| {});
}

// Catches unperturbed parameters in the norm, the factor within the norm, and parameters that are
// mixed up between the order of names and that of creation.
#[test]
fn the_radius_of_single_parameters_is_scaled_after_the_norm() {
    let methods = climbing(0.1, AscentNorm::Global);
    for (own, scale) in [(0, 0.0), (1, 0.0), (0, 0.5), (1, 2.5)] {
        follow_with("ρ scaled", &methods, |s| s[own].rho_scale = scale);
    }
    let methods = climbing(0.1, AscentNorm::PerGroup);
    follow_with("ρ scaled in groups", &methods, |s| {
        s[0].group = 1;
        s[0].rho_scale = 0.5;
    });
}

// Catches a factor of the learning rate that misses the decoupled decay, or a decay that is applied
// to all or on top of the base's, in steps that start from the slow weights too.
#[test]
fn learning_rate_and_decay_of_single_parameters_are_obeyed() {
    let mut methods = climbing(0.1, AscentNorm::Global);
    methods.push(("base", Method::Base));
    methods.push(("Lookahead", Method::Lookahead(ParamsLookahead::default())));
    follow_with("a learning rate of its own", &methods, |s| {
        s[0].lr_scale = 0.3;
    });
    follow_with("a decay of its own", &methods, |s| {
        s[0].weight_decay = Some(0.0);
        s[1].weight_decay = Some(0.2);
    });
    follow_with("both", &methods, |s| {
        s[1].weight_decay = Some(0.1);
        s[1].lr_scale = 0.5;
        s[0].lr_scale = 0.0;
    });
}

// Catches a rule for one parameter that is overridden by the method's.
#[test]
fn single_parameters_can_be_left_out_of_an_adaptive_ascent_or_put_in() {
    for weights_only in [false, true] {
        let asam = ParamsAsam {
            weights_only,
            ..Default::default()
        };
        follow_with(
            "the other way round",
            &[("ASAM", Method::Asam(asam))],
            |s| {
                s[0].adaptive = Some(false);
                s[1].adaptive = Some(true);
            },
        );
    }
}

// Catches a clip of the direction, of one parameter at a time, or before the blend, a norm of before
// the blend, and a momentum that learns clipped gradients.
#[test]
fn the_gradient_that_updates_the_weights_is_clipped() {
    let mut methods = climbing(0.1, AscentNorm::Global);
    methods.push(("base", Method::Base));
    let look_sam = ParamsLookSam {
        k: 3,
        alpha: 0.5,
        sam: sam(),
    };
    methods.push(("LookSAM", Method::LookSam(look_sam)));
    methods.push(("Lookahead", Method::Lookahead(ParamsLookahead::default())));
    for problem in problems::all() {
        for (base_name, base) in bases(&*problem) {
            for (name, method) in &methods {
                let mut config = config(&*problem, &base, method.clone());
                let bound = usual(&*problem, config.clone(), |told| told.grad_norm);
                for clip in [Clip::Norm(bound), Clip::Value(bound / 3.0)] {
                    config.clip = Some(clip);
                    let what = format!("{name} over {base_name}, {clip:?},");
                    let reports = follow(&what, &*problem, &config, 1);
                    let clipped = reports.iter().filter(|r| r.grad_norm > bound).count();
                    let some = 0 < clipped && clipped < STEPS;
                    assert!(
                        some || clip != Clip::Norm(bound),
                        "{what} {clipped} clipped"
                    );
                }
            }
        }
    }
}
