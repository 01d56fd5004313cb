//! Ways in for the fuzz targets of `agent/fuzz`, to what is the crate's own. Compiled only with `--cfg fuzzing`, which cargo-fuzz sets: no
//! program that ships has them.

pub use crate::claude::fuzz::answered;
pub use crate::keyholder::fuzz::frame;
