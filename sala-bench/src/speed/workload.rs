//! What is timed: networks of fixed sizes with a batch each. `scripts/speed_torch.py` has the same.

use std::fmt;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use clap::ValueEnum;
use sala_models::{
    Network, Rng, SimpleCnn, SimpleCnnConfig, VarStore,
    cnn::{ResNet, ResNetConfig, WideResNet, WideResNetConfig},
    transformer::{BertClassifier, BertConfig, Vit, VitConfig},
};

/// A network and the size of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    #[value(name = "resnet18-b32")]
    ResNet18B32,
    #[value(name = "resnet18-b128")]
    ResNet18B128,
    #[value(name = "wrn-16-4")]
    Wrn16,
    #[value(name = "small-cnn")]
    SmallCnn,
    #[value(name = "minilm")]
    MiniLm,
    #[value(name = "vit-tiny")]
    VitTiny,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A network with its batch, in f32 on the CPU.
pub(super) struct Built {
    pub(super) network: Box<dyn Network>,
    pub(super) store: VarStore,
    pub(super) x: Tensor,
    pub(super) labels: Tensor,
}

const VOCABULARY: usize = 30_522;
const TOKENS: usize = 64;

impl Workload {
    /// What it is called on the command line and in records.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ResNet18B32 => "resnet18-b32",
            Self::ResNet18B128 => "resnet18-b128",
            Self::Wrn16 => "wrn-16-4",
            Self::SmallCnn => "small-cnn",
            Self::MiniLm => "minilm",
            Self::VitTiny => "vit-tiny",
        }
    }

    /// What it is, in words.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::ResNet18B32 => "ResNet-18 for 3×32×32, batch 32",
            Self::ResNet18B128 => "ResNet-18 for 3×32×32, batch 128",
            Self::Wrn16 => "WRN-16-4 for 3×32×32, batch 32",
            Self::SmallCnn => "three convolutions (32, 64, 128) for 3×32×32, batch 64",
            Self::MiniLm => "BERT of MiniLM's size (6×384), 16 texts of 64 tokens",
            Self::VitTiny => "ViT-tiny (12×192), 65 tokens of 3×32×32, batch 32",
        }
    }

    /// Whether it convolves images, so that PyTorch has a second layout for it.
    pub(super) const fn convolves(self) -> bool {
        !matches!(self, Self::MiniLm | Self::VitTiny)
    }

    /// How often forward and step are timed in a round: more often where they are short.
    pub(super) const fn repeats(self) -> usize {
        match self {
            Self::SmallCnn => 5,
            _ => 1,
        }
    }

    const fn batch(self) -> usize {
        match self {
            Self::ResNet18B128 => 128,
            Self::SmallCnn => 64,
            Self::MiniLm => 16,
            Self::ResNet18B32 | Self::Wrn16 | Self::VitTiny => 32,
        }
    }

    const fn classes(self) -> usize {
        match self {
            Self::MiniLm => 2,
            _ => 10,
        }
    }

    pub(super) fn build(self) -> Result<Built> {
        let rng = Rng::new(0);
        let store = VarStore::new(0, DType::F32, &Device::Cpu);
        let vb = store.builder();
        let network: Box<dyn Network> = match self {
            Self::ResNet18B32 | Self::ResNet18B128 => {
                Box::new(ResNet::new(&ResNetConfig::resnet18(), vb)?)
            }
            Self::Wrn16 => Box::new(WideResNet::new(&wrn(), vb, rng)?),
            Self::SmallCnn => Box::new(SimpleCnn::new(&small_cnn(), vb, rng)?),
            Self::MiniLm => Box::new(BertClassifier::new(&mini_lm(), vb, rng)?),
            Self::VitTiny => Box::new(Vit::new(&vit_tiny(), vb, rng)?),
        };
        Ok(Built {
            network,
            store,
            x: self.inputs(rng)?,
            labels: self.labels()?,
        })
    }

    fn inputs(self, rng: Rng) -> Result<Tensor> {
        let stream = rng.stream("speed/inputs");
        let batch = self.batch();
        if self == Self::MiniLm {
            let vocabulary = u32::try_from(VOCABULARY)?;
            let ids = stream.words(batch * TOKENS);
            let ids: Vec<u32> = ids.into_iter().map(|word| word % vocabulary).collect();
            return Ok(Tensor::from_vec(ids, (batch, TOKENS), &Device::Cpu)?);
        }
        let dims = [batch, 3, 32, 32];
        let count = dims.iter().product::<usize>() as u64;
        let pixels: Vec<f64> = (0..count).map(|i| stream.normal(i)).collect();
        let pixels = Tensor::from_vec(pixels, &dims, &Device::Cpu)?;
        Ok(pixels.to_dtype(DType::F32)?)
    }

    fn labels(self) -> Result<Tensor> {
        let classes = u32::try_from(self.classes())?;
        let labels = (0..u32::try_from(self.batch())?).map(|i| i * 7 % classes);
        Ok(Tensor::from_iter(labels, &Device::Cpu)?)
    }
}

fn wrn() -> WideResNetConfig {
    WideResNetConfig {
        depth: 16,
        widening: 4,
        ..WideResNetConfig::default()
    }
}

fn small_cnn() -> SimpleCnnConfig {
    SimpleCnnConfig {
        in_channels: 3,
        image_size: 32,
        widths: vec![32, 64, 128],
        ..SimpleCnnConfig::default()
    }
}

fn mini_lm() -> BertConfig {
    BertConfig {
        vocab_size: VOCABULARY,
        hidden_size: 384,
        num_hidden_layers: 6,
        intermediate_size: 1536,
        hidden_dropout_prob: 0.0,
        attention_probs_dropout_prob: 0.0,
        ..BertConfig::default()
    }
}

fn vit_tiny() -> VitConfig {
    VitConfig {
        image_size: 32,
        patch_size: 4,
        hidden_size: 192,
        num_attention_heads: 3,
        intermediate_size: 768,
        num_labels: 10,
        ..VitConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for workload in Workload::value_variants() {
            let value = workload.to_possible_value().unwrap();
            assert_eq!(value.get_name(), workload.name());
        }
    }
}
