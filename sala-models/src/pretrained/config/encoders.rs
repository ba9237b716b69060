//! Encoders of texts: BERT, RoBERTa, DistilBERT.

use super::Fields;
use crate::{
    Result,
    transformer::{Activation, BertConfig, DistilBertConfig, Pooling, RobertaConfig},
};

/// The key that says how a classifier makes one vector of a text. It is that of `modernbert`; BERT's own classes in
/// `transformers` do not read it.
pub(super) const POOLING: &str = "classifier_pooling";

pub(super) const fn pooling_name(pooling: Pooling) -> &'static str {
    match pooling {
        Pooling::First => "cls",
        Pooling::Mean => "mean",
    }
}

pub(super) fn pooling(fields: Fields) -> Result<Pooling> {
    match fields.maybe_text(POOLING)? {
        None | Some("cls") => Ok(Pooling::First),
        Some("mean") => Ok(Pooling::Mean),
        Some(other) => Err(fields.refuse(POOLING, "cls or mean", format!("`{other}`"))),
    }
}

pub(super) fn bert(fields: Fields, labels: usize) -> Result<BertConfig> {
    let config = bert_like(fields, labels, BertConfig::default())?;
    config.validate()?;
    Ok(config)
}

/// What BERT and RoBERTa call alike.
fn bert_like(fields: Fields, labels: usize, default: BertConfig) -> Result<BertConfig> {
    fields.only("position_embedding_type", "absolute")?;
    fields.only("is_decoder", false)?;
    fields.only("add_cross_attention", false)?;
    let size = |key, default| fields.size(key, default);
    let number = |key, default| fields.number(key, default);
    Ok(BertConfig {
        vocab_size: size("vocab_size", default.vocab_size)?,
        hidden_size: size("hidden_size", default.hidden_size)?,
        num_hidden_layers: size("num_hidden_layers", default.num_hidden_layers)?,
        num_attention_heads: size("num_attention_heads", default.num_attention_heads)?,
        intermediate_size: size("intermediate_size", default.intermediate_size)?,
        hidden_act: fields.activation("hidden_act", default.hidden_act)?,
        max_position_embeddings: size("max_position_embeddings", default.max_position_embeddings)?,
        type_vocab_size: size("type_vocab_size", default.type_vocab_size)?,
        layer_norm_eps: number("layer_norm_eps", default.layer_norm_eps)?,
        hidden_dropout_prob: number("hidden_dropout_prob", default.hidden_dropout_prob)?,
        attention_probs_dropout_prob: number(
            "attention_probs_dropout_prob",
            default.attention_probs_dropout_prob,
        )?,
        classifier_dropout: fields.maybe_number("classifier_dropout")?,
        initializer_range: number("initializer_range", default.initializer_range)?,
        num_labels: labels,
        pooling: pooling(fields)?,
    })
}

pub(super) fn roberta(fields: Fields, labels: usize) -> Result<RobertaConfig> {
    // Not roberta-base, which is the default here, but what a file without the keys means.
    let default = BertConfig {
        vocab_size: 50_265,
        ..BertConfig::default()
    };
    let padding = fields.size("pad_token_id", 1)?;
    let too_large = |_| fields.refuse("pad_token_id", "below 2³²", padding);
    let config = RobertaConfig {
        bert: bert_like(fields, labels, default)?,
        pad_token_id: u32::try_from(padding).map_err(too_large)?,
    };
    config.validate()?;
    Ok(config)
}

pub(super) fn distilbert(fields: Fields, labels: usize) -> Result<DistilBertConfig> {
    // With it the table of positions would have to stay as it is.
    fields.only("sinusoidal_pos_embds", false)?;
    let default = DistilBertConfig::default();
    let size = |key, default| fields.size(key, default);
    let number = |key, default| fields.number(key, default);
    let config = DistilBertConfig {
        vocab_size: size("vocab_size", default.vocab_size)?,
        dim: size("dim", default.dim)?,
        n_layers: size("n_layers", default.n_layers)?,
        n_heads: size("n_heads", default.n_heads)?,
        hidden_dim: size("hidden_dim", default.hidden_dim)?,
        activation: fields.activation("activation", Activation::Gelu)?,
        max_position_embeddings: size("max_position_embeddings", default.max_position_embeddings)?,
        dropout: number("dropout", default.dropout)?,
        attention_dropout: number("attention_dropout", default.attention_dropout)?,
        seq_classif_dropout: number("seq_classif_dropout", default.seq_classif_dropout)?,
        initializer_range: number("initializer_range", default.initializer_range)?,
        num_labels: labels,
        pooling: pooling(fields)?,
    };
    config.validate()?;
    Ok(config)
}
