//! What crosses a boundary.
