//! relay (being built).
