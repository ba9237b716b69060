//! `report`, as it is typed.

use std::path::PathBuf;

use clap::Args;

pub(super) const EXAMPLES: &str = "\
Examples:
  sala-bench report runs/fashion-mnist-noise-1a2b3c4d         again, in that directory
  sala-bench report node1/run node2/run --out report          parts of one comparison from two machines
  sala-bench report runs/clean runs/noise --out report        two comparisons, with a performance profile
  sala-bench report runs/mine --reference sam --margin 0.005  also against SAM; half a point does not matter

Directories whose plans differ in seeds and optimizers alone are parts of one comparison. Writes report.html
(one file that needs nothing else), report.md, report.csv and report.json.";

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Run directories
    #[arg(required = true, value_name = "DIR")]
    pub(crate) directories: Vec<PathBuf>,
    /// Folder for the report [default: the directory, if it is one; else report]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Optimizer that differences are taken to, in place of the first of the plan
    #[arg(long, value_name = "NAME")]
    pub(crate) base: Option<String>,
    /// Further optimizers that differences are taken to, besides those of the plan
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub(crate) reference: Vec<String>,
    /// Largest difference that does not matter, in place of the plan's (0.005 is half a point of accuracy)
    #[arg(long, value_name = "DIFFERENCE")]
    pub(crate) margin: Option<f64>,
    /// Where two directories hold different runs of one optimizer and seed, take that of the first
    #[arg(long)]
    pub(crate) prefer_first: bool,
}
