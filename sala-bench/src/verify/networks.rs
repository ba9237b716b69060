//! Small networks in which every layer occurs: they are compared as a whole, and trained twice.

use candle_core::{Device, Result, Tensor};
use sala_models::{
    Mode, Rng, SimpleCnn, SimpleCnnConfig, VarStore,
    cnn::{ResNet, ResNetConfig},
    transformer::{BertClassifier, BertConfig, Llama, LlamaConfig},
};

use super::{
    operations::{NETWORK, Operation},
    place::{Place, Subject},
};

/// The seed of initial weights and masks.
const SEED: u64 = 7;
const BATCH: usize = 8;
const TOKENS: usize = 12;
const WORDS: u8 = 50;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    /// Convolutions, batch norm, pooling, dropout.
    Cnn,
    /// Strides, shortcuts, sums.
    ResNet,
    /// Embeddings, attention, layer norm, GELU, dropout.
    Bert,
    /// Rotary embeddings, RMS norm, gates, heads in groups.
    Llama,
}

pub(super) const fn all() -> [Network; 4] {
    [Network::Cnn, Network::ResNet, Network::Bert, Network::Llama]
}

/// A network at a place, with a batch.
pub(super) struct Built {
    pub(super) store: VarStore,
    network: Box<dyn sala_models::Network>,
    x: Tensor,
}

impl Built {
    /// One row of outputs for each label.
    pub(super) fn logits(&self, step: u64) -> Result<Tensor> {
        let y = self.network.forward(&self.x, Mode::train(step))?;
        y.reshape((BATCH, ()))
    }
}

/// Labels of the batch, below the number of classes of every network.
pub(super) fn labels(device: &Device) -> Result<Tensor> {
    Tensor::from_iter((0_u32..).take(BATCH).map(|i| i * 7 % 10), device)
}

impl Network {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Cnn => "small CNN",
            Self::ResNet => "small ResNet",
            Self::Bert => "small BERT",
            Self::Llama => "small Llama",
        }
    }

    pub(super) fn build(self, place: &Place) -> sala_models::Result<Built> {
        let store = VarStore::new(SEED, place.dtype, &place.device);
        let (vb, rng) = (store.builder(), Rng::new(SEED));
        let network: Box<dyn sala_models::Network> = match self {
            Self::Cnn => Box::new(SimpleCnn::new(&cnn(), vb, rng)?),
            Self::ResNet => Box::new(ResNet::new(&resnet(), vb)?),
            Self::Bert => Box::new(BertClassifier::new(&bert(), vb, rng)?),
            Self::Llama => Box::new(Llama::new(&llama(), vb, rng)?),
        };
        let x = match self {
            Self::Cnn | Self::ResNet => place.normal("images", &[BATCH, 3, 8, 8])?,
            Self::Bert | Self::Llama => {
                let ids = (0_u32..)
                    .take(BATCH * TOKENS)
                    .map(|i| i * 37 % u32::from(WORDS));
                Tensor::from_iter(ids, &place.device)?.reshape((BATCH, TOKENS))?
            }
        };
        Ok(Built { store, network, x })
    }

    /// A training pass, differentiated by all parameters.
    pub(super) fn operation(self) -> Operation {
        let make = move |place: &Place, _| {
            let built = self.build(place)?;
            for (_, var) in built.store.all() {
                place.round(&var)?;
            }
            Ok(Subject {
                vars: built.store.trainable(),
                buffers: built.store.buffers(),
                forward: Box::new(move || built.logits(3)),
            })
        };
        Operation {
            name: self.name(),
            of: NETWORK,
            make: Box::new(make),
        }
    }
}

fn cnn() -> SimpleCnnConfig {
    SimpleCnnConfig {
        in_channels: 3,
        image_size: 8,
        widths: vec![8, 12],
        dropout: 0.2,
        ..SimpleCnnConfig::default()
    }
}

fn resnet() -> ResNetConfig {
    ResNetConfig {
        depths: [1; 4],
        stem_width: 8,
        widths: [8, 12, 16, 20],
        ..ResNetConfig::resnet18()
    }
}

fn bert() -> BertConfig {
    BertConfig {
        vocab_size: usize::from(WORDS),
        hidden_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 40,
        max_position_embeddings: TOKENS,
        num_labels: 10,
        ..BertConfig::default()
    }
}

fn llama() -> LlamaConfig {
    LlamaConfig {
        vocab_size: usize::from(WORDS),
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: TOKENS,
        ..LlamaConfig::default()
    }
}
