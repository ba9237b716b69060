//! The network of an experiment.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Network {
    /// Fully connected layers of these widths.
    Mlp { hidden: Vec<usize>, dropout: f64 },
    /// Convolutions of these widths, each with batch norm and a halving of the image.
    Cnn { widths: Vec<usize>, dropout: f64 },
    /// A residual network of four stages.
    Resnet {
        /// 10, 18, 34, 50 or 101.
        depth: usize,
        /// Channels of the first stage, 64 in the usual ones; each further stage has twice as many.
        #[serde(default = "sixty_four")]
        width: usize,
        #[serde(default)]
        stem: Stem,
    },
    /// A wide residual network.
    WideResnet {
        depth: usize,
        widening: usize,
        #[serde(default)]
        dropout: f64,
    },
    /// A pyramidal residual network.
    Pyramidnet {
        depth: usize,
        widening: usize,
        #[serde(default)]
        bottleneck: bool,
    },
    /// EfficientNet-Lite of a size from 0 to 4, with the dropout that belongs to it.
    EfficientnetLite {
        size: u8,
        /// How probable it is that the last block is left out; earlier ones less.
        #[serde(default)]
        drop_path: f64,
    },
}

/// How a residual network begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stem {
    /// For images of about 32 pixels.
    #[default]
    Cifar,
    /// For images of about 224 pixels.
    Imagenet,
}

const fn sixty_four() -> usize {
    64
}

impl FromStr for Network {
    type Err = String;

    /// By the names that the field gives them: `resnet18`, `wrn-28-10`, `pyramidnet-110-270`, `efficientnet-lite0`,
    /// `mlp-512-256`, `cnn-32-64`.
    fn from_str(name: &str) -> Result<Self, String> {
        let by_name = || {
            let (kind, rest) = match name.split_once('-') {
                Some((_, "")) => return None,
                parts => parts.unwrap_or((name, "")),
            };
            let numbers = rest.split('-').map(|n| n.parse().ok());
            let numbers = numbers.collect::<Option<Vec<usize>>>();
            match (kind, numbers.as_deref()) {
                ("mlp", Some([_, ..])) => Some(Self::Mlp {
                    hidden: numbers?,
                    dropout: 0.0,
                }),
                ("cnn", Some([_, ..])) => Some(Self::Cnn {
                    widths: numbers?,
                    dropout: 0.0,
                }),
                ("wrn", Some(&[depth, widening])) => Some(Self::WideResnet {
                    depth,
                    widening,
                    dropout: 0.0,
                }),
                ("pyramidnet", Some(&[depth, widening])) => Some(Self::Pyramidnet {
                    depth,
                    widening,
                    bottleneck: false,
                }),
                ("efficientnet", None) => Some(Self::EfficientnetLite {
                    size: rest.strip_prefix("lite")?.parse().ok()?,
                    drop_path: 0.0,
                }),
                (kind, _) => {
                    let depth = kind.strip_prefix("resnet")?.parse().ok()?;
                    let width = match (rest, numbers.as_deref()) {
                        ("", _) => 64,
                        (_, Some(&[width])) => width,
                        _ => return None,
                    };
                    Some(Self::Resnet {
                        depth,
                        width,
                        stem: Stem::Cifar,
                    })
                }
            }
        };
        by_name().ok_or_else(|| {
            format!(
                "there is no network `{name}`; there are names such as resnet18, resnet18-16 (of width 16), \
                 wrn-28-10, pyramidnet-110-270, efficientnet-lite0, mlp-512-256 and cnn-32-64"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_the_names_of_the_field() {
        let same = |name: &str, toml: &str| {
            let named: Network = name.parse().unwrap();
            assert_eq!(named, toml::from_str(toml).unwrap(), "{name}");
        };
        same("resnet18", "kind = \"resnet\"\ndepth = 18");
        same(
            "resnet101",
            "kind = \"resnet\"\ndepth = 101\nwidth = 64\nstem = \"cifar\"",
        );
        same("resnet10-16", "kind = \"resnet\"\ndepth = 10\nwidth = 16");
        same(
            "wrn-28-10",
            "kind = \"wide-resnet\"\ndepth = 28\nwidening = 10",
        );
        same(
            "pyramidnet-110-270",
            "kind = \"pyramidnet\"\ndepth = 110\nwidening = 270",
        );
        same(
            "efficientnet-lite3",
            "kind = \"efficientnet-lite\"\nsize = 3",
        );
        same(
            "mlp-512-256",
            "kind = \"mlp\"\nhidden = [512, 256]\ndropout = 0.0",
        );
        same("cnn-32", "kind = \"cnn\"\nwidths = [32]\ndropout = 0.0");
        for name in [
            "resnet",
            "resnet18-",
            "wrn-28",
            "mlp",
            "mlp-x",
            "vgg16",
            "efficientnet-b0",
            "resnet-18",
            "",
        ] {
            let message = name.parse::<Network>().unwrap_err();
            assert!(message.contains("resnet18"), "{name}");
        }
    }
}
