//! Writes the manual pages and shell completions of `breakglass` from its own command line's definitions: `pages FOLDER`, which is made
//! where it is not there.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::{Shell, generate_to};

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return failed("No folder was named. Give one: pages FOLDER.");
    };
    match write(&folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&format!("The pages can't be written to {}: {error}. Name a folder that is writable.", folder.display())),
    }
}

fn failed(said: &str) -> ExitCode {
    let _nobody_reads = writeln!(std::io::stderr(), "{said}");
    ExitCode::FAILURE
}

fn write(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut command = agent::cli::Cli::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, "breakglass", folder)?;
    }
    clap_mangen::generate_to(command, folder)
}
