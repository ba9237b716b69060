//! Experiments that are built in, by their names. Networks and augmentations are changed on the command line
//! (`--network wrn-28-10 --augment cutmix`), so that a file stands for a whole table of the literature.

use anyhow::{Context, Result};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};

use crate::{shell, spec::Experiment};

/// The experiment that runs when none is named.
pub(crate) const DEFAULT: &str = "fashion-mnist-noise";

macro_rules! presets {
    ($($name:literal),+ $(,)?) => {
        [$(($name, include_str!(concat!("../experiments/", $name, ".toml")))),+]
    };
}

const PRESETS: [(&str, &str); 6] = presets![
    "fashion-mnist-noise",
    "fashion-mnist-clean",
    "fashion-mnist",
    "cifar-10-small",
    "cifar-10",
    "cifar-100",
];

/// The text of the preset of this name.
///
/// # Errors
/// When there is none; the message lists those there are.
pub(crate) fn text(name: &str) -> Result<&'static str> {
    let found = PRESETS.iter().find(|(known, _)| *known == name);
    let (_, text) = found.with_context(|| {
        let names = PRESETS.map(|(name, _)| name);
        format!(
            "there is no preset `{name}`; there are {}",
            names.join(", ")
        )
    })?;
    Ok(text)
}

/// Prints names and descriptions.
pub(crate) fn list() -> Result<()> {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["preset", "what it is"]);
    for (name, text) in PRESETS {
        table.add_row([name, &Experiment::from_toml(text, name)?.description]);
    }
    shell::print(format!(
        "{table}\nRun one with --preset NAME; change it with --network NAME and --augment NAME,….\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Augmentation;

    #[test]
    fn every_preset_is_valid_and_called_as_its_file() {
        for (name, text) in PRESETS {
            let experiment = Experiment::from_toml(text, name).unwrap();
            assert_eq!(experiment.name, name);
            assert_eq!(experiment.optimizers[0].name, "sgd", "{name}");
        }
        let message = text("cifar").unwrap_err().to_string();
        assert!(
            message.contains("`cifar`") && message.contains("cifar-100"),
            "{message}"
        );
    }

    #[test]
    fn the_settings_of_the_paper_are_combinations_of_options() {
        let networks = [
            "resnet18",
            "resnet50",
            "resnet101",
            "wrn-28-10",
            "pyramidnet-110-270",
        ];
        let more = [
            "cutout",
            "cutmix",
            "mixup",
            "autoaugment",
            "randaugment",
            "random-erasing",
        ];
        for data in ["cifar-10", "cifar-100"] {
            let mut basic = Experiment::from_toml(text(data).unwrap(), data).unwrap();
            let names: Vec<&str> = basic.data.augment.iter().map(Augmentation::name).collect();
            assert_eq!(names, ["crop", "flip"]);
            for network in networks {
                basic.network = network.parse().unwrap();
                basic.validate().unwrap();
                for augmentation in more {
                    let mut experiment = basic.clone();
                    experiment.data.augment.push(augmentation.parse().unwrap());
                    experiment.validate().unwrap();
                    let text = experiment.to_toml().unwrap();
                    let again = Experiment::from_toml(&text, "again").unwrap();
                    assert_eq!(again, experiment, "{data} {network} {augmentation}");
                }
            }
        }
    }
}
