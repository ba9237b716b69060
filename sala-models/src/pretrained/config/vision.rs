//! Networks on images: the vision transformer and the residual networks.

use super::Fields;
use crate::{
    Result,
    cnn::{ResNetBlock, ResNetConfig, ResNetStem},
    transformer::VitConfig,
};

pub(super) fn vit(fields: Fields, labels: usize) -> Result<VitConfig> {
    let default = VitConfig::default();
    let size = |key, default| fields.size(key, default);
    let number = |key, default| fields.number(key, default);
    let config = VitConfig {
        image_size: size("image_size", default.image_size)?,
        patch_size: size("patch_size", default.patch_size)?,
        num_channels: size("num_channels", default.num_channels)?,
        hidden_size: size("hidden_size", default.hidden_size)?,
        num_hidden_layers: size("num_hidden_layers", default.num_hidden_layers)?,
        num_attention_heads: size("num_attention_heads", default.num_attention_heads)?,
        intermediate_size: size("intermediate_size", default.intermediate_size)?,
        hidden_act: fields.activation("hidden_act", default.hidden_act)?,
        qkv_bias: fields.flag("qkv_bias", default.qkv_bias)?,
        layer_norm_eps: number("layer_norm_eps", default.layer_norm_eps)?,
        hidden_dropout_prob: number("hidden_dropout_prob", default.hidden_dropout_prob)?,
        attention_probs_dropout_prob: number(
            "attention_probs_dropout_prob",
            default.attention_probs_dropout_prob,
        )?,
        initializer_range: number("initializer_range", default.initializer_range)?,
        num_labels: labels,
    };
    config.validate()?;
    Ok(config)
}

pub(super) fn resnet(fields: Fields, labels: usize) -> Result<ResNetConfig> {
    // The norm and the relu behind it are one operation.
    fields.only("hidden_act", "relu")?;
    let block = match fields.text("layer_type", "bottleneck")? {
        "basic" => ResNetBlock::Basic,
        "bottleneck" => ResNetBlock::Bottleneck,
        other => {
            let wanted = "basic or bottleneck";
            return Err(fields.refuse("layer_type", wanted, format!("`{other}`")));
        }
    };
    let outputs = fields.sizes("hidden_sizes", [256, 512, 1024, 2048])?;
    let expansion = block.expansion();
    if outputs.iter().any(|size| !size.is_multiple_of(expansion)) {
        let wanted = format!("multiples of {expansion}");
        return Err(fields.refuse("hidden_sizes", wanted, format!("{outputs:?}")));
    }
    let config = ResNetConfig {
        in_channels: fields.size("num_channels", 3)?,
        classes: labels,
        stem: ResNetStem::ImageNet,
        block,
        depths: fields.sizes("depths", [3, 4, 6, 3])?,
        stem_width: fields.size("embedding_size", 64)?,
        widths: outputs.map(|size| size / expansion),
        downsample_in_first_stage: fields.flag("downsample_in_first_stage", false)?,
        downsample_in_bottleneck: fields.flag("downsample_in_bottleneck", false)?,
    };
    config.validate()?;
    Ok(config)
}
