//! What pgsidecar does, one module per behaviour.

mod config_file;
