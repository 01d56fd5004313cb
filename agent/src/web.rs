//! The page for one tired person on a phone, and its API.
//!
//! ```text
//! request ──> origin.rs (Host, same origin) ──> auth.rs (who?) ──> limits.rs ──> a route ──> page (maud) or JSON
//!                                                                    └─ a mutation: tokens.rs (this state, once)
//! ```
//! Every page is whole without JavaScript; `app.js` only keeps it fresh.

pub mod auth;
pub mod limits;
pub mod origin;
pub mod tokens;
