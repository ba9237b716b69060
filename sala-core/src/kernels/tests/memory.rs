//! What is read and written where: views, shared storages, threads, buffers.

use super::*;

// Catches a saved copy that is taken after the move, and a scale that is forgotten.
#[test]
fn a_perturbation_saves_the_weights_bit_for_bit_and_moves_them() {
    for_all(|form, len, dtype| {
        let (a, b) = (form.var(len, 0.1, dtype), form.var(len, 0.1, dtype));
        let direction = form.wide(len, 2.0, dtype);
        let (mut saved, mut saved_b) = (None, None);
        // Twice, so that the second time meets buffers in use.
        for _ in 0..2 {
            let before = a.force_contiguous().unwrap();
            let fused = form.kernels(dtype);
            fused.perturb(&a, &mut saved, &direction, 0.3).unwrap();
            Composed.perturb(&b, &mut saved_b, &direction, 0.3).unwrap();
            assert_near("perturbed", &a, &b);
            assert_same_bits("saved", saved.as_ref().unwrap(), &before);
            fused.exchange(&a, saved.as_mut().unwrap()).unwrap();
            assert_same_bits("restored", &a, &before);
            assert_near("exchanged", saved.as_ref().unwrap(), &b);
            Composed.exchange(&b, saved_b.as_mut().unwrap()).unwrap();
            assert_same_bits("restored, composed", &b, &before);
            b.set(&a.as_detached_tensor().force_contiguous().unwrap())
                .unwrap();
        }
    });
}

// Catches a storage that is exchanged although the tensor is only a part of it.
#[test]
fn an_exchange_leaves_the_rest_of_a_shared_storage_alone() {
    for dtype in DTYPES {
        let whole = wave(12, 0.3, dtype);
        let rows = whole.reshape((3, 4)).unwrap();
        let (middle, other) = (rows.get(1).unwrap(), wave(4, 0.8, dtype));
        let wanted = (values(&middle), values(&other));
        if dtype == DType::F32 {
            access::exchange::<f32>(&middle, &other).unwrap();
        } else {
            access::exchange::<f64>(&middle, &other).unwrap();
        }
        assert_eq!((values(&other), values(&middle)), wanted);
        let untouched = wave(12, 0.3, dtype);
        assert_eq!(values(&whole)[..4], values(&untouched)[..4]);
        assert_eq!(values(&whole)[8..], values(&untouched)[8..]);
    }
}

// Catches a kernel that reads a storage from its start, or in storage order.
#[test]
fn strided_and_shifted_gradients_are_read_as_what_they_are() {
    let forms = forms();
    let each = forms
        .iter()
        .flat_map(|f| f.dtypes.iter().map(move |&d| (f, d)));
    for (form, dtype) in each {
        let transposed = form
            .wide(6, 0.4, dtype)
            .reshape((3, 2))
            .unwrap()
            .t()
            .unwrap();
        let shifted = form
            .wide(24, 0.4, dtype)
            .reshape((4, 2, 3))
            .unwrap()
            .get(2)
            .unwrap();
        let broadcast = form.wide(3, 0.4, dtype).broadcast_as((2, 3)).unwrap();
        for g in [transposed, shifted, broadcast] {
            let w = form.wave(6, 0.1, dtype).reshape((2, 3)).unwrap();
            let run = |kernels: &dyn Kernels| {
                let w = Var::from_tensor(&w).unwrap();
                kernels
                    .sgd(&sgd_configs()[4], &w, &g, &mut None, Beside::default())
                    .unwrap();
                kernels
                    .adam(
                        (&adam_configs()[2], 1),
                        &w,
                        &g,
                        &mut None,
                        Beside::default(),
                    )
                    .unwrap();
                kernels.perturb(&w, &mut None, &g, 0.1).unwrap();
                (w, number(kernels.squared_norm(&g).unwrap()))
            };
            let (a, b) = (run(form.kernels(dtype)), run(&Composed));
            assert_near("weights", &a.0, &b.0);
            tolerance(crate::kernels::wide_dtype(dtype)).assert("norm", a.1, b.1);
        }
    }
}

// Catches a lock that is taken twice, which would hang: the gradient of ½‖w‖² is w itself.
#[test]
fn a_gradient_that_is_the_weights_themselves_is_copied() {
    let run = |kernels: &dyn Kernels| {
        let w = var(65, 0.1, DType::F32);
        let g = w.as_detached_tensor();
        kernels
            .sgd(&sgd_configs()[4], &w, &g, &mut None, Beside::default())
            .unwrap();
        kernels
            .adam(
                (&adam_configs()[0], 1),
                &w,
                &g,
                &mut None,
                Beside::default(),
            )
            .unwrap();
        kernels.perturb(&w, &mut None, &g, 0.1).unwrap();
        w
    };
    assert_near("weights", &run(&cpu::F32), &run(&Composed));
}

/// Everything that the kernels compute, on tensors of several chunks.
fn everything(dtype: DType) -> (Vec<Tensor>, Vec<u64>) {
    let len = 9 * CHUNK + 31;
    let (w, g) = (var(len, 0.1, dtype), wave(len, 0.5, dtype));
    let kernels = fused(dtype);
    let (mut buffer, mut moments, mut saved) = (None, None, None);
    let mut phi = wave(len, 0.3, dtype);
    kernels
        .sgd(&sgd_configs()[4], &w, &g, &mut buffer, Beside::default())
        .unwrap();
    kernels
        .adam(
            (&adam_configs()[2], 1),
            &w,
            &g,
            &mut moments,
            Beside::default(),
        )
        .unwrap();
    kernels.perturb(&w, &mut saved, &g, 0.1).unwrap();
    let norm = kernels.squared_norm(&g).unwrap();
    let gap = kernels
        .pull(
            &w,
            Pull {
                slow: &mut phi,
                alpha: 0.8,
                fast: Fast::Stay,
            },
        )
        .unwrap();
    let bits = [norm, gap].map(|s| number(s).to_bits()).to_vec();
    let (m, v) = moments.unwrap();
    let tensors = vec![
        w.as_detached_tensor(),
        buffer.unwrap(),
        m,
        v,
        saved.unwrap(),
        phi,
    ];
    (tensors, bits)
}

// Catches sums in the order in which threads finish, and a split that depends on how many there are.
#[test]
fn the_number_of_threads_does_not_show_in_a_single_bit() {
    for dtype in DTYPES {
        let wanted = everything(dtype);
        for threads in [1, 2, 3, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let got = pool.build().unwrap().install(|| everything(dtype));
            assert_eq!(got.1, wanted.1, "sums with {threads} threads");
            for (got, wanted) in got.0.iter().zip(&wanted.0) {
                assert_same_bits(&format!("{threads} threads"), got, wanted);
            }
        }
    }
}

fn address(tensor: &Tensor) -> usize {
    access::read::<f32, _>(tensor, |x| Ok(x.as_ptr().addr())).unwrap()
}

// Catches an allocation in the steady state, which costs more than the arithmetic.
#[test]
fn weights_and_buffers_stay_where_they_are() {
    let (w, g) = (var(100, 0.1, DType::F32), wave(100, 0.5, DType::F32));
    let (mut buffer, mut moments, mut saved) = (None, None, None);
    let mut phi = wave(100, 0.3, DType::F32);
    let mut seen = Vec::new();
    for t in 1..4 {
        let kernels = Session::new(Choice::Auto);
        let kernels = kernels.of(&w);
        kernels
            .sgd(&sgd_configs()[4], &w, &g, &mut buffer, Beside::default())
            .unwrap();
        kernels
            .adam(
                (&adam_configs()[2], t),
                &w,
                &g,
                &mut moments,
                Beside::default(),
            )
            .unwrap();
        kernels.perturb(&w, &mut saved, &g, 0.1).unwrap();
        kernels.exchange(&w, saved.as_mut().unwrap()).unwrap();
        kernels
            .pull(
                &w,
                Pull {
                    slow: &mut phi,
                    alpha: 0.8,
                    fast: Fast::Return,
                },
            )
            .unwrap();
        let (m, v) = moments.as_ref().unwrap();
        let all = [
            &w,
            buffer.as_ref().unwrap(),
            m,
            v,
            saved.as_ref().unwrap(),
            &phi,
        ];
        seen.push(all.map(address));
    }
    assert!(seen[0] == seen[1] && seen[1] == seen[2], "{seen:?}");
}

// Catches a state that holds the buffers themselves, which the next step then changes in place.
#[test]
fn a_saved_state_does_not_follow_the_buffers() {
    fn check<O: Optimizer + Stateful>(mut optimizer: O, grads: &GradStore) {
        with_choice(Choice::Auto, || {
            optimizer.step(grads).unwrap();
            let state = optimizer.state().unwrap();
            let before: Vec<_> = state.tensors.values().map(values).collect();
            optimizer.step(grads).unwrap();
            assert!(!before.is_empty());
            assert_eq!(
                before,
                state.tensors.values().map(values).collect::<Vec<_>>()
            );
            // Loading must not tie the optimizer to the state either.
            optimizer.load_state(&state).unwrap();
            optimizer.step(grads).unwrap();
            assert_eq!(
                before,
                state.tensors.values().map(values).collect::<Vec<_>>()
            );
        });
    }
    let w = var(5, 0.1, DType::F32);
    let params = ParamSet::new([("w", w.clone())]).unwrap();
    let grads = w.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    check(Sgd::new(&params, sgd_configs()[4].clone()).unwrap(), &grads);
    check(
        Adam::new(&params, adam_configs()[2].clone()).unwrap(),
        &grads,
    );
}
