//! What candle's own forms do to gradients: each test here fails when candle repairs one, and then
//! the composed form may hand over to it.

use candle_core::{DType, Device, Module, Tensor, Var};
use candle_nn::{LayerNorm, ops, rotary_emb};
use sala_models::ops::gelu;

use crate::gradcheck::{normal, values};

fn receives_a_gradient(y: &Tensor, x: &Var) -> bool {
    let gradients = y.sum_all().unwrap().backward().unwrap();
    gradients.get(x).is_some()
}

#[test]
fn regression_the_fused_forms_of_candle_cut_the_gradient() {
    let x = normal("x", &[1, 2, 3, 4]).to_dtype(DType::F32).unwrap();
    let x = Var::from_tensor(&x).unwrap();
    let ones = Tensor::ones(4, x.dtype(), &Device::Cpu).unwrap();
    let angles = Tensor::ones((3, 2), x.dtype(), &Device::Cpu).unwrap();
    let by_time = x.transpose(1, 2).unwrap().contiguous().unwrap();
    for (what, y) in [
        ("softmax_last_dim", ops::softmax_last_dim(&x)),
        ("rms_norm", ops::rms_norm(&x, &ones, 1e-5)),
        ("layer_norm", ops::layer_norm(&x, &ones, &ones, 1e-5)),
        (
            "LayerNorm",
            LayerNorm::new(ones.clone(), ones.clone(), 1e-5).forward(&x),
        ),
        ("rope", rotary_emb::rope(&x, &angles, &angles)),
        ("rope_i", rotary_emb::rope_i(&x, &angles, &angles)),
        ("rope_thd", rotary_emb::rope_thd(&by_time, &angles, &angles)),
    ] {
        assert!(!receives_a_gradient(&y.unwrap(), &x), "{what}");
    }
}

#[test]
fn regression_the_gradient_of_candles_gelu_is_rough() {
    let x = Var::new(&[1f64], &Device::Cpu).unwrap();
    let slope = |y: Tensor| values(y.sum_all().unwrap().backward().unwrap().get(&x).unwrap())[0];
    let off = slope(gelu(&x).unwrap()) - slope(x.gelu_erf().unwrap());
    assert!(off.abs() > 1e-8, "{off:e}");
}

#[test]
fn regression_candles_embedding_takes_the_largest_index_for_zeros_and_sums_in_half_precision() {
    let table = Var::ones((2, 1), DType::BF16, &Device::Cpu).unwrap();
    let look_up = |index: u32, times: usize| {
        let indices = Tensor::new(vec![index; times], &Device::Cpu).unwrap();
        table.embedding(&indices).unwrap()
    };
    assert_eq!(values(&look_up(u32::MAX, 1)), [0.]);
    let often = look_up(1, 1024).sum_all().unwrap().backward().unwrap();
    assert_eq!(values(often.get(&table).unwrap()), [0., 256.]);
}
