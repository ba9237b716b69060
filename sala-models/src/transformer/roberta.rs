//! RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT's layers; positions count from behind the padding
//! token's id, and another head classifies.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::{
    bert::{Bert, BertConfig, Pooling, Positions, tanh},
    parts::{dropout, linear},
    tokens::{TokenNetwork, Tokens},
};
use crate::{
    Error, Mode, Network, Rng,
    ops::{Dropout, Linear},
};

/// The sizes and settings of a [`RobertaClassifier`].
///
/// The default is `roberta-base`.
///
/// ```
/// use sala_models::transformer::RobertaConfig;
///
/// assert_eq!(RobertaConfig::default().bert.max_position_embeddings, 514);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct RobertaConfig {
    /// What it has in common with BERT.
    pub bert: BertConfig,
    /// The id of padding. Texts have at most `max_position_embeddings − pad_token_id − 1` tokens.
    pub pad_token_id: u32,
}

impl Default for RobertaConfig {
    fn default() -> Self {
        Self {
            bert: BertConfig {
                vocab_size: 50_265,
                max_position_embeddings: 514,
                type_vocab_size: 1,
                layer_norm_eps: 1e-5,
                ..BertConfig::default()
            },
            pad_token_id: 1,
        }
    }
}

impl RobertaConfig {
    /// Checks BERT's fields, and that positions are left behind the padding token's.
    ///
    /// # Errors
    /// [`Error::Config`], naming the field.
    ///
    /// ```
    /// use sala_models::transformer::RobertaConfig;
    ///
    /// let bad = RobertaConfig { pad_token_id: 600, ..Default::default() };
    /// assert!(bad.validate().unwrap_err().to_string().contains("pad_token_id"));
    /// ```
    pub fn validate(&self) -> crate::Result<()> {
        self.bert.validate()?;
        let positions = self.bert.max_position_embeddings;
        if self.pad_token_id as usize + 1 >= positions {
            return Err(Error::Config {
                config: "RobertaConfig",
                field: "pad_token_id",
                wanted: "less than max_position_embeddings - 1",
                got: format!("{} for {positions}", self.pad_token_id),
            });
        }
        Ok(())
    }
}

/// RoBERTa for classifying texts: from tokens `(B, T)` to `(B, num_labels)`.
///
/// Parameters are [`Bert`]'s under `roberta`, and `classifier.dense` and `classifier.out_proj`.
#[derive(Debug, Clone)]
pub struct RobertaClassifier {
    encoder: Bert,
    pooling: Pooling,
    dropout: [Dropout; 2],
    dense: Linear,
    out: Linear,
}

impl RobertaClassifier {
    /// A classifier with parameters under the builder's prefix. `rng` seeds the dropout masks only.
    ///
    /// # Errors
    /// When the configuration is not valid, or the store holds one of the names with another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use sala_models::{Mode, Network, Rng, VarStore};
    /// use sala_models::transformer::{BertConfig, RobertaClassifier, RobertaConfig};
    ///
    /// let mut config = RobertaConfig::default();
    /// config.bert = BertConfig { hidden_size: 24, num_hidden_layers: 1, vocab_size: 30, ..config.bert };
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let network = RobertaClassifier::new(&config, store.builder(), Rng::new(0))?;
    /// let ids = Tensor::new(&[[0u32, 7, 2]], &Device::Cpu)?;
    /// assert_eq!(network.forward(&ids, Mode::eval())?.dims(), [1, 2]);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    #[expect(
        clippy::needless_pass_by_value,
        reason = "candle's layers take the builder by value"
    )]
    pub fn new(config: &RobertaConfig, vb: VarBuilder, rng: Rng) -> crate::Result<Self> {
        config.validate()?;
        let bert = &config.bert;
        let (size, deviation, p) = (
            bert.hidden_size,
            bert.initializer_range,
            bert.head_dropout(),
        );
        let encoder = encoder(config, vb.pp("roberta"), rng)?;
        let vb = vb.pp("classifier");
        let sizes = (size, bert.num_labels);
        Ok(Self {
            encoder,
            pooling: bert.pooling,
            dropout: [
                dropout(p, "input", &vb, rng)?,
                dropout(p, "hidden", &vb, rng)?,
            ],
            dense: linear((size, size), true, deviation, vb.pp("dense"))?,
            out: linear(sizes, true, deviation, vb.pp("out_proj"))?,
        })
    }
}

/// The network below the head, with parameters under the builder's prefix.
pub(super) fn encoder(config: &RobertaConfig, vb: VarBuilder, rng: Rng) -> crate::Result<Bert> {
    config.validate()?;
    let rows = Positions::AfterPadding(config.pad_token_id);
    Bert::with_positions(&config.bert, rows, vb, rng)
}

impl TokenNetwork for RobertaClassifier {
    fn forward_tokens(&self, tokens: &Tokens, mode: Mode) -> Result<Tensor> {
        let hidden = self.encoder.forward(tokens, mode)?;
        let pooled = self.pooling.of(&hidden, tokens)?;
        let x = self.dropout[0].forward(&pooled, mode)?;
        let x = tanh(&self.dense.forward(&x)?)?;
        self.out.forward(&self.dropout[1].forward(&x, mode)?)
    }
}

impl Network for RobertaClassifier {
    /// `x` are token ids `(B, T)`. Padding at their end keeps its positions but is seen: give a mask by
    /// [`TokenNetwork::forward_tokens`] to hide it.
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.forward_tokens(&Tokens::new(x.clone()), mode)
    }
}
