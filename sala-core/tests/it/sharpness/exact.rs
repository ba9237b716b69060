//! Exact Hessian-vector products: candle keeps the graph of gradients only with an environment
//! variable that it reads once a thread, so these tests run in a process of their own.

use std::process::Command;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{Linear, Module, loss::cross_entropy};
use sala_core::{
    Error, MicroBatches, ParamSet, Pass,
    sharpness::{Products, Surface, gaussian},
};

use super::problems::{Quadratic, assert_near, bulk_and_outliers, direction, flat};

const EXACT: Products = Products::Exact { tolerance: 1e-6 };

#[test]
fn with_the_graph_of_gradients_kept_products_are_exact() {
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program)
        .args([
            "--ignored",
            "--exact",
            "sharpness::exact::in_a_process_of_their_own",
        ])
        .env("CANDLE_GRAD_DO_NOT_DETACH", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

#[test]
#[ignore = "run with an environment variable by the test above"]
fn in_a_process_of_their_own() {
    quadratic();
    network();
    parts();
    cut();
}

/// To the last digits, where differences keep ten.
fn quadratic() {
    let problem = Quadratic::new(bulk_and_outliers(20), DType::F64);
    let params = problem.params();
    let mut loss = |pass| problem.loss(pass);
    let mut surface = Surface::new(&params, &mut loss).with_products(EXACT);
    let v = gaussian(&params, 0, 0).unwrap();
    let got = flat(&surface.hessian_product(&v).unwrap());
    let v = flat(&v);
    for (row, got) in problem.hessian().iter().zip(got) {
        let wanted = row.iter().zip(&v).map(|(h, x)| h * x).sum();
        assert_near(got, wanted, 1e-13);
    }
    let before = surface.cost();
    surface.hessian_product(&direction(&params, &v)).unwrap();
    assert_near((surface.cost() - before).gradients, 2.0, 0.0);
}

fn network() {
    let values = |count: usize, factor: f64, shape: &[usize]| {
        let values: Vec<f64> = (1..=count).map(|i| (factor * i as f64).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    };
    let var =
        |count, factor, shape: &[usize]| Var::from_tensor(&values(count, factor, shape)).unwrap();
    let vars = [
        var(15, 2.1, &[5, 3]),
        var(5, 0.3, &[5]),
        var(15, 1.3, &[3, 5]),
    ];
    let params = ParamSet::from_vars(vars.to_vec()).unwrap();
    let x = values(48, 3.1, &[16, 3]);
    let labels: Vec<u32> = (0..16).map(|i| i % 3).collect();
    let y = Tensor::new(labels, &Device::Cpu).unwrap();
    let loss = |_: Pass| {
        let hidden = Linear::new(
            vars[0].as_tensor().clone(),
            Some(vars[1].as_tensor().clone()),
        );
        let last = Linear::new(vars[2].as_tensor().clone(), None);
        cross_entropy(&last.forward(&hidden.forward(&x)?.tanh()?)?, &y)
    };
    let v = gaussian(&params, 0, 0).unwrap();
    let product = |products| {
        let mut loss = loss;
        let mut surface = Surface::new(&params, &mut loss).with_products(products);
        flat(&surface.hessian_product(&v).unwrap())
    };
    let (exact, differences) = (product(EXACT), product(Products::default()));
    for (exact, difference) in exact.iter().zip(differences) {
        assert_near(*exact, difference, 1e-8);
    }
}

/// The graphs of micro-batches are kept apart.
fn parts() {
    let w = Var::new(&[0.5f64, -1.0], &Device::Cpu).unwrap();
    let params = ParamSet::new([("w", w.clone())]).unwrap();
    let mut loss = |part: usize, _: Pass| (w.powf(4.0)? * (part + 1) as f64)?.sum_all();
    let mut parts = MicroBatches::new(&params, 3, &mut loss);
    let mut surface = Surface::new(&params, &mut parts).with_products(EXACT);
    let got = flat(
        &surface
            .hessian_product(&direction(&params, &[1.0, 1.0]))
            .unwrap(),
    );
    assert_near(got[0], 6.0, 1e-12);
    assert_near(got[1], 24.0, 1e-12);
}

/// A graph that is cut somewhere gives an error, and not a part of the Hessian.
fn cut() {
    let w = Var::new(&[0.5f64, -1.0], &Device::Cpu).unwrap();
    let params = ParamSet::new([("w", w.clone())]).unwrap();
    // ½ w² + w³ whose second factor is a constant to the backward pass: the gradient is w + w².
    let mut loss = |_: Pass| {
        let cut = (w.sqr()?.detach() * w.as_tensor())?;
        ((w.sqr()? * 0.5)? + cut)?.sum_all()
    };
    let mut surface = Surface::new(&params, &mut loss).with_products(EXACT);
    let v = gaussian(&params, 0, 0).unwrap();
    let error = surface.hessian_product(&v).unwrap_err();
    assert!(matches!(error, Error::ExactProduct { .. }), "{error}");
}
