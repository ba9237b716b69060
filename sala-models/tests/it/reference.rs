//! Values and gradients of PyTorch, from `tests/reference`, for inputs as they are and for the same
//! numbers seen through strides.

use std::{collections::HashMap, path::PathBuf};

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::VarBuilder;
use sala_core::testing::TRAJECTORY_F64;
use sala_models::kernels::with_choice;
use sala_models::{
    Mode,
    ops::{
        Attention, BatchNorm, Conv2dConfig, CrossEntropy, Pool2d, Rope, RopePairs,
        adaptive_avg_pool2d, add, conv2d, embedding, gelu, gelu_tanh, layer_norm, linear,
        log_softmax, masked_softmax, relu, relu6, rms_norm, silu, softmax,
    },
};

use crate::gradcheck::FORMS;

/// A case's inputs by name.
type Inputs = HashMap<String, Tensor>;

/// How the numbers of an input lie in memory.
#[derive(Clone, Copy)]
enum Layout {
    Contiguous,
    /// All dimensions reversed, and the first of more than one entry: nothing is contiguous and the
    /// numbers do not start at the beginning.
    Strided,
}

fn stored(t: &Tensor, layout: Layout) -> Tensor {
    match layout {
        Layout::Contiguous => t.clone(),
        Layout::Strided => {
            let reversed = reverse(t).contiguous().unwrap();
            Tensor::cat(&[&reversed.ones_like().unwrap(), &reversed], 0).unwrap()
        }
    }
}

fn seen(t: &Tensor, layout: Layout) -> Tensor {
    match layout {
        Layout::Contiguous => t.clone(),
        Layout::Strided => {
            let half = t.dim(0).unwrap() / 2;
            reverse(&t.narrow(0, half, half).unwrap())
        }
    }
}

fn reverse(t: &Tensor) -> Tensor {
    t.permute((0..t.rank()).rev().collect::<Vec<_>>()).unwrap()
}

fn reference() -> HashMap<String, Tensor> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/reference/ops.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

/// Compares `function` with the case of that name: its value, and the gradient of every float
/// input, in both forms.
fn compare(case: &str, function: impl Fn(&Inputs) -> Result<Tensor>) {
    let all = reference();
    let prefix = format!("{case}.");
    let of_case: Inputs = all
        .iter()
        .filter_map(|(name, t)| Some((name.strip_prefix(&prefix)?.to_string(), t.clone())))
        .collect();
    assert!(of_case.contains_key("y"), "no reference for {case}");
    let layouts = [Layout::Contiguous, Layout::Strided];
    let cases = FORMS.map(|form| layouts.map(|layout| (form, layout)));
    for (form, layout) in cases.into_iter().flatten() {
        let mut vars = vec![];
        let mut inputs = Inputs::new();
        for (name, t) in &of_case {
            let is_input = !name.starts_with("grad.") && name != "y" && name != "w";
            if is_input && t.dtype().is_float() {
                let var = Var::from_tensor(&stored(t, layout)).unwrap();
                inputs.insert(name.clone(), seen(&var, layout));
                vars.push((name, var));
            } else if is_input {
                inputs.insert(name.clone(), seen(&stored(t, layout), layout));
            }
        }
        let y = with_choice(form, || function(&inputs)).unwrap();
        TRAJECTORY_F64.assert_tensors(case, &y, &of_case["y"]);
        let loss = (y * &of_case["w"]).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        for (name, var) in vars {
            let what = format!("gradient of {case}.{name}");
            let gradient = gradients.get(&var).unwrap_or_else(|| panic!("no {what}"));
            let wanted = &of_case[&format!("grad.{name}")];
            TRAJECTORY_F64.assert_tensors(&what, &seen(gradient, layout), wanted);
        }
    }
}

#[test]
fn norms() {
    compare("layer_norm", |i| {
        layer_norm(&i["x"], &i["weight"], Some(&i["bias"]), 0.1)
    });
    compare("layer_norm_no_bias", |i| {
        layer_norm(&i["x"], &i["weight"], None, 0.1)
    });
    compare("rms_norm", |i| rms_norm(&i["x"], &i["weight"], 0.1));
}

#[test]
fn softmaxes() {
    compare("softmax", |i| softmax(&i["x"], 1));
    compare("softmax", |i| softmax(&i["x"], D::Minus2));
    compare("log_softmax", |i| log_softmax(&i["x"], 1));
    for case in ["masked_softmax", "biased_softmax"] {
        compare(case, |i| masked_softmax(&i["x"], &i["mask"], 1));
    }
}

#[test]
fn cross_entropies() {
    for (case, label_smoothing, ignore_index) in [
        ("entropy", 0.0, None),
        ("entropy", 0.0, Some(-100)),
        ("entropy_smoothed", 0.2, None),
        ("entropy_ignored", 0.2, Some(-100)),
        ("entropy_soft", 0.0, None),
        ("entropy_soft_smoothed", 0.2, None),
    ] {
        let loss = CrossEntropy {
            label_smoothing,
            ignore_index,
        };
        compare(case, |i| loss.forward(&i["logits"], &i["targets"]));
    }
}

#[test]
fn activations() {
    compare("gelu", |i| gelu(&i["x"]));
    compare("gelu_tanh", |i| gelu_tanh(&i["x"]));
    compare("silu", |i| silu(&i["x"]));
}

#[test]
fn rotary_embeddings() {
    for (case, pairs) in [
        ("rope_interleaved", RopePairs::Interleaved),
        ("rope_halves", RopePairs::Halves),
    ] {
        let rope = Rope::new(6, 11, 100.0, pairs, DType::F64, &Device::Cpu).unwrap();
        compare(case, |i| rope.forward(&i["x"], 7));
    }
}

#[test]
fn embeddings() {
    compare("embedding", |i| embedding(&i["table"], &i["indices"]));
}

#[test]
fn attentions() {
    let plain = Attention::default();
    let scale = Some(0.7);
    let causal = true;
    for (case, attention) in [
        ("attention", plain),
        ("attention_scaled", Attention { scale, ..plain }),
        ("attention_padded", plain),
        ("attention_biased", plain),
        ("attention_causal", Attention { causal, ..plain }),
    ] {
        compare(case, |i| {
            attention.forward(&i["q"], &i["k"], &i["v"], i.get("mask"))
        });
    }
}

#[test]
fn pools() {
    for (name, kernel, stride, padding, ceil_mode, count_include_pad) in [
        ("overlapping", (3, 2), (1, 2), (0, 0), false, true),
        ("padded", (3, 3), (2, 2), (1, 1), false, true),
        ("real_places", (3, 3), (2, 2), (1, 1), false, false),
        ("ceil", (3, 2), (2, 3), (1, 0), true, true),
        ("ceil_real_places", (3, 2), (2, 3), (1, 1), true, false),
        ("gaps", (2, 2), (3, 4), (1, 1), true, true),
        ("beyond", (4, 4), (3, 3), (2, 2), true, true),
    ] {
        let pool = Pool2d {
            kernel,
            stride,
            padding,
            ceil_mode,
            count_include_pad,
            ..Pool2d::square(1)
        };
        compare(&format!("max_{name}"), |i| pool.max(&i["x"]));
        compare(&format!("average_{name}"), |i| pool.average(&i["x"]));
    }
    let pool = Pool2d {
        stride: (2, 2),
        padding: (1, 1),
        ..Pool2d::square(3)
    };
    compare("max_ties", |i| pool.max(&i["x"]));
    for (rows, columns) in [(1, 1), (4, 3), (7, 2)] {
        compare(&format!("adaptive_{rows}_{columns}"), |i| {
            adaptive_avg_pool2d(&i["x"], (rows, columns))
        });
    }
}

#[test]
fn linear_layers_sums_and_what_clips() {
    compare("linear", |i| {
        linear(&i["x"], &i["weight"], Some(&i["bias"]))
    });
    compare("linear_no_bias", |i| linear(&i["x"], &i["weight"], None));
    compare("add", |i| add(&i["a"], &i["b"]));
    compare("relu", |i| relu(&i["x"]));
    compare("relu6", |i| relu6(&i["x"]));
}

#[test]
fn convolutions() {
    for (name, stride, padding, dilation, groups) in [
        ("plain", (1, 1), (0, 0), (1, 1), 1),
        ("same", (1, 1), (1, 1), (1, 1), 1),
        ("strided", (2, 3), (1, 0), (1, 1), 1),
        ("pointwise", (2, 2), (0, 0), (1, 1), 1),
        ("dilated", (1, 2), (2, 2), (3, 2), 1),
        ("grouped", (2, 1), (1, 1), (1, 1), 2),
        ("depthwise", (1, 2), (1, 1), (1, 1), 4),
    ] {
        let config = Conv2dConfig {
            stride,
            padding,
            dilation,
            groups,
            ..Conv2dConfig::default()
        };
        compare(&format!("conv_{name}"), |i| {
            conv2d(&i["x"], &i["weight"], Some(&i["bias"]), config)
        });
    }
}

/// The layer with a case's parameters and the statistics that the reference starts from.
fn batch_norm(inputs: &Inputs) -> BatchNorm {
    let all = reference();
    let of = |name: &str, t: &Tensor| (name.to_string(), t.clone());
    let tensors = HashMap::from([
        of("weight", &inputs["weight"]),
        of("bias", &inputs["bias"]),
        of("running_mean", &all["batch_norm.mean"]),
        of("running_var", &all["batch_norm.var"]),
    ]);
    let vb = VarBuilder::from_tensors(tensors, DType::F64, &Device::Cpu);
    let layer = BatchNorm::new(3, vb).unwrap();
    layer.with_eps(1e-3).unwrap()
}

#[test]
fn batch_norms() {
    compare("batch_norm_eval", |i| {
        batch_norm(i).forward(&i["x"], Mode::eval())
    });
    compare("batch_norm_relu", |i| {
        batch_norm(i).forward_relu(&i["x"], Mode::train(0))
    });
    compare("batch_norm_add_relu", |i| {
        batch_norm(i).forward_add_relu(&i["x"], &i["residual"], Mode::train(0))
    });
    compare("batch_norm_train", |i| {
        let layer = batch_norm(i);
        let y = layer.forward(&i["x"], Mode::train(0))?;
        let all = reference();
        for (got, wanted) in [
            (layer.running_mean()?, "batch_norm.mean_after"),
            (layer.running_var()?, "batch_norm.var_after"),
        ] {
            TRAJECTORY_F64.assert_tensors(wanted, &got, &all[wanted]);
        }
        Ok(y)
    });
}
