//! What a run directory says of its plan.
//!
//! Reports are made of old directories and of every command's, so only what a report needs is read, and
//! everything else in the file is let be.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::{
    metrics::Metric,
    spec::{ReportSettings, fingerprint},
};

/// A plan, as far as a report needs it.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The whole of it.
    pub(crate) text: String,
    pub(crate) fingerprint: String,
    /// The text without seeds, optimizers and what reports show: directories with the same can be merged.
    pub(crate) setting: String,
    pub(crate) name: String,
    pub(crate) description: String,
    /// What runs are compared by.
    pub(crate) metric: Metric,
    /// Whether the validation part chose the epoch whose weights were scored.
    pub(crate) early_stopping: bool,
    /// Whose weights were scored, in words.
    pub(crate) weights: &'static str,
    pub(crate) seeds: Vec<u64>,
    pub(crate) report: ReportSettings,
    /// The first is the base of the comparison.
    pub(crate) optimizers: Vec<OptimizerPlan>,
}

/// An optimizer with its hyper-parameters.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct OptimizerPlan {
    pub(crate) name: String,
    pub(crate) settings: toml::Table,
}

#[derive(Deserialize)]
struct Written {
    name: String,
    #[serde(default)]
    description: String,
    /// Of a fine-tuning.
    task: Option<String>,
    training: WrittenTraining,
    #[serde(default)]
    report: ReportSettings,
    optimizers: Vec<toml::Table>,
}

#[derive(Deserialize)]
struct WrittenTraining {
    seeds: Vec<u64>,
    metric: Option<Metric>,
    early_stopping: Option<u64>,
}

impl Plan {
    /// Reads the plan of a run directory.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            let path = path.display();
            format!("cannot read {path}; a run directory of compare, tune or finetune is wanted")
        })?;
        Self::of(&text).with_context(|| format!("{} is no plan", path.display()))
    }

    fn of(text: &str) -> Result<Self> {
        let written: Written = toml::from_str(text)?;
        let default = match written.task.as_deref() {
            Some("causal-lm") => Metric::Perplexity,
            _ => Metric::Accuracy,
        };
        let optimizers = written.optimizers.into_iter().map(OptimizerPlan::of);
        Ok(Self {
            text: text.into(),
            fingerprint: fingerprint(text),
            setting: setting(text)?,
            name: written.name,
            description: written.description,
            metric: written.training.metric.unwrap_or(default),
            early_stopping: written.training.early_stopping.is_some(),
            weights: match written.training.early_stopping {
                Some(_) => "the weights of the epoch that was best on the validation part",
                None => "the weights at the end of training",
            },
            seeds: written.training.seeds,
            report: written.report,
            optimizers: optimizers.collect::<Result<_>>()?,
        })
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.optimizers.iter().map(|o| o.name.as_str()).collect()
    }
}

/// A plan's text without what may differ between the machines that share its work.
fn setting(text: &str) -> Result<String> {
    let mut table: toml::Table = toml::from_str(text)?;
    table.remove("optimizers");
    table.remove("report");
    if let Some(training) = table
        .get_mut("training")
        .and_then(toml::Value::as_table_mut)
    {
        training.remove("seeds");
    }
    Ok(toml::to_string(&table)?)
}

impl OptimizerPlan {
    fn of(settings: toml::Table) -> Result<Self> {
        let name = settings.get("name").and_then(toml::Value::as_str);
        Ok(Self {
            name: name.context("an optimizer without a name")?.into(),
            settings,
        })
    }

    /// Its hyper-parameters, those of its method too.
    pub(crate) fn numbers(&self) -> Vec<(String, f64)> {
        let method = self.settings.get("method").and_then(toml::Value::as_table);
        let all = self.settings.iter().chain(method.into_iter().flatten());
        all.filter_map(|(name, value)| Some((name.clone(), number(value)?)))
            .collect()
    }

    /// The radius of its ascent, where that is a distance in the space of the weights.
    pub(crate) fn radius(&self) -> Option<f64> {
        let absolute = !self.settings.contains_key("rho_scale");
        let rho = self.settings.get("method")?.get("rho")?;
        number(rho).filter(|_| absolute)
    }
}

fn number(value: &toml::Value) -> Option<f64> {
    match value {
        toml::Value::Integer(number) => Some(*number as f64),
        toml::Value::Float(number) => Some(*number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::SMALL;

    #[test]
    fn what_machines_may_share_out_is_no_part_of_the_setting() {
        let one = Plan::of(SMALL).unwrap();
        let setting = |from: &str, to: &str| Plan::of(&SMALL.replace(from, to)).unwrap().setting;
        assert_eq!(one.setting, setting("seeds = [0, 1]", "seeds = [7]"));
        assert_eq!(one.setting, setting("rho = 0.2", "rho = 0.3"));
        assert_ne!(one.setting, setting("epochs = 2", "epochs = 3"));
        assert_ne!(one.setting, setting("hidden = [16]", "hidden = [17]"));
    }

    #[test]
    fn what_a_later_version_adds_is_let_be() {
        let more = SMALL.replace("[data]", "[data]\nfrom_tomorrow = true");
        let plan = Plan::of(&format!("another = 1\n{more}")).unwrap();
        assert_eq!(plan.names(), ["sgd", "sala"]);
        assert_eq!((plan.metric, plan.seeds.len()), (Metric::Accuracy, 2));
    }

    #[test]
    fn hyper_parameters_are_those_of_optimizer_and_method() {
        let plan = Plan::of(SMALL).unwrap();
        let sala = &plan.optimizers[1];
        let names: Vec<String> = sala.numbers().into_iter().map(|p| p.0).collect();
        let wanted = [
            "lr",
            "weight_decay",
            "k",
            "alpha",
            "rho",
            "direction_fraction",
        ];
        assert!(
            wanted.iter().all(|w| names.iter().any(|n| n == w)),
            "{names:?}"
        );
        assert_eq!(
            (sala.radius(), plan.optimizers[0].radius()),
            (Some(0.2), None)
        );
    }

    #[test]
    fn the_metric_is_that_of_the_task() {
        let tuning = |task: &str| format!("task = \"{task}\"\n{SMALL}");
        let metric = |text: &str| Plan::of(text).unwrap().metric;
        assert_eq!(metric(&tuning("causal-lm")), Metric::Perplexity);
        assert_eq!(metric(&tuning("text-classification")), Metric::Accuracy);
        let text = SMALL.replace("epochs = 2", "epochs = 2\nmetric = \"macro-f1\"");
        assert_eq!(
            metric(&tuning("text-classification").replace(SMALL, &text)),
            Metric::MacroF1
        );
    }
}
