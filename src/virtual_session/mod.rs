//! virtual_session (being built).
