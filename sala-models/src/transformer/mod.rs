//! Transformers, with the names and the arithmetic of Hugging Face's `transformers`, so that published
//! weights fit; unlike candle's own, every parameter of them trains.
//!
//! | network | what it is for | its layers |
//! |---|---|---|
//! | [`BertClassifier`] | texts; also MiniLM and other models of BERT's shape | norm after each part |
//! | [`RobertaClassifier`] | texts | BERT's |
//! | [`DistilBertClassifier`] | texts | BERT's, under other names |
//! | [`SentenceEncoder`] | texts, to one vector each | those of one of the above |
//! | [`Vit`] | images | norm before each part |
//! | [`Gpt2`] | the next token | norm before each part, causal |
//! | [`Llama`] | the next token | root-mean-square norms, rotary positions, gated, causal |
//!
//! Texts are [`Tokens`]: ids, which of them are padding, and segments. [`TokenNetwork`] is what all
//! networks on tokens can do; those that need no more than ids implement [`Network`](crate::Network) too.

pub mod activation;
pub mod bert;
pub mod distilbert;
pub mod gpt2;
pub mod llama;
pub mod roberta;
pub mod rope_scaling;
pub mod sentence;
pub mod tokens;
pub mod vit;

mod encoder;
mod heads;
mod parts;

pub use activation::Activation;
pub use bert::{Bert, BertClassifier, BertConfig, Pooling};
pub use distilbert::{DistilBertClassifier, DistilBertConfig};
pub use gpt2::{Gpt2, Gpt2Config};
pub use llama::{Llama, LlamaConfig};
pub use roberta::{RobertaClassifier, RobertaConfig};
pub use rope_scaling::RopeScaling;
pub use sentence::SentenceEncoder;
pub use tokens::{TokenNetwork, Tokens, next_token_loss};
pub use vit::{Vit, VitConfig};
