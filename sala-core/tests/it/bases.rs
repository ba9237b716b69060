//! A base must train the variables of the set around it: all of them, nothing else, and the masters where there
//! are any.

use candle_core::{DType, Device, Tensor, Var, backprop::GradStore};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use sala_core::{
    Adam, Descend, Error, Lookahead, Minimizer, ParamSet, ParamsAdam, ParamsLookahead, ParamsSala,
    ParamsSgd, Pass, Sala, Sgd, Stateful,
    testing::{assert_same_bits, values},
};

use crate::methods::Problem;

fn adamw(vars: Vec<Var>, lr: f64) -> AdamW {
    let config = ParamsAdamW {
        lr,
        ..Default::default()
    };
    AdamW::new(vars, config).unwrap()
}

/// The error of the first step, which leaves the model as it was.
fn refused(problem: &Problem, optimizer: &mut impl Minimizer) -> String {
    let before = problem.weights();
    let error = Minimizer::step(optimizer, &mut |pass: Pass| problem.loss(pass)).unwrap_err();
    for (got, wanted) in problem.weights().iter().zip(&before) {
        assert_same_bits("weights", got, wanted);
    }
    error.to_string()
}

// Catches a run that never learns: the base steps the model's bf16 variables, and the masters overwrite them.
#[test]
fn a_base_over_the_models_variables_is_refused_where_there_are_masters() {
    let problem = Problem::new(DType::BF16);
    let vars = || vec![problem.first.clone(), problem.second.clone()];
    let masters = || problem.params().with_f32_masters().unwrap();

    let config = ParamsSala::default();
    let mut sala = Sala::new(masters(), adamw(vars(), 0.02), config).unwrap();
    let message = refused(&problem, &mut sala);
    let words = ["none of the 2 f32 master copies", "params.vars()"];
    assert!(words.iter().all(|w| message.contains(w)), "{message}");

    let before = Sgd::new(&problem.params(), ParamsSgd::default()).unwrap();
    let message = refused(&problem, &mut Descend::new(masters(), before));
    let words = [
        "the model's variable of `a.second`",
        "f32 master copy",
        "finished set",
    ];
    assert!(words.iter().all(|w| message.contains(w)), "{message}");

    // Two calls make two copies: a base over the ones moves nothing of the others.
    let others = masters();
    let mut sala = Sala::new(masters(), adamw(others.vars(), 0.02), config).unwrap();
    let message = refused(&problem, &mut sala);
    assert!(message.contains("f32 master copies"), "{message}");
    let other_sgd = Sgd::new(&others, ParamsSgd::default()).unwrap();
    let message = refused(&problem, &mut Descend::new(masters(), other_sgd));
    assert!(
        message.contains("`a.second` is not among its own"),
        "{message}"
    );
}

// Catches a model's parameter without a master that moves and hides that the masters do not.
#[test]
fn a_moving_parameter_without_a_master_does_not_speak_for_the_masters() {
    let half = Tensor::ones(2, DType::BF16, &Device::Cpu).unwrap();
    let half = Var::from_tensor(&half).unwrap();
    let full = Var::new(&[1f32, 2.0], &Device::Cpu).unwrap();
    let named = [("half", half.clone()), ("full", full.clone())];
    let params = ParamSet::new(named).unwrap().with_f32_masters().unwrap();
    let base = adamw(vec![half.clone(), full.clone()], 0.02);
    let mut optimizer = Descend::new(params, base);
    let mut loss =
        |_: Pass| half.to_dtype(DType::F32)?.sqr()?.sum_all()? + full.sqr()?.sum_all()?;
    let message = optimizer.step(&mut loss).unwrap_err().to_string();
    assert!(
        message.contains("none of the 1 f32 master copies"),
        "{message}"
    );
}

#[test]
fn a_base_over_another_models_variables_is_refused() {
    let (problem, other) = (Problem::new(DType::F32), Problem::new(DType::F32));
    let base = adamw(other.params().vars(), 0.02);
    let message = refused(&problem, &mut Descend::new(problem.params(), base));
    assert!(message.contains("none of the 2 parameters"), "{message}");
}

// Catches a check that takes a step of nothing for one of a base that trains nothing.
#[test]
fn a_base_is_not_refused_where_nothing_has_to_move() {
    let problem = Problem::new(DType::BF16);
    let params = problem.params().with_f32_masters().unwrap();
    let base = adamw(params.vars(), 0.0);
    let mut optimizer = Descend::new(params, base);
    let loss = |pass: Pass| problem.loss(pass);
    let start = values(&problem.first);
    optimizer.step(&mut { loss }).unwrap();
    // Too small to be seen in these weights, though not zero.
    Minimizer::set_learning_rate(&mut optimizer, 1e-9);
    optimizer.step(&mut { loss }).unwrap();
    assert_eq!(values(&problem.first), start);
    Minimizer::set_learning_rate(&mut optimizer, 0.02);
    optimizer.step(&mut { loss }).unwrap();
    assert_ne!(values(&problem.first), start);
}

// Catches settings that are not looked at, and a slower way, for variables in another order.
#[test]
fn a_built_in_base_takes_on_order_and_names_of_the_set() {
    let run = |reversed: bool| {
        let problem = Problem::new(DType::F32);
        let params = problem.params();
        let mut vars = params.vars();
        if reversed {
            vars.reverse();
        }
        let config = ParamsSgd {
            lr: 0.05,
            momentum: 0.9,
            ..Default::default()
        };
        let base = <Sgd as Optimizer>::new(vars, config).unwrap();
        let mut sala = Sala::new(params, base, ParamsSala::default()).unwrap();
        for _ in 0..7 {
            sala.step(&mut |pass: Pass| problem.loss(pass)).unwrap();
        }
        let state = sala.state().unwrap();
        let named = state.tensors().map(|(n, t)| (n.to_owned(), t.clone()));
        (problem.weights(), named.collect::<Vec<_>>())
    };
    let (one, two) = (run(false), run(true));
    for (got, wanted) in two.0.iter().zip(&one.0) {
        assert_same_bits("weights", got, wanted);
    }
    assert!(
        one.1
            .iter()
            .any(|(n, _)| n == "descent/base/momentum.z.first")
    );
    for ((name, got), (wanted_name, wanted)) in two.1.iter().zip(&one.1) {
        assert_eq!(name, wanted_name);
        assert_same_bits(name, got, wanted);
    }
}

#[test]
fn settings_are_compared_whatever_the_order_of_the_base() {
    let problem = Problem::new(DType::F32);
    let params = problem.params();
    let params = params.with_lr_scale(0.5, |n| n == "z.first").unwrap();
    let vars = vec![problem.first.clone(), problem.second.clone()];
    let base = <Adam as Optimizer>::new(vars, ParamsAdam::default()).unwrap();
    let message = refused(&problem, &mut Descend::new(params, base));
    assert!(message.contains("made before `z.first`"), "{message}");
}

#[test]
fn a_built_in_base_over_a_part_or_over_more_is_refused() {
    let problem = Problem::new(DType::F32);
    let all = problem.params();
    let part = all.clone().freeze(|n| n == "a.second").unwrap();
    let sgd = |params: &ParamSet| Sgd::new(params, ParamsSgd::default()).unwrap();
    let message = refused(&problem, &mut Descend::new(all.clone(), sgd(&part)));
    assert!(
        message.contains("`a.second` is not among its own"),
        "{message}"
    );
    let message = refused(&problem, &mut Descend::new(part, sgd(&all)));
    assert!(
        message.contains("it has `a.second` too, which is frozen"),
        "{message}"
    );
}

fn gradients(problem: &Problem) -> GradStore {
    problem.loss(Pass::Clean).unwrap().backward().unwrap()
}

/// Lookahead by candle's trait and by this crate's, which must agree.
fn both_forms<B: Optimizer + 'static>(
    what: &str,
    dtype: DType,
    set: impl Fn(ParamSet) -> ParamSet,
    base: impl Fn(&ParamSet) -> B,
) {
    let (one, two) = (Problem::new(dtype), Problem::new(dtype));
    let lookahead = |problem: &Problem| {
        let params = set(problem.params());
        let base = base(&params);
        Lookahead::new(params, base, ParamsLookahead::default()).unwrap()
    };
    let (mut candles, mut ours) = (lookahead(&one), lookahead(&two));
    let start = one.weights();
    for _ in 0..7 {
        Optimizer::step(&mut candles, &gradients(&one)).unwrap();
        Minimizer::step(&mut ours, &mut |pass: Pass| two.loss(pass)).unwrap();
    }
    for (got, wanted) in one.weights().iter().zip(&two.weights()) {
        assert_same_bits(what, got, wanted);
    }
    assert_ne!(values(&one.first), values(&start[0]), "{what}");
}

// Catches gradients of half precision that are not widened, masters that get no gradient, and frozen parameters
// that are stepped.
#[test]
fn lookahead_takes_gradients_in_candles_form_as_in_its_own() {
    let plain = |params: ParamSet| params;
    let masters = |params: ParamSet| params.with_f32_masters().unwrap();
    let frozen = |params: ParamSet| params.freeze(|n| n == "a.second").unwrap();
    let sgd = |params: &ParamSet| {
        let config = ParamsSgd {
            lr: 0.05,
            momentum: 0.9,
            ..Default::default()
        };
        Sgd::new(params, config).unwrap()
    };
    let foreign = |params: &ParamSet| adamw(params.vars(), 0.02);
    for dtype in [DType::F32, DType::BF16] {
        both_forms("sgd", dtype, plain, sgd);
        both_forms("adamw", dtype, plain, foreign);
        both_forms("sgd, frozen", dtype, frozen, sgd);
        both_forms("adamw, frozen", dtype, frozen, foreign);
    }
    both_forms("sgd, masters", DType::BF16, masters, sgd);
    both_forms("adamw, masters", DType::BF16, masters, foreign);
}

#[test]
fn lookahead_refuses_in_candles_form_what_it_refuses_in_its_own() {
    let problem = Problem::new(DType::F32);
    let config = ParamsLookahead::default;
    let vars = || vec![problem.first.clone(), problem.second.clone()];

    // A base of another crate that has the frozen variable too must not step it.
    let params = problem.params().freeze(|n| n == "z.first").unwrap();
    let mut lookahead = Lookahead::new(params, adamw(vars(), 0.02), config()).unwrap();
    let before = problem.weights();
    Optimizer::step(&mut lookahead, &gradients(&problem)).unwrap();
    assert_same_bits("frozen", &problem.weights()[0], &before[0]);
    assert_ne!(values(&problem.weights()[1]), values(&before[1]));

    let scaled = problem.params().with_lr_scale(0.5, |_| true).unwrap();
    let mut lookahead = Lookahead::new(scaled, adamw(vars(), 0.02), config()).unwrap();
    let error = Optimizer::step(&mut lookahead, &gradients(&problem)).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("single parameters needs Sgd or Adam")
    );

    let base = Sgd::new(&problem.params(), ParamsSgd::default()).unwrap();
    let mut lookahead = Lookahead::new(problem.params(), base, config()).unwrap();
    let cut = problem.second.sqr().and_then(|x| x.sum_all()).unwrap();
    let error = Error::from(lookahead.backward_step(&cut).unwrap_err()).to_string();
    assert!(
        error.contains("`z.first` received no gradient; freeze"),
        "{error}"
    );
}

// Catches a composition that looks for gradients where another one around it has not put them.
#[test]
fn lookahead_is_a_base_over_masters_too() {
    let run = |masters: bool| {
        let problem = Problem::new(DType::BF16);
        let mut params = problem.params();
        if masters {
            params = params.with_f32_masters().unwrap();
        }
        let sgd = Sgd::new(&params, ParamsSgd::default()).unwrap();
        let base = Lookahead::new(params.clone(), sgd, ParamsLookahead::default()).unwrap();
        let mut sala = Sala::new(params, base, ParamsSala::default()).unwrap();
        let loss = |pass: Pass| problem.loss(pass);
        let first = Minimizer::step(&mut sala, &mut { loss }).unwrap().loss;
        for _ in 0..30 {
            sala.step(&mut { loss }).unwrap();
        }
        (first, values(&problem.loss(Pass::Clean).unwrap())[0])
    };
    for masters in [false, true] {
        let (first, last) = run(masters);
        assert!(last < first, "masters {masters}: {first} to {last}");
    }
}
