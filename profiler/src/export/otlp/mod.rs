//! Pushing metrics by OTLP, for those who do not scrape: the same families as on the page, turned into resources and data points,
//! and sent to a collector. The measuring loop waits for none of it.

mod convert;
mod push;
mod queue;
mod settings;
mod transport;

pub use push::{Figures, Push, start};
pub use settings::{Asked, Protocol, Settings};

#[cfg(test)]
mod tests;
