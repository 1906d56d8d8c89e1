//! The twins: the same random conversations through pgsidecar, many at once over few backends, and one by one with
//! PostgreSQL itself. Every reply must be equal, byte for byte where it names nothing of ours.
//!
//! `PGSIDECAR_TWIN_SESSIONS` makes the run longer, `PGSIDECAR_TWIN_SEED` repeats one, `PGSIDECAR_TWIN_AUDIT` is `pool.audit`,
//! which must find nothing, and `PGSIDECAR_TWIN_DEFER_BEGIN` is `pool.defer_begin`.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::BytesMut;

use crate::support::postgres::{PASSWORD, Postgres, USER};
use crate::support::raw_client::{
    Message, RawClient, bind, close, copy_data, copy_done, copy_fail, describe, execute, flush, parse, query, sync,
    terminate, together,
};
use crate::support::sidecar::Sidecar;

/// Clients at once, each with a table of its own.
const CLIENTS: usize = 16;
/// Sessions in the short form.
const SESSIONS: usize = 80;
/// How long a step may wait, for its backend above all; shorter than the raw client's own deadline.
const PATIENCE: Duration = Duration::from_secs(9);
/// Steps of one session.
const STEPS: u64 = 14;

/// A reproducible stream of choices (xorshift64*).
#[derive(Debug, Clone)]
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[usize::try_from(self.roll(of.len() as u64)).unwrap()]
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}

/// What is sent, and how far its reply is read before the next.
#[derive(Debug, Clone)]
enum Step {
    /// Up to so many ReadyForQuery.
    Burst(String, Vec<BytesMut>, usize),
    /// Ends with an empty Query: up to its EmptyQueryResponse and ReadyForQuery, however many there were before.
    Counted(String, Vec<BytesMut>),
    /// As far as the reply to a Flush goes (a description, a completion or an error), then a second part up to
    /// ReadyForQuery.
    Flushed(String, Vec<BytesMut>, Vec<BytesMut>),
    /// COPY as libpq does it: Sync with the Execute; the data when CopyInResponse came.
    Copy(String, Vec<BytesMut>, Vec<BytesMut>),
}

impl Step {
    fn told(&self) -> &str {
        match self {
            Self::Burst(told, ..) | Self::Counted(told, _) | Self::Flushed(told, ..) | Self::Copy(told, ..) => told,
        }
    }
}

#[derive(Debug, Clone)]
struct Session {
    /// Empties the client's own table: the session before may have broken off.
    fresh: String,
    startup: Vec<(&'static str, &'static str)>,
    steps: Vec<Step>,
}

const NAMES: [&str; 4] = ["a", "b", "p", ""];
const PORTALS: [&str; 4] = ["", "", "p", "a"];
const ZONES: [&str; 3] = ["UTC", "Asia/Shanghai", "America/New_York"];
const STYLES: [&str; 3] = ["ISO, MDY", "German", "SQL, DMY"];

impl Session {
    fn random(dice: &mut Dice, client: usize) -> Self {
        let mut startup = Vec::new();
        if dice.one_in(2) {
            startup.push(("TimeZone", dice.pick(&ZONES)));
        }
        if dice.one_in(3) {
            startup.push(("DateStyle", dice.pick(&STYLES)));
        }
        if dice.one_in(3) {
            startup.push(("application_name", dice.pick(&["twin", "Twin", "it's"])));
        }
        if dice.one_in(4) {
            startup.push(("search_path", dice.pick(&["aside, public", "public"])));
        }
        let steps = (0..STEPS).map(|_| random_step(dice, client)).collect();
        Self {
            fresh: format!("DELETE FROM own_{client}"),
            startup,
            steps,
        }
    }

    fn told(&self) -> String {
        let mut text = format!("startup {:?}\n", self.startup);
        for (number, step) in self.steps.iter().enumerate() {
            let _ = writeln!(text, "{number}: {}", step.told());
        }
        text
    }
}

fn random_step(dice: &mut Dice, client: usize) -> Step {
    match dice.roll(22) {
        20 | 21 => driver_setting(dice),
        0..=4 => {
            let sql = any_query(dice, client);
            Step::Burst(format!("Q {sql}"), vec![query(&sql)], 1)
        }
        5..=12 => groups(dice, client),
        13 => interrupted_group(dice, client),
        14..=15 => flushed(dice, client),
        16 => simple_copy(dice, client),
        17 => extended_copy(dice, client),
        18 => libpq_copy(dice, client),
        _ => {
            let (one, two) = (any_query(dice, client), any_query(dice, client));
            Step::Burst(
                format!("Q {one} | Q {two} | Q SELECT"),
                vec![query(&one), query(&two), query("SELECT 'third'")],
                3,
            )
        }
    }
}

fn any_query(dice: &mut Dice, client: usize) -> String {
    match dice.roll(16) {
        14 | 15 => {
            let forms = [
                "EXECUTE $one; EXECUTE $other(2)",
                "BEGIN; EXECUTE $one; COMMIT",
                "EXECUTE $one; DEALLOCATE $other; EXECUTE $other",
                "DEALLOCATE $one; DEALLOCATE $other; SELECT 1",
                "SELECT 1; PREPARE $one AS SELECT 'one of several'; EXECUTE $one",
            ];
            let (form, one) = (dice.pick(&forms), dice.pick(&["a", "b", "p"]));
            form.replace("$one", one).replace("$other", dice.pick(&["a", "b", "p"]))
        }
        12 => format!(
            "{}; {}; SELECT 1/{}",
            unreported_setting(dice, false).0,
            unreported_setting(dice, false).0,
            dice.roll(2)
        ),
        13 => format!(
            "BEGIN; {}; SAVEPOINT a; {}; ROLLBACK TO a; {}",
            unreported_setting(dice, false).0,
            match dice.roll(3) {
                0 => "RESET search_path".to_owned(),
                1 => dice
                    .pick(&["RESET ALL", "RESET TimeZone", "SET TimeZone TO 'UTC'"])
                    .to_owned(),
                _ => unreported_setting(dice, false).0,
            },
            dice.pick(&["COMMIT", "ROLLBACK", "COMMIT AND CHAIN"]),
        ),
        0..=5 => statement(dice, client, false).0,
        6 => "SELECT 1 AS one; SELECT 2 AS two".to_owned(),
        7 => format!("INSERT INTO own_{client} VALUES (100, 'lost'); SELECT 1/0"),
        8 => format!("BEGIN; UPDATE own_{client} SET v = 'm'; COMMIT"),
        9 => format!("SET TimeZone = '{}'; {LITERAL}", dice.pick(&ZONES)),
        10 => format!(
            "COPY (SELECT * FROM own_{client} ORDER BY id) TO STDOUT; SELECT {}",
            dice.roll(9)
        ),
        _ => dice
            .pick(&[
                "",
                "  ;",
                "SELEC",
                "VACUUM aside.other",
                "SHOW TimeZone; SHOW DateStyle",
            ])
            .to_owned(),
    }
}

/// Folded when it is parsed, so that it means what it says under the settings of that moment.
const LITERAL: &str = "SELECT timestamptz '2024-03-01 12:00:00' AS at, date '2024-03-02' AS day";

/// Each client has its own channel: what others say would come when it comes.
fn notification(dice: &mut Dice, client: usize) -> String {
    let said = dice.roll(9);
    let form = dice.pick(&[
        "LISTEN $name",
        "LISTEN $name",
        "NOTIFY $name, 'said $said'",
        "NOTIFY $name, 'said $said'",
        "UNLISTEN *",
        "UNLISTEN $name",
        "SELECT pg_notify('$name', 'called')",
    ]);
    form.replace("$name", &format!("channel_{client}"))
        .replace("$said", &said.to_string())
}

const BLOCK_ENDS: [&str; 4] = [
    "COMMIT AND CHAIN",
    "ROLLBACK AND CHAIN",
    "START TRANSACTION READ ONLY",
    "END",
];
const RESETS: [&str; 5] = [
    "DISCARD ALL",
    "SELECT 1 WHERE false",
    "RESET ALL",
    "RESET TimeZone",
    "RESET search_path",
];

/// A statement and how many parameters it takes, each an int.
fn statement(dice: &mut Dice, client: usize, extended: bool) -> (String, usize) {
    let number = if extended {
        "$1::int".to_owned()
    } else {
        dice.roll(6).to_string()
    };
    let one = usize::from(extended);
    match dice.roll(58) {
        0 => ("SELECT x, t FROM shared ORDER BY x".to_owned(), 0),
        1 | 2 => (LITERAL.to_owned(), 0),
        3 => (
            "SELECT g, repeat('row ', 20) FROM generate_series(1, 300) g".to_owned(),
            0,
        ),
        4 => (format!("SELECT 10 / {number} AS divided"), one),
        5 | 6 => (format!("INSERT INTO own_{client} VALUES ({number}, 'new')"), one),
        7 => (
            format!("UPDATE own_{client} SET v = v || 'x' WHERE id >= {number}"),
            one,
        ),
        8 => (format!("DELETE FROM own_{client} WHERE id = {number}"), one),
        9 | 10 => (format!("SELECT * FROM own_{client} ORDER BY id"), 0),
        11 => (
            format!("SELECT t || 'é' FROM shared WHERE x > {number} ORDER BY x"),
            one,
        ),
        12 => ("SELECT * FROM nosuch".to_owned(), 0),
        13 => ("SELECT which FROM other".to_owned(), 0),
        14 | 15 => ("BEGIN".to_owned(), 0),
        16 | 17 => ("COMMIT".to_owned(), 0),
        18 | 19 => ("ROLLBACK".to_owned(), 0),
        20 => (dice.pick(&BLOCK_ENDS).to_owned(), 0),
        21 => ("SAVEPOINT sp".to_owned(), 0),
        22 => (dice.pick(&["ROLLBACK TO sp", "RELEASE sp"]).to_owned(), 0),
        23 | 24 => (format!("SET TimeZone = '{}'", dice.pick(&ZONES)), 0),
        25 => (format!("SET DateStyle = '{}'", dice.pick(&STYLES)), 0),
        26 => (
            dice.pick(&["SET LOCAL TimeZone = 'Asia/Tokyo'", "SET application_name = 'other'"])
                .to_owned(),
            0,
        ),
        27 => (
            "SELECT current_setting('TimeZone'), current_setting('DateStyle'), current_setting('application_name')"
                .to_owned(),
            0,
        ),
        28 => (format!("DEALLOCATE {}", dice.pick(&["a", "b", "p", "ALL"])), 0),
        29 => (dice.pick(&RESETS).to_owned(), 0),
        30 => ("DECLARE cur CURSOR FOR SELECT x FROM shared ORDER BY x".to_owned(), 0),
        31 => (
            dice.pick(&["FETCH 2 FROM cur", "CLOSE cur", "MOVE 1 IN cur"])
                .to_owned(),
            0,
        ),
        32 => (
            "SELECT pg_catalog.set_config('TimeZone', 'Europe/Berlin', false)".to_owned(),
            0,
        ),
        33..=36 => unreported_setting(dice, extended),
        37..=42 => (SETTINGS.to_owned(), 0),
        43..=45 => (notification(dice, client), 0),
        46..=55 => {
            // What an EXECUTE is described as is what its name stood for when it was parsed.
            let sql = named_by_sql(dice, client);
            let is_described = extended && (sql.starts_with("EXECUTE") || sql.starts_with("EXPLAIN"));
            (if is_described { String::new() } else { sql }, 0)
        }
        56 => (OWN_STATEMENTS.to_owned(), 0),
        _ => (String::new(), 0),
    }
}

/// Which prepared statements one has, by SQL and by protocol.
const OWN_STATEMENTS: &str =
    "SELECT name, statement, parameter_types, from_sql FROM pg_prepared_statements ORDER BY name";

/// PREPARE, EXECUTE and DEALLOCATE, by the names that the protocol's statements have too.
fn named_by_sql(dice: &mut Dice, client: usize) -> String {
    let form = dice.pick(&[
        "PREPARE $name AS SELECT x, t FROM shared ORDER BY x",
        "PREPARE $name AS $literal",
        "PREPARE $name (int) AS SELECT 10 / $1 AS divided",
        "PREPARE $name (int) AS INSERT INTO $own VALUES ($1, 'prepared') RETURNING id",
        "PREPARE $name AS SELECT which FROM other;",
        "PREPARE $name AS SELECT * FROM nosuch",
        "PREPARE $name AS $settings",
        "EXECUTE $name",
        "EXECUTE $name",
        "EXECUTE $name",
        "EXECUTE $name(2)",
        "EXECUTE $name(2)",
        "EXPLAIN (COSTS OFF) EXECUTE $name",
        "DEALLOCATE $name",
        "EXECUTE \"$name\"",
    ]);
    form.replace("$name", dice.pick(&["a", "b", "p"]))
        .replace("$own", &format!("own_{client}"))
        .replace("$literal", LITERAL)
        .replace("$settings", SETTINGS)
}

/// What PostgreSQL does not report, and what it tells of who one is.
const SETTINGS: &str = "SELECT current_setting('work_mem'), current_setting('search_path'), current_setting('lock_timeout'), \
                        current_setting('app.x', true), current_setting('app.y', true), session_user, current_user, \
                        current_setting('default_transaction_isolation'), current_setting('xmloption')";

/// A change of a setting that PostgreSQL does not report, for the session or the transaction, by any of its forms.
fn unreported_setting(dice: &mut Dice, extended: bool) -> (String, usize) {
    if extended && dice.one_in(4) {
        let name = dice.pick(&["app.x", "app.y", "work_mem"]);
        return (
            format!(
                "SELECT set_config('{name}', $1 || '{}', false)",
                if name == "work_mem" { "MB" } else { "é" }
            ),
            1,
        );
    }
    let sql = dice.pick(&[
        "SET work_mem = '7MB'",
        "SET search_path = aside, public",
        "SET search_path TO public, \"no such\"",
        "SET lock_timeout TO 33000",
        "SET app.x = 'one'",
        "SET SESSION app.y TO 'it''s'",
        "SELECT set_config('app.x', 'two', false), set_config('work_mem', '9MB', false)",
        "SELECT set_config('app.y', 'local', true)",
        "SELECT set_config('app.x', 'never', false) WHERE false",
        "SET LOCAL app.x = 'local'",
        "SET LOCAL search_path = aside",
        "SET LOCAL ROLE twin_role",
        "SET ROLE twin_role",
        "SET ROLE twin_role",
        "SET ROLE nosuch",
        "SET ROLE NONE",
        "RESET ROLE",
        "SET SESSION AUTHORIZATION DEFAULT",
        "RESET app.x",
        "RESET work_mem",
        "SET search_path TO DEFAULT",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "SET default_transaction_isolation TO DEFAULT",
        "SET XML OPTION DOCUMENT",
        "SET work_mem = 'nonsense'",
    ]);
    (sql.to_owned(), 0)
}

/// What drivers and frameworks say when they have connected, as they say it: perhaps several, and something that reads
/// them behind it.
fn driver_setting(dice: &mut Dice) -> Step {
    let (mut told, mut messages) = (String::new(), Vec::new());
    let count = 1 + usize::try_from(dice.roll(3)).unwrap();
    for _ in 0..count {
        let zone = dice.pick(&["UTC", "utc", "Asia/Shanghai", "-8", "nowhere"]);
        if dice.one_in(3) {
            let call = "SELECT set_config('TimeZone', $1, false)";
            let _ = write!(told, " P(: {call}) B({zone}) D E S");
            messages.extend([
                parse("", call),
                bind("", "", &[zone]),
                describe('P', ""),
                execute("", 0),
                sync(),
            ]);
            continue;
        }
        let sql = match dice.roll(4) {
            0 => format!("SELECT set_config('TimeZone', '{zone}', false)"),
            1 => format!("SET SESSION timezone TO '{zone}'"),
            2 => format!(
                "SET DateStyle TO '{}'",
                dice.pick(&["ISO", "iso, dmy", "German", "nonsense"])
            ),
            _ => dice
                .pick(&[
                    "SET work_mem = '7168kB'",
                    "SET client_min_messages TO 'warning'",
                    "SET standard_conforming_strings = on",
                    "SET intervalstyle = iso_8601",
                    "SET extra_float_digits = 3",
                    "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
                    "SET lock_timeout TO '33s'",
                    "SET TIME ZONE UTC",
                ])
                .to_owned(),
        };
        let _ = write!(told, " Q {sql} |");
        messages.push(query(&sql));
    }
    messages.push(query(SETTINGS));
    Step::Burst(told, messages, count + 1)
}

/// The messages of one group without its Sync, told in words.
fn group(dice: &mut Dice, client: usize, told: &mut String) -> Vec<BytesMut> {
    let mut messages = Vec::new();
    for _ in 0..=dice.roll(3) {
        if changes_settings(told) {
            break;
        }
        let (name, portal) = (dice.pick(&NAMES), dice.pick(&PORTALS));
        let parameters: &[&str] = if dice.one_in(3) { &[] } else { &["3"] };
        match dice.roll(10) {
            0..=3 => {
                let (sql, count) = statement(dice, client, true);
                let name = name_for(name, &sql);
                let _ = write!(told, " P({name}: {sql}) B({portal}<{name}) D E");
                messages.push(parse(name, &sql));
                messages.push(bind(portal, name, &["2"][..count]));
                messages.extend([describe('P', portal), execute(portal, 0)]);
            }
            4 => {
                let (sql, _) = statement(dice, client, true);
                let name = name_for(name, &sql);
                let _ = write!(told, " P({name}: {sql}) D(S {name})");
                messages.extend([parse(name, &sql), describe('S', name)]);
            }
            5 | 6 => {
                let rows = u32::try_from(dice.roll(3)).unwrap();
                let _ = write!(told, " B({portal}<{name} {parameters:?}) E({rows}) E({rows})");
                messages.extend([
                    bind(portal, name, parameters),
                    execute(portal, rows),
                    execute(portal, rows),
                ]);
            }
            7 => {
                let kind = if dice.one_in(2) { 'S' } else { 'P' };
                let _ = write!(told, " C({kind} {name})");
                messages.push(close(kind, name));
            }
            8 => {
                let kind = if dice.one_in(2) { 'S' } else { 'P' };
                let _ = write!(told, " D({kind} {name})");
                messages.push(describe(kind, name));
            }
            _ => {
                let _ = write!(told, " C(S {name}) P({name}: literal) B E H");
                messages.extend([
                    close('S', name),
                    parse(name, LITERAL),
                    bind("", name, &[]),
                    execute("", 0),
                ]);
                messages.push(flush());
            }
        }
    }
    messages
}

/// Executed by SQL, transaction control may be the end of PostgreSQL's session ("unexpected state"). What a RESET takes
/// away of the startup settings comes back behind its text, of which it may be one of several statements then.
fn name_for<'n>(name: &'n str, sql: &str) -> &'n str {
    let controls = [
        "BEGIN",
        "START",
        "COMMIT",
        "END",
        "ROLLBACK",
        "SAVEPOINT",
        "RELEASE",
        "RESET",
    ];
    if controls.iter().any(|word| sql.starts_with(word)) {
        ""
    } else {
        name
    }
}

fn groups(dice: &mut Dice, client: usize) -> Step {
    let (mut told, mut messages) = (String::new(), Vec::new());
    let mut count = 0;
    for _ in 0..=dice.roll(3) {
        messages.extend(group(dice, client, &mut told));
        messages.push(sync());
        told.push_str(" S");
        count += 1;
        if changes_settings(&told) {
            break;
        }
    }
    Step::Burst(told, messages, count)
}

/// What a statement was parsed under is known once the SETs before it are reported, which is at ReadyForQuery: nothing
/// follows them in their burst.
fn changes_settings(told: &str) -> bool {
    ["SET", "set_config", "DISCARD"].iter().any(|word| told.contains(word))
}

/// A Query inside a group: it ends the group's implicit transaction, or is skipped with it.
fn interrupted_group(dice: &mut Dice, client: usize) -> Step {
    let mut told = String::new();
    let mut messages = group(dice, client, &mut told);
    let sql = any_query(dice, client);
    let _ = write!(told, " Q {sql}");
    messages.push(query(&sql));
    messages.extend(group(dice, client, &mut told));
    messages.extend([sync(), query("")]);
    told.push_str(" S Q(empty)");
    // A COPY would take what follows for its data, a second empty Query for the end.
    if sql.is_empty() || sql.contains(';') {
        return groups(dice, client);
    }
    // What is taught to a backend ahead of it makes a pipeline of it, in which VACUUM refuses to run.
    if told.contains(": )") || changes_settings(&told) || sql.contains("VACUUM") {
        return groups(dice, client);
    }
    Step::Counted(told, messages)
}

fn flushed(dice: &mut Dice, client: usize) -> Step {
    let (name, portal) = (dice.pick(&NAMES), dice.pick(&PORTALS));
    let (sql, count) = statement(dice, client, true);
    let name = name_for(name, &sql);
    Step::Flushed(
        format!("P({name}: {sql}) D H … B({portal}<{name}) E S"),
        vec![close('S', name), parse(name, &sql), describe('S', name), flush()],
        vec![bind(portal, name, &["4"][..count]), execute(portal, 0), sync()],
    )
}

/// The name of statements that nothing but a COPY's own messages may execute.
const COPY: &str = "copy";

fn copy_rows(dice: &mut Dice) -> (String, Vec<BytesMut>) {
    let mut messages: Vec<_> = (0..dice.roll(3))
        .map(|row| copy_data(format!("{}\tcopied\n", 10 + row).as_bytes()))
        .collect();
    match dice.roll(4) {
        0 => messages.extend([copy_data(b"not a row\n"), copy_data(b"50\tlate\n"), copy_done()]),
        1 => messages.push(copy_fail("thought better of it")),
        _ => messages.push(copy_done()),
    }
    (format!("{} messages of data", messages.len()), messages)
}

fn simple_copy(dice: &mut Dice, client: usize) -> Step {
    let (told, data) = copy_rows(dice);
    let mut messages = vec![query(&format!("COPY own_{client} FROM STDIN"))];
    messages.extend(data);
    Step::Burst(format!("Q COPY FROM STDIN, {told}"), messages, 1)
}

fn extended_copy(dice: &mut Dice, client: usize) -> Step {
    let (told, data) = copy_rows(dice);
    let mut messages = vec![
        close('S', COPY),
        parse(COPY, &format!("COPY own_{client} FROM STDIN")),
        bind("", COPY, &[]),
        execute("", 0),
    ];
    messages.extend(data);
    messages.push(sync());
    Step::Burst(format!("P({COPY}: COPY FROM STDIN) B E, {told}, S"), messages, 1)
}

fn libpq_copy(dice: &mut Dice, client: usize) -> Step {
    let (told, mut data) = copy_rows(dice);
    data.push(sync());
    let opening = vec![
        close('S', COPY),
        parse(COPY, &format!("COPY own_{client} FROM STDIN")),
        bind("", COPY, &[]),
        describe('P', ""),
        execute("", 0),
        sync(),
    ];
    Step::Copy(
        format!("C P({COPY}: COPY FROM STDIN) B D E S, {told}, S"),
        opening,
        data,
    )
}

/// Plays one step and returns its replies.
async fn play(client: &mut RawClient, step: &Step) -> Vec<Message> {
    match step {
        Step::Burst(_, messages, count) => {
            client.send(&together(messages)).await;
            let mut replies = Vec::new();
            for _ in 0..*count {
                replies.extend(client.until_ready().await);
            }
            replies
        }
        Step::Counted(_, messages) => {
            client.send(&together(messages)).await;
            let mut replies = client.until_ready().await;
            while !replies.iter().any(|message| message.tag == b'I') {
                replies.extend(client.until_ready().await);
            }
            replies
        }
        Step::Flushed(_, first, second) => {
            client.send(&together(first)).await;
            let mut replies = until(client, b"TnE").await;
            client.send(&together(second)).await;
            replies.extend(client.until_ready().await);
            replies
        }
        Step::Copy(_, first, second) => {
            client.send(&together(first)).await;
            let mut replies = until(client, b"GZ").await;
            if replies.last().is_some_and(|message| message.tag == b'G') {
                client.send(&together(second)).await;
                replies.extend(client.until_ready().await);
            }
            replies
        }
    }
}

async fn until(client: &mut RawClient, tags: &[u8]) -> Vec<Message> {
    let mut replies = Vec::new();
    loop {
        let message = client.message().await;
        let last = tags.contains(&message.tag);
        replies.push(message);
        if last {
            return replies;
        }
    }
}

/// What stands behind it is told with a difference, and not compared.
const ASIDE: char = '\u{1f}';

/// What is compared of a reply. An error that names a statement names it otherwise through us; one that we tell
/// ourselves lacks the place in PostgreSQL's source.
fn essence(message: &Message) -> String {
    let text = |message: &Message| {
        let body = String::from_utf8_lossy(&message.body).into_owned();
        format!("{} {body:?}", char::from(message.tag))
    };
    if message.tag == b'A' {
        // Behind the process id.
        return format!("A {:?}", String::from_utf8_lossy(&message.body[4..]));
    }
    if message.tag != b'E' {
        return text(message);
    }
    let report = message.report();
    let ours = report.message.contains("prepared statement") || report.sqlstate.to_string() == "25P02";
    if ours {
        format!("E {}{ASIDE} {}", report.sqlstate, report.message)
    } else {
        text(message)
    }
}

/// How the replies of one step compare.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    /// In a failed transaction a statement can't be taught to a backend that lacks it, so that there 25P02 comes before
    /// what else is wrong with a Bind, and instead of a description. What follows differs with it.
    Refused,
    Different,
}

fn answers(replies: &[String]) -> Vec<Vec<String>> {
    let compared = |reply: &String| reply.split(ASIDE).next().unwrap_or_default().to_owned();
    let replies: Vec<String> = replies.iter().map(compared).collect();
    let mut groups: Vec<_> = replies
        .split_inclusive(|reply| reply.starts_with('Z'))
        .map(<[String]>::to_vec)
        .collect();
    for group in &mut groups {
        // The order in which several settings are reported is nobody's promise, nor is that of settings and notifications.
        let is_settled = |reply: &String| reply.starts_with(['S', 'A']);
        let first = group.iter().position(is_settled);
        let count = group.iter().filter(|reply| is_settled(reply)).count();
        if let Some(first) = first {
            group[first..first + count].sort_by_key(|reply| match reply.starts_with('S') {
                true => reply.clone(),
                false => String::new(),
            });
        }
    }
    groups
}

/// `failed` tells whether the transaction was failed before the step, and then before the next.
fn judge(expected: &[String], got: &[String], failed: &mut bool) -> Verdict {
    let (expected, got) = (answers(expected), answers(got));
    for (one, other) in expected.iter().zip(&got) {
        if one != other {
            let refused = *failed && other.iter().any(|reply| reply == "E 25P02");
            return if refused { Verdict::Refused } else { Verdict::Different };
        }
        *failed = one.last().is_some_and(|ready| ready.contains('E'));
    }
    if expected.len() == got.len() {
        Verdict::Same
    } else {
        Verdict::Different
    }
}

/// A session as far as it was played.
#[derive(Debug, Default)]
struct Played {
    /// Of each step.
    replies: Vec<Vec<String>>,
    /// What came behind a [`Verdict::Refused`] was not compared.
    is_cut: bool,
}

/// What one client's sessions have come to.
#[derive(Debug, Default)]
struct Tally {
    sessions: usize,
    cut: usize,
    differences: Vec<String>,
}

/// Plays a session, and compares each step's replies where they are known.
async fn converse(
    port: u16,
    database: &str,
    session: &Session,
    expected: Option<&[Vec<String>]>,
) -> Result<Played, String> {
    let mut client = RawClient::connect(port).await;
    let startup: Vec<(&str, &str)> = [&session.startup[..], &[("database", database)]].concat();
    client
        .log_in(USER, PASSWORD, &startup)
        .await
        .expect("the login succeeds");
    client.ask(&session.fresh).await;
    let (mut played, mut failed) = (Played::default(), false);
    for (number, step) in session.steps.iter().enumerate() {
        let replies: Vec<String> = match tokio::time::timeout(PATIENCE, play(&mut client, step)).await {
            Ok(replies) => replies.iter().map(essence).collect(),
            Err(_) => return Err(format!("step {number} is stuck\n{}", session.told())),
        };
        if let Some(expected) = expected.and_then(|steps| steps.get(number)) {
            match judge(expected, &replies, &mut failed) {
                Verdict::Same => {}
                Verdict::Refused => {
                    played.is_cut = true;
                    break;
                }
                Verdict::Different => {
                    return Err(format!(
                        "step {number}:\nPostgreSQL: {expected:#?}\nthrough pgsidecar: {replies:#?}\n{}",
                        session.told()
                    ));
                }
            }
        }
        played.replies.push(replies);
    }
    client.send(&terminate()).await;
    Ok(played)
}

fn sessions(seed: u64, count: usize) -> Vec<Vec<Session>> {
    let mut dice = Dice::new(seed);
    let each = count.div_ceil(CLIENTS);
    (0..CLIENTS)
        .map(|client| (0..each).map(|_| Session::random(&mut dice, client)).collect())
        .collect()
}

fn setup() -> String {
    // Statistics that one twin has and the other not, for now, are other plans.
    let mut sql =
        "DO $$ BEGIN CREATE ROLE twin_role; EXCEPTION WHEN duplicate_object THEN NULL; END $$; GRANT twin_role TO app;
                   CREATE SCHEMA aside; CREATE TABLE shared (x int, t text) WITH (autovacuum_enabled = off);
                   INSERT INTO shared SELECT g, 'text ' || g FROM generate_series(1, 5) g;
                   CREATE TABLE other (which text) WITH (autovacuum_enabled = off); INSERT INTO other VALUES ('public');
                   CREATE TABLE aside.other (which text) WITH (autovacuum_enabled = off); INSERT INTO aside.other VALUES ('aside');
                   GRANT USAGE ON SCHEMA aside TO PUBLIC; GRANT ALL ON ALL TABLES IN SCHEMA aside TO PUBLIC;"
            .to_owned();
    for client in 0..CLIENTS {
        let _ = write!(
            sql,
            "CREATE TABLE own_{client} (id int PRIMARY KEY, v text) WITH (autovacuum_enabled = off);"
        );
    }
    sql.push_str("GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC");
    sql
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_reply_through_the_sidecar_equals_postgresqls_own() {
    let cluster = Postgres::shared();
    let seed = number("PGSIDECAR_TWIN_SEED").unwrap_or(20_241_122);
    let count = number("PGSIDECAR_TWIN_SESSIONS").map_or(SESSIONS, |count| usize::try_from(count).unwrap());
    let through = cluster.create_database();
    cluster.psql(&through.name, &setup());
    // A copy has the same object identifiers, which descriptions of rows name.
    let direct = format!("{}_direct", through.name);
    cluster.psql(
        "postgres",
        &format!("CREATE DATABASE {direct} OWNER {USER} TEMPLATE {}", through.name),
    );
    let sidecar = Sidecar::builder(&through)
        .set("POOL__MAX_SIZE", "3")
        .set("POOL__STATEMENT_CACHE_BYTES", "2000")
        .set(
            "POOL__DEFER_BEGIN",
            std::env::var("PGSIDECAR_TWIN_DEFER_BEGIN").unwrap_or_else(|_| "off".to_owned()),
        )
        .set(
            "POOL__AUDIT",
            std::env::var("PGSIDECAR_TWIN_AUDIT").unwrap_or_else(|_| "sampled".to_owned()),
        )
        .start_ready()
        .await;
    let mut playing = tokio::task::JoinSet::new();
    for (client, script) in sessions(seed, count).into_iter().enumerate() {
        let (port, database, direct) = (sidecar.port, through.clone(), direct.clone());
        playing.spawn(async move {
            let mut tally = Tally::default();
            for (number, session) in script.iter().enumerate() {
                let expected = converse(database.port, &direct, session, None).await;
                let expected = expected
                    .unwrap_or_else(|told| panic!("PostgreSQL itself: {told}"))
                    .replies;
                tally.sessions += 1;
                match converse(port, &database.name, session, Some(&expected)).await {
                    Ok(played) => tally.cut += usize::from(played.is_cut),
                    Err(told) => {
                        let difference = format!("session {number} of client {client}, seed {seed}, {told}");
                        tally.differences.push(difference);
                    }
                }
            }
            tally
        });
    }
    let tallies = playing.join_all().await;
    let (sessions, cut) = tallies.iter().fold((0, 0), |(sessions, cut), tally| {
        (sessions + tally.sessions, cut + tally.cut)
    });
    println!(
        "{sessions} sessions with seed {seed}; {cut} of them were not compared behind a statement in a failed block"
    );
    let differences: Vec<String> = tallies.into_iter().flat_map(|tally| tally.differences).collect();
    assert!(
        differences.is_empty(),
        "{}\n{}",
        differences.join("\n\n"),
        sidecar.log()
    );
    let surprises = sidecar.metric("pgsidecar_audit_surprises_total", &[]).await;
    assert_eq!(surprises, Some(0.0), "seed {seed}\n{}", sidecar.log());
}
