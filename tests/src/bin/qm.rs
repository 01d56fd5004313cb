//! The stand-in `qm`: what stands at `/usr/sbin/qm` inside the laboratory.
//!
//! It only starts the library's `qm` module; a binary of its own, because the shipped programs find `qm` by its path.

fn main() {
    std::process::exit(lab::qm::main());
}
