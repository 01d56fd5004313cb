//! Writes the manual pages and shell completions of `breakglass` from its own command line's definitions: `pages FOLDER`.

use clap::CommandFactory;
use clap_complete::{Shell, generate_to};

fn main() -> std::io::Result<()> {
    let Some(folder) = std::env::args_os().nth(1) else {
        return Err(std::io::Error::other("No folder was named. Give one: pages FOLDER."));
    };
    let mut command = agent::cli::Cli::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, "breakglass", &folder)?;
    }
    clap_mangen::generate_to(command, &folder)
}
