//! `breakglass`: an exit status out of a command line. Everything else is the library's.

fn main() -> std::process::ExitCode {
    agent::cli::run().into()
}
