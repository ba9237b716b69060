//! Every reference trajectory, step by step in f64, through every interface that can run it.

use candle_core::{Tensor, Var};
use candle_nn::Optimizer;
use sala_core::{
    Adam, Lookahead, Minimizer, Pass, Sala, Sgd,
    base::{adam, sgd},
    catalogue::{Base, Method, build},
    testing::{SCALAR, TRAJECTORY_F64},
};

use crate::oracle::Oracle;

fn assert_weights(oracle: &Oracle, kind: &str, step: usize, named: &[(String, Tensor)]) {
    for (name, got) in named {
        let what = format!("{}: {kind}.{name} after step {}", oracle.name, step + 1);
        TRAJECTORY_F64.assert_tensors(&what, got, &oracle.at(&format!("{kind}.{name}"), step));
    }
}

fn tensors(vars: &[(String, Var)]) -> Vec<(String, Tensor)> {
    vars.iter()
        .map(|(name, var)| (name.clone(), var.as_detached_tensor()))
        .collect()
}

/// Runs a minimizer along a reference file and compares everything the file records.
fn follow(oracle: &Oracle, vars: &[(String, Var)], optimizer: &mut dyn Minimizer) {
    for step in 0..oracle.steps() {
        optimizer.set_learning_rate(oracle.scalar("lr", step));
        let report = optimizer
            .step(&mut |pass: Pass| oracle.loss(vars, step, pass))
            .unwrap();
        let at = |what: &str| format!("{}: {what} of step {}", oracle.name, step + 1);
        SCALAR.assert(&at("loss"), report.loss, oracle.scalar("loss", step));
        assert_weights(oracle, "fast", step, &tensors(vars));
        if let Some(slow) = optimizer.slow_weights() {
            // The file repeats the initial or first fast weights until slow ones exist.
            if let Some(slow) = slow.tensors() {
                let names = vars.iter().map(|(name, _)| name.clone());
                let slow: Vec<_> = names.zip(slow.iter().cloned()).collect();
                assert_weights(oracle, "slow", step, &slow);
            }
        }
        if oracle.tensor("dist").is_some() {
            TRAJECTORY_F64.assert(&at("gap"), report.gap.unwrap(), oracle.scalar("dist", step));
            let ascended = oracle.scalar("ascended", step) > 0.5;
            assert_eq!(report.ascent, ascended, "{}", at("ascent"));
        }
        let wanted = if report.ascent { 2.0 } else { 1.0 };
        assert!(
            (report.evaluations - wanted).abs() < 1e-12,
            "{}",
            at("evaluations")
        );
    }
}

#[test]
fn every_reference_file_is_reproduced_by_the_catalogue() {
    for oracle in Oracle::all() {
        let vars = oracle.vars();
        let params = oracle.params(&vars);
        let mut optimizer = build(params, &oracle.base(), &oracle.method(), None).unwrap();
        follow(&oracle, &vars, &mut optimizer);
    }
}

/// The gradients that a file's losses have at the current values of `vars`.
fn backward(
    oracle: &Oracle,
    vars: &[(String, Var)],
    step: usize,
) -> candle_core::backprop::GradStore {
    oracle
        .loss(vars, step, Pass::Clean)
        .unwrap()
        .backward()
        .unwrap()
}

#[test]
fn bases_are_reproduced_by_their_readable_rules() {
    let mut files = 0;
    for oracle in Oracle::all().into_iter().filter(|o| o.wrapper() == "none") {
        let vars = oracle.vars();
        let mut buffers: Vec<Option<Tensor>> = vec![None; vars.len()];
        let mut moments: Vec<Option<(Tensor, Tensor)>> = vec![None; vars.len()];
        for step in 0..oracle.steps() {
            let grads = backward(&oracle, &vars, step);
            let lr = oracle.scalar("lr", step);
            for (i, (_, var)) in vars.iter().enumerate() {
                let (w, g) = (var.as_detached_tensor(), grads.get(var).unwrap());
                let new = match oracle.base() {
                    Base::Sgd(config) => {
                        let config = sala_core::ParamsSgd { lr, ..config };
                        let (new, buffer) = sgd::rule(&config, &w, g, buffers[i].as_ref()).unwrap();
                        buffers[i] = buffer;
                        new
                    }
                    Base::Adam(config) => {
                        let config = sala_core::ParamsAdam { lr, ..config };
                        let t = step as u64 + 1;
                        let (new, pair) =
                            adam::rule(&config, t, &w, g, moments[i].as_ref()).unwrap();
                        moments[i] = Some(pair);
                        new
                    }
                };
                var.set(&new.detach()).unwrap();
            }
            assert_weights(&oracle, "fast", step, &tensors(&vars));
        }
        files += 1;
    }
    assert_eq!(files, 5);
}

/// Runs anything that implements candle's trait along a file.
fn follow_as_candle_optimizer(
    oracle: &Oracle,
    vars: &[(String, Var)],
    mut optimizer: impl Optimizer,
) {
    for step in 0..oracle.steps() {
        optimizer.set_learning_rate(oracle.scalar("lr", step));
        optimizer
            .backward_step(&oracle.loss(vars, step, Pass::Clean).unwrap())
            .unwrap();
        assert_weights(oracle, "fast", step, &tensors(vars));
    }
}

#[test]
fn bases_and_lookahead_are_reproduced_through_candles_optimizer_trait() {
    fn vars_of(vars: &[(String, Var)]) -> Vec<Var> {
        vars.iter().map(|(_, var)| var.clone()).collect()
    }
    let mut files = 0;
    for oracle in Oracle::all() {
        let vars = oracle.vars();
        match (oracle.method(), oracle.base()) {
            (Method::Base, Base::Sgd(config)) => {
                let sgd = <Sgd as Optimizer>::new(vars_of(&vars), config).unwrap();
                follow_as_candle_optimizer(&oracle, &vars, sgd);
            }
            (Method::Base, Base::Adam(config)) => {
                let adam = <Adam as Optimizer>::new(vars_of(&vars), config).unwrap();
                follow_as_candle_optimizer(&oracle, &vars, adam);
            }
            (Method::Lookahead(lookahead), Base::Sgd(config)) => {
                let optimizer =
                    <Lookahead<Sgd> as Optimizer>::new(vars_of(&vars), (lookahead, config));
                follow_as_candle_optimizer(&oracle, &vars, optimizer.unwrap());
            }
            (Method::Lookahead(lookahead), Base::Adam(config)) => {
                let optimizer =
                    <Lookahead<Adam> as Optimizer>::new(vars_of(&vars), (lookahead, config));
                follow_as_candle_optimizer(&oracle, &vars, optimizer.unwrap());
            }
            _ => continue,
        }
        files += 1;
    }
    assert_eq!(files, 8);
}

#[test]
fn candles_own_adamw_can_be_the_base() {
    let oracle = Oracle::load("mlp-adamw-sala-k5-alpha0.5-rho0.05");
    let (Base::Adam(adam), Method::Sala(sala)) = (oracle.base(), oracle.method()) else {
        unreachable!()
    };
    let vars = oracle.vars();
    let params = oracle.params(&vars);
    let config = candle_nn::ParamsAdamW {
        lr: adam.lr,
        beta1: adam.beta1,
        beta2: adam.beta2,
        eps: adam.eps,
        weight_decay: adam.weight_decay,
    };
    let base = candle_nn::AdamW::new(params.vars(), config).unwrap();
    let mut optimizer = Sala::new(params, base, sala).unwrap();
    follow(&oracle, &vars, &mut optimizer);
}
