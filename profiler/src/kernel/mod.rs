//! The kernel boundary: the only place that imports aya.
