//! What pgsidecar does, one module per behaviour.

mod command_line;
mod config_file;
