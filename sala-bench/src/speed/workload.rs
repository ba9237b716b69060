//! What is timed: networks of fixed sizes with a batch each. `scripts/speed_torch.py` has the same.

use std::fmt;

use anyhow::Result;
use candle_core::{Device, Tensor};
use clap::ValueEnum;
use sala_models::{
    Network, Rng, SimpleCnn, SimpleCnnConfig, VarStore,
    cnn::{ResNet, ResNetConfig, WideResNet, WideResNetConfig},
    transformer::{BertClassifier, BertConfig, Vit, VitConfig},
};

use super::place::Place;

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
    #[value(name = "wrn-28-10")]
    Wrn28,
    #[value(name = "vit-small")]
    VitSmall,
    #[value(name = "bert-base")]
    BertBase,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A network with its batch.
pub(super) struct Built {
    pub(super) network: Box<dyn Network>,
    pub(super) store: VarStore,
    pub(super) x: Tensor,
    pub(super) labels: Tensor,
}

const VOCABULARY: usize = 30_522;

impl Workload {
    /// Those of which two processors make a step in a few seconds at most.
    pub(crate) const SMALL: [Self; 6] = [
        Self::ResNet18B32,
        Self::ResNet18B128,
        Self::Wrn16,
        Self::SmallCnn,
        Self::MiniLm,
        Self::VitTiny,
    ];

    /// What it is called on the command line and in records.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ResNet18B32 => "resnet18-b32",
            Self::ResNet18B128 => "resnet18-b128",
            Self::Wrn16 => "wrn-16-4",
            Self::SmallCnn => "small-cnn",
            Self::MiniLm => "minilm",
            Self::VitTiny => "vit-tiny",
            Self::Wrn28 => "wrn-28-10",
            Self::VitSmall => "vit-small",
            Self::BertBase => "bert-base",
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
            Self::Wrn28 => "WRN-28-10 for 3×32×32, batch 128",
            Self::VitSmall => "ViT-small (12×384), 197 tokens of 3×224×224, batch 32",
            Self::BertBase => "BERT-base (12×768), 32 texts of 128 tokens",
        }
    }

    /// Whether it convolves images, so that PyTorch has a second layout for it.
    pub(super) const fn convolves(self) -> bool {
        matches!(
            self,
            Self::ResNet18B32 | Self::ResNet18B128 | Self::Wrn16 | Self::Wrn28 | Self::SmallCnn
        )
    }

    /// How often forward and step are timed in a round: more often where they are short.
    pub(super) const fn repeats(self, on_cpu: bool) -> usize {
        match self {
            _ if !on_cpu => 10,
            Self::SmallCnn => 5,
            _ => 1,
        }
    }

    const fn batch(self) -> usize {
        match self {
            Self::ResNet18B128 | Self::Wrn28 => 128,
            Self::SmallCnn => 64,
            Self::MiniLm => 16,
            _ => 32,
        }
    }

    const fn classes(self) -> usize {
        match self {
            Self::MiniLm | Self::BertBase => 2,
            _ => 10,
        }
    }

    /// Tokens of a text; nothing for images.
    const fn tokens(self) -> Option<usize> {
        match self {
            Self::MiniLm => Some(64),
            Self::BertBase => Some(128),
            _ => None,
        }
    }

    /// Arithmetic of a step, two operations for each multiplication and addition of a matrix product or a
    /// convolution: once forward, and twice as much backward.
    pub(super) fn flops(self) -> f64 {
        6.0 * self.batch() as f64 * self.products() as f64
    }

    /// Multiplications of the forward pass of an image or a text.
    fn products(self) -> usize {
        let head = |features: usize| features * self.classes();
        match self {
            Self::ResNet18B32 | Self::ResNet18B128 => resnet18_products() + head(512),
            Self::Wrn16 => wide_products(16, 4) + head(256),
            Self::Wrn28 => wide_products(28, 10) + head(640),
            Self::SmallCnn => {
                let convolutions = conv(3, 32, 3, 32) + conv(32, 64, 3, 16) + conv(64, 128, 3, 8);
                convolutions + head(128 * 4 * 4)
            }
            // The pooler is one more matrix.
            Self::MiniLm => encoder(6, 384, 1536, 64) + 384 * 384 + head(384),
            Self::BertBase => encoder(12, 768, 3072, 128) + 768 * 768 + head(768),
            Self::VitTiny => conv(3, 192, 4, 8) + encoder(12, 192, 768, 65) + head(192),
            Self::VitSmall => conv(3, 384, 16, 14) + encoder(12, 384, 1536, 197) + head(384),
        }
    }

    pub(super) fn build(self, place: &Place) -> Result<Built> {
        let rng = Rng::new(0);
        let store = VarStore::new(0, place.dtype(), &place.device);
        let vb = store.builder();
        let network: Box<dyn Network> = match self {
            Self::ResNet18B32 | Self::ResNet18B128 => {
                Box::new(ResNet::new(&ResNetConfig::resnet18(), vb)?)
            }
            Self::Wrn16 => Box::new(WideResNet::new(&wrn(16, 4), vb, rng)?),
            Self::Wrn28 => Box::new(WideResNet::new(&wrn(28, 10), vb, rng)?),
            Self::SmallCnn => Box::new(SimpleCnn::new(&small_cnn(), vb, rng)?),
            Self::MiniLm => Box::new(BertClassifier::new(&mini_lm(), vb, rng)?),
            Self::BertBase => Box::new(BertClassifier::new(&without_dropout(), vb, rng)?),
            Self::VitTiny => Box::new(Vit::new(&vit_tiny(), vb, rng)?),
            Self::VitSmall => Box::new(Vit::new(&vit_small(), vb, rng)?),
        };
        Ok(Built {
            network,
            store,
            x: self.inputs(rng, place)?,
            labels: self.labels(&place.device)?,
        })
    }

    fn inputs(self, rng: Rng, place: &Place) -> Result<Tensor> {
        let stream = rng.stream("speed/inputs");
        let batch = self.batch();
        if let Some(tokens) = self.tokens() {
            let vocabulary = u32::try_from(VOCABULARY)?;
            let ids = stream.words(batch * tokens);
            let ids: Vec<u32> = ids.into_iter().map(|word| word % vocabulary).collect();
            return Ok(Tensor::from_vec(ids, (batch, tokens), &place.device)?);
        }
        let side = if self == Self::VitSmall { 224 } else { 32 };
        let dims = [batch, 3, side, side];
        let count = dims.iter().product::<usize>() as u64;
        let pixels: Vec<f64> = (0..count).map(|i| stream.normal(i)).collect();
        let pixels = Tensor::from_vec(pixels, &dims, &Device::Cpu)?;
        Ok(pixels.to_dtype(place.dtype())?.to_device(&place.device)?)
    }

    fn labels(self, device: &Device) -> Result<Tensor> {
        let classes = u32::try_from(self.classes())?;
        let labels = (0..u32::try_from(self.batch())?).map(|i| i * 7 % classes);
        Ok(Tensor::from_iter(labels, device)?)
    }
}

/// Of a convolution whose result has `side × side` places.
const fn conv(inputs: usize, outputs: usize, kernel: usize, side: usize) -> usize {
    inputs * outputs * kernel * kernel * side * side
}

fn resnet18_products() -> usize {
    let stages = [(64, 64, 32), (64, 128, 16), (128, 256, 8), (256, 512, 4)];
    let stage = |(inputs, width, side): (usize, usize, usize)| {
        let shortcut = if inputs == width {
            0
        } else {
            conv(inputs, width, 1, side)
        };
        conv(inputs, width, 3, side) + 3 * conv(width, width, 3, side) + shortcut
    };
    conv(3, 64, 3, 32) + stages.map(stage).iter().sum::<usize>()
}

fn wide_products(depth: usize, widening: usize) -> usize {
    let blocks = (depth - 4) / 6;
    let stages = [(16, 16 * widening, 32), (16 * widening, 32 * widening, 16)];
    let last = (32 * widening, 64 * widening, 8);
    let stage = |(inputs, width, side): (usize, usize, usize)| {
        let others = (2 * blocks - 1) * conv(width, width, 3, side);
        conv(inputs, width, 3, side) + others + conv(inputs, width, 1, side)
    };
    let stages = stages.into_iter().chain([last]).map(stage);
    conv(3, 16, 3, 32) + stages.sum::<usize>()
}

/// Of the layers of a transformer for `tokens` places: projections, feed-forward parts, and attention.
const fn encoder(layers: usize, size: usize, inner: usize, tokens: usize) -> usize {
    layers * tokens * (4 * size * size + 2 * size * inner + 2 * tokens * size)
}

fn wrn(depth: usize, widening: usize) -> WideResNetConfig {
    WideResNetConfig {
        depth,
        widening,
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
        ..without_dropout()
    }
}

/// BERT-base; masks are drawn elsewhere than PyTorch's, so there are none.
fn without_dropout() -> BertConfig {
    BertConfig {
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

fn vit_small() -> VitConfig {
    VitConfig {
        hidden_size: 384,
        num_attention_heads: 6,
        intermediate_size: 1536,
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

    // Published: 0.56 billion multiplications for ResNet-18 on 32×32, 5.2 for WRN-28-10, 4.6 for ViT-small at
    // 224 pixels, 11.2 for BERT-base with 128 tokens.
    #[test]
    fn arithmetic_is_what_is_published() {
        for (workload, billions) in [
            (Workload::ResNet18B32, 0.56),
            (Workload::Wrn28, 5.2),
            (Workload::VitSmall, 4.6),
            (Workload::BertBase, 11.2),
        ] {
            let got = workload.products() as f64 / 1e9;
            assert!((got / billions - 1.0).abs() < 0.03, "{workload}: {got}");
        }
        let step = Workload::ResNet18B32.flops() / 1e9;
        assert!((step / 107.0 - 1.0).abs() < 0.02, "{step}");
    }
}
