//! virtual_session (being built).

mod builtin_functions;
mod definitions;
pub mod effects_cache;
mod keywords;
mod ordinary_statement;
pub mod pins;
pub mod reset;
mod session_functions;
mod set_config;
mod set_statement;
pub mod setting_change;
pub mod sql_lexer;
pub mod statement_effects;
mod statement_kinds;
mod statement_scan;
pub mod suspects;
mod word_table;
