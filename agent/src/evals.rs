//! `breakglass evals`: recorded incidents, replayed for whoever is to act in them, and scored by what was done.

pub mod case;
pub mod score;
pub mod world;
