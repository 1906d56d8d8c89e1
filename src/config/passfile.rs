//! libpq's password file, `~/.pgpass` (manual: libpq-pgpass).

use super::secret::Secret;

/// The password of the first line that matches, or `None`. `host` is the name as it was given, the address where only
/// that was, `localhost` for the default unix socket directory.
///
/// A line is `hostname:port:database:username:password`; `*` matches anything, `\` takes `:` and `\` as they are, and
/// lines that begin with `#` are comments.
pub fn find_password(text: &str, host: &str, port: u16, dbname: &str, user: &str) -> Option<Secret> {
    let port = port.to_string();
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line;
        for wanted in [host, &port, dbname, user] {
            rest = match_field(rest, wanted)?;
        }
        Some(unescaped(rest))
            .filter(|password| !password.is_empty())
            .map(Secret::new)
    })
}

/// What follows the field and its colon, if the field matches.
fn match_field<'a>(line: &'a str, wanted: &str) -> Option<&'a str> {
    if let Some(rest) = line.strip_prefix("*:") {
        return Some(rest);
    }
    let mut wanted = wanted.chars();
    let mut characters = line.chars();
    loop {
        match characters.next()? {
            ':' => return wanted.next().is_none().then_some(characters.as_str()),
            '\\' => {
                let escaped = characters.next()?;
                (wanted.next()? == escaped).then_some(())?;
            }
            plain => (wanted.next()? == plain).then_some(())?,
        }
    }
}

fn unescaped(text: &str) -> String {
    let mut password = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        password.extend(if character == '\\' {
            characters.next()
        } else {
            Some(character)
        });
    }
    password
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# comment\n\
        db.example:5432:app:app:first\n\
        db.example:*:app:app:second\n\
        \\:\\:1:5432:*:joe\\\\s:with\\:colon\\\\\n\
        localhost:5432:*:nobody:\n\
        *:*:*:app:last\n";

    #[test]
    fn the_first_line_that_matches_wins() {
        let find = |host, port, dbname, user| {
            find_password(FILE, host, port, dbname, user).map(|secret| secret.expose().to_owned())
        };
        assert_eq!(find("db.example", 5432, "app", "app").as_deref(), Some("first"));
        assert_eq!(find("db.example", 5433, "app", "app").as_deref(), Some("second"));
        assert_eq!(find("other", 5433, "app", "app").as_deref(), Some("last"));
        assert_eq!(find("::1", 5432, "x", "joe\\s").as_deref(), Some("with:colon\\"));
        assert_eq!(find("db.example", 5432, "app", "ap"), None);
        assert_eq!(find("localhost", 5432, "x", "nobody"), None);
        assert_eq!(find("# comment", 5432, "x", "nobody"), None);
    }

    #[test]
    fn short_lines_match_nothing() {
        for text in ["", "a", "a:b", "*:*:*", "*:*:*:app", "\\", "*:*:*:*:"] {
            assert_eq!(find_password(text, "h", 1, "d", "app"), None, "{text}");
        }
    }
}
