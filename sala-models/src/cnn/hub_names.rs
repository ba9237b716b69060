//! What Hugging Face calls a [`ResNet`](super::ResNet)'s tensors.
//!
//! | here | there |
//! |---|---|
//! | `conv1`, `bn1` | `resnet.embedder.embedder.convolution`, `.normalization` |
//! | `layer{i}.{j}.conv{k}`, `bn{k}` | `resnet.encoder.stages.{i−1}.layers.{j}.layer.{k−1}.convolution`, `.normalization` |
//! | `layer{i}.{j}.shortcut.0`, `.1` | `resnet.encoder.stages.{i−1}.layers.{j}.shortcut.convolution`, `.normalization` |
//! | `linear` | `classifier.1` |
//!
//! Their counts of batches (`num_batches_tracked`) have no counterpart here.

/// The name on the hub of the tensor that a [`ResNet`](super::ResNet) calls `name`; nothing for a name that it
/// does not have.
///
/// ```
/// use sala_models::cnn::resnet_hub_name;
///
/// let name = resnet_hub_name("layer2.0.bn1.bias");
/// assert_eq!(name.as_deref(), Some("resnet.encoder.stages.1.layers.0.layer.0.normalization.bias"));
/// assert_eq!(resnet_hub_name("fc.bias"), None);
/// ```
pub fn resnet_hub_name(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    match *parts.as_slice() {
        ["linear", tensor] => Some(format!("classifier.1.{tensor}")),
        ["conv1", tensor] => Some(format!("resnet.embedder.embedder.convolution.{tensor}")),
        ["bn1", tensor] => Some(format!("resnet.embedder.embedder.normalization.{tensor}")),
        [stage, block, "shortcut", part, tensor] => {
            let kind = match part {
                "0" => "convolution",
                "1" => "normalization",
                _ => return None,
            };
            let stage = before(stage, "layer")?;
            Some(format!(
                "resnet.encoder.stages.{stage}.layers.{block}.shortcut.{kind}.{tensor}"
            ))
        }
        [stage, block, layer, tensor] => {
            let (layer, kind) = match before(layer, "conv") {
                Some(number) => (number, "convolution"),
                None => (before(layer, "bn")?, "normalization"),
            };
            let stage = before(stage, "layer")?;
            Some(format!(
                "resnet.encoder.stages.{stage}.layers.{block}.layer.{layer}.{kind}.{tensor}"
            ))
        }
        _ => None,
    }
}

/// The number behind `kind`, counted from 0 instead of 1.
fn before(part: &str, kind: &str) -> Option<usize> {
    let number: usize = part.strip_prefix(kind)?.parse().ok()?;
    number.checked_sub(1)
}
