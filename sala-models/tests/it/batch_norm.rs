//! Batch norm against plain loops, against differences, and what it does to its statistics.

use candle_core::{DType, Device, Result, Tensor, Var};
use sala_core::testing::{FUSED_F32, TRAJECTORY_F64};
use sala_models::{
    Mode, VarStore,
    kernels::{Choice, with_choice},
    ops::{BatchNorm, ImageFormat},
};

use crate::gradcheck::{FAST, FORMS, check, normal, normal_var, values, weighted_sum};

const EPS: f64 = 1e-5;

/// A layer with a weight and a bias that are not their starting values.
fn layer(channels: usize) -> (VarStore, BatchNorm) {
    let store = VarStore::new(0, DType::F64, &Device::Cpu);
    let norm = BatchNorm::new(channels, store.builder()).unwrap();
    for name in ["weight", "bias", "running_mean"] {
        let var = store.get(name).unwrap();
        var.set(&normal(name, &[channels])).unwrap();
    }
    let spread = normal("running_var", &[channels]).sqr().unwrap();
    store
        .get("running_var")
        .unwrap()
        .set(&(spread + 0.5).unwrap())
        .unwrap();
    (store, norm)
}

fn close(got: &[f64], wanted: &[f64]) {
    assert_eq!(got.len(), wanted.len());
    for (g, w) in got.iter().zip(wanted) {
        assert!(
            (g - w).abs() <= 1e-12 + 1e-12 * w.abs(),
            "{got:?} {wanted:?}"
        );
    }
}

/// The values of channel `c` of `(N, C, P)`, batch after batch.
fn channel(x: &[f64], channels: usize, positions: usize, c: usize) -> Vec<f64> {
    x.chunks(channels * positions)
        .flat_map(|image| image[c * positions..(c + 1) * positions].to_vec())
        .collect()
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len() as f64
}

fn square_sum(x: &[f64]) -> f64 {
    let m = mean(x);
    x.iter().map(|v| (v - m).powi(2)).sum()
}

#[test]
fn a_training_pass_agrees_with_plain_loops() {
    for dims in [
        vec![5, 3],
        vec![2, 3, 2, 5],
        vec![4, 1, 1, 1],
        vec![1, 2, 3, 1],
    ] {
        let channels = dims[1];
        let positions = dims[2..].iter().product();
        let (store, norm) = layer(channels);
        let [weight, bias, old_mean, old_var] = ["weight", "bias", "running_mean", "running_var"]
            .map(|name| values(&store.get(name).unwrap()));
        let x = normal("x", &dims);
        let y = norm.forward(&x, Mode::train(0)).unwrap();
        assert_eq!(y.dims(), dims);
        let (x, y) = (values(&x), values(&y));
        for c in 0..channels {
            let (x, y) = (
                channel(&x, channels, positions, c),
                channel(&y, channels, positions, c),
            );
            let count = x.len() as f64;
            let (mu, squares) = (mean(&x), square_sum(&x));
            let deviation = (squares / count + EPS).sqrt();
            let wanted: Vec<f64> = x
                .iter()
                .map(|v| weight[c] * (v - mu) / deviation + bias[c])
                .collect();
            close(&y, &wanted);
            // Unbiased here, biased above.
            let var = 0.9 * old_var[c] + 0.1 * squares / (count - 1.0);
            close(
                &values(&norm.running_mean().unwrap())[c..=c],
                &[0.9 * old_mean[c] + 0.1 * mu],
            );
            close(&values(&norm.running_var().unwrap())[c..=c], &[var]);
        }
    }
}

#[test]
fn three_numbers_by_hand() {
    // 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, biased variance 14/3, unbiased 7.
    let store = VarStore::new(0, DType::F64, &Device::Cpu);
    let norm = BatchNorm::new(1, store.builder()).unwrap();
    let x = Tensor::new(&[[1f64], [2.], [6.]], &Device::Cpu).unwrap();
    let y = norm.forward(&x, Mode::train(0)).unwrap();
    let s = (14.0 / 3.0 + 1e-5_f64).sqrt();
    close(&values(&y), &[-2.0 / s, -1.0 / s, 3.0 / s]);
    close(&values(&norm.running_mean().unwrap()), &[0.3]);
    close(&values(&norm.running_var().unwrap()), &[0.9 + 0.7]);
}

#[test]
fn statistics_taken_anew_are_the_plain_mean_of_the_batches() {
    for choice in FORMS {
        with_choice(choice, || {
            let (_, norm) = layer(2);
            let batches: Vec<Tensor> = (0..3)
                .map(|i| normal(&format!("batch {i}"), &[5, 2]))
                .collect();
            for (i, batch) in (1u64..).zip(&batches) {
                let number = std::num::NonZero::new(i).unwrap();
                let mode = Mode::train(0).as_batch_of_average(number);
                norm.forward(batch, mode).unwrap();
            }
            for c in 0..2 {
                let of = |f: &dyn Fn(&[f64]) -> f64| {
                    let each: Vec<f64> = (batches.iter())
                        .map(|b| f(&channel(&values(b), 2, 1, c)))
                        .collect();
                    mean(&each)
                };
                // What the layer had tracked before is gone.
                close(
                    &values(&norm.running_mean().unwrap())[c..=c],
                    &[of(&|x| mean(x))],
                );
                close(
                    &values(&norm.running_var().unwrap())[c..=c],
                    &[of(&|x| square_sum(x) / 4.0)],
                );
            }
        });
    }
}

#[test]
fn evaluation_uses_the_running_statistics() {
    let (store, norm) = layer(2);
    let x = normal("x", &[1, 2, 1, 1]); // one value per channel is enough here
    let y = values(&norm.forward(&x, Mode::eval()).unwrap());
    let [w, b, m, v] = ["weight", "bias", "running_mean", "running_var"]
        .map(|name| values(&store.get(name).unwrap()));
    let x = values(&x);
    let wanted: Vec<f64> = (0..2)
        .map(|c| w[c] * (x[c] - m[c]) / (v[c] + EPS).sqrt() + b[c])
        .collect();
    close(&y, &wanted);
}

#[test]
fn a_large_mean_leaves_the_variance_its_digits() {
    // Σx²/m − μ² has an error of about 1e-2 here (1e7² · 2⁻⁵³); the two-pass form about 1e-9.
    let store = VarStore::new(0, DType::F64, &Device::Cpu);
    let norm = BatchNorm::new(1, store.builder()).unwrap();
    let x = normal("x", &[64, 1]);
    let small = values(&norm.forward(&x, Mode::train(0)).unwrap());
    let large = values(&norm.forward(&(x + 1e7).unwrap(), Mode::train(0)).unwrap());
    for (s, l) in small.iter().zip(&large) {
        assert!((s - l).abs() < 1e-7, "{s} {l}");
    }
}

#[test]
fn only_a_tracked_training_pass_moves_the_statistics() {
    let (store, norm) = layer(3);
    let stats = || {
        store
            .buffers()
            .iter()
            .flat_map(|(_, v)| values(v))
            .collect::<Vec<_>>()
    };
    let (x, before) = (normal("x", &[6, 3]), stats());
    norm.forward(&x, Mode::eval()).unwrap();
    assert_eq!(stats(), before);
    norm.forward(&x, Mode::train(0).without_stats()).unwrap();
    assert_eq!(stats(), before);
    let odd = Mode {
        train: false,
        track_stats: true,
        ..Mode::eval()
    };
    norm.forward(&x, odd).unwrap();
    assert_eq!(stats(), before);
    norm.forward(&x, Mode::train(0)).unwrap();
    assert!(
        stats()
            .iter()
            .zip(&before)
            .all(|(a, b)| (a - b).abs() > 1e-6)
    );
}

#[test]
fn tracking_does_not_change_the_output() {
    let (_, norm) = layer(3);
    let x = normal("x", &[6, 3]);
    let tracked = values(&norm.forward(&x, Mode::train(0)).unwrap());
    let untracked = values(&norm.forward(&x, Mode::train(0).without_stats()).unwrap());
    assert_eq!(tracked, untracked);
}

#[test]
fn gradients_agree_with_differences_in_training_and_evaluation() {
    for dims in [
        vec![5, 3],
        vec![2, 1],
        vec![3, 2, 3, 5],
        vec![4, 3, 1, 1],
        vec![1, 2, 1, 3],
        vec![2, 1, 2, 2],
    ] {
        let (store, norm) = layer(dims[1]);
        let x = normal_var("x", &dims);
        let mut vars = store.trainable();
        vars.push(("x".into(), x.clone()));
        for mode in [Mode::train(0).without_stats(), Mode::train(0), Mode::eval()] {
            check(&vars, || weighted_sum(&norm.forward(&x, mode)?));
        }
    }
}

#[test]
fn gradients_agree_for_an_input_with_other_strides() {
    let (_, norm) = layer(3);
    let (features, images) = (normal_var("x", &[3, 4]), normal_var("x", &[2, 4, 3, 3]));
    let mode = Mode::train(0);
    check(&[("x".into(), features.clone())], || {
        weighted_sum(&norm.forward(&features.t()?, mode)?)
    });
    check(&[("x".into(), images.clone())], || {
        weighted_sum(&norm.forward(&images.permute((0, 3, 1, 2))?, mode)?)
    });
    let strided = norm.forward(&features.t().unwrap(), mode).unwrap();
    let copied = norm
        .forward(&features.t().unwrap().contiguous().unwrap(), mode)
        .unwrap();
    assert_eq!(values(&strided), values(&copied));
}

#[test]
fn buffers_get_no_gradient() {
    let (store, norm) = layer(2);
    let x = normal_var("x", &[4, 2]);
    for mode in [Mode::train(0), Mode::eval()] {
        let grads = norm
            .forward(&x, mode)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        for (name, var) in store.buffers() {
            assert!(grads.get(&var).is_none(), "{name}");
        }
    }
}

#[test]
fn a_training_pass_between_forward_and_backward_of_an_evaluation_changes_no_gradient() {
    let (store, norm) = layer(2);
    let x = normal("x", &[4, 2]);
    let weight = store.get("weight").unwrap();
    let gradient = |disturb: bool| {
        let loss = weighted_sum(&norm.forward(&x, Mode::eval()).unwrap()).unwrap();
        if disturb {
            norm.forward(&(&x + 3.0).unwrap(), Mode::train(0)).unwrap();
        }
        values(loss.backward().unwrap().get(&weight).unwrap())
    };
    assert_eq!(gradient(false), gradient(true));
}

#[test]
fn half_precision_keeps_its_statistics_in_single_precision() {
    let store = VarStore::new(0, DType::BF16, &Device::Cpu);
    let norm = BatchNorm::new(2, store.builder()).unwrap();
    let x = normal("x", &[8, 2]).to_dtype(DType::BF16).unwrap();
    let y = norm.forward(&x, Mode::train(0)).unwrap();
    assert_eq!(y.dtype(), DType::BF16);
    assert_eq!(norm.running_var().unwrap().dtype(), DType::F32);
    assert_eq!(store.get("weight").unwrap().dtype(), DType::BF16);
}

#[test]
fn wrong_inputs_are_refused_with_what_was_wanted() {
    let (_, norm) = layer(3);
    let message = |dims: &[usize], mode| {
        let x = Tensor::zeros(dims, DType::F64, &Device::Cpu).unwrap();
        norm.forward(&x, mode).unwrap_err().to_string()
    };
    for dims in [vec![3], vec![2, 4], vec![2, 3, 4], vec![2, 4, 3, 3]] {
        let text = message(&dims, Mode::eval());
        for part in ["batch_norm", "x", "C = 3", &format!("{dims:?}")] {
            assert!(text.contains(part), "{text}");
        }
    }
    assert!(message(&[0, 3], Mode::train(0)).contains("a tensor with elements"));
    for dims in [vec![1, 3], vec![1, 3, 1, 1]] {
        let text = message(&dims, Mode::train(0));
        assert!(text.contains("more than one value per channel"), "{text}");
    }
    assert!(BatchNorm::new(0, VarStore::new(0, DType::F32, &Device::Cpu).builder()).is_err());
}

#[test]
fn the_layer_shares_its_statistics_with_the_store() {
    let (store, norm) = layer(2);
    let var: Var = store.get("running_mean").unwrap();
    norm.forward(&normal("x", &[4, 2]), Mode::train(0)).unwrap();
    assert_eq!(values(&var), values(&norm.running_mean().unwrap()));
    let held = norm.running_mean().unwrap();
    let before = values(&held);
    norm.forward(&normal("x", &[4, 2]), Mode::train(1)).unwrap();
    assert_eq!(
        values(&held),
        before,
        "a snapshot must not follow the variable"
    );
}

/// `(N, C)` or `(N, C, H, W)`, how the images lie, whether a residual is added and relu taken.
type Case<'a> = (&'a [usize], ImageFormat, bool, bool);

fn cases() -> Vec<Case<'static>> {
    let shapes: [&[usize]; 5] = [
        &[2, 1],
        &[5, 3],
        &[2, 3, 1, 2],
        &[3, 2, 3, 2],
        &[1, 17, 2, 3],
    ];
    let mut cases = vec![];
    for dims in shapes {
        for format in [ImageFormat::ChannelsFirst, ImageFormat::ChannelsLast] {
            for (residual, relu) in [(false, false), (false, true), (true, true)] {
                cases.push((dims, format, residual, relu));
            }
        }
    }
    cases
}

/// The layer, its variables, and a loss that ends in it.
fn end_of_block(
    case: Case,
    dtype: DType,
    mode: Mode,
) -> (VarStore, Vec<(String, Var)>, impl Fn() -> Result<Tensor>) {
    let (dims, format, residual, relu) = case;
    let store = VarStore::new(3, dtype, &Device::Cpu);
    let norm = BatchNorm::new(dims[1], store.builder())
        .unwrap()
        .with_format(format);
    for (name, var) in store.all() {
        // Any values but those of the start; a variance is positive.
        let values = (normal(&name, var.dims()).abs().unwrap() + 0.5).unwrap();
        var.set(&values.to_dtype(dtype).unwrap()).unwrap();
    }
    let input = |name| {
        let x = normal(name, dims);
        let x = if dims.len() == 4 {
            format.from_channels_first(&x).unwrap()
        } else {
            x
        };
        Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap()
    };
    let (x, r) = (input("x"), input("residual"));
    let mut vars = store.trainable();
    vars.push(("x".into(), x.clone()));
    if residual {
        vars.push(("residual".into(), r.clone()));
    }
    let loss = move || {
        let y = match (residual, relu) {
            (true, _) => norm.forward_add_relu(&x, &r, mode)?,
            (false, true) => norm.forward_relu(&x, mode)?,
            (false, false) => norm.forward(&x, mode)?,
        };
        (&y * normal("weights of the sum", y.dims()).to_dtype(dtype)?)?.sum_all()
    };
    (store, vars, loss)
}

#[test]
fn gradients_agree_with_differences_in_all_formats_with_all_that_follows() {
    for case in cases() {
        for mode in [Mode::train(0).without_stats(), Mode::eval()] {
            let (_store, vars, loss) = end_of_block(case, DType::F64, mode);
            check(&vars, loss);
        }
    }
}

#[test]
fn all_forms_agree_in_values_gradients_and_statistics() {
    let large: Case = (&[7, 37, 21, 19], ImageFormat::ChannelsLast, true, true);
    for case in cases().into_iter().chain([large]) {
        for mode in [Mode::train(0), Mode::eval()] {
            let run = |choice| {
                let (store, vars, loss) = end_of_block(case, DType::F64, mode);
                let loss = with_choice(choice, || loss().unwrap());
                let gradients = loss.backward().unwrap();
                let gradients: Vec<_> = (vars.into_iter())
                    .map(|(name, var)| (name, gradients.get(&var).unwrap().clone()))
                    .collect();
                let state = store
                    .all()
                    .into_iter()
                    .map(|(name, var)| (name, var.as_tensor().clone()));
                (loss, gradients.into_iter().chain(state).collect::<Vec<_>>())
            };
            let (wanted, others) = run(Choice::Composed);
            for form in FAST {
                let (loss, tensors) = run(form);
                TRAJECTORY_F64.assert_tensors("loss", &loss, &wanted);
                for ((name, got), (_, wanted)) in tensors.iter().zip(&others) {
                    TRAJECTORY_F64.assert_tensors(&format!("{form:?} {name}"), got, wanted);
                }
            }
        }
    }
}

// Catches running statistics that one batch leaves infinite or NaN, which no later batch can mend, and a channel that
// is held back because of another.
#[test]
fn a_channel_whose_statistics_are_not_finite_keeps_the_old_ones() {
    // The second: values are finite, and so is their mean; the variance is not, in this dtype.
    for (dtype, odd) in [
        (DType::F64, f64::INFINITY),
        (DType::F32, f64::NAN),
        (DType::F32, 1e25),
        (DType::BF16, f64::NEG_INFINITY),
    ] {
        for choice in FORMS {
            let statistics = |odd: f64| {
                let store = VarStore::new(0, dtype, &Device::Cpu);
                let norm = BatchNorm::new(2, store.builder()).unwrap();
                let x = Tensor::new(&[[1.0, 3.0], [odd, 5.0], [2.0, 7.0]], &Device::Cpu).unwrap();
                let x = x.to_dtype(dtype).unwrap();
                with_choice(choice, || norm.forward(&x, Mode::train(0)).unwrap());
                [norm.running_mean().unwrap(), norm.running_var().unwrap()]
                    .map(|t| values(&t.to_dtype(DType::F64).unwrap()))
            };
            let ([mean, var], [sound_mean, sound_var]) = (statistics(odd), statistics(0.5));
            let what = format!("{choice:?} {dtype:?} {odd}");
            assert_eq!((mean[0], var[0]), (0.0, 1.0), "{what}");
            assert_eq!((mean[1], var[1]), (sound_mean[1], sound_var[1]), "{what}");
            assert!(mean[1] > 0.4 && sound_mean[0] > 0.1, "{what}");
        }
    }
}

// Catches parameters that are rounded to the input's half precision before anything is computed with them, and
// gradients that are rounded to it.
#[test]
fn parameters_of_f32_are_used_as_they_are_with_inputs_of_half_precision() {
    for mode in [Mode::train(0), Mode::eval()] {
        let run = |choice| {
            let store = VarStore::new(0, DType::F32, &Device::Cpu);
            let norm = BatchNorm::new(3, store.builder()).unwrap();
            for name in ["weight", "bias"] {
                let value = normal(name, &[3]).to_dtype(DType::F32).unwrap();
                store.get(name).unwrap().set(&value).unwrap();
            }
            let x = normal("x", &[50, 3]).to_dtype(DType::BF16).unwrap();
            let x = Var::from_tensor(&x).unwrap();
            let y = with_choice(choice, || norm.forward_relu(&x, mode).unwrap());
            let weights = normal("weights", y.dims()).to_dtype(DType::BF16).unwrap();
            let loss = (&y * weights).unwrap().sum_all().unwrap();
            let gradients = loss.backward().unwrap();
            let of = |name| gradients.get(&store.get(name).unwrap()).unwrap().clone();
            (y, of("weight"), of("bias"))
        };
        let (wanted, of_weight, of_bias) = run(Choice::Composed);
        for form in FAST {
            let (y, weight, bias) = run(form);
            let sure = |t: &Tensor| values(&t.to_dtype(DType::F64).unwrap());
            let others = sure(&y).into_iter().zip(sure(&wanted));
            let others = others.filter(|(got, wanted)| got != wanted).count();
            assert!(
                others <= 1,
                "{form:?}: {others} of 150 are rounded another way"
            );
            FUSED_F32.assert_tensors("weight", &weight, &of_weight);
            FUSED_F32.assert_tensors("bias", &bias, &of_bias);
        }
    }
}
