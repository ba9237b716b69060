//! The tables of a comparison, in words.

use super::{
    compare::{Comparison, Difference},
    cost::{AtCost, SHARES, Target, View},
    curves::Measure,
    grid::{Grid, NONE},
    workload::{Row, Workload},
};
use crate::{
    metrics::Metric,
    sharpness::Saved,
    stats::{Equivalence, Profile, Reach, Sensitivity, Summary, TAU_MAX},
};

/// Numbers of a metric as text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Show(pub(crate) Metric);

impl Show {
    /// Without its unit.
    pub(crate) fn number(self, value: f64) -> String {
        let ((factor, _), digits) = (self.0.unit(), self.0.digits());
        format!("{:.digits$}", factor * value)
    }

    /// With a sign.
    pub(crate) fn signed(self, value: f64) -> String {
        let ((factor, _), digits) = (self.0.unit(), self.0.digits());
        format!("{:+.digits$}", factor * value)
    }

    pub(crate) fn spread(self, summary: &Summary) -> String {
        match summary.sd {
            Some(sd) => format!("{} ± {}", self.number(summary.mean), self.number(sd)),
            None => self.number(summary.mean),
        }
    }

    pub(crate) fn interval(self, interval: Option<(f64, f64)>) -> String {
        let show = |(low, high)| format!("[{}, {}]", self.signed(low), self.signed(high));
        interval.map_or_else(|| NONE.into(), show)
    }

    /// A difference with its t interval.
    pub(crate) fn difference(self, difference: &Difference) -> String {
        let mean = self.signed(difference.paired.mean);
        match difference.paired.ci95 {
            Some(_) => format!("{mean} {}", self.interval(difference.paired.ci95)),
            None => mean,
        }
    }

    /// What differences are in: points for shares in per cent.
    pub(crate) fn unit_of_differences(self) -> &'static str {
        if self.0.is_share() { " points" } else { "" }
    }
}

fn or_none<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| NONE.into(), show)
}

fn strings<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

pub(crate) fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(letters).collect()
}

/// Where the table of a comparison has its verdicts: behind the differences.
const VERDICT: usize = 5;

/// The table that a comparison ends in: scores, difference to the base, cost.
pub(crate) fn overview(workload: &Workload) -> Grid {
    let (base, show) = (&workload.base, Show(workload.metric));
    let unit = workload.metric.unit().1;
    let mut header = strings([
        "optimizer",
        "runs",
        &format!("validation{unit}"),
        &format!("test{unit}"),
        &format!("{} − {base}", workload.part.name()),
        "gradients / step",
        "time ×",
        "climbed",
    ]);
    // Trials of a search are not compared with each other.
    let judged = !workload.is_search();
    if judged {
        header.insert(VERDICT, "verdict".into());
    }
    let differences = workload.to_base();
    let row = |row: &Row| {
        let found = differences.and_then(|c| c.of(&row.optimizer));
        let score = |s: Option<Summary>| match (s, row.failed) {
            (Some(s), _) => show.spread(&s),
            (None, 0) => NONE.into(),
            (None, failed) => format!("{failed} diverged"),
        };
        let mut cells = vec![
            row.optimizer.clone(),
            row.runs.to_string(),
            score(row.validation),
            score(row.test),
            or_none(found, |d| show.difference(d)),
            or_none(row.evaluations_per_step, |e| format!("{e:.3}")),
            or_none(row.time_ratio, |t| format!("{t:.2}")),
            or_none(row.climbed, |c| format!("{:.0} %", 100.0 * c)),
        ];
        if judged {
            cells.insert(VERDICT, or_none(found, |d| d.verdict.words().into()));
        }
        cells
    };
    let adjusted = if judged {
        " The interval is of that one difference, not adjusted for their number; the verdict is, at 5 % (Holm)."
    } else {
        ""
    };
    let incomplete = if workload.complete {
        ""
    } else {
        "Not all runs are complete; run the same command again to continue."
    };
    let notes = [incomplete]
        .into_iter()
        .chain(workload.notes.iter().map(String::as_str));
    let notes: Vec<&str> = notes.filter(|note| !note.is_empty()).collect();
    let notes = if notes.is_empty() {
        String::new()
    } else {
        format!("\n{}", notes.join("\n"))
    };
    Grid {
        title: "Result".into(),
        header,
        rows: workload.rows.iter().map(row).collect(),
        legend: format!(
            "{} of {}, mean ± sd over seeds. Difference to {base} paired by seed, with its 95 % t \
             interval. Time: training relative to {base}'s. Climbed: share of SALA's \
             cycles that took the second gradient.{adjusted}{notes}\n",
            capitalised(workload.metric.name()),
            workload.weights
        ),
    }
}

/// Everything that is known of the differences to one reference.
pub(crate) fn differences(workload: &Workload, comparison: &Comparison) -> Grid {
    let (show, reference) = (Show(workload.metric), &comparison.reference);
    let unit = show.unit_of_differences();
    let equivalence = |e: Equivalence| {
        let p = p_value(e.p);
        let word = if e.equivalent { "yes" } else { "no" };
        format!("{word} ({p})")
    };
    let row = |d: &Difference| {
        let mut row = vec![
            d.optimizer.clone(),
            d.paired.n.to_string(),
            show.signed(d.paired.mean),
            show.interval(d.paired.ci95),
            show.interval(d.paired.bootstrap95),
            or_none(d.paired.p, p_value),
            or_none(d.p_holm, p_value),
        ];
        if comparison.margin.is_some() {
            row.push(or_none(d.equivalence, equivalence));
        }
        row.push(d.verdict.words().into());
        row
    };
    let mut header = strings([
        "optimizer",
        "pairs",
        &format!("{} − {reference}", workload.part.name()),
        "95 % t",
        "95 % bootstrap",
        "p",
        "p (Holm)",
    ]);
    let mut legend = format!(
        "Differences of {} on the {} part{}, paired by seed. t: interval and p of the paired t test. Bootstrap: BCa, \
         too narrow with few seeds. Intervals and p are of one difference each; Holm: p adjusted for the {} differences \
         of this table. Without any spread between pairs there is no interval and no p.",
        workload.metric.name(),
        workload.part.name(),
        if unit.is_empty() {
            String::new()
        } else {
            format!(", in{unit}")
        },
        comparison.differences.len(),
    );
    if let Some(margin) = comparison.margin {
        let margin = format!("±{}{unit}", show.number(margin));
        header.push(format!("within {margin} (p)"));
        legend = format!("{legend} Within {margin}: two one-sided t tests at 5 %.");
    }
    header.push("verdict".into());
    legend += " Undecided is no evidence for equality: more seeds would decide.\n";
    Grid {
        title: format!("Differences to {reference}"),
        header,
        rows: comparison.differences.iter().map(row).collect(),
        legend,
    }
}

pub(crate) fn p_value(p: f64) -> String {
    if p < 0.001 {
        "< 0.001".into()
    } else {
        format!("{p:.3}")
    }
}

/// What optimizers cost until they are as good as the base is in the end.
pub(crate) fn target(workload: &Workload, target: &Target) -> Grid {
    let base = target
        .rows
        .iter()
        .find(|row| row.optimizer == workload.base);
    let ratio = |own: Reach, base: Option<Reach>| {
        let (own, base) = (own.median?, base.and_then(|b| b.median)?);
        Some(own / base)
    };
    let timed = target.rows.iter().any(|row| row.seconds.is_some());
    let median = |reach: Reach| or_none(reach.median, |m| format!("{m:.0}"));
    let times = |ratio: Option<f64>| or_none(ratio, |r| format!("{r:.2}"));
    let mut header = strings(["optimizer", "reached", "gradient evaluations", "×"]);
    if timed {
        header.extend(strings(["seconds", "×"]));
    }
    let rows = target.rows.iter().map(|row| {
        let reach = row.evaluations;
        let mut cells = vec![
            row.optimizer.clone(),
            format!("{} of {}", reach.reached, reach.runs),
            median(reach),
            times(ratio(reach, base.map(|b| b.evaluations))),
        ];
        if timed {
            let base = base.and_then(|b| b.seconds);
            cells.push(or_none(row.seconds, |s| {
                or_none(s.median, |m| format!("{m:.1}"))
            }));
            cells.push(times(row.seconds.and_then(|s| ratio(s, base))));
        }
        cells
    });
    let (name, score) = (&workload.base, workload.metric.show(target.score));
    Grid {
        title: "Cost to the target".into(),
        header,
        rows: rows.collect(),
        legend: format!(
            "Target: {} {score} on the validation part, the median over {name}'s seeds after their last epoch. Cost: to \
             the end of the first epoch that reaches it, median over seeds; a run that never does counts as infinite, \
             and {NONE} is an infinite median. ×: relative to {name}.\n",
            workload.metric.name(),
        ),
    }
}

/// Scores at equal cost.
pub(crate) fn view(workload: &Workload, view: &View) -> Grid {
    let (show, base) = (Show(workload.metric), &workload.base);
    let mut header = vec!["optimizer".to_owned()];
    header.extend(SHARES.iter().zip(&view.budgets).map(|(share, budget)| {
        let budget = match view.measure {
            Measure::Seconds => format!("{budget:.1} s"),
            Measure::Epochs | Measure::Evaluations => format!("{budget:.0}"),
        };
        format!("{share} × ({budget})")
    }));
    let cell = |at: AtCost| {
        format!(
            "{}{}",
            show.spread(&at.score),
            if at.ended { " ■" } else { "" }
        )
    };
    let rows = view.rows.iter().map(|row| {
        let scores = row.scores.iter().map(|s| or_none(*s, cell));
        [row.optimizer.clone()].into_iter().chain(scores).collect()
    });
    Grid {
        title: format!("At equal {}", view.measure.words()),
        header,
        rows: rows.collect(),
        legend: format!(
            "{}{} on the validation part after as many {} as {base}'s whole run of the same seed takes, and shares of it; \
             between epochs interpolated. ■: at its end. A run in its middle still has a high learning rate, so it is worth less there than \
             one that was planned for that budget; {base} trained longer is such a one.\n",
            capitalised(workload.metric.name()),
            workload.metric.unit().1,
            view.measure.words(),
        ),
    }
}

/// How hard good hyper-parameters are to find.
pub(crate) fn sensitivity(workload: &Workload) -> Grid {
    let show = Show(workload.metric);
    let number = |x: Option<f64>| or_none(x, |x| show.number(x));
    let row = |s: &Sensitivity| {
        vec![
            s.optimizer.clone(),
            s.trials.len().to_string(),
            s.diverged.to_string(),
            number(s.best),
            number(s.median),
            format!("{} to {}", number(s.quartiles.0), number(s.quartiles.1)),
        ]
    };
    Grid {
        title: "Sensitivity to hyper-parameters".into(),
        header: strings([
            "optimizer",
            "trials",
            "diverged",
            "best",
            "median",
            "quartiles",
        ]),
        rows: workload.sensitivity.iter().map(row).collect(),
        legend: format!(
            "{}{} on the validation part, over all trials of the search; what diverged counts as worse than \
             everything.\n",
            capitalised(workload.metric.name()),
            workload.metric.unit().1,
        ),
    }
}

/// One hyper-parameter of one optimizer.
pub(crate) fn parameter(workload: &Workload, of: &Sensitivity, name: &str) -> Grid {
    let show = Show(workload.metric);
    let number = |x: Option<f64>| or_none(x, |x| show.number(x));
    let values = of.parameters.iter().find(|(n, _)| n == name).map(|p| &p.1);
    let rows = values.into_iter().flatten().map(|at| {
        vec![
            at.value.to_string(),
            at.trials.to_string(),
            number(at.best),
            number(at.median),
        ]
    });
    Grid {
        title: format!("{}: {name}", of.optimizer),
        header: strings([name, "trials", "best", "median"]),
        rows: rows.collect(),
        legend: String::new(),
    }
}

/// Performance profiles as numbers.
pub(crate) fn profiles(measure: Measure, workloads: &[String], profiles: &[Profile]) -> Grid {
    let mut header = vec!["optimizer".to_owned()];
    header.extend(workloads.iter().map(|w| format!("{w} ×")));
    header.push("score".into());
    let row = |p: &Profile| {
        let ratios = p.ratios.iter().map(|r| or_none(*r, |r| format!("{r:.2}")));
        let mut row: Vec<String> = [p.optimizer.clone()].into_iter().chain(ratios).collect();
        row.push(format!("{:.3}", p.score));
        row
    };
    Grid {
        title: format!("Profile over workloads, by {}", measure.words()),
        header,
        rows: profiles.iter().map(row).collect(),
        legend: format!(
            "Cost to each workload's target relative to the cheapest optimizer there; {NONE}: not reached by half of the \
             seeds. Score: area below the profile from 1 to {TAU_MAX} (1 is the cheapest everywhere).\n"
        ),
    }
}

/// What has been measured of the solutions of one directory.
pub(crate) fn sharpness(saved: &Saved) -> Grid {
    saved.table.grid()
}
