//! There is no proof by default.
use pve_verb::bundle::Preserved;

fn main() {
    let _: Preserved = Default::default();
}
