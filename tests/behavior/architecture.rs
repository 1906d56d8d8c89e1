//! The arrows between modules, the homes of the large dependencies, and the absences that keep the core free of I/O.
//!
//! The sources are read as text, their comments, strings and test modules taken out first: whatever the compiler would
//! accept, a name that stands in a file is an arrow.

use std::path::{Path, PathBuf};

/// Which `crate::` modules each top module may name, itself aside. A layer may skip down, never up.
const ARROWS: [(&str, &[&str]); 19] = [
    ("wire", &[]),
    ("protocol", &["wire"]),
    ("virtual_session", &["protocol", "wire"]),
    ("config", &["protocol"]),
    ("drain", &[]),
    ("error", &["protocol", "wire"]),
    ("metrics", &["error", "protocol", "wire"]),
    (
        "net",
        &[
            "config",
            "metrics",
            "error",
            "drain",
            "virtual_session",
            "protocol",
            "wire",
        ],
    ),
    (
        "backend",
        &[
            "net",
            "config",
            "metrics",
            "error",
            "drain",
            "virtual_session",
            "protocol",
            "wire",
        ],
    ),
    (
        "pool",
        &[
            "backend",
            "net",
            "config",
            "metrics",
            "error",
            "drain",
            "virtual_session",
            "protocol",
            "wire",
        ],
    ),
    (
        "relay",
        &[
            "pool",
            "backend",
            "net",
            "config",
            "metrics",
            "error",
            "drain",
            "virtual_session",
            "protocol",
            "wire",
        ],
    ),
    (
        "client",
        &[
            "relay",
            "pool",
            "backend",
            "net",
            "config",
            "metrics",
            "error",
            "drain",
            "virtual_session",
            "protocol",
            "wire",
        ],
    ),
    ("admin", &["pool", "metrics", "config", "error", "drain"]),
    (
        "server",
        &[
            "logging", "client", "admin", "relay", "pool", "backend", "net", "config", "metrics", "error", "drain",
            "protocol", "wire",
        ],
    ),
    ("diagnose", &["backend", "net", "config", "wire"]),
    ("cli", &["config"]),
    ("logging", &["config"]),
    // What fuzz/ drives: the machines that read peers' bytes.
    ("fuzzing", &["virtual_session", "protocol", "wire"]),
    ("lib", &[]),
];

/// Each large dependency and the modules that may name it.
const HOMES: [(&str, &[&str]); 4] = [
    ("bb8", &["pool"]),
    ("prometheus", &["metrics", "admin"]),
    ("serde_yaml", &["config"]),
    ("pgwire", &["wire", "protocol"]),
];

/// The modules without I/O, clock and log, and what none of them may name.
const SANS_IO: [&str; 3] = ["wire", "protocol", "virtual_session"];
const NO_IO: [&str; 7] = [
    "tokio",
    "std::net",
    "std::io",
    "Instant::now",
    "SystemTime",
    "tracing",
    "std::fs",
];

#[test]
fn the_arrows_between_modules_point_one_way() {
    let mut faults = Vec::new();
    for (path, text) in sources() {
        faults.extend(faults_of(&path, &text));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn every_source_file_belongs_to_a_module_of_the_picture() {
    for (path, _) in sources() {
        let module = top_module(&path);
        let known = module == "main" || ARROWS.iter().any(|(name, _)| *name == module);
        assert!(
            known,
            "{}: give the module {module} its place in ARROWS",
            path.display()
        );
    }
}

#[test]
fn no_module_is_in_a_cycle() {
    for (module, below) in ARROWS {
        for other in below {
            assert!(
                !arrows_of(other).contains(&module),
                "{module} and {other} name each other"
            );
        }
    }
}

#[test]
fn functions_fit_on_a_screen() {
    let mut long = Vec::new();
    for (path, text) in sources() {
        for (name, lines) in functions(&without_tests(&without_comments(&text))) {
            if lines > 80 {
                long.push(format!("{}: fn {name} has {lines} lines", path.display()));
            }
        }
    }
    assert!(long.is_empty(), "\n{}", long.join("\n"));
}

#[test]
fn there_are_no_mutable_statics() {
    for (path, text) in sources() {
        let code = without_tests(&without_comments(&text));
        for line in code.lines().map(str::trim_start) {
            let line = line.strip_prefix("pub ").unwrap_or(line);
            let is_static = line.starts_with("static ") || line.starts_with("thread_local!");
            let shared = [
                "Mutex",
                "RwLock",
                "Atomic",
                "Cell",
                "OnceLock",
                "LazyLock",
                "static mut",
                "thread_local!",
            ];
            let mutable = shared.iter().any(|kind| line.contains(kind));
            assert!(!(is_static && mutable), "{}: {line}", path.display());
        }
    }
}

// What the checker itself can see: a checker that can't fail proves nothing.

#[test]
fn an_arrow_that_points_up_is_found() {
    let faults = |path: &str, text: &str| faults_of(Path::new(path), text).len();
    assert_eq!(
        faults("wire/frame.rs", "use crate::config::Config;"),
        2,
        "an arrow up, and a name that wire never has"
    );
    assert_eq!(
        faults("net/dial.rs", "fn f() { let x: crate::pool::Pools = todo(); }"),
        1
    );
    assert_eq!(
        faults(
            "net/dial.rs",
            "use crate::{\n    wire::Reader,\n    pool::{Lease, Pools},\n};"
        ),
        1
    );
    assert_eq!(faults("net/dial.rs", "use crate::{config::Config, wire, error};"), 0);
    assert_eq!(
        faults("backend/login.rs", "use super::super::pool::Lease;"),
        1,
        "a way around crate::"
    );
}

#[test]
fn a_dependency_outside_its_home_is_found() {
    assert_eq!(faults_of(Path::new("relay/mod.rs"), "use bb8::Pool;").len(), 1);
    assert_eq!(faults_of(Path::new("pool/mod.rs"), "use bb8::Pool;").len(), 0);
    assert_eq!(
        faults_of(Path::new("relay/mod.rs"), "let prometheus_like = 1;").len(),
        0,
        "only the whole word counts"
    );
}

#[test]
fn a_clock_or_a_socket_in_the_core_is_found() {
    assert_eq!(
        faults_of(Path::new("protocol/pipeline.rs"), "let t = std::time::Instant::now();").len(),
        1
    );
    assert_eq!(
        faults_of(Path::new("virtual_session/pins.rs"), "tracing::info!(\"x\");").len(),
        1
    );
    assert_eq!(
        faults_of(Path::new("wire/frame.rs"), "fn f(now: std::time::Instant) {}").len(),
        0
    );
}

#[test]
fn comments_strings_and_test_modules_are_no_arrows() {
    let text = "/// See crate::pool.\n// crate::pool\n/* crate::pool /* nested */ crate::pool */\n\
                const S: &str = \"crate::pool \\\" crate::pool\";\nconst R: &str = r#\"crate::pool \" \"#;\n\
                const C: char = '\"'; fn life<'a>(_: &'a str) {}\n\
                #[cfg(test)]\nmod tests { use crate::pool::Pools; fn f() { { } } }\n";
    assert_eq!(faults_of(Path::new("wire/frame.rs"), text), Vec::<String>::new());
    let behind = format!("{text}\nuse crate::pool::Pools;");
    assert_eq!(
        faults_of(Path::new("wire/frame.rs"), &behind).len(),
        1,
        "code behind a test module counts"
    );
}

#[test]
fn long_functions_are_measured() {
    let text = "fn short() {}\nimpl T {\n    fn long(x: [u8; 2]) -> u8 {\n        {\n        }\n    }\n    fn declared();\n}\n";
    assert_eq!(functions(text), [("short".to_owned(), 1), ("long".to_owned(), 4)]);
}

/// What is wrong with one file, whose path is relative to src/.
fn faults_of(path: &Path, text: &str) -> Vec<String> {
    let module = top_module(path);
    let code = without_tests(&without_comments(text));
    let mut faults = Vec::new();
    if module != "main" && module != "lib" {
        for named in modules_named(&code) {
            if named != module && !arrows_of(&module).contains(&named.as_str()) {
                faults.push(format!("{}: {module} may not name {named}", path.display()));
            }
        }
    }
    for (dependency, homes) in HOMES {
        if has_word(&code, dependency) && !homes.contains(&module.as_str()) {
            faults.push(format!("{}: {dependency} belongs in {homes:?}", path.display()));
        }
    }
    if SANS_IO.contains(&module.as_str()) {
        let absent = NO_IO.iter().chain(&["crate::config", "crate::metrics"]);
        let found = absent.filter(|name| has_word(&code, name));
        faults.extend(found.map(|name| format!("{}: {module} is sans-IO and names {name}", path.display())));
    }
    faults
}

fn arrows_of(module: &str) -> &'static [&'static str] {
    ARROWS
        .iter()
        .find(|(name, _)| *name == module)
        .map_or(&[], |(_, below)| below)
}

/// The first component of the path: `pool` for `pool/lease.rs` and for `pool.rs`.
fn top_module(path: &Path) -> String {
    let first = path
        .components()
        .next()
        .expect("a path has a component")
        .as_os_str()
        .to_string_lossy()
        .into_owned();
    first.strip_suffix(".rs").map(str::to_owned).unwrap_or(first)
}

/// The top modules named behind `crate::`, `crate::{…}` or `super::super::`, whatever the nesting.
fn modules_named(code: &str) -> Vec<String> {
    let dense: String = code
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace(" ::", "::")
        .replace(":: ", "::");
    let mut names = Vec::new();
    for root in ["crate::", "super::super::"] {
        for (at, _) in dense.match_indices(root) {
            let rest = &dense[at + root.len()..];
            match rest.strip_prefix('{') {
                Some(group) => names.extend(group_heads(group)),
                None => names.push(head(rest)),
            }
        }
    }
    let known = |name: &String| ARROWS.iter().any(|(module, _)| module == name);
    names.into_iter().filter(known).collect()
}

/// The first identifiers of each item of a braced list, of which the opening brace is already gone.
fn group_heads(group: &str) -> Vec<String> {
    let mut heads = vec![head(group)];
    let mut depth = 1;
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => heads.push(head(&group[at + 1..])),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

fn head(text: &str) -> String {
    text.trim_start()
        .chars()
        .take_while(|letter| is_word(*letter))
        .collect()
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        !code[..at].chars().next_back().is_some_and(is_word)
            && !code[at + word.len()..].chars().next().is_some_and(is_word)
    })
}

/// The code with comments dropped and the contents of strings and characters emptied; line breaks stay.
fn without_comments(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let (kept, skipped) = token(rest, code.chars().next_back());
        if skipped > 0 {
            code.push_str(kept);
            code.extend(rest[..skipped].chars().filter(|skipped| *skipped == '\n'));
            rest = &rest[skipped..];
        } else {
            code.push(letter);
            rest = &rest[letter.len_utf8()..];
        }
    }
    code
}

/// What stands at the start of `rest`: its replacement and length if it is a comment, string or character, else 0.
fn token(rest: &str, before: Option<char>) -> (&'static str, usize) {
    if rest.starts_with("//") {
        return ("", rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return ("", block_comment(rest));
    }
    if rest.starts_with('"') {
        return ("\"\"", quoted(rest));
    }
    if rest.starts_with('r') && !before.is_some_and(|letter| is_word(letter) && letter != 'b') {
        let hashes = rest[1..].chars().take_while(|letter| *letter == '#').count();
        if rest[1 + hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let from = hashes + 2;
            return (
                "\"\"",
                rest[from..].find(&end).map_or(rest.len(), |at| from + at + end.len()),
            );
        }
    }
    if rest.starts_with('\'') {
        return ("' '", character(rest));
    }
    ("", 0)
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let tail = &rest[at..];
        if tail.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if tail.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
        } else {
            at += tail.chars().next().map_or(1, char::len_utf8);
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (at, letter) in rest.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of a character literal; 0 for a lifetime.
fn character(rest: &str) -> usize {
    let mut letters = rest.char_indices().skip(1);
    let (first, second) = (letters.next(), letters.next());
    match (first, second) {
        (Some((_, '\\')), Some((at, escaped))) => {
            let from = at + escaped.len_utf8();
            rest[from..].find('\'').map_or(rest.len(), |end| from + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

/// The code less its `#[cfg(test)]` items. Expects comments and strings to be gone.
fn without_tests(code: &str) -> String {
    let mut kept = String::new();
    let mut rest = code;
    while let Some((before, item)) = rest.split_once("#[cfg(test)]") {
        kept.push_str(before);
        rest = match (item.find(';'), item.find('{')) {
            (Some(end), Some(open)) if end < open => &item[end + 1..],
            (_, Some(open)) => &item[open + matching_brace(&item[open..])..],
            (Some(end), None) => &item[end + 1..],
            (None, None) => "",
        };
    }
    kept + rest
}

/// The length of the block that starts with the brace at the start of `text`.
fn matching_brace(text: &str) -> usize {
    let mut depth = 0;
    for (at, letter) in text.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    text.len()
}

/// The functions that have bodies, with the lines from `fn` to the closing brace.
fn functions(code: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let name = head(&code[at + 3..]);
        if name.is_empty() || code[..at].chars().next_back().is_some_and(is_word) {
            continue;
        }
        let Some(open) = code[at..].find('{') else { continue };
        let signature = &code[at..at + open];
        let brackets = signature.matches('[').count();
        if signature.matches(';').count() > brackets || (brackets == 0 && signature.contains(';')) {
            continue;
        }
        let end = open + matching_brace(&code[at + open..]);
        found.push((name, code[at..at + end].lines().count()));
    }
    found
}

/// Every file under src/ but the test modules that have files of their own, its path relative to there.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut directories) = (Vec::new(), vec![root.clone()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test_module(&path) {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(&root).unwrap().to_owned(), text));
            }
        }
    }
    assert!(files.len() > 10, "the sources are where they are looked for");
    files
}

/// `tests.rs`, `…_tests.rs` and what lies under `tests/`, which their modules declare under `#[cfg(test)]`.
fn is_test_module(path: &Path) -> bool {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default();
    let inside_src = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(path);
    stem == "tests" || stem.ends_with("_tests") || inside_src.components().any(|part| part.as_os_str() == "tests")
}
