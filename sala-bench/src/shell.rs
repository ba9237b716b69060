//! `completions` and `man`: what shells and readers of manuals want to know of the command line; printing.

use std::{
    fs,
    io::{ErrorKind, Write, stdout},
    path::Path,
};

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;

/// Prints to standard output. A reader who has seen enough (`| head`) is no error; `println!` would panic there, and
/// where a disk is full.
pub(crate) fn print(text: impl AsRef<[u8]>) -> Result<()> {
    let mut out = stdout().lock();
    match out.write_all(text.as_ref()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

/// Prints the completions of a shell.
pub(crate) fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sala-bench", &mut script);
    print(&script)
}

/// Writes a manual page for the program and each of its commands into a folder, or prints that of the program.
pub(crate) fn man(folder: Option<&Path>) -> Result<()> {
    let command = Cli::command();
    let Some(folder) = folder else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        return print(&page);
    };
    fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(command, folder))
        .with_context(|| format!("cannot write manual pages into {}", folder.display()))
}
