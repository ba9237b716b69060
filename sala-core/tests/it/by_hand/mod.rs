//! One or two steps of every method on one or two numbers, worked out on paper: those that climb, and what parameters have of their own.

mod slow;

use candle_core::{Device, Result, Tensor, Var};
use sala_core::{
    Average, Averaged, Clip, MicroBatches, Minimizer, MomentumAtPull, ParamSet, ParamsAdam,
    ParamsAsam, ParamsAveraged, ParamsFriendlySam, ParamsGsam, ParamsLookSam, ParamsLookahead,
    ParamsMomentumSam, ParamsSala, ParamsSam, ParamsSamEvery, ParamsSgd, Pass, Resumable,
    StepReport,
    catalogue::{Base, Direction, Method, build},
    perturb::{AscentNorm, RhoScale},
    testing::Tolerance,
};

/// The arithmetic leaves out the 1e-12 that is added to norms.
const BY_HAND: Tolerance = Tolerance {
    atol: 1e-11,
    rtol: 1e-11,
};

/// Plain gradient descent.
fn descent(lr: f64) -> Base {
    Base::Sgd(ParamsSgd {
        lr,
        ..Default::default()
    })
}

fn number(value: f64) -> Var {
    Var::new(value, &Device::Cpu).unwrap()
}

fn read(var: &Var) -> f64 {
    var.to_scalar().unwrap()
}

#[track_caller]
fn assert_near(got: f64, wanted: f64) {
    BY_HAND.assert("by hand", got, wanted);
}

/// One number w, whose loss is w² where nothing else is said.
struct One {
    w: Var,
    optimizer: Box<dyn Resumable>,
}

impl One {
    fn new(start: f64, base: &Base, method: &Method) -> Self {
        let w = number(start);
        let params = ParamSet::new([("w", w.clone())]).unwrap();
        let optimizer = build(params, base, method, None).unwrap();
        Self { w, optimizer }
    }

    fn step(&mut self) -> StepReport {
        let w = self.w.clone();
        self.optimizer.step(&mut |_: Pass| w.sqr()).unwrap()
    }

    /// w after each of so many steps.
    fn walk<const N: usize>(&mut self) -> [f64; N] {
        std::array::from_fn(|_| {
            self.step();
            read(&self.w)
        })
    }
}

/// Two numbers, each a parameter of its own; "b.x" comes after "a.y" by name.
struct Two {
    x: Var,
    y: Var,
    optimizer: Box<dyn Resumable>,
}

impl Two {
    fn new(start: [f64; 2], lr: f64, method: &Method) -> Self {
        Self::with(start, &descent(lr), method, |params| params)
    }

    fn with(
        [x, y]: [f64; 2],
        base: &Base,
        method: &Method,
        rules: impl Fn(ParamSet) -> ParamSet,
    ) -> Self {
        let (x, y) = (number(x), number(y));
        let params = ParamSet::new([("b.x", x.clone()), ("a.y", y.clone())]).unwrap();
        let optimizer = build(rules(params), base, method, None).unwrap();
        Self { x, y, optimizer }
    }

    /// A step on ½ a x² + ½ b y² + c x + d y.
    fn step(&mut self, [a, b]: [f64; 2], [c, d]: [f64; 2]) -> StepReport {
        let (x, y) = (self.x.clone(), self.y.clone());
        let one = |w: &Var, a: f64, c: f64| (w.sqr()? * (a / 2.0))? + (w.as_tensor() * c)?;
        let mut loss = |_: Pass| -> Result<Tensor> { one(&x, a, c)? + one(&y, b, d)? };
        self.optimizer.step(&mut loss).unwrap()
    }

    #[track_caller]
    fn assert_at(&self, [x, y]: [f64; 2]) {
        assert_near(read(&self.x), x);
        assert_near(read(&self.y), y);
    }
}

fn sam(rho: f64) -> ParamsSam {
    ParamsSam {
        rho,
        ..Default::default()
    }
}

#[track_caller]
fn assert_walk<const N: usize>(got: [f64; N], wanted: [f64; N]) {
    for (got, wanted) in got.into_iter().zip(wanted) {
        assert_near(got, wanted);
    }
}

// Catches an ascent that goes down, a radius that depends on the gradient, and a descent from above.
#[test]
fn sam_takes_the_gradient_one_radius_uphill() {
    // from 3 up to 4, where the gradient is 8: 3 − 0.25 · 8 = 1; up to 2, 4: 1 − 1 = 0
    let mut run = One::new(3.0, &descent(0.25), &Method::Sam(sam(1.0)));
    let report = run.step();
    assert_near(read(&run.w), 1.0);
    // the loss and the cost: 9 at the weights, two gradients, of which the second has the norm 8
    assert_near(report.loss, 9.0);
    assert_near(report.evaluations, 2.0);
    assert_near(report.grad_norm, 8.0);
    assert!(report.ascent && report.gap.is_none());
    assert_walk(run.walk(), [0.0]);
}

// Catches a norm of each parameter on its own, or one weighed by the number of elements.
#[test]
fn sam_moves_all_parameters_together_by_rho() {
    // g = (3, 4) at (1, 16), so ρ = 5 leads to (4, 20): g' = (12, 5)
    let mut run = Two::new([1.0, 16.0], 0.1, &Method::Sam(sam(5.0)));
    let report = run.step([3.0, 0.25], [0.0, 0.0]);
    run.assert_at([1.0 - 1.2, 16.0 - 0.5]);
    // 3/2 + 256/8
    assert_near(report.loss, 33.5);
    assert_near(report.grad_norm, 13.0);
}

// Catches a rescale that is left out, and one to the norm of g'.
#[test]
fn stable_sam_keeps_the_first_gradients_norm() {
    // as above: g' = (12, 5) of norm 13, rescaled to ‖g‖ = 5: (60, 25) / 13
    let stable = ParamsSam {
        stable: true,
        ..sam(5.0)
    };
    let mut run = Two::new([1.0, 16.0], 0.13, &Method::Sam(stable));
    let report = run.step([3.0, 0.25], [0.0, 0.0]);
    run.assert_at([1.0 - 0.6, 16.0 - 0.25]);
    assert_near(report.grad_norm, 5.0);
}

// Catches g or the part of g' in place of g⊥, and a sign.
#[test]
fn gsam_takes_off_what_is_orthogonal_to_the_second_gradient() {
    // g = (3, 4), g' = (12, 5), ⟨g, g'⟩ = 56, ‖g'‖² = 169
    // g⊥ = (3, 4) − 56/169 (12, 5) = (−165, 396) / 169
    // with α = 1.69: g' − (−1.65, 3.96) = (13.65, 1.04)
    let config = ParamsGsam {
        alpha: 1.69,
        sam: sam(5.0),
    };
    let mut run = Two::new([1.0, 16.0], 0.1, &Method::Gsam(config));
    let report = run.step([3.0, 0.25], [0.0, 0.0]);
    run.assert_at([1.0 - 1.365, 16.0 - 0.104]);
    assert_near(report.grad_norm, 13.65f64.hypot(1.04));
}

// Catches the orthogonal part of the wrong gradient, its use in the climbing step, and a weight that is
// not relative to the norms.
#[test]
fn look_sam_adds_the_direction_of_its_last_ascent() {
    // step 1: g = (3, 4), g' = (12, 5); v = (12, 5) − 56/25 (3, 4) = (5.28, −3.96), ‖v‖ = 6.6
    // descent along g': (1, 16) − (12, 5) / 12 = (0, 187/12)
    let config = ParamsLookSam {
        k: 2,
        alpha: 0.5,
        sam: sam(5.0),
    };
    let mut run = Two::new([1.0, 16.0], 1.0 / 12.0, &Method::LookSam(config));
    let report = run.step([3.0, 0.25], [0.0, 0.0]);
    assert!(report.ascent);
    let y = 187.0 / 12.0;
    run.assert_at([0.0, y]);
    // step 2: g = (0, y/4), v / ‖v‖ = (0.8, −0.6): g + 0.5 · y/4 · (0.8, −0.6) = y/4 · (0.4, 0.7)
    let report = run.step([3.0, 0.25], [0.0, 0.0]);
    assert!(!report.ascent);
    assert_near(report.evaluations, 1.0);
    run.assert_at([-0.4 * y / 48.0, y - 0.7 * y / 48.0]);
}

// Catches T = w where it is |w|, T for T², and a norm of g or of T² g.
#[test]
fn asam_climbs_further_where_weights_are_large() {
    // T = |w| + η = (2, 3), g = (6, −3), T g = (12, −9) of norm 15, T² g = (24, −27)
    // ε = 5/15 (24, −27) = (8, −9): g' = (6 · 9, 1.5 · −11) = (54, −16.5)
    let config = ParamsAsam {
        rho: 5.0,
        eta: 1.0,
        ..Default::default()
    };
    let mut run = Two::new([1.0, -2.0], 0.1, &Method::Asam(config));
    run.step([6.0, 1.5], [0.0, 0.0]);
    run.assert_at([1.0 - 5.4, -2.0 + 1.65]);
}

// Catches T = 0, or η, for parameters that are left alone.
#[test]
fn asam_can_leave_parameters_alone() {
    // T = (2, 1), g = (2, −3), T g = (4, −3) of norm 5, T² g = (8, −3)
    // ρ = 5: ε = (8, −3): g' = (2 · 9, 1.5 · −5) = (18, −7.5)
    let config = ParamsAsam {
        rho: 5.0,
        eta: 1.0,
        ..Default::default()
    };
    let rules = |params: ParamSet| params.with_adaptive(false, |name| name == "a.y").unwrap();
    let mut run = Two::with([1.0, -2.0], &descent(0.1), &Method::Asam(config), rules);
    run.step([2.0, 1.5], [0.0, 0.0]);
    run.assert_at([1.0 - 1.8, -2.0 + 0.75]);
}

// Catches a climb at the steps 1, 3, ….
#[test]
fn sam_every_second_step_starts_with_the_base() {
    // 8 − 0.25 · 16 = 4, then up to 5 and 4 − 0.25 · 10 = 1.5, then 1.5 − 0.25 · 3 = 0.75
    let config = ParamsSamEvery {
        k: 2,
        sam: sam(1.0),
    };
    let mut run = One::new(8.0, &descent(0.25), &Method::SamEvery(config));
    assert_walk(run.walk(), [4.0, 1.5, 0.75]);
}

// Catches λ and 1 − λ exchanged, a mean without the step's own gradient, and σ as 1.
#[test]
fn friendly_sam_climbs_along_what_the_mean_does_not_explain() {
    // L = ½ x² + ½ y² at (3, 4): g = (3, 4), m = 0.25 g = (0.75, 1), d ∥ g: ε = (3, 4), g' = (6, 8)
    let config = ParamsFriendlySam {
        sigma: 1.0,
        lambda: 0.75,
        sam: sam(5.0),
    };
    let method = Method::FriendlySam(config);
    let mut run = Two::new([3.0, 4.0], 0.25, &method);
    run.step([1.0, 1.0], [0.0, 0.0]);
    run.assert_at([1.5, 2.0]);
    // then with + 2.25 x − 5 y: g = (3.75, −3)
    // d = g − (0.75 m + 0.25 g) = 0.75 (g − m) = 0.75 (3, −4): ε = (3, −4)
    // g' = (1.5 + 3 + 2.25, 2 − 4 − 5) = (6.75, −7)
    run.step([1.0, 1.0], [2.25, -5.0]);
    run.assert_at([1.5 - 1.6875, 2.0 + 1.75]);

    // with σ = 2 the mean outweighs the gradient:
    let config = ParamsFriendlySam {
        sigma: 2.0,
        lambda: 0.5,
        sam: sam(1.0),
    };
    // w² at 4: g = 8, m = 4, d = 8 − 2 · 4 = 0, so no climb: 4 − 0.25 · 8 = 2
    // at 2: g = 4, m = 0.5 · 4 + 0.5 · 4 = 4, d = 4 − 8 = −4, down to 1: 2 − 0.25 · 2 = 1.5
    let mut run = One::new(4.0, &descent(0.25), &Method::FriendlySam(config));
    assert_walk(run.walk(), [2.0, 1.5]);
}

// Catches a displacement along the momentum or in the first step, and a momentum that does not decay
// or forgets at once.
#[test]
fn momentum_sam_looks_back_along_its_way() {
    // L = ½ x² + ½ y²: g = (3, 4) = v, no displacement yet: (3, 4) − 0.5 (3, 4)
    let config = ParamsMomentumSam {
        rho: 5.0,
        mu: 0.5,
        ..Default::default()
    };
    let mut run = Two::new([3.0, 4.0], 0.5, &Method::MomentumSam(config));
    let report = run.step([1.0, 1.0], [0.0, 0.0]);
    assert!(!report.ascent);
    run.assert_at([1.5, 2.0]);
    // with + 0.75 x − y, at (1.5, 2) − (3, 4): loss ½ (2.25 + 4) − 1.125 + 2, g = (−0.75, −3)
    let report = run.step([1.0, 1.0], [0.75, -1.0]);
    assert!(report.ascent);
    assert_near(report.loss, 4.0);
    assert_near(report.evaluations, 1.0);
    run.assert_at([1.5 + 0.375, 2.0 + 1.5]);
    // v = 0.5 (3, 4) − (0.75, 3) = (0.75, −1): g at (1.875, 3.5) − (3, −4) is (−1.125, 7.5)
    run.step([1.0, 1.0], [0.0, 0.0]);
    run.assert_at([1.875 + 0.5625, 3.5 - 3.75]);
}

// Catches one ascent for all parts, and a sum in place of a mean.
#[test]
fn m_sam_and_sam_on_the_mean_differ() {
    // L₁ = w², L₂ = (w − 4)² at 3: g₁ = 6, g₂ = −2
    // m-SAM: up to 4, 8; down to 2, −4; mean 2: 3 − 0.25 · 2
    // on the mean g = 2: up to 4, 8 and 0, mean 4: 3 − 0.25 · 4
    for (micro_batches, wanted) in [(2, 2.5), (1, 2.0)] {
        let w = number(3.0);
        let params = ParamSet::new([("w", w.clone())]).unwrap();
        let config = ParamsSam {
            micro_batches,
            ..sam(1.0)
        };
        let method = Method::Sam(config);
        let mut optimizer = build(params.clone(), &descent(0.25), &method, None).unwrap();
        let mut loss = |part: usize, _: Pass| w.affine(1.0, -4.0 * part as f64)?.sqr();
        let mut parts = MicroBatches::new(&params, 2, &mut loss);
        let report = optimizer.step(&mut parts).unwrap();
        assert_near(read(&w), wanted);
        // (9 + 1) / 2
        assert_near(report.loss, 5.0);
        assert_near(report.evaluations, 2.0);
    }
}

// Catches ρ' with the wrong norm, or the learning rate the wrong way up.
#[test]
fn the_radius_can_follow_the_weights_or_the_learning_rate() {
    let run = |scale| {
        let config = ParamsSam { scale, ..sam(0.5) };
        let mut run = Two::new([3.0, 4.0], 0.1, &Method::Sam(config));
        run.step([1.0, 1.0], [0.0, 0.0]);
        run
    };
    // ρ' = 0.5 · ‖(3, 4)‖ = 2.5, ε = (1.5, 2), g' = (4.5, 6)
    run(RhoScale::ParameterNorm).assert_at([3.0 - 0.45, 4.0 - 0.6]);
    // ρ' = 0.5 · 0.1 / 0.02 = 2.5 too
    run(RhoScale::LearningRate { reference: 0.02 }).assert_at([3.0 - 0.45, 4.0 - 0.6]);
}

// Catches a norm over both groups.
#[test]
fn each_group_is_moved_by_rho() {
    // ε = (1, −1): g' = (3 + 1, −4 − 1)
    let config = ParamsSam {
        norm: AscentNorm::PerGroup,
        ..sam(1.0)
    };
    let rules = |params: ParamSet| params.group("own", |name| name == "b.x").unwrap();
    let mut run = Two::with([3.0, -4.0], &descent(0.1), &Method::Sam(config), rules);
    run.step([1.0, 1.0], [0.0, 0.0]);
    run.assert_at([2.6, -3.5]);
}

// Catches unperturbed parameters in the norm, and a factor that is in the norm too.
#[test]
fn single_radii_scale_what_a_common_norm_has_made() {
    let run = |scale: f64| {
        let rules = move |params: ParamSet| params.with_rho_scale(scale, |n| n == "b.x").unwrap();
        let method = Method::Sam(sam(5.0));
        let mut run = Two::with([3.0, 4.0], &descent(0.1), &method, rules);
        run.step([1.0, 1.0], [0.0, 0.0]);
        run
    };
    // only y moves, by all of ρ: g' = (3, 9)
    run(0.0).assert_at([2.7, 3.1]);
    // ε = (0.5 · 3, 4): g' = (4.5, 8)
    run(0.5).assert_at([2.55, 3.2]);
}

// Catches a factor that misses the decay, and a decay that is added to the base's.
#[test]
fn single_parameters_have_their_learning_rate_and_decay() {
    // coupled decay 0.5: d = (3 + 1.5, 4 + 2); x with half the rate, y with the decay 0.25: 4 + 1
    let coupled = ParamsSgd {
        lr: 0.2,
        weight_decay: 0.5,
        ..Default::default()
    };
    let rules = |params: ParamSet| {
        let params = params.with_lr_scale(0.5, |name| name == "b.x").unwrap();
        params
            .with_weight_decay(0.25, |name| name == "a.y")
            .unwrap()
    };
    let base = Base::Sgd(coupled.clone());
    let mut run = Two::with([3.0, 4.0], &base, &Method::Base, rules);
    run.step([1.0, 1.0], [0.0, 0.0]);
    run.assert_at([3.0 - 0.1 * 4.5, 4.0 - 0.2 * 5.0]);
    // decoupled: 3 (1 − 0.1 · 0.5) − 0.1 · 3, 4 (1 − 0.2 · 0.25) − 0.2 · 4
    let base = Base::Sgd(ParamsSgd {
        decoupled: true,
        ..coupled
    });
    let mut run = Two::with([3.0, 4.0], &base, &Method::Base, rules);
    run.step([1.0, 1.0], [0.0, 0.0]);
    run.assert_at([2.85 - 0.3, 3.8 - 0.8]);
}

// Catches a decay that is scaled by the moments, and a second step without their corrections.
#[test]
fn adamw_decays_the_weights_apart_from_the_moments() {
    // β₁ = 0.5, β₂ = 0.75, ε = 1; w² at 4 with η = 0.5, λ = 0.25: decayed to 4 · 0.875 = 3.5
    // g = 8, m = 4 / 0.5 = 8, v = 16 / 0.25 = 64, root 8 + 1: 3.5 − 0.5 · 8 / 9
    let base = Base::Adam(ParamsAdam {
        lr: 0.5,
        beta1: 0.5,
        beta2: 0.75,
        eps: 1.0,
        weight_decay: 0.25,
        decoupled: true,
    });
    let mut run = One::new(4.0, &base, &Method::Base);
    let first = 3.5 - 4.0 / 9.0;
    assert_walk(run.walk(), [first]);
    // g = 2 w, m = (0.5 · 4 + 0.5 g) / 0.75, v = (0.75 · 16 + 0.25 g²) / 0.4375
    let g = 2.0 * first;
    let (m, v) = ((2.0 + 0.5 * g) / 0.75, (12.0 + 0.25 * g * g) / 0.4375);
    let second = first * 0.875 - 0.5 * m / (v.sqrt() + 1.0);
    assert_walk(run.walk(), [second]);
}

// Catches a clip of the direction, and one by parameter.
#[test]
fn the_descent_gradient_alone_is_clipped() {
    // g = (3, 4), g' = (12, 5) of norm 13, as above
    for (clip, wanted) in [
        // to the norm 1.3: a tenth
        (Clip::Norm(1.3), [1.0 - 1.2, 16.0 - 0.5]),
        // below the bound
        (Clip::Norm(14.0), [1.0 - 12.0, 16.0 - 5.0]),
        (Clip::Value(6.0), [1.0 - 6.0, 16.0 - 5.0]),
        (Clip::Value(2.0), [1.0 - 2.0, 16.0 - 2.0]),
    ] {
        let (x, y) = (number(1.0), number(16.0));
        let params = ParamSet::new([("b.x", x.clone()), ("a.y", y.clone())]).unwrap();
        let method = Method::Sam(sam(5.0));
        let optimizer = build(params, &descent(1.0), &method, Some(clip)).unwrap();
        let mut run = Two { x, y, optimizer };
        let report = run.step([3.0, 0.25], [0.0, 0.0]);
        run.assert_at(wanted);
        assert_near(report.grad_norm, 13.0);
    }
}
