//! Every method against its published equations, computed apart from the crate in plain numbers
//! ([`plain`]) on problems with gradients derived by hand ([`problems`]): all weights, slow weights and
//! reports after every step.

mod ascents;
mod plain;
mod problems;
mod settings;
mod slow;

use candle_core::{Device, Tensor, Var};
use sala_core::{
    MicroBatches, Minimizer, ParamSet, ParamsAdam, ParamsSam, ParamsSgd, Pass, StepReport,
    catalogue::{Base, Method, build},
    kernels::{Choice, with_choice},
    testing::{TRAJECTORY_F64, values},
};

use plain::{Config, Plain, Setting, Told};
use problems::{Logistic, Parameter, Point, Problem, Rows};

const STEPS: usize = 25;

/// The learning rate falls, so that what depends on it shows.
fn lr(base: &Base, step: usize) -> f64 {
    let start = match base {
        Base::Sgd(sgd) => sgd.lr,
        Base::Adam(adam) => adam.lr,
    };
    start * (1.0 - 0.02 * step as f64)
}

fn bases(problem: &dyn Problem) -> [(&'static str, Base); 2] {
    let [sgd, adamw] = problem.learning_rates();
    let sgd = ParamsSgd {
        lr: sgd,
        momentum: 0.9,
        nesterov: true,
        weight_decay: 5e-3,
        ..Default::default()
    };
    let adamw = ParamsAdam {
        lr: adamw,
        weight_decay: 0.05,
        ..ParamsAdam::adamw()
    };
    [("sgd", Base::Sgd(sgd)), ("adamw", Base::Adam(adamw))]
}

/// One parameter as it is without any rule of its own.
fn setting(parameter: &Parameter) -> Setting {
    Setting {
        name: parameter.name,
        lr_scale: 1.0,
        weight_decay: None,
        rho_scale: 1.0,
        group: 0,
        adaptive: None,
    }
}

fn config(problem: &dyn Problem, base: &Base, method: Method) -> Config {
    Config {
        base: base.clone(),
        method,
        clip: None,
        settings: problem.parameters().iter().map(setting).collect(),
    }
}

fn variables(problem: &dyn Problem) -> Vec<Var> {
    let var = |p: Parameter| {
        let tensor = Tensor::from_vec(p.start, p.shape, &Device::Cpu).unwrap();
        Var::from_tensor(&tensor).unwrap()
    };
    problem.parameters().map(var).into()
}

fn start(problem: &dyn Problem) -> Point {
    problem.parameters().map(|p| p.start).into()
}

fn param_set(settings: &[Setting], vars: &[Var]) -> ParamSet {
    let named = settings.iter().zip(vars).map(|(s, v)| (s.name, v.clone()));
    let mut params = ParamSet::new(named).unwrap();
    assert!(!params.names().eq(settings.iter().map(|s| s.name)));
    for s in settings {
        let own = |name: &str| name == s.name;
        params = params.with_lr_scale(s.lr_scale, own).unwrap();
        params = params.with_rho_scale(s.rho_scale, own).unwrap();
        if let Some(decay) = s.weight_decay {
            params = params.with_weight_decay(decay, own).unwrap();
        }
        if let Some(adaptive) = s.adaptive {
            params = params.with_adaptive(adaptive, own).unwrap();
        }
        if s.group > 0 {
            params = params.group("own", own).unwrap();
        }
    }
    params
}

fn assert_point<'a>(
    what: &str,
    settings: &[Setting],
    got: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    wanted: &Point,
) {
    for (name, got) in got {
        let p = settings.iter().position(|s| s.name == name).unwrap();
        let got = values(got);
        assert_eq!(got.len(), wanted[p].len());
        for (i, (got, wanted)) in got.iter().zip(&wanted[p]).enumerate() {
            TRAJECTORY_F64.assert(&format!("{what}, {name}[{i}]"), *got, *wanted);
        }
    }
}

fn assert_report(what: &str, got: &StepReport, wanted: &Told) {
    let near = |field: &str, got, wanted| {
        TRAJECTORY_F64.assert(&format!("{what}, {field}"), got, wanted);
    };
    near("loss", got.loss, wanted.loss);
    near("evaluations", got.evaluations, wanted.evaluations);
    near("grad_norm", got.grad_norm, wanted.grad_norm);
    assert_eq!(got.ascent, wanted.ascent, "{what}, ascent");
    assert_eq!(got.gap.is_some(), wanted.gap.is_some(), "{what}, gap");
    if let (Some(got), Some(wanted)) = (got.gap, wanted.gap) {
        near("gap", got, wanted);
    }
}

/// Steps the crate and the equations together, on an objective of so many micro-batches.
fn follow_in_parts(
    what: &str,
    problem: &dyn Problem,
    config: &Config,
    parts: usize,
) -> Vec<StepReport> {
    let vars = variables(problem);
    let params = param_set(&config.settings, &vars);
    let names: Vec<_> = params.names().map(str::to_owned).collect();
    let mut optimizer = build(params.clone(), &config.base, &config.method, config.clip).unwrap();
    let mut plain = Plain::new(config.clone(), start(problem));
    let mut reports = Vec::new();
    for step in 0..STEPS {
        plain.lr = lr(&config.base, step);
        optimizer.set_learning_rate(plain.lr);
        let report = if parts == 1 {
            optimizer.step(&mut |pass: Pass| problem.candle(&vars, step, (0, 1), pass))
        } else {
            let mut loss = |part, pass| problem.candle(&vars, step, (part, parts), pass);
            optimizer.step(&mut MicroBatches::new(&params, parts, &mut loss))
        }
        .unwrap();
        let told = plain.step(&|w, rows| problem.plain(w, step, rows));
        let what = format!("{what} on {}, step {}", problem.name(), step + 1);
        assert_report(&what, &report, &told);
        let weights = names.iter().map(String::as_str).zip(params.iter());
        let weights = weights.map(|(name, p)| (name, p.var().as_tensor()));
        assert_point(&what, &config.settings, weights, &plain.w);
        let slow = optimizer.slow_weights().and_then(|slow| slow.tensors());
        assert_eq!(slow.is_some(), plain.slow.is_some(), "{what}, slow weights");
        if let (Some(got), Some(wanted)) = (slow, &plain.slow) {
            let got = names.iter().map(String::as_str).zip(got);
            assert_point(&format!("{what}, slow"), &config.settings, got, wanted);
        }
        reports.push(report);
    }
    reports
}

/// The same with fused kernels and with composed ones.
fn follow(what: &str, problem: &dyn Problem, config: &Config, parts: usize) -> Vec<StepReport> {
    with_choice(Choice::Composed, || {
        follow_in_parts(&format!("{what}, composed,"), problem, config, parts)
    });
    with_choice(Choice::Auto, || {
        follow_in_parts(what, problem, config, parts)
    })
}

/// A method over both bases on every problem.
fn follow_everywhere(name: &str, method: &Method) {
    for problem in problems::all() {
        for (base_name, base) in bases(&*problem) {
            let config = config(&*problem, &base, method.clone());
            follow(&format!("{name} over {base_name}"), &*problem, &config, 1);
        }
    }
}

/// A method over both bases on rows, of which it may take a share or some at a time.
fn follow_on_rows(name: &str, method: &Method, parts: usize) {
    for (base_name, base) in bases(&Logistic) {
        let config = config(&Logistic, &base, method.clone());
        let what = format!("{name} over {base_name}");
        follow(&what, &Logistic, &config, parts);
    }
}

/// The median over a run of something that its steps tell.
fn usual(problem: &dyn Problem, config: Config, what: impl Fn(Told) -> f64) -> f64 {
    let base = config.base.clone();
    let mut plain = Plain::new(config, start(problem));
    let mut all: Vec<f64> = (0..STEPS)
        .map(|step| {
            plain.lr = lr(&base, step);
            what(plain.step(&|w, rows| problem.plain(w, step, rows)))
        })
        .collect();
    all.sort_by(f64::total_cmp);
    all[STEPS / 2]
}

fn sam() -> ParamsSam {
    ParamsSam {
        rho: 0.1,
        ..Default::default()
    }
}

// Catches an error in a gradient here, which would excuse one there.
#[test]
fn the_plain_gradients_are_those_of_central_differences_and_of_candle() {
    for problem in problems::all() {
        let vars = variables(&*problem);
        let w = start(&*problem);
        for step in [0, 3] {
            let loss = problem.candle(&vars, step, (0, 1), Pass::Clean).unwrap();
            let (value, g) = problem.plain(&w, step, Rows::ALL);
            TRAJECTORY_F64.assert(problem.name(), loss.to_scalar().unwrap(), value);
            let grads = loss.backward().unwrap();
            for (p, var) in vars.iter().enumerate() {
                for (i, got) in values(grads.get(var).unwrap()).into_iter().enumerate() {
                    TRAJECTORY_F64.assert(problem.name(), got, g[p][i]);
                    let at = |h: f64| {
                        let mut w = w.clone();
                        w[p][i] += h;
                        problem.plain(&w, step, Rows::ALL).0
                    };
                    let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
                    assert!((slope - got).abs() < 1e-6 * (1.0 + got.abs()));
                }
            }
        }
    }
}

// Catches an error in the base rules here; all other tests stand on them.
#[test]
fn the_bases_follow_their_equations() {
    follow_everywhere("base", &Method::Base);
}
