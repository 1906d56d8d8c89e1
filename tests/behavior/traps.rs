//! The numbered traps of docs/traps.md: none is forgotten, and no test that the page names is made up.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// The numbers that must be carried by a test, or accounted for by a line of the page: its sections but "Session state".
const NUMBERS: [RangeInclusive<u32>; 2] = [1..=53, 71..=95];

#[test]
fn every_trap_is_accounted_for() {
    let mut carried: BTreeSet<u32> = numbers_of_lines(&page()).collect();
    for (path, text) in sources() {
        if !path.ends_with("tests/behavior/traps.rs") {
            carried.extend(numbers_mentioned(&text));
        }
    }
    let missing: Vec<u32> = NUMBERS
        .into_iter()
        .flatten()
        .filter(|number| !carried.contains(number))
        .collect();
    assert!(
        missing.is_empty(),
        "traps without a test, a comment or a line: {missing:?}"
    );
}

#[test]
fn every_line_of_the_page_has_the_next_number() {
    let numbers: Vec<u32> = numbers_of_lines(&page()).collect();
    assert_eq!(numbers, (1..=95).collect::<Vec<_>>());
}

#[test]
fn every_test_that_is_named_exists() {
    let tests: Vec<(PathBuf, String)> = sources()
        .into_iter()
        .flat_map(|(path, text)| {
            let names = tests_in(&text);
            names.into_iter().map(move |name| (path.clone(), name))
        })
        .collect();
    let page = page();
    let named: Vec<&str> = tests_named(&page).collect();
    assert!(named.len() > 95, "the page names its tests");
    let unknown: Vec<&str> = named
        .into_iter()
        .filter(|named| !tests.iter().any(|(path, name)| is_meant(named, path, name)))
        .collect();
    assert!(unknown.is_empty(), "no such tests: {unknown:#?}");
}

// What the checker itself can see: a checker that can't fail proves nothing.

#[test]
fn numbers_are_found_in_names_and_comments() {
    let text = "fn trap_07_a() {}\n// traps 42, 43 and 51: b\n/// Trap 2: c\nfn traps_64_66_c() {}\n\
                // traps 13 to 15\nfn trap_21_34_d() {}\nlet strap_9 = 8; // (traps 71–73)";
    let found: BTreeSet<u32> = numbers_mentioned(text).collect();
    assert_eq!(
        found.into_iter().collect::<Vec<_>>(),
        [2, 7, 13, 14, 15, 21, 34, 42, 43, 51, 64, 66, 71, 72, 73]
    );
}

#[test]
fn a_test_is_known_by_its_module_and_its_name_or_the_start_of_it() {
    let path = Path::new("src/pool/tests/mod.rs");
    assert!(is_meant("pool::trap_75_*", path, "trap_75_a_backend"));
    assert!(is_meant("pool::trap_75_a_backend", path, "trap_75_a_backend"));
    assert!(!is_meant("pool::trap_75", path, "trap_75_a_backend"));
    assert!(!is_meant("pools::trap_75_*", path, "trap_75_a_backend"));
    let text = "fn helper() {}\n#[test]\nfn one() {}\n#[tokio::test(start_paused = true)]\nasync fn two() {}\n";
    assert_eq!(tests_in(text), ["one", "two"]);
    let line = "`a::b_*`, `SET`, and `trap_1_c`; `pipeline::d`";
    assert_eq!(
        tests_named(line).collect::<Vec<_>>(),
        ["a::b_*", "trap_1_c", "pipeline::d"]
    );
}

fn page() -> String {
    std::fs::read_to_string(root().join("docs/traps.md")).unwrap()
}

/// The numbers with which lines begin: `13. …`.
fn numbers_of_lines(page: &str) -> impl Iterator<Item = u32> {
    page.lines()
        .filter_map(|line| line.split_once(". ").and_then(|(number, _)| number.parse().ok()))
}

/// The numbers behind `trap` and `traps`: of a name `trap_7_…` or `traps_64_66_…`, of a comment `trap 7`, `traps 7, 8
/// and 9`, `traps 13 to 25`.
fn numbers_mentioned(text: &str) -> impl Iterator<Item = u32> {
    let text = text.to_ascii_lowercase();
    let mut found = Vec::new();
    for (at, word) in text.match_indices("trap") {
        if text[..at].ends_with(|letter: char| letter.is_alphanumeric()) {
            continue;
        }
        let behind = &text[at + word.len()..];
        found.extend(list(behind.strip_prefix('s').unwrap_or(behind)));
    }
    found.into_iter()
}

/// A list of numbers, up to the first thing that is none. `to` and a dash stand for what is between.
fn list(text: &str) -> Vec<u32> {
    let mut numbers: Vec<u32> = Vec::new();
    let mut rest = text;
    loop {
        let behind = rest.trim_start_matches([' ', '_', ',', '–', '-']);
        let behind = ["and ", "to "]
            .iter()
            .find_map(|word| behind.strip_prefix(word))
            .unwrap_or(behind);
        let joint = &rest[..rest.len() - behind.len()];
        let end = behind
            .find(|letter: char| !letter.is_ascii_digit())
            .unwrap_or(behind.len());
        let Ok(number) = behind[..end].parse() else {
            return numbers;
        };
        match numbers.last() {
            Some(&first) if joint.contains("to") || joint.contains('–') => numbers.extend(first + 1..=number),
            _ if joint.is_empty() => return numbers,
            _ => numbers.push(number),
        }
        rest = &behind[end..];
    }
}

/// The words between backticks that stand for tests: `module::name`, and whatever begins with `trap_`.
fn tests_named(page: &str) -> impl Iterator<Item = &str> {
    let words = page.split('`').skip(1).step_by(2);
    words.filter(|word| word.contains("::") && *word != "module::test" || word.starts_with("trap_"))
}

/// The names of functions under a `#[test]` of any kind.
fn tests_in(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some((_, behind)) = line.split_once("fn ").filter(|_| is_test) {
            names.push(behind.split('(').next().unwrap_or_default().to_owned());
            is_test = false;
        }
    }
    names
}

/// Whether `named` (`module::test`, or `module::start_*`) is this test of the file at `path`.
fn is_meant(named: &str, path: &Path, name: &str) -> bool {
    let Some((module, wanted)) = named.rsplit_once("::") else {
        return false;
    };
    let of_module = path
        .components()
        .any(|part| part.as_os_str().to_string_lossy().trim_end_matches(".rs") == module);
    of_module
        && match wanted.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == wanted,
        }
}

/// Every Rust file under src/ and tests/, with its path from the root.
fn sources() -> Vec<(PathBuf, String)> {
    let (mut files, mut directories) = (Vec::new(), vec![root().join("src"), root().join("tests")]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    assert!(files.len() > 100, "the sources are where they are looked for");
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
