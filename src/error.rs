//! Faults (being built).
