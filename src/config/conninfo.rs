//! libpq's connection strings: both forms, and every keyword with what becomes of it.
//!
//! Manual: libpq-connect, "Connection Strings" (34.1.1) and "Parameter Key Words" (34.1.2); libpq-envars. A keyword is
//! honoured or refused by name; none is ignored. Messages name keywords and never values: a password with a `/` or a
//! space in it makes any part of the text a part of the password.

use std::collections::BTreeMap;
use std::ops::Range;

/// What was said, by keyword. The last of several wins, as in libpq.
pub(super) type Parameters = BTreeMap<&'static str, String>;

/// One keyword of libpq.
pub(super) struct Keyword {
    pub(super) name: &'static str,
    /// The variable that supplies it.
    pub(super) variable: Option<&'static str>,
    /// Whether it says which server and login, rather than how to talk to them. Such variables are for the general
    /// upstream alone: a PGPASSWORD must not be sent to another database's server.
    pub(super) is_login: bool,
    /// Why it can't be honoured.
    pub(super) refusal: Option<&'static str>,
}

const GSS: &str = "GSSAPI is not supported";
const REPLICATION: &str =
    "pooled backends are never replication connections; a client asks for one by its own replication parameter";
const REQUIREPEER: &str = "the server process's owner is not checked; use TLS with sslmode=verify-full, or a socket \
                           directory that only the server can write";
const OAUTH: &str = "OAuth is not supported; use upstream.password_command for tokens";
const SCRAM_KEYS: &str = "SCRAM keys in place of a password are not supported; give a password";

macro_rules! keyword {
    ($name:literal) => {
        Keyword {
            name: $name,
            variable: None,
            is_login: false,
            refusal: None,
        }
    };
    ($name:literal, $variable:literal) => {
        Keyword {
            name: $name,
            variable: Some($variable),
            is_login: false,
            refusal: None,
        }
    };
    ($name:literal, login $variable:literal) => {
        Keyword {
            name: $name,
            variable: Some($variable),
            is_login: true,
            refusal: None,
        }
    };
    ($name:literal, refused $refusal:expr) => {
        Keyword {
            name: $name,
            variable: None,
            is_login: false,
            refusal: Some($refusal),
        }
    };
    ($name:literal, $variable:literal, refused $refusal:expr) => {
        Keyword {
            name: $name,
            variable: Some($variable),
            is_login: false,
            refusal: Some($refusal),
        }
    };
}

/// Every keyword of libpq 18. Those whose refusal depends on the value are refused where the value is read.
pub(super) const KEYWORDS: &[Keyword] = &[
    keyword!("host", login "PGHOST"),
    keyword!("hostaddr", login "PGHOSTADDR"),
    keyword!("port", login "PGPORT"),
    keyword!("dbname", login "PGDATABASE"),
    keyword!("user", login "PGUSER"),
    keyword!("password", login "PGPASSWORD"),
    keyword!("service", login "PGSERVICE"),
    keyword!("servicefile", "PGSERVICEFILE"),
    keyword!("passfile", "PGPASSFILE"),
    keyword!("require_auth", "PGREQUIREAUTH"),
    keyword!("channel_binding", "PGCHANNELBINDING"),
    keyword!("connect_timeout", "PGCONNECT_TIMEOUT"),
    keyword!("client_encoding", "PGCLIENTENCODING"),
    keyword!("options", "PGOPTIONS"),
    keyword!("application_name", "PGAPPNAME"),
    keyword!("fallback_application_name"),
    keyword!("keepalives"),
    keyword!("keepalives_idle"),
    keyword!("keepalives_interval"),
    keyword!("keepalives_count"),
    keyword!("tcp_user_timeout"),
    keyword!("target_session_attrs", "PGTARGETSESSIONATTRS"),
    keyword!("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    keyword!("sslmode", "PGSSLMODE"),
    keyword!("sslnegotiation", "PGSSLNEGOTIATION"),
    keyword!("sslcompression", "PGSSLCOMPRESSION"),
    keyword!("sslcert", "PGSSLCERT"),
    keyword!("sslkey", "PGSSLKEY"),
    keyword!("sslcertmode", "PGSSLCERTMODE"),
    keyword!("sslrootcert", "PGSSLROOTCERT"),
    keyword!("sslcrl", "PGSSLCRL"),
    keyword!("sslcrldir", "PGSSLCRLDIR"),
    keyword!("sslsni", "PGSSLSNI"),
    keyword!("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    keyword!("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    keyword!("min_protocol_version", "PGMINPROTOCOLVERSION"),
    keyword!("max_protocol_version", "PGMAXPROTOCOLVERSION"),
    keyword!("gssencmode", "PGGSSENCMODE"),
    keyword!("gssdelegation", "PGGSSDELEGATION"),
    keyword!("krbsrvname", "PGKRBSRVNAME", refused GSS),
    keyword!("gsslib", "PGGSSLIB", refused GSS),
    keyword!("sslpassword", refused "encrypted private keys are not supported; store the key decrypted, mode 0600"),
    keyword!("sslkeylogfile", refused "TLS secrets are never written to a file"),
    keyword!("requirepeer", "PGREQUIREPEER", refused REQUIREPEER),
    keyword!("replication", refused REPLICATION),
    keyword!("scram_client_key", refused SCRAM_KEYS),
    keyword!("scram_server_key", refused SCRAM_KEYS),
    keyword!("oauth_issuer", refused OAUTH),
    keyword!("oauth_client_id", refused OAUTH),
    keyword!("oauth_client_secret", refused OAUTH),
    keyword!("oauth_scope", refused OAUTH),
];

/// Parses either form.
pub(super) fn parse(text: &str) -> Result<Parameters, String> {
    let text = text.trim();
    match url_rest(text) {
        Some(rest) => parse_url(rest),
        None if text.contains("://") && !text.contains('=') || scheme_is_foreign(text) => {
            Err("is not a PostgreSQL URL: it must begin with postgresql:// or postgres://".into())
        }
        None => parse_keywords(text),
    }
}

/// Stores a value under a keyword that must exist and be supported.
pub(super) fn store(parameters: &mut Parameters, name: &str, value: String) -> Result<(), String> {
    let keyword = KEYWORDS
        .iter()
        .find(|keyword| keyword.name == name)
        .ok_or_else(|| unknown(name))?;
    if value.contains('\0') {
        return Err(format!("{name}: must not contain a NUL byte"));
    }
    if let Some(reason) = keyword.refusal.filter(|_| !value.is_empty()) {
        return Err(format!("{name}: {reason}"));
    }
    parameters.insert(keyword.name, value);
    Ok(())
}

fn unknown(name: &str) -> String {
    let nearest = KEYWORDS
        .iter()
        .map(|keyword| {
            (
                keyword.name,
                strsim::jaro_winkler(keyword.name, &name.to_ascii_lowercase()),
            )
        })
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map_or("", |(name, _)| name);
    format!("invalid connection option \"{name}\"; did you mean \"{nearest}\"?")
}

fn url_rest(text: &str) -> Option<&str> {
    text.strip_prefix("postgresql://")
        .or_else(|| text.strip_prefix("postgres://"))
}

/// `jdbc:postgresql://…?user=x` holds an `=` and is no keyword form for all that.
fn scheme_is_foreign(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty()
            && scheme
                .bytes()
                .all(|it| it.is_ascii_alphanumeric() || b":+.-".contains(&it))
    })
}

/// `user:password@host:port,host:port/dbname?name=value&…`, after the scheme.
fn parse_url(rest: &str) -> Result<Parameters, String> {
    let mut parameters = Parameters::new();
    let (user_info, rest) = split_user_info(rest);
    if let Some(user_info) = user_info {
        let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
        if !user.is_empty() {
            store(&mut parameters, "user", decode(user, "user")?)?;
        }
        if !password.is_empty() {
            store(&mut parameters, "password", decode(password, "password")?)?;
        }
    }
    let hosts_end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (hosts, rest) = rest.split_at(hosts_end);
    parse_url_hosts(hosts, &mut parameters)?;
    let (path, query) = rest
        .split_once('?')
        .map_or((rest, None), |(path, query)| (path, Some(query)));
    if let Some(dbname) = path.strip_prefix('/').filter(|dbname| !dbname.is_empty()) {
        store(&mut parameters, "dbname", decode(dbname, "dbname")?)?;
    }
    if let Some(query) = query.filter(|query| !query.is_empty()) {
        parse_url_query(query, &mut parameters)?;
    }
    Ok(parameters)
}

/// The part before `@`, which must come before any `/`: libpq wants both percent-encoded in a password.
fn split_user_info(rest: &str) -> (Option<&str>, &str) {
    let Some((user_info, after)) = rest.split_once('@') else {
        return (None, rest);
    };
    if user_info.contains('/') {
        (None, rest)
    } else {
        (Some(user_info), after)
    }
}

fn parse_url_hosts(text: &str, parameters: &mut Parameters) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    let mut hosts = Vec::new();
    let mut ports = Vec::new();
    for entry in text.split(',') {
        let (host, port) = match entry.strip_prefix('[') {
            Some(bracketed) => {
                let (address, after) = bracketed.split_once(']').ok_or("an IPv6 address lacks its closing ]")?;
                if address.is_empty() {
                    return Err("an IPv6 address may not be empty".into());
                }
                let port = after.strip_prefix(':').or(after.is_empty().then_some(""));
                (address, port.ok_or("only a port may follow the ] of an IPv6 address")?)
            }
            None => entry.split_once(':').unwrap_or((entry, "")),
        };
        hosts.push(decode(host, "host")?);
        ports.push(decode(port, "port")?);
    }
    // A list of empty entries is a list: each has its default, whatever PGHOST and PGPORT say.
    store(parameters, "host", hosts.join(","))?;
    store(parameters, "port", ports.join(","))
}

fn parse_url_query(query: &str, parameters: &mut Parameters) -> Result<(), String> {
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').ok_or("a parameter behind the ? lacks its =")?;
        if value.contains('=') {
            return Err("a parameter behind the ? has more than one =; write %3D inside a value".into());
        }
        let (name, value) = (
            decode(name, "a parameter's name")?,
            decode(value, &decode(name, "a name")?)?,
        );
        // JDBC's spelling, which libpq takes as well.
        if name == "ssl" && value == "true" {
            store(parameters, "sslmode", "require".into())?;
        } else {
            store(parameters, &name, value)?;
        }
    }
    Ok(())
}

/// Percent-decoding; `+` is a plus.
fn decode(text: &str, of: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let invalid = || format!("{of}: invalid percent-encoding; a literal % is written %25");
        let (digits, after) = rest.split_at_checked(2).ok_or_else(invalid)?;
        let digits = std::str::from_utf8(digits).map_err(|_| invalid())?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| invalid())?);
        rest = after;
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("{of}: is not UTF-8 once it is percent-decoded"))?;
    if text.contains('\0') {
        Err(format!("{of}: %00 is forbidden"))
    } else {
        Ok(text)
    }
}

/// `host=localhost port=5432 password='it''s'`.
fn parse_keywords(text: &str) -> Result<Parameters, String> {
    let mut parameters = Parameters::new();
    for pair in KeywordPairs::of(text) {
        let pair = pair?;
        store(&mut parameters, pair.name, pair.value)?;
    }
    Ok(parameters)
}

/// One pair of the keyword form.
struct KeywordPair<'a> {
    name: &'a str,
    value: String,
    /// Where the value stands, quotes included.
    span: Range<usize>,
}

/// The pairs of the keyword form; ends after the first error.
struct KeywordPairs<'a> {
    text: &'a str,
    at: usize,
    is_over: bool,
}

impl<'a> KeywordPairs<'a> {
    fn of(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            is_over: false,
        }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_whitespace(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn pair(&mut self) -> Result<KeywordPair<'a>, String> {
        const NO_EQUALS: &str = "a keyword lacks its = (a value with spaces is written in single quotes)";
        let name_length = self
            .rest()
            .find(|it: char| it == '=' || it.is_whitespace())
            .ok_or(NO_EQUALS)?;
        let name = self.rest().get(..name_length).unwrap_or_default();
        self.at += name_length;
        self.skip_whitespace();
        if !self.rest().starts_with('=') {
            return Err(NO_EQUALS.into());
        }
        self.at += 1;
        self.skip_whitespace();
        let start = self.at;
        let value = self.value()?;
        Ok(KeywordPair {
            name,
            value,
            span: start..self.at,
        })
    }

    /// A value: quoted or up to whitespace; a backslash takes the next character as it is in both.
    fn value(&mut self) -> Result<String, String> {
        let is_quoted = self.rest().starts_with('\'');
        self.at += usize::from(is_quoted);
        let mut value = String::new();
        let mut characters = self.rest().chars();
        while let Some(character) = characters.next() {
            match character {
                '\\' => value.extend(characters.next()),
                '\'' if is_quoted => {
                    self.at = self.text.len() - characters.as_str().len();
                    return Ok(value);
                }
                it if !is_quoted && it.is_whitespace() => {
                    self.at = self.text.len() - characters.as_str().len() - it.len_utf8();
                    return Ok(value);
                }
                it => value.push(it),
            }
        }
        self.at = self.text.len();
        if is_quoted {
            Err("a quoted value lacks its closing quote".into())
        } else {
            Ok(value)
        }
    }
}

impl<'a> Iterator for KeywordPairs<'a> {
    type Item = Result<KeywordPair<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.skip_whitespace();
        if self.is_over || self.rest().is_empty() {
            return None;
        }
        let pair = self.pair();
        self.is_over = pair.is_err();
        Some(pair)
    }
}

/// Where the passwords stand in a connection string, so that they can be blanked where others can read them. What
/// can't be understood is blanked whole.
pub fn password_spans(text: &str) -> Vec<Range<usize>> {
    match url_rest(text.trim_start()) {
        Some(rest) => url_password_spans(text, text.len() - rest.len()),
        None => keyword_password_spans(text),
    }
}

fn url_password_spans(text: &str, start: usize) -> Vec<Range<usize>> {
    let rest = text.get(start..).unwrap_or_default();
    let mut spans = Vec::new();
    // The last `@` before the query rather than the first: a password with a raw `@` or `/` is a mistake, and secret.
    let query_at = rest.find('?').unwrap_or(rest.len());
    let user_info_end = rest
        .get(..query_at)
        .and_then(|it| it.rfind('@'))
        .or_else(|| rest.rfind('@'));
    if let Some(end) = user_info_end
        && let Some(colon) = rest.get(..end).and_then(|it| it.find(':'))
    {
        spans.push(start + colon + 1..start + end);
    }
    let mut at = query_at + 1;
    for pair in rest.get(at..).unwrap_or_default().split('&') {
        if let Some((name, value)) = pair.split_once('=')
            && decode(name, "").is_ok_and(|name| is_secret(&name))
        {
            let value_at = start + at + name.len() + 1;
            spans.push(value_at..value_at + value.len());
        }
        at += pair.len() + 1;
    }
    spans
}

fn keyword_password_spans(text: &str) -> Vec<Range<usize>> {
    let whole = 0..text.len();
    KeywordPairs::of(text)
        .filter_map(|pair| match pair {
            Ok(pair) => is_secret(pair.name).then_some(Ok(pair.span)),
            Err(_) => Some(Err(())),
        })
        .collect::<Result<Vec<_>, ()>>()
        .unwrap_or_else(|()| Vec::from_iter([whole]))
}

fn is_secret(keyword: &str) -> bool {
    [
        "password",
        "sslpassword",
        "oauth_client_secret",
        "scram_client_key",
        "scram_server_key",
    ]
    .contains(&keyword)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(&'static str, String)> {
        parse(text)
            .unwrap()
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .collect()
    }

    fn table(text: &str, expected: &[(&'static str, &str)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect();
        assert_eq!(parsed(text), expected, "{text}");
    }

    #[test]
    fn the_manuals_examples_of_urls() {
        table("postgresql://", &[]);
        table("postgresql://localhost", &[("host", "localhost")]);
        table(
            "postgresql://localhost:5433",
            &[("host", "localhost"), ("port", "5433")],
        );
        table(
            "postgresql://localhost/mydb",
            &[("dbname", "mydb"), ("host", "localhost")],
        );
        table(
            "postgresql://user@localhost",
            &[("host", "localhost"), ("user", "user")],
        );
        table(
            "postgresql://user:secret@localhost",
            &[("host", "localhost"), ("password", "secret"), ("user", "user")],
        );
        table(
            "postgresql://other@localhost/otherdb?connect_timeout=10&application_name=myapp",
            &[
                ("application_name", "myapp"),
                ("connect_timeout", "10"),
                ("dbname", "otherdb"),
                ("host", "localhost"),
                ("user", "other"),
            ],
        );
        table(
            "postgresql://host1:123,host2:456/somedb?target_session_attrs=any&application_name=myapp",
            &[
                ("application_name", "myapp"),
                ("dbname", "somedb"),
                ("host", "host1,host2"),
                ("port", "123,456"),
                ("target_session_attrs", "any"),
            ],
        );
        table(
            "postgresql://user@localhost:5433/mydb?options=-c%20synchronous_commit%3Doff",
            &[
                ("dbname", "mydb"),
                ("host", "localhost"),
                ("options", "-c synchronous_commit=off"),
                ("port", "5433"),
                ("user", "user"),
            ],
        );
        table(
            "postgresql:///mydb?host=localhost&port=5433",
            &[("dbname", "mydb"), ("host", "localhost"), ("port", "5433")],
        );
        table(
            "postgresql://[2001:db8::1234]/database",
            &[("dbname", "database"), ("host", "2001:db8::1234")],
        );
        table(
            "postgresql:///dbname?host=/var/lib/postgresql",
            &[("dbname", "dbname"), ("host", "/var/lib/postgresql")],
        );
        table(
            "postgresql://%2Fvar%2Flib%2Fpostgresql/dbname",
            &[("dbname", "dbname"), ("host", "/var/lib/postgresql")],
        );
    }

    #[test]
    fn urls_beyond_the_manual() {
        table(
            "postgres://[::1]:5433,h2/d",
            &[("dbname", "d"), ("host", "::1,h2"), ("port", "5433,")],
        );
        table(
            "postgres://u:p%40ss%2F%25@h",
            &[("host", "h"), ("password", "p@ss/%"), ("user", "u")],
        );
        table(
            "postgres://h/d?ssl=true",
            &[("dbname", "d"), ("host", "h"), ("sslmode", "require")],
        );
        table("postgres://h/d?", &[("dbname", "d"), ("host", "h")]);
        table("postgres://h/a+b", &[("dbname", "a+b"), ("host", "h")]);
        table("postgres://h?dbname=x%3Dy", &[("dbname", "x=y"), ("host", "h")]);
        table("  postgres://h\n", &[("host", "h")]);
    }

    #[test]
    fn the_manuals_examples_of_keywords() {
        table(
            "host=localhost port=5432 dbname=mydb connect_timeout=10",
            &[
                ("connect_timeout", "10"),
                ("dbname", "mydb"),
                ("host", "localhost"),
                ("port", "5432"),
            ],
        );
        table(
            r"user = 'joe\'s' password='a \\ b' host=/run options=-c\ geqo=off dbname=''",
            &[
                ("host", "/run"),
                ("options", "-c geqo=off"),
                ("password", r"a \ b"),
                ("user", "joe's"),
            ],
        );
        table("", &[]);
    }

    #[test]
    fn mistakes_are_told_without_the_text() {
        for (text, words) in [
            (
                "postgres://h/d?sslmod=require",
                "invalid connection option \"sslmod\"; did you mean \"sslmode\"?",
            ),
            ("postgres://h/d?sslmode", "lacks its ="),
            ("postgres://h/d?a=b=c", "more than one ="),
            ("postgres://[::1/d", "closing ]"),
            ("postgres://[]/d", "may not be empty"),
            ("postgres://[::1]x/d", "may follow the ]"),
            ("postgres://h/%zz", "dbname: invalid percent-encoding"),
            ("postgres://h/%+1", "dbname: invalid percent-encoding"),
            ("postgres://h/%2", "invalid percent-encoding"),
            ("postgres://h/%00", "%00 is forbidden"),
            ("postgres://h/%ff", "not UTF-8"),
            ("mysql://h/d", "is not a PostgreSQL URL"),
            ("jdbc:postgresql://h/d?user=x", "is not a PostgreSQL URL"),
            ("hunter2", "a keyword lacks its ="),
            ("host", "a keyword lacks its ="),
            ("host x", "a keyword lacks its ="),
            ("host='x", "closing quote"),
            ("krbsrvname=x", "krbsrvname: GSSAPI is not supported"),
            ("sslpassword=hunter2", "sslpassword: encrypted private keys"),
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.contains(words), "{text}: {message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn every_kind_of_password_is_found() {
        for (text, secrets) in [
            ("postgres://app:secret@db/app", vec!["secret"]),
            ("postgres://app:se@cr/et@db/app?x=y@z", vec!["se@cr/et"]),
            ("postgres://app@db/app?password=secret&sslmode=require", vec!["secret"]),
            ("postgres://app@db/app?p%61ssword=secret", vec!["secret"]),
            ("postgres://app@db", vec![]),
            ("postgres://db:5432/app", vec![]),
            ("host=h password='it\\'s' user=u", vec!["'it\\'s'"]),
            ("password=secret", vec!["secret"]),
            ("host=h password=my secret", vec!["host=h password=my secret"]),
        ] {
            let found: Vec<&str> = password_spans(text).into_iter().map(|span| &text[span]).collect();
            assert_eq!(found, secrets, "{text}");
        }
    }
}
