//! The augmentations of an experiment.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::data::augment::Border;

/// A random change of the training images; `data/augment` says what each does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Augmentation {
    Crop {
        /// Pixels that the image can move either way.
        #[serde(default = "four")]
        padding: usize,
        #[serde(default)]
        border: Border,
    },
    Flip {
        #[serde(default = "half")]
        probability: f64,
    },
    /// The policy for CIFAR.
    Autoaugment {},
    Randaugment {
        /// How many are applied to an image.
        #[serde(default = "two")]
        operations: usize,
        /// Of 30.
        #[serde(default = "nine")]
        magnitude: u32,
    },
    Cutout {
        /// Side of the square in pixels.
        #[serde(default = "sixteen")]
        size: usize,
    },
    RandomErasing {
        #[serde(default = "half")]
        probability: f64,
        /// Least and greatest share of the image.
        #[serde(default = "erased_area")]
        area: [f64; 2],
        /// Least and greatest height over width.
        #[serde(default = "erased_aspect")]
        aspect: [f64; 2],
    },
    Mixup {
        #[serde(default = "one")]
        alpha: f64,
    },
    Cutmix {
        #[serde(default = "one")]
        alpha: f64,
        /// Of a batch to be mixed.
        #[serde(default = "half")]
        probability: f64,
    },
}

impl Augmentation {
    /// All of them with their usual numbers.
    pub(crate) const NAMES: [&'static str; 8] = [
        "crop",
        "flip",
        "autoaugment",
        "randaugment",
        "cutout",
        "random-erasing",
        "mixup",
        "cutmix",
    ];

    /// What it is called in experiments and on the command line.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Crop { .. } => "crop",
            Self::Flip { .. } => "flip",
            Self::Autoaugment {} => "autoaugment",
            Self::Randaugment { .. } => "randaugment",
            Self::Cutout { .. } => "cutout",
            Self::RandomErasing { .. } => "random-erasing",
            Self::Mixup { .. } => "mixup",
            Self::Cutmix { .. } => "cutmix",
        }
    }
}

impl FromStr for Augmentation {
    type Err = String;

    /// By its name, with its usual numbers.
    fn from_str(name: &str) -> Result<Self, String> {
        let table = toml::Table::from_iter([("kind".to_owned(), name.into())]);
        let known = Self::NAMES.join(", ");
        let error = |_| format!("there is no augmentation `{name}`; there are {known}");
        table.try_into().map_err(error)
    }
}

const fn one() -> f64 {
    1.0
}

const fn half() -> f64 {
    0.5
}

const fn two() -> usize {
    2
}

const fn four() -> usize {
    4
}

const fn nine() -> u32 {
    9
}

const fn sixteen() -> usize {
    16
}

const fn erased_area() -> [f64; 2] {
    [0.02, 0.33]
}

const fn erased_aspect() -> [f64; 2] {
    [0.3, 3.3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_experiments() {
        for name in Augmentation::NAMES {
            let augmentation: Augmentation = name.parse().unwrap();
            assert_eq!(augmentation.name(), name);
            let text = toml::to_string(&augmentation).unwrap();
            assert!(text.contains(&format!("kind = \"{name}\"")), "{text}");
            assert_eq!(toml::from_str::<Augmentation>(&text).unwrap(), augmentation);
        }
        let message = "cutmx".parse::<Augmentation>().unwrap_err();
        assert!(
            message.contains("`cutmx`") && message.contains("cutmix"),
            "{message}"
        );
    }

    #[test]
    fn numbers_that_an_augmentation_does_not_have_are_refused() {
        let read = |text: &str| toml::from_str::<Augmentation>(text);
        assert!(read("kind = \"flip\"\npadding = 4").is_err());
        let zero = "kind = \"crop\"\npadding = 2\nborder = \"zero\"";
        let wanted = Augmentation::Crop {
            padding: 2,
            border: Border::Zero,
        };
        assert_eq!(read(zero).unwrap(), wanted);
    }
}
