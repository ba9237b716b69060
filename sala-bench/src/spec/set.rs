//! Changes of single fields by their path: `training.epochs=5`.

use std::{fmt, str::FromStr};

use anyhow::{Context, Result, bail, ensure};
use serde::{Serialize, de::DeserializeOwned};
use toml::{Table, Value};

use super::{
    Optimizer,
    read::{did_you_mean, from_table},
};

/// A field and its new value.
///
/// The path goes through the tables of the file, joined by dots. An optimizer is named by its name, or by
/// `*` for all of them, and a field of its method can be named as if it were its own:
/// `optimizers.sala.rho=0.3` is `optimizers.sala.method.rho=0.3`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Setting {
    path: String,
    value: Value,
}

impl FromStr for Setting {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (path, value) = text
            .split_once('=')
            .with_context(|| format!("wanted PATH=VALUE, got `{text}`"))?;
        let path = path.trim();
        ensure!(
            path.split('.').all(|part| !part.is_empty()),
            "wanted names joined by dots before the `=`, got `{path}`"
        );
        Ok(Self {
            path: path.into(),
            value: value_of(value.trim()),
        })
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.path, self.value)
    }
}

/// A value as TOML has it; what is none there is text, so that quotes can be left out.
pub(crate) fn value_of(text: &str) -> Value {
    let read = toml::from_str::<Table>(&format!("value = {text}"));
    let read = read.ok().filter(|table| table.len() == 1);
    read.and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| text.into())
}

/// The same specification with the settings made, in their order.
pub(crate) fn with<T: Serialize + DeserializeOwned>(spec: &T, settings: &[Setting]) -> Result<T> {
    let mut table = Table::try_from(spec)?;
    for setting in settings {
        set(&mut table, setting).with_context(|| format!("--set {setting}"))?;
    }
    from_table(table).with_context(|| {
        let all: Vec<_> = settings.iter().map(ToString::to_string).collect();
        format!("--set {}", all.join(" --set "))
    })
}

fn set(table: &mut Table, Setting { path, value }: &Setting) -> Result<()> {
    if let Some(rest) = path.strip_prefix("optimizers.") {
        return set_in_optimizers(table, rest, value);
    }
    set_at(table, path, value)?;
    // The three say the same in different units.
    let budgets = ["epochs", "steps", "evaluations"];
    if let Some(unit) = path.strip_prefix("training.")
        && budgets.contains(&unit)
        && let Some(training) = table.get_mut("training").and_then(Value::as_table_mut)
    {
        training.retain(|key, _| key == unit || !budgets.contains(&key));
    }
    Ok(())
}

fn set_at(mut table: &mut Table, path: &str, value: &Value) -> Result<()> {
    let (parents, field) = path.rsplit_once('.').unwrap_or(("", path));
    for name in parents.split('.').filter(|name| !name.is_empty()) {
        let known: Vec<String> = table.keys().cloned().collect();
        let inner = table.get_mut(name).with_context(|| {
            let hint = did_you_mean(name, known.iter().map(String::as_str));
            format!("there is no `{name}`{hint}")
        })?;
        table = inner
            .as_table_mut()
            .with_context(|| format!("`{name}` has no fields of its own"))?;
    }
    table.insert(field.into(), value.clone());
    Ok(())
}

/// `NAME.FIELD`. A name may have dots in it: the longest that fits is meant.
fn set_in_optimizers(table: &mut Table, path: &str, value: &Value) -> Result<()> {
    let optimizers = table.get_mut("optimizers").and_then(Value::as_array_mut);
    let optimizers = optimizers.context("there is no list `optimizers`")?;
    let name_of = |o: &Value| o.get("name").and_then(Value::as_str).map(str::to_owned);
    let names: Vec<String> = optimizers.iter().filter_map(name_of).collect();
    let field_in = |name: &str| path.strip_prefix(name)?.strip_prefix('.');
    let meant = names.iter().filter(|n| field_in(n).is_some());
    let meant = meant.max_by_key(|name| name.len());
    let field = meant.map_or("*", String::as_str);
    let Some(field) = field_in(field) else {
        let name = path.split('.').next().unwrap_or(path);
        let hint = did_you_mean(name, names.iter().map(String::as_str));
        let names = names.join(", ");
        bail!("no optimizer `{name}` with a field behind it; the experiment has {names}{hint}");
    };
    for optimizer in optimizers.iter_mut() {
        let wanted = meant.is_none() || name_of(optimizer).as_ref() == meant;
        if let Some(table) = optimizer.as_table_mut().filter(|_| wanted) {
            set_in_optimizer(table, field, value)?;
        }
    }
    Ok(())
}

/// Sets a field of an optimizer, or else of its method.
pub(crate) fn set_in_optimizer(table: &mut Table, field: &str, value: &Value) -> Result<()> {
    let own = ["method", "rho_scale"].iter().any(|name| {
        field == *name
            || field
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('.'))
    });
    if own {
        return set_at(table, field, value);
    }
    let mut tried = table.clone();
    set_at(&mut tried, field, value)?;
    if let Err(error) = from_table::<Optimizer>(tried.clone()) {
        // It is no field of the optimizer: then it is one of the method, which says so itself if it is not.
        if !format!("{error:#}").contains("unknown field") {
            return Err(error);
        }
        let method = table.get_mut("method").and_then(Value::as_table_mut);
        let method = method.context("the optimizer has no method")?;
        method.insert(field.into(), value.clone());
        return from_table::<Optimizer>(table.clone())
            .map(|_| ())
            .with_context(|| {
                format!("neither the optimizer nor its method has a field `{field}`")
            });
    }
    *table = tried;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Experiment, Method, tests::SMALL},
        *,
    };

    fn changed(settings: &[&str]) -> Result<Experiment> {
        let experiment = Experiment::from_toml(SMALL, "small")?;
        let settings: Vec<Setting> = settings.iter().map(|s| s.parse()).collect::<Result<_>>()?;
        with(&experiment, &settings)
    }

    #[test]
    fn any_field_can_be_set_by_its_path() {
        let experiment = changed(&[
            "data.label_noise=0.25",
            "network.hidden=[8, 4]",
            "training.seeds=[7]",
            "training.schedule=linear",
            "name=other",
        ])
        .unwrap();
        assert_eq!(
            experiment.data.label_noise.share.to_bits(),
            0.25_f64.to_bits()
        );
        assert_eq!(experiment.training.seeds, [7]);
        assert_eq!(experiment.training.schedule, super::super::Schedule::Linear);
        assert_eq!(experiment.name, "other");
        let text = experiment.to_toml().unwrap();
        assert!(text.contains("hidden = [8, 4]"), "{text}");
    }

    #[test]
    fn a_budget_in_another_unit_replaces_the_one_that_is_there() {
        let training = changed(&["training.steps=9"]).unwrap().training;
        assert_eq!(training.budget, super::super::Budget::Steps(9));
    }

    #[test]
    fn optimizers_are_reached_by_name_and_their_methods_fields_directly() {
        let experiment = changed(&[
            "optimizers.sala.rho=0.5",
            "optimizers.sala.method.k=7",
            "optimizers.*.lr=0.25",
            "optimizers.sgd.clip_norm=1.0",
            "optimizers.sgd.rho_scale={ learning-rate = 0.1 }",
            "optimizers.sgd.method={ kind = \"sam\", rho = 0.1 }",
        ])
        .unwrap();
        assert!(
            experiment
                .optimizers
                .iter()
                .all(|o| o.lr.to_bits() == 0.25_f64.to_bits())
        );
        assert_eq!(experiment.optimizers[0].clip_norm, Some(1.0));
        assert!(matches!(
            experiment.optimizers[0].method,
            Method::Sam { .. }
        ));
        assert!(matches!(
            experiment.optimizers[1].method,
            Method::Sala { k: 7, rho, .. } if rho.to_bits() == 0.5_f64.to_bits()
        ));
    }

    #[test]
    fn of_names_with_dots_the_longest_is_meant() {
        let mut table: Table = toml::from_str(SMALL).unwrap();
        table["optimizers"].as_array_mut().unwrap()[1]["name"] = "sgd.2".into();
        let experiment: Experiment = from_table(table).unwrap();
        let setting = "optimizers.sgd.2.lr=0.5".parse().unwrap();
        let changed = with(&experiment, &[setting]).unwrap();
        let rates: Vec<_> = changed.optimizers.iter().map(|o| o.lr).collect();
        assert_eq!(rates, [0.05, 0.5]);
    }

    #[test]
    fn a_path_that_leads_nowhere_is_named_with_what_was_probably_meant() {
        for (setting, words) in [
            ("training.epoch=5", "did you mean `epochs`?"),
            ("trainin.epochs=5", "did you mean `training`?"),
            ("optimizers.sal.lr=1", "did you mean `sala`?"),
            ("optimizers.sala.rhoo=1", "did you mean `rho`?"),
            ("optimizers.sala.lr=fast", "lr"),
            ("optimizers.sala", "PATH=VALUE"),
            ("training..epochs=1", "joined by dots"),
            ("name.first=x", "`name` has no fields"),
        ] {
            let message = format!("{:#}", changed(&[setting]).unwrap_err());
            assert!(
                message.to_lowercase().contains(&words.to_lowercase()),
                "{setting}: {message}"
            );
        }
    }

    #[test]
    fn quotes_around_text_can_be_left_out() {
        assert_eq!(value_of("cosine"), Value::from("cosine"));
        assert_eq!(value_of("\"5\""), Value::from("5"));
        assert_eq!(value_of("5e-4"), Value::from(5e-4));
        assert_eq!(value_of("1\nother = 2"), Value::from("1\nother = 2"));
    }
}
