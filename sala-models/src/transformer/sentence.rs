//! Sentence embeddings (Reimers and Gurevych 2019, arXiv:1908.10084): the mean of the features of a text's
//! tokens.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::{
    bert::{Bert, BertConfig},
    distilbert::{DistilBert, DistilBertConfig},
    roberta::{self, RobertaConfig},
    tokens::{TokenNetwork, Tokens},
};
use crate::{Mode, Rng};

/// An encoder of texts and the mean over what it makes of the tokens: from tokens `(B, T)` to `(B, H)`.
///
/// Parameters are the encoder's under the builder's prefix. Published sentence encoders often scale the
/// mean to length 1 afterwards; that is left to the caller.
#[derive(Debug, Clone)]
pub struct SentenceEncoder {
    encoder: Encoder,
}

#[derive(Debug, Clone)]
enum Encoder {
    Bert(Bert),
    DistilBert(DistilBert),
}

impl SentenceEncoder {
    /// BERT, as in all-MiniLM-L6-v2. `rng` seeds the dropout masks only.
    ///
    /// # Errors
    /// When the configuration is not valid, or the store holds one of the names with another shape.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use sala_models::{Mode, Rng, VarStore};
    /// use sala_models::transformer::{BertConfig, SentenceEncoder, TokenNetwork, Tokens};
    ///
    /// let config = BertConfig { hidden_size: 24, num_hidden_layers: 1, vocab_size: 30, ..Default::default() };
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// let network = SentenceEncoder::bert(&config, store.builder().pp("bert"), Rng::new(0))?;
    /// let tokens = Tokens::new(Tensor::new(&[[2u32, 7, 5]], &Device::Cpu)?);
    /// assert_eq!(network.forward_tokens(&tokens, Mode::eval())?.dims(), [1, 24]);
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn bert(config: &BertConfig, vb: VarBuilder, rng: Rng) -> crate::Result<Self> {
        let encoder = Encoder::Bert(Bert::new(config, vb, rng)?);
        Ok(Self { encoder })
    }

    /// RoBERTa, as in all-distilroberta-v1; otherwise as [`bert`](Self::bert).
    ///
    /// # Errors
    /// As for [`bert`](Self::bert).
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{Rng, VarStore, transformer::{RobertaConfig, SentenceEncoder}};
    ///
    /// let mut config = RobertaConfig::default();
    /// (config.bert.vocab_size, config.bert.hidden_size, config.bert.num_hidden_layers) = (30, 24, 1);
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// SentenceEncoder::roberta(&config, store.builder().pp("roberta"), Rng::new(0))?;
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn roberta(config: &RobertaConfig, vb: VarBuilder, rng: Rng) -> crate::Result<Self> {
        let encoder = Encoder::Bert(roberta::encoder(config, vb, rng)?);
        Ok(Self { encoder })
    }

    /// DistilBERT; otherwise as [`bert`](Self::bert).
    ///
    /// # Errors
    /// As for [`bert`](Self::bert).
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use sala_models::{Rng, VarStore, transformer::{DistilBertConfig, SentenceEncoder}};
    ///
    /// let config = DistilBertConfig { dim: 24, n_layers: 1, vocab_size: 30, ..Default::default() };
    /// let store = VarStore::new(0, DType::F32, &Device::Cpu);
    /// SentenceEncoder::distilbert(&config, store.builder().pp("distilbert"), Rng::new(0))?;
    /// # Ok::<(), sala_models::Error>(())
    /// ```
    pub fn distilbert(config: &DistilBertConfig, vb: VarBuilder, rng: Rng) -> crate::Result<Self> {
        let encoder = Encoder::DistilBert(DistilBert::new(config, vb, rng)?);
        Ok(Self { encoder })
    }
}

impl TokenNetwork for SentenceEncoder {
    /// The embeddings, `(B, H)`.
    fn forward_tokens(&self, tokens: &Tokens, mode: Mode) -> Result<Tensor> {
        let hidden = match &self.encoder {
            Encoder::Bert(bert) => bert.forward(tokens, mode)?,
            Encoder::DistilBert(distilbert) => distilbert.forward(tokens, mode)?,
        };
        tokens.mean(&hidden)
    }
}
