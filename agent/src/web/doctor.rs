//! The doctor as a page.

use std::sync::Arc;

use super::app::App;

/// Begins what runs beside the page.
pub(super) fn begin(_: &Arc<App>) {}
