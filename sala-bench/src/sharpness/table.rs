//! From the numbers of solutions to a table with spread over seeds: terminal, Markdown, CSV and JSON.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::measure::{Measures, Settings};
use crate::{
    report::{Grid, NONE},
    stats::Summary,
};

/// Printed beside every table and figure.
pub(crate) const CAVEAT: &str = "Sharpness does not always predict generalisation: most of these measures change when weights \
    are rescaled without changing the function (Dinh et al. 2017), and over architectures, recipes and fine-tuned \
    transformers the correlation can vanish or turn (Andriushchenko et al. 2023). Compare solutions of one network on \
    the same data, and look at the test scores for what counts.";

/// Everything that was measured of one comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sharpness {
    pub(crate) experiment: String,
    pub(crate) fingerprint: String,
    pub(crate) settings: Settings,
    pub(crate) caveat: String,
    /// In the order of the experiment's optimizers.
    pub(crate) rows: Vec<Row>,
    pub(crate) solutions: Vec<Measures>,
    /// Runs without a solution.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) diverged: Vec<Diverged>,
    /// Beside this table.
    pub(crate) figures: Vec<Figure>,
}

/// A run that has no solution to measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Diverged {
    pub(crate) optimizer: String,
    pub(crate) seed: u64,
    /// What its record says.
    pub(crate) failure: String,
}

/// A figure in a file of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) file: String,
    pub(crate) title: String,
}

/// One optimizer: mean and spread over its seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) optimizer: String,
    pub(crate) lambda_max: Summary,
    pub(crate) lambda_min: Summary,
    pub(crate) trace: Summary,
    pub(crate) worst: Summary,
    pub(crate) worst_adaptive: Summary,
    pub(crate) average: Summary,
    pub(crate) grad_norm: Summary,
    pub(crate) loss: Summary,
}

impl Row {
    fn new(optimizer: &str, solutions: &[&Measures]) -> Result<Self> {
        let of = |value: fn(&Measures) -> f64| {
            let values: Vec<f64> = solutions.iter().map(|m| value(m)).collect();
            Summary::of(&values)
        };
        Ok(Self {
            optimizer: optimizer.into(),
            lambda_max: of(|m| m.lambda_max)?,
            lambda_min: of(|m| m.lambda_min)?,
            trace: of(|m| m.trace)?,
            worst: of(|m| m.worst)?,
            worst_adaptive: of(|m| m.worst_adaptive)?,
            average: of(|m| m.average)?,
            grad_norm: of(|m| m.grad_norm)?,
            loss: of(|m| m.loss)?,
        })
    }

    fn summaries(&self) -> [&Summary; 8] {
        [
            &self.lambda_max,
            &self.lambda_min,
            &self.trace,
            &self.worst,
            &self.worst_adaptive,
            &self.average,
            &self.grad_norm,
            &self.loss,
        ]
    }
}

impl Sharpness {
    /// From the solutions of one experiment; optimizers without a solution, or with a run that diverged, have no mean.
    pub(crate) fn new(
        (experiment, fingerprint): (&str, &str),
        optimizers: &[String],
        settings: Settings,
        solutions: Vec<Measures>,
        diverged: Vec<Diverged>,
    ) -> Result<Self> {
        let mut rows = Vec::new();
        for name in optimizers {
            let own: Vec<&Measures> = solutions.iter().filter(|m| &m.optimizer == name).collect();
            let whole = diverged.iter().all(|d| &d.optimizer != name);
            if whole && !own.is_empty() {
                rows.push(Row::new(name, &own)?);
            }
        }
        Ok(Self {
            experiment: experiment.into(),
            fingerprint: fingerprint.into(),
            settings,
            caveat: CAVEAT.into(),
            rows,
            solutions,
            diverged,
            figures: Vec::new(),
        })
    }

    /// The table for a terminal.
    pub(crate) fn terminal(&self) -> String {
        self.grid().terminal()
    }

    /// The table as Markdown, under a heading, with the figures beside it.
    pub(crate) fn markdown(&self) -> String {
        let figure = |Figure { file, title }: &Figure| format!("\n![{title}]({file})\n");
        let figures: Vec<String> = self.figures.iter().map(figure).collect();
        let (name, table) = (&self.experiment, self.grid().markdown());
        format!("# Sharpness of {name}\n\n{table}{}", figures.concat())
    }

    /// The table in words.
    pub(crate) fn grid(&self) -> Grid {
        Grid {
            title: "Sharpness of the solutions".into(),
            header: self.header(),
            rows: self.cells(),
            legend: self.legend() + "\n",
        }
    }

    fn header(&self) -> Vec<String> {
        let Settings {
            rho,
            rho_adaptive,
            sigma,
            ..
        } = self.settings;
        vec![
            "optimizer".into(),
            "seeds".into(),
            "λ_max".into(),
            "λ_min".into(),
            "trace".into(),
            format!("worst rise, ρ {rho}"),
            format!("worst rise, ρ {rho_adaptive} |w|"),
            format!("mean rise, σ {sigma}"),
            "‖gradient‖".into(),
            "loss".into(),
        ]
    }

    fn cells(&self) -> Vec<Vec<String>> {
        let cells = |row: &Row| {
            let first = [row.optimizer.clone(), row.loss.n.to_string()];
            first
                .into_iter()
                .chain(row.summaries().map(written))
                .collect()
        };
        let mut rows: Vec<Vec<String>> = self.rows.iter().map(cells).collect();
        let width = self.header().len();
        rows.extend(self.without_a_mean().into_iter().map(|(name, diverged)| {
            let measured = self
                .solutions
                .iter()
                .filter(|m| m.optimizer == name)
                .count();
            let mut row = vec![
                name.to_owned(),
                measured.to_string(),
                format!("{diverged} diverged"),
            ];
            row.resize(width, NONE.into());
            row
        }));
        rows
    }

    /// The optimizers of which a run diverged, and how many.
    fn without_a_mean(&self) -> Vec<(&str, usize)> {
        let mut all: Vec<(&str, usize)> = Vec::new();
        for Diverged { optimizer, .. } in &self.diverged {
            match all.iter_mut().find(|(name, _)| name == optimizer) {
                Some((_, count)) => *count += 1,
                None => all.push((optimizer, 1)),
            }
        }
        all
    }

    /// What the columns mean, and what sharpness does not tell.
    fn legend(&self) -> String {
        let Settings {
            images,
            m,
            ascent_steps,
            ..
        } = self.settings;
        let diverged = if self.diverged.is_empty() {
            ""
        } else {
            " A run that diverged has no solution, and its optimizer no mean: one over its other seeds would flatter it."
        };
        format!(
            "Mean ± sd over seeds, of the training loss on {images} images in training mode and f64, weight decay left out. λ_max, \
             λ_min and trace are the Hessian's; rises are m-sharpness with m = {m}: at the worst place within ρ that {ascent_steps} \
             steps of ascent find, in L2 and relative to the weights, and under normal displacements.{diverged}\n\n{}",
            self.caveat
        )
    }

    /// One line a solution, plain numbers; what is not known is empty.
    pub(crate) fn csv(&self) -> Result<Vec<u8>> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        for solution in &self.solutions {
            writer.serialize(solution)?;
        }
        Ok(writer.into_inner()?)
    }
}

/// Mean ± sd, to three digits of the mean.
fn written(summary: &Summary) -> String {
    let digits = |x: f64| {
        let size = if x == 0.0 {
            0.0
        } else {
            x.abs().log10().floor()
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to a few digits"
        )]
        let decimals = (2.0 - size).clamp(0.0, 6.0) as usize;
        decimals
    };
    let decimals = digits(summary.mean);
    match summary.sd {
        Some(sd) => format!("{:.decimals$} ± {sd:.decimals$}", summary.mean),
        None => format!("{:.decimals$}", summary.mean),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::report::cells_of_lines;

    pub(crate) const SETTINGS: Settings = Settings {
        images: 64,
        m: 16,
        rho: 0.05,
        rho_adaptive: 0.5,
        sigma: 0.01,
        ascent_steps: 3,
        lanczos_steps: 8,
        trace_samples: 2,
        average_samples: 2,
        seed: 0,
    };

    pub(crate) fn measures(optimizer: &str, seed: u64, lambda_max: f64) -> Measures {
        Measures {
            optimizer: optimizer.into(),
            seed,
            loss: 0.5,
            grad_norm: 0.1,
            noise_scale: None,
            lambda_max,
            lambda_max_error: 0.01,
            lambda_min: -0.25,
            trace: 120.0,
            trace_error: Some(2.0),
            worst: 0.002,
            worst_adaptive: 0.03,
            average: 0.0,
            average_error: None,
            product_error: Some(1e-3),
            gradients: 100.0,
            losses: 20.0,
            parameters: "abc".into(),
        }
    }

    #[test]
    fn a_row_is_mean_and_spread_over_the_seeds_of_its_optimizer() {
        let solutions = vec![
            measures("sgd", 0, 10.0),
            measures("sala", 0, 1.0),
            measures("sgd", 1, 14.0),
        ];
        let names = ["sgd", "sam", "sala"].map(String::from);
        let mut table =
            Sharpness::new(("e", "f"), &names, SETTINGS, solutions, Vec::new()).unwrap();
        table.figures.push(Figure {
            file: "density.svg".into(),
            title: "densities".into(),
        });
        let rows: Vec<&str> = table.rows.iter().map(|r| r.optimizer.as_str()).collect();
        assert_eq!(rows, ["sgd", "sala"]);
        assert_eq!(table.rows[0].lambda_max.mean.to_bits(), 12f64.to_bits());
        assert!((table.rows[0].lambda_max.sd.unwrap() - 8f64.sqrt()).abs() < 1e-12);
        assert_eq!(table.rows[1].lambda_max.sd, None);
        let markdown = table.markdown();
        for words in [
            "12.0 ± 2.8",
            "-0.250",
            "0.00200",
            "![densities](density.svg)",
            CAVEAT,
        ] {
            assert!(markdown.contains(words), "{words} in {markdown}");
        }
        assert!(
            table
                .terminal()
                .contains("does not always predict generalisation")
        );
    }

    #[test]
    fn every_line_of_the_table_has_as_many_cells_and_what_diverged_has_no_mean() {
        let names = ["sgd", "sam"].map(String::from);
        let solutions = ["sgd", "sam"].map(|name| measures(name, 0, 10.0)).to_vec();
        let diverged = vec![Diverged {
            optimizer: "sam".into(),
            seed: 1,
            failure: "clean pass: the loss is not finite".into(),
        }];
        let table = Sharpness::new(("e", "f"), &names, SETTINGS, solutions, diverged).unwrap();
        let markdown = table.markdown();
        assert_eq!(cells_of_lines(&markdown), [10; 4], "{markdown}");
        let sam = markdown.lines().find(|l| l.starts_with("| sam")).unwrap();
        assert!(sam.contains("1 diverged") && !sam.contains("10.0"), "{sam}");
        assert_eq!((table.rows.len(), table.solutions.len()), (1, 2));
    }

    #[test]
    fn the_csv_has_a_line_a_solution_and_leaves_out_what_is_not_known() {
        let names = ["sgd"].map(String::from);
        let solutions = vec![measures("sgd", 7, 10.0)];
        let table = Sharpness::new(("e", "f"), &names, SETTINGS, solutions, Vec::new()).unwrap();
        let text = String::from_utf8(table.csv().unwrap()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("optimizer,seed,loss,grad_norm,noise_scale,lambda_max,"));
        assert!(lines[1].starts_with("sgd,7,0.5,0.1,,10.0,"), "{}", lines[1]);
        let json = serde_json::to_string(&table).unwrap();
        assert_eq!(serde_json::from_str::<Sharpness>(&json).unwrap(), table);
    }
}
