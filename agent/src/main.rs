//! `breakglass`.
fn main() {}
