//! Drain (being built).
