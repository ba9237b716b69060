//! Language models: GPT-2 and Llama.

use super::{Fields, rope};
use crate::{
    Result,
    transformer::{Gpt2Config, LlamaConfig},
};

pub(super) fn gpt2(fields: Fields) -> Result<Gpt2Config> {
    fields.only("scale_attn_weights", true)?;
    fields.only("scale_attn_by_inverse_layer_idx", false)?;
    fields.only("reorder_and_upcast_attn", false)?;
    fields.only("add_cross_attention", false)?;
    fields.only("tie_word_embeddings", true)?;
    let default = Gpt2Config::default();
    let size = |key, default| fields.size(key, default);
    let number = |key, default| fields.number(key, default);
    let config = Gpt2Config {
        vocab_size: size("vocab_size", default.vocab_size)?,
        n_positions: size("n_positions", default.n_positions)?,
        n_embd: size("n_embd", default.n_embd)?,
        n_layer: size("n_layer", default.n_layer)?,
        n_head: size("n_head", default.n_head)?,
        n_inner: fields.maybe_size("n_inner")?,
        activation_function: fields
            .activation("activation_function", default.activation_function)?,
        layer_norm_epsilon: number("layer_norm_epsilon", default.layer_norm_epsilon)?,
        embd_pdrop: number("embd_pdrop", default.embd_pdrop)?,
        resid_pdrop: number("resid_pdrop", default.resid_pdrop)?,
        attn_pdrop: number("attn_pdrop", default.attn_pdrop)?,
        initializer_range: number("initializer_range", default.initializer_range)?,
    };
    config.validate()?;
    Ok(config)
}

pub(super) fn llama(fields: Fields) -> Result<LlamaConfig> {
    let default = LlamaConfig::default();
    let size = |key, default| fields.size(key, default);
    let heads = size("num_attention_heads", default.num_attention_heads)?;
    // Not that of Llama 2, which is the default here, but what a file without the key means.
    let positions = size("max_position_embeddings", 2048)?;
    let (rope_theta, rope_scaling) = rope::read(fields, default.rope_theta, positions)?;
    let config = LlamaConfig {
        vocab_size: size("vocab_size", default.vocab_size)?,
        hidden_size: size("hidden_size", default.hidden_size)?,
        intermediate_size: size("intermediate_size", default.intermediate_size)?,
        num_hidden_layers: size("num_hidden_layers", default.num_hidden_layers)?,
        num_attention_heads: heads,
        num_key_value_heads: fields.maybe_size("num_key_value_heads")?.unwrap_or(heads),
        head_dim: fields.maybe_size("head_dim")?,
        hidden_act: fields.activation("hidden_act", default.hidden_act)?,
        max_position_embeddings: positions,
        rms_norm_eps: fields.number("rms_norm_eps", 1e-6)?,
        rope_theta,
        rope_scaling,
        attention_bias: fields.flag("attention_bias", default.attention_bias)?,
        attention_dropout: fields.number("attention_dropout", default.attention_dropout)?,
        mlp_bias: fields.flag("mlp_bias", default.mlp_bias)?,
        tie_word_embeddings: fields.flag("tie_word_embeddings", default.tie_word_embeddings)?,
        initializer_range: fields.number("initializer_range", default.initializer_range)?,
    };
    config.validate()?;
    Ok(config)
}
