//! Writes the shell completions of `pve-verb` from its own command line's definitions: `completions FOLDER`. Used by install/package.

use clap::CommandFactory;
use clap_complete::{Shell, generate_to};

fn main() -> std::io::Result<()> {
    let Some(folder) = std::env::args_os().nth(1) else {
        return Err(std::io::Error::other("No folder was named. Give one: completions FOLDER."));
    };
    let mut command = pve_verb::cli::Cli::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, "pve-verb", &folder)?;
    }
    Ok(())
}
