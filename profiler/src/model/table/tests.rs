//! The model, through one `check(events, expected)`.
