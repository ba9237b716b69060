//! The backward pass of a graph whose operations are mostly of this crate.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use candle_core::{Result, Tensor, TensorId, backprop::GradStore};

use super::{Application, RESULTS, Recipient, lock, tokens::Seed};
use crate::kernels::sum::sum;

thread_local! {
    /// What candle's walk leaves aside, while [`backward`] runs on this thread.
    static COLLECTED: RefCell<Option<Collected>> = const { RefCell::new(None) };
}

/// Gradients of tensors that are to be added, by id.
type Parts = HashMap<TensorId, Vec<Tensor>>;

/// Gradients of parameters, of the graph of one loss only: an operation of its own kind may differentiate another graph
/// in its backward, as one that computes its features once more does, and that has to get its gradients from candle.
struct Collected {
    nodes: HashSet<TensorId>,
    parts: Parts,
}

/// Keeps the gradient of a parameter that a token yields, or gives it back if nobody collects those of its graph.
pub(super) fn collect(token: TensorId, parameter: &Tensor, gradient: Tensor) -> Option<Tensor> {
    COLLECTED.with_borrow_mut(|collected| match collected {
        Some(collected) if collected.nodes.contains(&token) => {
            let parts = collected.parts.entry(parameter.id()).or_default();
            parts.push(gradient);
            None
        }
        _ => Some(gradient),
    })
}

/// The gradients of a scalar `loss`, as [`Tensor::backward`] yields them, but faster: gradients of
/// parameters that come from an operation of this crate go into the result as they are, without candle's
/// zeros and sums before, which cost as much time as the update of a simple optimizer. Where all that is between the
/// loss and the operations nearest to the parameters is of this crate, candle's walk through the graph is saved, too, with
/// its zero and sum for each operation, which are launches on a graphics card.
///
/// Any graph may be given, with operations of candle among those of this crate. After an error it can be tried again.
///
/// # Errors
/// Those of [`Tensor::backward`].
///
/// ```
/// use candle_core::{DType, Device, Tensor, Var};
/// use sala_models::{backward, ops};
///
/// let weight = Var::ones((3, 2), DType::F32, &Device::Cpu)?;
/// let x = Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?;
/// let loss = ops::linear(&x, &weight, None)?.sum_all()?;
/// let gradients = backward(&loss)?;
/// let of_weight = gradients.get(&weight).ok_or("no gradient")?;
/// assert_eq!(of_weight.to_vec2::<f32>()?, [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    let found = match Order::of(loss) {
        Some(order) => order.differentiate(loss),
        None => by_candle(loss),
    };
    let (mut gradients, parts) = found.inspect_err(|_| forget(loss))?;
    for (id, mut parts) in parts {
        parts.extend(gradients.get_id(id).cloned());
        if let Some(sum) = sum(parts)? {
            gradients.insert_id(id, sum);
        }
    }
    Ok(gradients)
}

/// candle's walk, and the gradients of parameters that were kept aside.
fn by_candle(loss: &Tensor) -> Result<(GradStore, Parts)> {
    struct Restore(Option<Collected>);
    impl Drop for Restore {
        fn drop(&mut self) {
            COLLECTED.set(self.0.take());
        }
    }
    let nodes = loss.sorted_nodes().iter().map(|node| node.id()).collect();
    let restore = Restore(COLLECTED.replace(Some(Collected {
        nodes,
        parts: Parts::new(),
    })));
    let gradients = loss.backward()?;
    let collected = COLLECTED.take();
    drop(restore);
    Ok((gradients, collected.map(|c| c.parts).unwrap_or_default()))
}

/// Takes out what waits in the inboxes of all that a loss depends on. When a walk ends early, gradients are left there
/// that the next one would add to its own.
fn forget(loss: &Tensor) {
    let nodes = loss.sorted_nodes();
    let known = |node: &&Tensor| lock(&RESULTS).get(&node.id()).map(|(_, a)| Arc::clone(a));
    let mut waiting: Vec<Arc<Application>> = nodes.iter().filter_map(known).collect();
    let mut seen = HashSet::new();
    while let Some(application) = waiting.pop() {
        if !seen.insert(Arc::as_ptr(&application)) {
            continue;
        }
        application.inbox.clear();
        for recipient in &application.recipients {
            recipient.inbox().clear();
            if let Recipient::Application(source) = recipient {
                waiting.push(Arc::clone(source));
            }
        }
    }
}

/// Applications in the order in which candle would come to their tokens: each before those whose results it takes.
#[derive(Default)]
struct Order {
    applications: Vec<Arc<Application>>,
    seen: HashSet<*const Application>,
}

impl Order {
    /// Those that a loss depends on; nothing where candle has operations between them, which only candle can
    /// differentiate.
    fn of(loss: &Tensor) -> Option<Self> {
        let last = lock(&RESULTS).get(&loss.id()).map(|(_, a)| Arc::clone(a))?;
        let mut order = Self::default();
        if !order.enter(&last) {
            return None;
        }
        order.applications.reverse();
        Some(order)
    }

    /// Adds an application after all that it depends on. Tells whether nothing of candle is between them.
    fn enter(&mut self, application: &Arc<Application>) -> bool {
        if !self.seen.insert(Arc::as_ptr(application)) {
            return true;
        }
        for recipient in in_order_of_tokens(&application.recipients) {
            let known = match recipient {
                Recipient::Application(source) => self.enter(source),
                Recipient::Candle(input, _) => input.is_variable() || stands_alone(input),
                Recipient::Joined => true,
            };
            if !known {
                return false;
            }
        }
        self.applications.push(Arc::clone(application));
        true
    }

    /// From application to application, and then through what candle made of parameters alone.
    fn differentiate(self, loss: &Tensor) -> Result<(GradStore, Parts)> {
        let (mut parts, mut inputs) = (Parts::new(), Vec::<(Tensor, Vec<Tensor>)>::new());
        if let Some(last) = self.applications.first() {
            last.inbox.put(loss.ones_like()?.contiguous()?);
        }
        for application in &self.applications {
            application.differentiate()?;
            for recipient in &application.recipients {
                let Recipient::Candle(input, inbox) = recipient else {
                    continue;
                };
                let Some(gradient) = inbox.take()? else {
                    continue;
                };
                if input.is_variable() {
                    parts.entry(input.id()).or_default().push(gradient);
                    continue;
                }
                match inputs.iter_mut().find(|(t, _)| t.id() == input.id()) {
                    Some((_, known)) => known.push(gradient),
                    None => inputs.push((input.clone(), vec![gradient])),
                }
            }
        }
        let mut gradients = GradStore::default();
        for (input, of_input) in inputs {
            if let Some(gradient) = sum(of_input)? {
                gradients.extend(input.apply_op1(Seed(gradient))?.backward()?)?;
            }
        }
        Ok((gradients, parts))
    }
}

/// Whether a result of candle's was made without this crate's operations.
fn stands_alone(result: &Tensor) -> bool {
    let results = lock(&RESULTS);
    let mut nodes = result.sorted_nodes().into_iter();
    !nodes.any(|node| results.contains_key(&node.id()))
}

/// Recipients in the order in which candle comes to the arguments of a token: where there are more than three, some are
/// those of tokens that join them. Gradients that meet are added in this order.
fn in_order_of_tokens(recipients: &[Recipient]) -> Vec<&Recipient> {
    let mut groups: Vec<Vec<&Recipient>> = recipients.iter().map(|r| vec![r]).collect();
    while groups.len() > 3 {
        let rest = groups.split_off(3);
        let joined = std::mem::replace(&mut groups, rest).concat();
        groups.push(joined);
    }
    groups.concat()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Shape, Var, bail};

    use super::*;
    use crate::{
        Mlp, MlpConfig, Mode, Network, Rng, SimpleCnn, SimpleCnnConfig, VarStore,
        cnn::{
            EfficientNetLite, EfficientNetLiteConfig, PyramidNet, PyramidNetConfig, ResNet,
            ResNetConfig, WideResNet, WideResNetConfig,
        },
        kernels::graph::composed,
        ops::{CrossEntropy, add, gelu, gelu_tanh, layer_norm, linear, relu, silu},
        transformer::{
            BertClassifier, BertConfig, DistilBertClassifier, DistilBertConfig, Gpt2, Gpt2Config,
            Llama, LlamaConfig, Pooling, RobertaClassifier, RobertaConfig, Vit, VitConfig,
            next_token_loss,
        },
    };

    #[cfg(sala_emulated)]
    use crate::kernels::{Choice, with_choice};

    fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
        CrossEntropy::default().forward(logits, targets)
    }

    fn wave(shape: &[usize], pace: f64) -> Var {
        let count = shape.iter().product::<usize>();
        let values = (0..count).map(|i| (pace * (i as f64 + 1.0)).sin());
        let values = Tensor::from_iter(values, &Device::Cpu).unwrap();
        Var::from_tensor(&values.reshape(shape).unwrap()).unwrap()
    }

    /// A loss of both kinds of operations: one result that four operations use, a parameter that is used
    /// by candle and twice here, an operation with five inputs, and candle's own before and after ours where asked for.
    fn loss(w: &[Var; 4], before: bool, between: bool) -> Tensor {
        let x = wave(&[3, 4], 0.3).as_detached_tensor();
        let first = if before {
            (w[0].tanh().unwrap() * w[3].as_tensor()).unwrap()
        } else {
            w[0].as_tensor().clone()
        };
        let h = linear(&x, &first, Some(&w[1])).unwrap();
        let h = if between { h.tanh().unwrap() } else { h };
        // Five operations that use one result, whose gradients meet there in the order of the tokens.
        let normed = layer_norm(&h, &w[2], Some(&w[1]), 1e-5).unwrap();
        let parts = [gelu(&h), silu(&h), gelu_tanh(&h), relu(&h)].map(Result::unwrap);
        let parts = [&parts[0], &parts[1], &parts[2], &normed, &parts[3]];
        let joined = composed("joined", &parts, |p| {
            let products = ((&p[0] * &p[1])? + (&p[2] * &p[3])?)?;
            products.broadcast_add(&p[4])
        });
        let normed = layer_norm(&joined.unwrap(), &w[2], Some(&w[1]), 1e-5).unwrap();
        let sum = add(&gelu(&h).unwrap(), &add(&normed, &h).unwrap()).unwrap();
        let targets = Tensor::new(&[0u32, 2, 1], &Device::Cpu).unwrap();
        cross_entropy(&linear(&sum, &first, None).unwrap(), &targets).unwrap()
    }

    // Catches gradients that are lost, added in another order or counted twice.
    #[test]
    fn gradients_have_the_bits_of_candles_walk_whoever_goes() {
        let w = [
            wave(&[4, 4], 1.3),
            wave(&[4], 0.7),
            wave(&[4], 0.9),
            wave(&[4, 4], 2.1),
        ];
        for (before, between) in [(false, false), (true, false), (false, true), (true, true)] {
            let loss = loss(&w, before, between);
            assert_eq!(Order::of(&loss).is_none(), between);
            let (wanted, parts) = by_candle(&loss).unwrap();
            assert!(!parts.is_empty());
            // Twice: what one leaves in the graph must not show in the next.
            for _ in 0..2 {
                let got = backward(&loss).unwrap();
                let plain = loss.backward().unwrap();
                for (i, var) in w.iter().enumerate().take(if before { 4 } else { 3 }) {
                    let [got, plain] = [&got, &plain].map(|g| {
                        let values = g.get(var).unwrap().flatten_all().unwrap();
                        values.to_vec1::<f64>().unwrap()
                    });
                    let mut kept = parts.get(&var.id()).cloned().unwrap_or_default();
                    kept.extend(wanted.get(var).cloned());
                    let wanted = sum(kept).unwrap().unwrap().flatten_all().unwrap();
                    assert_eq!(got, wanted.to_vec1::<f64>().unwrap(), "{i}");
                    for (got, plain) in got.iter().zip(&plain) {
                        assert!((got - plain).abs() <= 1e-14 + 1e-12 * plain.abs(), "{i}");
                    }
                }
            }
        }
    }

    /// `gelu(x Wᵀ)`, which keeps nothing and computes itself once more to be differentiated.
    struct Checkpoint(Var);

    impl Checkpoint {
        fn of(&self, x: &Tensor) -> Result<Tensor> {
            gelu(&linear(x, &self.0, None)?)
        }
    }

    impl CustomOp1 for Checkpoint {
        fn name(&self) -> &'static str {
            "checkpoint"
        }

        fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
            let x = Tensor::new(x.as_slice::<f64>()?, &Device::Cpu)?.reshape(layout.shape())?;
            let y = self.of(&x)?;
            let values = y.flatten_all()?.to_vec1::<f64>()?;
            Ok((CpuStorage::F64(values), y.shape().clone()))
        }

        fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
            let x = Var::from_tensor(&x.detach())?;
            let within = (self.of(&x)? * dy)?.sum_all()?.backward()?;
            assert!(
                within.get(&self.0).is_some(),
                "the weight's, which both graphs have"
            );
            Ok(within.get(&x).cloned())
        }
    }

    // Catches gradients of a graph within an operation's backward that go to the loss that is being differentiated.
    #[test]
    fn a_backward_within_a_backward_keeps_its_own_gradients() {
        let w = [wave(&[4, 4], 1.3), wave(&[4, 4], 0.7)];
        let x = wave(&[3, 4], 0.3).as_detached_tensor();
        let h = linear(&x, &w[0], None).unwrap();
        let h = h.apply_op1(Checkpoint(w[1].clone())).unwrap();
        let loss = linear(&h, &w[1], None).unwrap().sqr().unwrap();
        let loss = loss.sum_all().unwrap();
        let (got, wanted) = (backward(&loss).unwrap(), loss.backward().unwrap());
        for var in &w {
            let [got, wanted] = [&got, &wanted].map(|gradients| {
                let gradient = gradients.get(var).unwrap().flatten_all().unwrap();
                gradient.to_vec1::<f64>().unwrap()
            });
            assert_eq!(got, wanted);
        }
    }

    // Catches gradients that a walk which failed has left, and that the next one counts once more.
    #[test]
    fn a_backward_that_failed_leaves_nothing_behind() {
        let w = wave(&[4, 4], 1.3);
        for candle_between in [false, true] {
            for odd_first in [false, true] {
                let fails = Arc::new(AtomicBool::new(false));
                let x = wave(&[3, 4], 0.3).as_detached_tensor();
                let h = linear(&x, &w, None).unwrap();
                let told = Arc::clone(&fails);
                let odd = composed("odd", &[&h], move |h| {
                    if told.load(Ordering::SeqCst) {
                        bail!("told to");
                    }
                    h[0].sqr()
                });
                let (odd, even) = (odd.unwrap(), gelu(&h).unwrap());
                let sum = if odd_first {
                    add(&odd, &even)
                } else {
                    add(&even, &odd)
                };
                let sum = sum.unwrap();
                let sum = if candle_between {
                    sum.tanh().unwrap()
                } else {
                    sum
                };
                let targets = Tensor::new(&[0u32, 2, 1], &Device::Cpu).unwrap();
                let loss = cross_entropy(&sum, &targets).unwrap();
                assert_eq!(Order::of(&loss).is_none(), candle_between);
                let gradient = || {
                    let gradients = backward(&loss)?;
                    gradients.get(&w).unwrap().flatten_all()?.to_vec1::<f64>()
                };
                let wanted = gradient().unwrap();
                fails.store(true, Ordering::SeqCst);
                assert!(gradient().unwrap_err().to_string().contains("told to"));
                fails.store(false, Ordering::SeqCst);
                assert_eq!(gradient().unwrap(), wanted);
            }
        }
    }

    /// Whether a network's loss is differentiated without candle's walk.
    fn goes_alone(
        (dtype, x): (DType, &Tensor),
        build: impl Fn(&VarStore, Rng) -> Box<dyn Network>,
    ) -> bool {
        let store = VarStore::new(0, dtype, &Device::Cpu);
        let network = build(&store, Rng::new(0));
        let logits = network.forward(x, Mode::train(0)).unwrap();
        let loss = if logits.rank() == 3 {
            next_token_loss(&logits, x)
        } else {
            let targets = Tensor::zeros(x.dim(0).unwrap(), DType::U32, &Device::Cpu).unwrap();
            cross_entropy(&logits, &targets)
        };
        Order::of(&loss.unwrap()).is_some()
    }

    // Catches an operation of candle's that comes into a network: every token would cost two launches on a card again.
    #[test]
    fn networks_are_differentiated_without_candles_walk() {
        assert_alone(DType::F32);
        #[cfg(sala_emulated)]
        with_choice(Choice::Emulated, || {
            assert_alone(DType::F32);
            assert_alone(DType::BF16);
        });
    }

    fn assert_alone(dtype: DType) {
        assert_eq!(images_alone(dtype), [true; 6]);
        assert_eq!(tokens_alone(dtype), [true; 7]);
    }

    fn images_alone(dtype: DType) -> [bool; 6] {
        let images = wave(&[2, 3, 8, 8], 0.1).to_dtype(dtype).unwrap();
        let large = wave(&[2, 3, 32, 32], 0.1).to_dtype(dtype).unwrap();
        let resnet = ResNetConfig {
            stem_width: 4,
            widths: [4, 4, 8, 8],
            ..ResNetConfig::resnet18()
        };
        let simple = SimpleCnnConfig {
            image_size: 8,
            in_channels: 3,
            ..SimpleCnnConfig::default()
        };
        let pyramid = PyramidNetConfig {
            depth: 20,
            widening: 6,
            ..PyramidNetConfig::default()
        };
        let lite = EfficientNetLiteConfig {
            width: 0.25,
            ..EfficientNetLiteConfig::lite0()
        };
        let wide = WideResNetConfig {
            depth: 10,
            widening: 1,
            dropout: 0.3,
            ..WideResNetConfig::default()
        };
        let mlp = MlpConfig {
            inputs: 3 * 8 * 8,
            hidden: vec![8, 8],
            dropout: 0.3,
            ..MlpConfig::default()
        };
        [
            goes_alone((dtype, &images), |store, _| {
                Box::new(ResNet::new(&resnet, store.builder()).unwrap())
            }),
            goes_alone((dtype, &images), |store, rng| {
                Box::new(SimpleCnn::new(&simple, store.builder(), rng).unwrap())
            }),
            goes_alone((dtype, &images), |store, _| {
                Box::new(PyramidNet::new(&pyramid, store.builder()).unwrap())
            }),
            goes_alone((dtype, &large), |store, rng| {
                Box::new(EfficientNetLite::new(&lite, store.builder(), rng).unwrap())
            }),
            goes_alone((dtype, &images), |store, rng| {
                Box::new(WideResNet::new(&wide, store.builder(), rng).unwrap())
            }),
            goes_alone((dtype, &images), |store, rng| {
                Box::new(Mlp::new(&mlp, store.builder(), rng).unwrap())
            }),
        ]
    }

    fn tokens_alone(dtype: DType) -> [bool; 7] {
        let images = wave(&[2, 3, 8, 8], 0.1).to_dtype(dtype).unwrap();
        let texts = Tensor::new(&[[1u32, 2, 3], [4, 5, 6]], &Device::Cpu).unwrap();
        let vit = VitConfig {
            image_size: 8,
            patch_size: 4,
            hidden_size: 8,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            intermediate_size: 16,
            ..VitConfig::default()
        };
        let bert = |pooling| BertConfig {
            pooling,
            vocab_size: 8,
            hidden_size: 8,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            intermediate_size: 16,
            ..BertConfig::default()
        };
        let roberta = RobertaConfig {
            bert: bert(Pooling::First),
            ..RobertaConfig::default()
        };
        let distilbert = DistilBertConfig {
            vocab_size: 8,
            dim: 8,
            n_layers: 2,
            n_heads: 2,
            hidden_dim: 16,
            ..DistilBertConfig::default()
        };
        let gpt2 = Gpt2Config {
            vocab_size: 8,
            n_embd: 8,
            n_layer: 2,
            n_head: 2,
            ..Gpt2Config::default()
        };
        let llama = LlamaConfig {
            vocab_size: 8,
            hidden_size: 8,
            intermediate_size: 16,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            ..LlamaConfig::default()
        };
        [
            goes_alone((dtype, &images), |store, rng| {
                Box::new(Vit::new(&vit, store.builder(), rng).unwrap())
            }),
            goes_alone((dtype, &texts), |store, rng| {
                let config = bert(Pooling::First);
                Box::new(BertClassifier::new(&config, store.builder(), rng).unwrap())
            }),
            goes_alone((dtype, &texts), |store, rng| {
                let config = bert(Pooling::Mean);
                Box::new(BertClassifier::new(&config, store.builder(), rng).unwrap())
            }),
            goes_alone((dtype, &texts), |store, rng| {
                Box::new(RobertaClassifier::new(&roberta, store.builder(), rng).unwrap())
            }),
            goes_alone((dtype, &texts), |store, rng| {
                Box::new(DistilBertClassifier::new(&distilbert, store.builder(), rng).unwrap())
            }),
            goes_alone((dtype, &texts), |store, rng| {
                Box::new(Gpt2::new(&gpt2, store.builder(), rng).unwrap())
            }),
            goes_alone((dtype, &texts), |store, rng| {
                Box::new(Llama::new(&llama, store.builder(), rng).unwrap())
            }),
        ]
    }
}
