//! config.yaml, the example that shows every key, is the built-in defaults.

use std::path::Path;

use pgsidecar::config::{Config, Flags, Sources, known_keys};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config.yaml");
const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/config.md");

fn load(config: Option<&Path>) -> Config {
    let flags = Flags {
        config: config.map(Path::to_owned),
        upstream: Some("postgres://app:secret@db.example/app".into()),
        ..Flags::default()
    };
    let sources = Sources {
        flags,
        root: "/".into(),
        ..Sources::default()
    };
    Config::load(&sources).expect("the configuration is valid").config
}

fn text(path: &str) -> String {
    std::fs::read_to_string(path).expect("the file is there")
}

/// `users[].pool.max_size` as the name of its last part.
fn last_part(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key).trim_end_matches("[]")
}

#[test]
fn the_example_equals_the_defaults() {
    let empty = tempfile::NamedTempFile::new().expect("a temporary file");
    assert_eq!(load(Some(Path::new(EXAMPLE))), load(Some(empty.path())));
}

#[test]
fn the_example_mentions_every_key() {
    let example = text(EXAMPLE);
    let is_mentioned = |name: &str| {
        example
            .split(|it: char| !(it.is_alphanumeric() || it == '_' || it == ':'))
            .any(|word| word.trim_end_matches(':') == name)
    };
    for key in known_keys() {
        let name = last_part(&key);
        assert!(name == "*" || is_mentioned(name), "config.yaml doesn't mention {key}");
    }
}

#[test]
fn the_example_sets_every_key_that_stands_in_no_list_or_map() {
    let example = text(EXAMPLE);
    for key in known_keys().iter().filter(|key| !key.contains(['[', '*'])) {
        // Those two have a second spelling in `auth:`, which the example shows as null.
        if key.starts_with("auth.query.") {
            continue;
        }
        let mut indentation = String::new();
        let mut rest = example.as_str();
        for part in key.split('.') {
            let line = format!("\n{indentation}{part}:");
            let at = rest.find(&line).unwrap_or_else(|| panic!("config.yaml lacks {key}"));
            rest = &rest[at + 1..];
            indentation.push_str("  ");
        }
    }
}

#[test]
fn the_reference_has_every_key() {
    let reference = text(REFERENCE);
    for key in known_keys().iter().filter(|key| !key.contains(['[', '*'])) {
        if key.starts_with("auth.query.") {
            continue;
        }
        assert!(reference.contains(&format!("`{key}`")), "docs/config.md lacks {key}");
    }
}
