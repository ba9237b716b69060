//! What a report shows beside the differences to the base. It is part of the plan, so that it is settled before
//! the numbers are seen.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::Optimizer;

/// What a report is to say of the comparison.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ReportSettings {
    /// Largest difference that does not matter, in the unit of the metric (accuracies are shares: 0.005 is
    /// half a point); unless set nothing is tested for equivalence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) margin: Option<f64>,
    /// Further optimizers that the others are compared with, besides the base.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) references: Vec<String>,
}

impl ReportSettings {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn validate(&self, optimizers: &[Optimizer]) -> Result<()> {
        if let Some(margin) = self.margin {
            ensure!(
                margin.is_finite() && margin > 0.0,
                "report.margin must be finite and above 0, got {margin}"
            );
        }
        for name in &self.references {
            let known: Vec<&str> = optimizers.iter().map(|o| o.name.as_str()).collect();
            (known.contains(&name.as_str()).then_some(())).with_context(|| {
                let known = known.join(", ");
                format!("report.references: no optimizer `{name}`; there are {known}")
            })?;
        }
        Ok(())
    }
}
