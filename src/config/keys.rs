//! Does a tree of YAML hold only keys that exist, each with the kind of value that it takes?

use serde_yaml::Value;

use super::error::Problem;
use super::file::{File, Mirror, Shape, known_keys};
use super::path::KeyPath;

/// Checks a whole configuration tree. The problem names the key and the nearest one that exists.
pub(super) fn check(tree: &Value) -> Result<(), Problem> {
    check_at(&File::SHAPE, tree, &KeyPath::default())
}

fn check_at(shape: &Shape, value: &Value, path: &KeyPath) -> Result<(), Problem> {
    // A key without a value is a key with its default.
    if value.is_null() {
        return Ok(());
    }
    let refuse = |message: &str| Err(Problem::new(path.clone(), message));
    match (shape, value) {
        (Shape::Scalar | Shape::ScalarOr(_), Value::Bool(_) | Value::Number(_) | Value::String(_)) => Ok(()),
        (Shape::Scalar, _) => refuse("must be a single value"),
        (Shape::ScalarOr(longer), _) => check_at(longer, value, path),
        (Shape::List(of), Value::Sequence(entries)) => {
            entries.iter().enumerate().try_for_each(|(index, entry)| match entry {
                Value::Null => Err(Problem::new(path.index(index), "is empty")),
                entry => check_at(of, entry, &path.index(index)),
            })
        }
        (Shape::List(_), _) => refuse("must be a list"),
        (Shape::Section(_) | Shape::Map(_), Value::Mapping(entries)) => entries.iter().try_for_each(|(key, value)| {
            let Value::String(key) = key else {
                return refuse("has a key that is not text; put it in quotes");
            };
            match shape {
                Shape::Section(known) => match known.iter().find(|(name, _)| name == key) {
                    Some((_, shape)) => check_at(shape, value, &path.key(key)),
                    None => Err(Problem::new(path.key(key), unknown_key(key, known, path))),
                },
                Shape::Map(of) => check_at(of, value, &path.key(key)),
                _ => Ok(()),
            }
        }),
        (Shape::Section(_) | Shape::Map(_), _) => refuse("must be a mapping of keys to values"),
    }
}

/// The words for a key that doesn't exist: the most alike of its siblings, unless another section has the very name.
fn unknown_key(key: &str, siblings: &[(&'static str, &Shape)], section: &KeyPath) -> String {
    let (name, likeness) = siblings
        .iter()
        .map(|(name, _)| (*name, strsim::jaro_winkler(name, &key.to_ascii_lowercase())))
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap_or_default();
    let nearest = section.key(name).to_string();
    let elsewhere = known_keys()
        .into_iter()
        .find(|known| known.rsplit('.').next() == Some(key));
    match elsewhere {
        Some(elsewhere) if likeness < 0.9 => format!("no such key; did you mean {elsewhere}?"),
        _ => format!("no such key; did you mean {nearest}?"),
    }
}

/// What may stand at the key that a `PGSIDECAR__…` variable names, or the name of the nearest variable.
pub(super) fn shape_of_variable(variable: &str) -> Result<(KeyPath, &'static Shape), String> {
    let names: Vec<String> = variable
        .trim_start_matches(PREFIX)
        .split("__")
        .map(str::to_ascii_lowercase)
        .collect();
    let mut shape: &'static Shape = &File::SHAPE;
    let mut path = KeyPath::default();
    for name in &names {
        let section = match shape {
            Shape::Section(section) | Shape::ScalarOr(Shape::Section(section)) => section,
            _ => return Err(nearest_variable(variable)),
        };
        let Some((_, inner)) = section.iter().find(|(key, _)| key == name) else {
            return Err(nearest_variable(variable));
        };
        shape = inner;
        path = path.key(name);
    }
    Ok((path, shape))
}

/// What the names of variables that stand for keys begin with.
pub(super) const PREFIX: &str = "PGSIDECAR__";

fn nearest_variable(variable: &str) -> String {
    let mut known = Vec::new();
    walk_variables(&File::SHAPE, PREFIX.trim_end_matches('_'), &mut known);
    let likeness = |known: &String| strsim::damerau_levenshtein(known, &variable.to_ascii_uppercase());
    let nearest = known
        .iter()
        .min_by_key(|known| likeness(known))
        .cloned()
        .unwrap_or_default();
    format!("no such key; did you mean {nearest}?")
}

fn walk_variables(shape: &Shape, prefix: &str, names: &mut Vec<String>) {
    if let Shape::Section(section) | Shape::ScalarOr(Shape::Section(section)) = shape {
        for (key, shape) in *section {
            let name = format!("{prefix}__{}", key.to_ascii_uppercase());
            walk_variables(shape, &name, names);
            names.push(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(yaml: &str) -> String {
        let problem = check(&serde_yaml::from_str(yaml).unwrap()).unwrap_err();
        format!("{}: {}", problem.key, problem.message)
    }

    #[test]
    fn a_misspelt_key_is_answered_with_the_nearest() {
        assert_eq!(
            problem("pool: {max_sise: 3}"),
            "pool.max_sise: no such key; did you mean pool.max_size?"
        );
        assert_eq!(problem("pol: {}"), "pol: no such key; did you mean pool?");
        assert_eq!(
            problem("users: [{nam: x}]"),
            "users[0].nam: no such key; did you mean users[0].name?"
        );
        assert_eq!(
            problem("databases: {app: {poool: {}}}"),
            "databases.app.poool: no such key; did you mean databases.app.pool?"
        );
    }

    #[test]
    fn a_key_in_the_wrong_section_is_answered_with_the_right_one() {
        assert_eq!(
            problem("max_clients: 3"),
            "max_clients: no such key; did you mean limits.max_clients?"
        );
    }

    #[test]
    fn a_value_of_the_wrong_kind_names_its_key() {
        assert_eq!(problem("pool: 3"), "pool: must be a mapping of keys to values");
        assert_eq!(
            problem("pool: {max_size: [1]}"),
            "pool.max_size: must be a single value"
        );
        assert_eq!(problem("users: {a: b}"), "users: must be a list");
        assert_eq!(problem("users: [~]"), "users[0]: is empty");
        assert_eq!(
            problem("databases: {1: {}}"),
            "databases: has a key that is not text; put it in quotes"
        );
        assert_eq!(problem("[1]"), ": must be a mapping of keys to values");
    }

    #[test]
    fn a_variable_names_a_key() {
        assert_eq!(
            shape_of_variable("PGSIDECAR__POOL__MAX_SIZE").unwrap().0.to_string(),
            "pool.max_size"
        );
        let keepalive = shape_of_variable("PGSIDECAR__UPSTREAM__TCP_KEEPALIVE__IDLE").unwrap().0;
        assert_eq!(keepalive.to_string(), "upstream.tcp_keepalive.idle");
        assert_eq!(
            shape_of_variable("PGSIDECAR__POOL__MAX_SZIE").unwrap_err(),
            "no such key; did you mean PGSIDECAR__POOL__MAX_SIZE?"
        );
        assert!(shape_of_variable("PGSIDECAR__").is_err());
        assert!(shape_of_variable("PGSIDECAR__DATABASES__APP__DBNAME").is_err());
    }
}
