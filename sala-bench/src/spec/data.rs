//! The data of an experiment and how they are prepared.

use std::{fmt, str::FromStr};

use anyhow::{Result, ensure};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Augmentation;
use crate::data::{Source, augment::Pipeline};

/// The data and how they are prepared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Data {
    /// `embedded`, a folder, or `hub:` and `mnist`, `fashion-mnist`, `cifar-10` or `cifar-100`.
    pub(crate) source: String,
    /// What is done to the labels that are trained on.
    pub(crate) label_noise: LabelNoise,
    /// Number of training images held out for validation; their labels stay clean.
    pub(crate) validation: usize,
    /// Training images that are really used, drawn anew by each seed; all that validation leaves, unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) train: Option<Amount>,
    /// Side of the squares that pictures in folders are brought to; unless set, they must be of one size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) image_size: Option<u32>,
    /// Random changes of the images that are trained on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) augment: Vec<Augmentation>,
}

impl Data {
    /// Checks what can be checked without the data.
    pub(super) fn validate(&self) -> Result<()> {
        Source::of(self)?;
        let noise = self.label_noise.share;
        ensure!(
            (0.0..=1.0).contains(&noise),
            "data.label_noise must be in [0, 1], got {noise}"
        );
        ensure!(self.validation > 0, "data.validation must be >= 1, got 0");
        if let Some(Amount::Total(n) | Amount::PerClass(n)) = self.train {
            ensure!(n > 0, "data.train must be >= 1, got 0");
        }
        let size = self.image_size;
        ensure!(size != Some(0), "data.image_size must be >= 1, got 0");
        Pipeline::new(&self.augment, 0)?;
        Ok(())
    }
}

/// So many images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Amount {
    /// Altogether, of every class the same share.
    Total(usize),
    /// Of each class.
    #[serde(with = "per_class")]
    PerClass(usize),
}

/// `{ per_class = 500 }`.
mod per_class {
    use super::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct PerClass {
        per_class: usize,
    }

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde hands over references"
    )]
    pub(super) fn serialize<S: Serializer>(n: &usize, serializer: S) -> Result<S::Ok, S::Error> {
        PerClass { per_class: *n }.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
        Ok(PerClass::deserialize(from)?.per_class)
    }
}

/// Wrong labels, put in on purpose: a share alone, which is symmetric, or `{ kind = "pair-flip", share = 0.4 }`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LabelNoise {
    pub(crate) kind: NoiseKind,
    /// Probability, in `[0, 1]`, that a label is changed so.
    pub(crate) share: f64,
}

/// What becomes of a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NoiseKind {
    /// Drawn anew, uniformly from all classes.
    Symmetric,
    /// The next class.
    PairFlip,
}

/// What stands in a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoiseTable {
    kind: NoiseKind,
    share: f64,
}

impl LabelNoise {
    const fn symmetric(share: f64) -> Self {
        Self {
            kind: NoiseKind::Symmetric,
            share,
        }
    }
}

impl Serialize for LabelNoise {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { kind, share } = *self;
        match kind {
            NoiseKind::Symmetric => share.serialize(serializer),
            NoiseKind::PairFlip => NoiseTable { kind, share }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for LabelNoise {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = LabelNoise;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a share from 0 to 1, or a table with kind and share")
            }

            fn visit_f64<E>(self, share: f64) -> Result<LabelNoise, E> {
                Ok(LabelNoise::symmetric(share))
            }

            fn visit_i64<E>(self, share: i64) -> Result<LabelNoise, E> {
                Ok(LabelNoise::symmetric(share as f64))
            }

            fn visit_u64<E>(self, share: u64) -> Result<LabelNoise, E> {
                Ok(LabelNoise::symmetric(share as f64))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<LabelNoise, A::Error> {
                let table = de::value::MapAccessDeserializer::new(map);
                let NoiseTable { kind, share } = NoiseTable::deserialize(table)?;
                Ok(LabelNoise { kind, share })
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl FromStr for LabelNoise {
    type Err = String;

    /// `0.4`, or `pair-flip:0.4`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, share) = match text.split_once(':') {
            None | Some(("symmetric", _)) => {
                (NoiseKind::Symmetric, text.trim_start_matches("symmetric:"))
            }
            Some(("pair-flip", share)) => (NoiseKind::PairFlip, share),
            Some((kind, _)) => {
                return Err(format!(
                    "wanted `symmetric` or `pair-flip` before the colon, got `{kind}`"
                ));
            }
        };
        let error = |_| format!("wanted a share such as 0.4 or pair-flip:0.4, got `{text}`");
        let share = share.parse().map_err(error)?;
        Ok(Self { kind, share })
    }
}

impl FromStr for Amount {
    type Err = String;

    /// `5000`, or `per-class:500`.
    fn from_str(text: &str) -> Result<Self, String> {
        let error = |_| format!("wanted a number such as 5000 or per-class:500, got `{text}`");
        match text.strip_prefix("per-class:") {
            Some(n) => n.parse().map(Self::PerClass).map_err(error),
            None => text.parse().map(Self::Total).map_err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &str) -> Result<Data, toml::de::Error> {
        toml::from_str(&format!("source = \"embedded\"\nvalidation = 9\n{lines}"))
    }

    #[test]
    fn label_noise_is_a_share_or_a_table() {
        let noise =
            |text: &str| read(&format!("label_noise = {text}")).map(|data| data.label_noise);
        assert_eq!(noise("0.4").unwrap(), LabelNoise::symmetric(0.4));
        assert_eq!(noise("0").unwrap(), LabelNoise::symmetric(0.0));
        let symmetric = noise("{ kind = \"symmetric\", share = 0.4 }").unwrap();
        assert_eq!(symmetric, LabelNoise::symmetric(0.4));
        let flip = noise("{ kind = \"pair-flip\", share = 0.2 }").unwrap();
        assert_eq!(
            (flip.kind, flip.share.to_bits()),
            (NoiseKind::PairFlip, 0.2_f64.to_bits())
        );
        for (text, words) in [
            ("\"much\"", "a share from 0 to 1"),
            ("{ kind = \"pair\", share = 0.2 }", "pair-flip"),
            ("{ kind = \"pair-flip\" }", "share"),
            ("{ kind = \"pair-flip\", shares = 0.2 }", "shares"),
        ] {
            let message = noise(text).unwrap_err().to_string();
            assert!(message.contains(words), "{text}: {message}");
        }
        assert_eq!("pair-flip:0.2".parse(), Ok(flip));
        assert_eq!("0.4".parse(), Ok(LabelNoise::symmetric(0.4)));
        assert_eq!("symmetric:0.4".parse(), Ok(LabelNoise::symmetric(0.4)));
        assert!("flip:0.4".parse::<LabelNoise>().is_err());
        assert!("pair-flip:x".parse::<LabelNoise>().is_err());
    }

    #[test]
    fn an_amount_is_a_number_or_one_of_each_class() {
        let amount =
            |text: &str| read(&format!("label_noise = 0\ntrain = {text}")).map(|data| data.train);
        assert_eq!(amount("5000").unwrap(), Some(Amount::Total(5000)));
        let each = Some(Amount::PerClass(500));
        assert_eq!(amount("{ per_class = 500 }").unwrap(), each);
        assert!(amount("{ per_clas = 500 }").is_err());
        assert_eq!("per-class:500".parse().ok(), each);
        assert_eq!("5000".parse(), Ok(Amount::Total(5000)));
        assert!("500/class".parse::<Amount>().is_err());
    }

    #[test]
    fn everything_survives_being_written_and_read() {
        let text = "label_noise = { kind = \"pair-flip\", share = 0.2 }\ntrain = { per_class = 5 }\n\
                    augment = [{ kind = \"crop\" }, { kind = \"cutmix\", alpha = 0.5 }]";
        let data = read(text).unwrap();
        let again: Data = toml::from_str(&toml::to_string(&data).unwrap()).unwrap();
        assert_eq!(again, data);
        data.validate().unwrap();
        // What is not used leaves no trace, so that fingerprints of older experiments stay.
        let plain = toml::to_string(&read("label_noise = 0.4").unwrap()).unwrap();
        assert_eq!(
            plain,
            "source = \"embedded\"\nlabel_noise = 0.4\nvalidation = 9\n"
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (text, words) in [
            ("train = 0", "data.train"),
            ("image_size = 8", "data.image_size"),
            (
                "augment = [{ kind = \"flip\" }, { kind = \"flip\" }]",
                "listed twice",
            ),
            ("augment = [{ kind = \"cutout\", size = 0 }]", "cutout.size"),
        ] {
            let data = read(&format!("label_noise = 0\n{text}")).unwrap();
            let message = data.validate().unwrap_err().to_string();
            assert!(message.contains(words), "{text}: {message}");
        }
        let message = read("label_noise = 0\naugment = [{ kind = \"cutmx\" }]").unwrap_err();
        assert!(message.to_string().contains("cutmix"), "{message}");
    }
}
