//! What was typed after `doctor`, `completions` and `man`.

use std::path::PathBuf;

use clap::Args;

pub(super) const DOCTOR_EXAMPLES: &str = "\
Examples:
  sala-bench doctor
  sala-bench doctor --data-dir ~/data/mnist --json

Exit code 1 when something will not work: the last lines say what. A device that is not there is no problem.";

pub(super) const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  sala-bench completions bash > ~/.local/share/bash-completion/completions/sala-bench
  sala-bench completions zsh > ~/.zfunc/_sala-bench
  sala-bench completions fish > ~/.config/fish/completions/sala-bench.fish";

pub(super) const MAN_EXAMPLES: &str = "\
Examples:
  sala-bench man | man -l -
  sala-bench man --out ~/.local/share/man/man1";

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Folder to look into for data, besides the usual places; can be given several times
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Vec<PathBuf>,
    /// Folder where records are to go
    #[arg(long, value_name = "DIR", default_value = "runs")]
    pub(crate) out: PathBuf,
    /// Everything as JSON
    #[arg(long)]
    pub(crate) json: bool,
}
