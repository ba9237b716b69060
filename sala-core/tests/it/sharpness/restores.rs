//! Whatever happens during a measurement, the parameters are what they were.

use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{ModuleT, VarBuilder, VarMap};
use sala_core::{
    Error, ParamSet, Pass, Result,
    sharpness::{
        Ball, ParamsAverage, ParamsDensity, ParamsLanczos, ParamsPower, ParamsTrace, ParamsWorst,
        Products, Surface, average_sharpness, gaussian, gradient_noise, lanczos, losses_between,
        losses_in_plane, power_iteration, spectral_density, trace, worst_sharpness,
    },
    testing::assert_same_bits,
};

use super::problems::{Quadratic, bulk_and_outliers};

type Measurement = (&'static str, fn(&mut Surface) -> Result<()>);

const ADAPTIVE: Ball = Ball::Adaptive { eta: 0.01 };

/// Every measurement that moves the parameters.
const ALL: [Measurement; 9] = [
    ("product", |s| {
        let v = gaussian(s.params(), 0, 0)?;
        s.hessian_product(&v).map(|_| ())
    }),
    ("worst", |s| {
        let config = ParamsWorst {
            ball: ADAPTIVE,
            ..Default::default()
        };
        worst_sharpness(s, &config).map(|_| ())
    }),
    ("average", |s| {
        let config = ParamsAverage {
            ball: ADAPTIVE,
            ..Default::default()
        };
        average_sharpness(s, &config).map(|_| ())
    }),
    ("lanczos", |s| {
        lanczos(s, &ParamsLanczos::default()).map(|_| ())
    }),
    ("power", |s| {
        power_iteration(s, &ParamsPower::default()).map(|_| ())
    }),
    ("trace", |s| trace(s, &ParamsTrace::default()).map(|_| ())),
    ("density", |s| {
        spectral_density(s, &ParamsDensity::default()).map(|_| ())
    }),
    ("between", |s| {
        let other = gaussian(s.params(), 0, 1)?;
        losses_between(s, &other, &[0.0, 0.3, 0.6, 1.0]).map(|_| ())
    }),
    ("plane", |s| {
        let axes = [gaussian(s.params(), 0, 1)?, gaussian(s.params(), 0, 2)?];
        losses_in_plane(s, [&axes[0], &axes[1]], &[0.0, 1.0, 2.0], &[0.5, 1.5]).map(|_| ())
    }),
];

/// What goes wrong at an evaluation.
#[derive(Clone, Copy)]
enum Fault {
    Nothing,
    Error(usize),
    Panic(usize),
    NotANumber(usize),
}

/// Runs a measurement on parameters of a dtype; `evaluations` counts.
fn run(
    measure: fn(&mut Surface) -> Result<()>,
    dtype: DType,
    fault: Fault,
) -> (Option<Result<()>>, usize) {
    let problem = Quadratic::new(bulk_and_outliers(20), dtype);
    let before: Vec<Tensor> = problem
        .vars()
        .iter()
        .map(|v| v.force_contiguous().unwrap())
        .collect();
    let mut evaluations = 0;
    let mut loss = |pass| {
        evaluations += 1;
        match fault {
            Fault::Error(at) if at == evaluations => candle_core::bail!("the data ran out"),
            Fault::Panic(at) => assert!(at != evaluations, "a bug in the model"),
            Fault::NotANumber(at) if at == evaluations => return problem.loss(pass)? * f64::NAN,
            _ => {}
        }
        problem.loss(pass)
    };
    let params = problem.params();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        measure(&mut Surface::new(&params, &mut loss))
    }))
    .ok();
    for (var, before) in problem.vars().iter().zip(&before) {
        assert_same_bits("parameter", var, before);
    }
    (outcome, evaluations)
}

#[test]
fn a_measurement_leaves_the_parameters_alone_bit_for_bit() {
    for (name, measure) in ALL {
        for dtype in [DType::F64, DType::F32, DType::BF16] {
            let (outcome, _) = run(measure, dtype, Fault::Nothing);
            outcome
                .unwrap()
                .unwrap_or_else(|error| panic!("{name}, {dtype:?}: {error}"));
        }
    }
}

#[test]
fn an_error_or_a_panic_of_the_objective_leaves_them_alone_too() {
    for (name, measure) in ALL {
        let (_, evaluations) = run(measure, DType::F32, Fault::Nothing);
        for at in [1, 2, evaluations / 2, evaluations] {
            let (outcome, _) = run(measure, DType::F32, Fault::Error(at));
            let message = outcome.unwrap().unwrap_err().to_string();
            assert!(message.contains("the data ran out"), "{name}: {message}");
            let (outcome, _) = run(measure, DType::F32, Fault::Panic(at));
            assert!(outcome.is_none(), "{name}");
        }
    }
}

#[test]
fn a_loss_that_is_no_number_is_an_error_but_a_point_of_a_slice() {
    for (name, measure) in ALL {
        let (outcome, _) = run(measure, DType::F64, Fault::NotANumber(3));
        let slice = ["between", "plane"].contains(&name);
        match outcome.unwrap() {
            Ok(()) => assert!(slice, "{name}"),
            Err(Error::NonFinite {
                pass: Pass::Probe, ..
            }) => assert!(!slice, "{name}"),
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

#[test]
fn statistics_that_a_layer_tracks_whatever_it_is_told_are_put_back() {
    let varmap = VarMap::new();
    let vb = VarBuilder::from_varmap(&varmap, DType::F64, &Device::Cpu);
    let bn = candle_nn::batch_norm(2, 1e-5, vb).unwrap();
    let params = ParamSet::from_varmap(&varmap).unwrap();
    let x = Tensor::arange(0f64, 8.0, &Device::Cpu)
        .unwrap()
        .reshape((4, 2))
        .unwrap();
    let statistics = |varmap: &VarMap| -> Vec<Var> {
        let trained: Vec<_> = params.vars().iter().map(|v| v.id()).collect();
        let all = varmap.all_vars();
        all.into_iter()
            .filter(|v| !trained.contains(&v.id()))
            .collect()
    };
    let before: Vec<Tensor> = statistics(&varmap)
        .iter()
        .map(|v| v.force_contiguous().unwrap())
        .collect();
    let mut loss = |_: Pass| bn.forward_t(&x, true)?.powf(4.0)?.mean_all();
    let mut surface = Surface::new(&params, &mut loss)
        .keeping(statistics(&varmap))
        .unwrap();
    trace(&mut surface, &ParamsTrace::default()).unwrap();
    let changed = |name: &str| {
        for (now, before) in statistics(&varmap).iter().zip(&before) {
            assert_same_bits(name, now, before);
        }
    };
    assert!(
        catch_unwind(AssertUnwindSafe(|| changed("during"))).is_err(),
        "the layer was meant to track"
    );
    drop(surface);
    changed("after");
}

#[test]
fn masters_are_displaced_and_what_the_model_sees_follows() {
    let w = Var::new(&[1f32, -2.0], &Device::Cpu)
        .unwrap()
        .to_dtype(DType::BF16)
        .unwrap();
    let w = Var::from_tensor(&w).unwrap();
    let params = ParamSet::new([("w", w.clone())])
        .unwrap()
        .with_f32_masters()
        .unwrap();
    let mut loss = |_: Pass| w.to_dtype(DType::F32)?.sqr()?.sum_all();
    let mut surface = Surface::new(&params, &mut loss);
    let step = Tensor::new(&[0.5f32, 0.0], &Device::Cpu).unwrap();
    let losses = surface.losses_along(&[step], &[0.0, 1.0, 2.0]).unwrap();
    assert_eq!(losses, [5.0, 6.25, 8.0]);
    assert_eq!(
        w.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap(),
        [1.0, -2.0]
    );
}

#[test]
fn a_missing_gradient_and_a_useless_configuration_are_told() {
    let problem = Quadratic::new(bulk_and_outliers(20), DType::F64);
    let vars = problem.vars();
    let params = problem.params();
    let mut half = |_: Pass| vars[0].sqr()?.sum_all();
    let mut surface = Surface::new(&params, &mut half);
    let message = surface.gradient_norm().unwrap_err().to_string();
    assert!(
        message.starts_with("probe pass: parameter `w` received no gradient"),
        "{message}"
    );
    let message = gradient_noise(&mut surface, 0).unwrap_err().to_string();
    assert_eq!(message, "gradient_noise.rows must be >= 1, got 0");
    let config = ParamsLanczos {
        tolerance: 0.0,
        ..Default::default()
    };
    let message = lanczos(&mut surface, &config).unwrap_err().to_string();
    assert_eq!(
        message,
        "ParamsLanczos.tolerance must be finite and > 0, got 0"
    );
    let mut vector = |_: Pass| vars[0].sqr();
    let mut surface = Surface::new(&params, &mut vector);
    let message = surface.loss().unwrap_err().to_string();
    assert!(
        message.contains("the loss must be a scalar, got shape [4]"),
        "{message}"
    );
    let mut loss = |pass| problem.loss(pass);
    let exact = Products::Exact { tolerance: 1e-6 };
    let mut surface = Surface::new(&params, &mut loss).with_products(exact);
    let error = trace(&mut surface, &ParamsTrace::default()).unwrap_err();
    assert!(
        matches!(error, Error::ExactProduct { .. }),
        "without the environment variable: {error}"
    );
}
