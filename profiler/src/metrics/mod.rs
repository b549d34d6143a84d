//! The table of metrics and the label policy. Never how a page is served.
