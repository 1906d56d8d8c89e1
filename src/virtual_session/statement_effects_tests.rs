//! What texts do, as facts in tables: the text, and a summary of its effects ("" for an ordinary statement).

use super::super::setting_change::{SettingName, SettingScope, SettingValue};
use super::super::sql_lexer::{EncodingClass, StandardConformingStrings};
use super::super::suspects::SuspectKind;
use super::*;

/// The catalog of the tests: some user routines, and some that reach session state.
fn catalog() -> Suspects {
    Suspects::known([
        (SuspectKind::HarmlessRoutine, &b"tidy"[..]),
        (SuspectKind::HarmlessRoutine, b"st_contains"),
        (SuspectKind::HarmlessRoutine, b"geometry"),
        (SuspectKind::Mention, b"become_tenant"),
        (SuspectKind::Mention, b"sly_view"),
        (SuspectKind::Mention, b"Odd Name"),
        (SuspectKind::Write, b"audited"),
        (SuspectKind::Operator, b"<#>"),
    ])
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn named(verb: &str, name: &Option<Box<[u8]>>) -> String {
    format!("{verb} {}", name.as_ref().map_or("?".into(), |name| lossy(name)))
}

fn setting(change: &SettingChange) -> String {
    let SettingChange::Set { name, value, scope } = change else {
        return match change {
            SettingChange::Reset(name) => format!("reset {}", lossy(name)),
            _ => "reset all".into(),
        };
    };
    let name = match name {
        SettingName::Known(name) => lossy(name),
        SettingName::FromBind(number) => format!("${number}"),
        SettingName::Unknown => "?".into(),
    };
    let value = match value {
        SettingValue::Source(source) => lossy(source),
        SettingValue::Text(text) => format!("<{}>", lossy(text)),
        SettingValue::Default => "DEFAULT".into(),
        SettingValue::FromBind(number) => format!("${number}"),
        SettingValue::Unknown => "?".into(),
    };
    let scope = match scope {
        SettingScope::Session => "session".into(),
        SettingScope::Local => "local".into(),
        SettingScope::FromBind(number) => format!("${number}"),
        SettingScope::Unknown => "?".into(),
        SettingScope::Later => "later".into(),
    };
    format!("set {scope} {name}={value}")
}

fn action(action: &Action) -> String {
    match action {
        Action::Setting(change) => setting(change),
        Action::Transaction(control, name) => match name {
            Some(_) => named(&format!("{control:?}"), name),
            None => format!("{control:?}"),
        },
        Action::Listen(name) => named("listen", name),
        Action::Unlisten(name) => named("unlisten", name),
        Action::Prepare(name) => named("prepare", name),
        Action::Execute(name) => named("execute", name),
        Action::Deallocate(name) => named("deallocate", name),
        Action::HoldCursor(name) => named("hold", name),
        Action::Close(name) => named("close", name),
        Action::ChangesDatabase(name) => named("changes database", name),
        Action::CopiesDatabase(name) => named("copies database", name),
        other => format!("{other:?}"),
    }
}

/// What [`classify`] tells, after comparing the first look with the full scan.
fn classify(text: &[u8], lexing: Lexing, suspects: &Suspects) -> Effects {
    let effects = super::classify(text, lexing, suspects);
    let full = Scan::run(text, lexing, suspects).unwrap_or_else(|_| Effects::opaque(PinReason::Unlexable));
    assert_eq!(effects, full, "the first look at {:?}", lossy(text));
    effects
}

/// `pin a,b | step | step | flags`.
fn summary(effects: &Effects) -> String {
    let mut parts = Vec::new();
    if !effects.pins.is_empty() {
        let labels: Vec<_> = effects.pins.iter().map(PinReason::label).collect();
        parts.push(format!("pin {}", labels.join(",")));
    }
    if effects.transaction != TransactionControl::None {
        parts.push(format!("{:?}", effects.transaction));
    }
    parts.extend(effects.steps.iter().map(|step| action(&step.action)));
    if effects.sequence > SequenceUse::MayDraw {
        parts.push(format!("{:?}", effects.sequence));
    }
    // What nobody read may do that too.
    let changes_roles = effects.role_change && effects.pins.is_empty();
    let flags = [
        (effects.catalog_change, "catalog"),
        (changes_roles, "roles"),
        (effects.database_ddl, "database"),
        (effects.notifies, "notifies"),
        (effects.reads_session && !effects.lists_statements, "reads session"),
        (effects.lists_statements, "lists statements"),
    ];
    parts.extend(flags.iter().filter(|(set, _)| *set).map(|(_, word)| (*word).to_owned()));
    let summary = parts.join(" | ");
    assert_eq!(
        summary.is_empty(),
        effects.is_none(),
        "is_none disagrees with {summary:?}"
    );
    summary
}

fn check(rows: &[(&str, &str)]) {
    let suspects = catalog();
    let wrong: Vec<String> = rows
        .iter()
        .map(|(text, expected)| {
            (
                text,
                expected,
                summary(&classify(text.as_bytes(), Lexing::default(), &suspects)),
            )
        })
        .filter(|(_, expected, found)| *expected != found)
        .map(|(text, expected, found)| format!("\n{text}\n  expected: {expected}\n  found:    {found}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.concat());
}

fn have_no_effect(texts: &[&str]) {
    let rows: Vec<(&str, &str)> = texts.iter().map(|text| (*text, "")).collect();
    check(&rows);
}

#[test]
fn ordinary_reads_and_writes_have_no_effect() {
    have_no_effect(&[
        "",
        " ",
        ";",
        ";;  ;",
        "-- nothing",
        "/* nothing */",
        "SELECT 1",
        "select abalance from pgbench_accounts where aid = $1",
        "SELECT * FROM t WHERE a = 'set x = 1; listen b'",
        "SELECT $$set x = 1; discard all$$, $q$;reset all;$q$",
        "SELECT \"set_config\", \"pg_advisory_lock\" FROM \"listen\"",
        "SELECT set_config, setseed FROM t",
        "INSERT INTO orders (id, name) VALUES (1, 'a'), (2, 'b')",
        "INSERT INTO public.orders (id) VALUES (default) RETURNING id",
        "INSERT INTO \"Orders\" (id) SELECT 1 ON CONFLICT (id) DO UPDATE SET (a, b) = (1, 2) WHERE orders.id > 3",
        "INSERT INTO temp (a) VALUES (1)",
        "MERGE INTO temp t USING s ON t.a = s.a WHEN MATCHED THEN DELETE",
        "UPDATE t SET a = 1, b = b + 1 WHERE c IN (1, 2, 3)",
        "UPDATE t SET role = 'x', session = 'y' WHERE id = 3",
        "DELETE FROM t USING u WHERE t.a = u.a",
        "MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN UPDATE SET b = s.b WHEN NOT MATCHED THEN INSERT (a, b) VALUES (s.a, s.b)",
        "WITH a (x, y) AS (SELECT 1, 2), b AS (SELECT 1) SELECT * FROM a, b",
        "WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t WHERE n < 100), u(m, k) AS (SELECT n, n FROM t) SELECT sum(n) FROM t, u",
        "WITH d AS (DELETE FROM t RETURNING *) INSERT INTO u SELECT * FROM d",
        "VALUES (1, 2), (3, 4)",
        "TABLE t",
        "(SELECT 1) UNION (SELECT 2)",
        "((select 1))",
    ]);
}

#[test]
fn ordinary_expressions_have_no_effect() {
    have_no_effect(&[
        "SELECT count(*), max(a), lower(b), coalesce(c, d), now() FROM t GROUP BY (a), rollup (b, c), cube (d)",
        "SELECT pg_catalog.lower('A'), PG_CATALOG . upper ( 'a' ), \"lower\"('A'), \"pg_catalog\".\"lower\"('x')",
        "SELECT cast(a AS numeric(10, 2)), b::varchar(10), c::vector(3), extract(epoch FROM d), e AT TIME ZONE (f) FROM t",
        "SELECT * FROM generate_series(1, 3) AS g(i), unnest(array[1, 2]) u(j), (VALUES (1)) v(k)",
        "SELECT array(SELECT a FROM unnest(b) WITH ORDINALITY cols(c, d) ORDER BY d), unnest(e) WITH ORDINALITY AS x(f, g)",
        "SELECT * FROM t x(a, b) JOIN u USING (id) LEFT JOIN LATERAL (SELECT 1) l ON (true)",
        "SELECT a, row_number() OVER (PARTITION BY b ORDER BY c), sum(x) FILTER (WHERE y) OVER w FROM t WINDOW w AS (ORDER BY z)",
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY a) FROM t TABLESAMPLE system (10)",
        "SELECT DISTINCT ON (a) lower(b) FROM t",
        "SELECT a OPERATOR(pg_catalog.=) lower(b) FROM t",
        "SELECT position('a' in b), substring(a from 1 for 2), trim(both from c), overlay(a placing b from 1) FROM t",
        "SELECT tidy(1), public.tidy(2), \"tidy\"(3), st_contains(a, b) FROM t",
        "SELECT 'x'::geometry(Point, 4326)",
        "SELECT json_build_object('a', 1), xmlelement(name foo), jsonb_agg(x) FROM t",
        "SELECT * FROM t FOR UPDATE OF t SKIP LOCKED",
        "SELECT * FROM t FETCH FIRST (1) ROWS ONLY",
        "SELECT * FROM audited",
        "SELECT * FROM t WHERE x <-> y < 3",
        "SELECT a.b FROM a WHERE false AND 1.e5 > .5",
        "SELECT pg_advisory_xact_lock(1), pg_try_advisory_xact_lock_shared(1, 2)",
        "SELECT current_setting('app.tenant_id', true)",
        "SELECT txid_current(), pg_current_xact_id(), pg_export_snapshot()",
    ]);
}

#[test]
fn ordinary_commands_have_no_effect() {
    have_no_effect(&[
        "COPY t (a, b) FROM STDIN",
        "COPY public.t (a) TO STDOUT WITH (FORMAT csv, FORCE_QUOTE (a))",
        "COPY (SELECT lower(a) FROM t) TO STDOUT",
        "COPY t FROM STDIN; SELECT 1",
        "SHOW search_path",
        "SHOW ALL",
        "show transaction isolation level",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY",
        "SET CONSTRAINTS ALL DEFERRED",
        "set session transaction isolation level repeatable read",
        "SET LOCAL TRANSACTION READ WRITE",
        "SET transaction_read_only = on",
        "SELECT set_config('transaction_isolation', 'serializable', false)",
        "SET TRANSACTION SNAPSHOT '00000003-0000001B-1'",
        "RESET TRANSACTION ISOLATION LEVEL",
        "EXPLAIN SELECT 1",
        "EXPLAIN ANALYZE VERBOSE SELECT lower(a) FROM t",
        "EXPLAIN (ANALYZE, BUFFERS off) UPDATE t SET a = 1",
        "EXPLAIN (SELECT 1)",
        "EXPLAIN (FORMAT json) (SELECT 1)",
        "DECLARE c CURSOR FOR SELECT 1",
        "DECLARE c NO SCROLL CURSOR WITHOUT HOLD FOR SELECT * FROM t",
        "FETCH 10 FROM c",
        "MOVE FORWARD ALL IN c",
        "LOCK TABLE t IN EXCLUSIVE MODE",
        "CHECKPOINT",
        "VACUUM (ANALYZE) t (a, b)",
        "ANALYZE t (a)",
        "TRUNCATE t, u RESTART IDENTITY CASCADE",
        "REINDEX TABLE t",
        "REFRESH MATERIALIZED VIEW CONCURRENTLY m",
        "CLUSTER t USING i",
        "CALL tidy(1)",
        "GRANT SELECT (a), INSERT ON t TO r",
        "REVOKE ALL ON FUNCTION become_tenant(text) FROM public",
        "COMMENT ON FUNCTION unheard_of(int) IS 'set_config('",
        "SECURITY LABEL ON TABLE t IS 'x'",
        "REASSIGN OWNED BY a TO b",
        "COMMIT PREPARED 'x'",
        "ROLLBACK PREPARED 'x'",
        "ALTER SYSTEM SET work_mem = '1MB'",
        "CREATE TABLESPACE x LOCATION '/x'",
    ]);
}

/// Trap 88: what was looked up of a role is old then.
#[test]
fn trap_88_commands_that_change_roles_are_told() {
    check(&[
        ("CREATE ROLE r LOGIN", "roles"),
        ("ALTER ROLE r SET search_path = a, pg_temp", "roles"),
        ("ALTER USER \"r\" PASSWORD 'x'", "roles"),
        ("/* x */ alter role current_user valid until 'infinity'", "roles"),
        ("CREATE GROUP g; SELECT 1", "roles"),
        ("ALTER ROLE a RENAME TO b", "roles"),
        ("DROP USER IF EXISTS a, b", "roles"),
        ("DROP ROLE r", "roles"),
        ("DROP OWNED BY r", "catalog"),
    ]);
    let block = "DO 'begin alter role r password null; end'";
    assert!(classify(block.as_bytes(), Lexing::default(), &catalog()).role_change);
}

#[test]
fn trap_54_every_form_of_a_value_is_read() {
    check(&[
        ("SET x = 1", "pin setting | set session x=1"),
        ("SET x TO 1", "pin setting | set session x=1"),
        (
            "set SESSION Statement_Timeout = '5s'",
            "pin setting | set session statement_timeout='5s'",
        ),
        ("/* a */ SET -- b\n x /* c */ = 'd'", "pin setting | set session x='d'"),
        ("SET\nx\n=\n'y'", "pin setting | set session x='y'"),
        ("SET x='y'", "pin setting | set session x='y'"),
        ("SET x=-1", "pin setting | set session x=-1"),
        ("SET x = - 1.5", "pin setting | set session x=-1.5"),
        ("SET x TO +2", "pin setting | set session x=+2"),
        ("SET x = ''", "pin setting | set session x=''"),
        ("SET x = 'it''s'", "pin setting | set session x='it''s'"),
        (r"SET x = E'it\'s \\ a'", r"pin setting | set session x=E'it''s \\ a'"),
        (r"SET x = 'back\slash'", r"pin setting | set session x=E'back\\slash'"),
        ("SET x = $$dollar's$$", "pin setting | set session x='dollar''s'"),
        (r"SET x = E'\x41'", r"pin setting | set session x=E'\x41'"),
        ("SET x = U&'\\0041'", "pin unknown"),
        ("SET x = 'a'\n  'b'", "pin setting | set session x='ab'"),
        ("SET x = DEFAULT", "pin setting | set session x=DEFAULT"),
        ("SET x TO default", "pin setting | set session x=DEFAULT"),
        ("SET x TO on", "pin setting | set session x=on"),
        ("SET x TO true", "pin setting | set session x=true"),
    ]);
}

#[test]
fn trap_54_every_form_of_set_names_its_setting() {
    check(&[
        (
            "SET search_path TO a, \"B c\", 'd', \"$user\"",
            "pin setting | set session search_path=a, \"B c\", 'd', \"$user\"",
        ),
        ("SET search_path = ''", "pin setting | set session search_path=''"),
        (
            "SET DateStyle TO ISO, DMY",
            "pin setting | set session datestyle=ISO, DMY",
        ),
        (
            "SET \"DateStyle\" TO 'ISO'",
            "pin setting | set session datestyle='ISO'",
        ),
        (
            "SET TIME ZONE 'Asia/Shanghai'",
            "pin setting | set session timezone='Asia/Shanghai'",
        ),
        ("SET SESSION TIME ZONE UTC", "pin setting | set session timezone=UTC"),
        ("SET TIME ZONE LOCAL", "pin setting | set session timezone=DEFAULT"),
        ("SET TIME ZONE DEFAULT", "pin setting | set session timezone=DEFAULT"),
        ("SET TIME ZONE -7", "pin setting | set session timezone=-7"),
        (
            "SET TIME ZONE INTERVAL '-08:00' HOUR TO MINUTE",
            "pin setting | set session timezone=INTERVAL '-08:00' HOUR TO MINUTE",
        ),
        (
            "SET TIME ZONE INTERVAL(3) '-08:00'",
            "pin setting | set session timezone=INTERVAL(3) '-08:00'",
        ),
        ("SET NAMES 'UTF8'", "pin setting | set session client_encoding='UTF8'"),
        ("SET NAMES", "pin setting | set session client_encoding=DEFAULT"),
        ("SET SCHEMA 'x'", "pin setting | set session search_path='x'"),
        ("SET ROLE admin", "pin setting | set session role=admin"),
        ("SET ROLE 'admin'", "pin setting | set session role='admin'"),
        ("SET ROLE \"Admin\"", "pin setting | set session role=\"Admin\""),
        ("SET ROLE NONE", "pin setting | set session role=NONE"),
        ("SET SESSION ROLE x", "pin setting | set session role=x"),
        ("SET role = x", "pin setting | set session role=x"),
        ("SET role TO 'x'", "pin setting | set session role='x'"),
        (
            "SET SESSION AUTHORIZATION x",
            "pin setting | set session session_authorization=x",
        ),
        (
            "SET SESSION AUTHORIZATION DEFAULT",
            "pin setting | set session session_authorization=DEFAULT",
        ),
        (
            "SET SESSION SESSION AUTHORIZATION 'x'",
            "pin setting | set session session_authorization='x'",
        ),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY, NOT DEFERRABLE",
            "pin setting | set session default_transaction_isolation='repeatable read' | set session default_transaction_read_only=on | set session default_transaction_deferrable=off",
        ),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE ISOLATION LEVEL SERIALIZABLE DEFERRABLE",
            "pin setting | set session default_transaction_read_only=off | set session default_transaction_isolation='serializable' | set session default_transaction_deferrable=on",
        ),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION NONSENSE", "pin unknown"),
        (
            "SET XML OPTION DOCUMENT",
            "pin setting | set session xmloption=DOCUMENT",
        ),
        ("SET \"Odd\"\"Name\" = 1", "pin setting | set session odd\"name=1"),
    ]);
}

#[test]
fn trap_54_a_set_that_does_not_tell_its_value_pins() {
    check(&[
        ("SET x FROM CURRENT", "pin unknown"),
        ("SET x = $1", "pin unknown"),
        ("SET x", "pin unknown"),
        ("SET x =", "pin unknown"),
        ("SET", ""),
        ("SET SESSION", "pin unknown"),
    ]);
}

#[test]
fn trap_55_what_ends_with_the_transaction_pins_nothing() {
    check(&[
        ("SET LOCAL x = 1", "set local x=1"),
        ("SET LOCAL TIME ZONE 'UTC'", "set local timezone='UTC'"),
        ("SET LOCAL ROLE x", "set local role=x"),
        ("SET LOCAL app.tenant = 'a'", "set local app.tenant='a'"),
        ("SET LOCAL SESSION AUTHORIZATION x", "set local session_authorization=x"),
        ("SELECT set_config('app.tenant', 'a', true)", "set local app.tenant=<a>"),
        ("select set_config($1, $2, true)", "set local $1=$2"),
        (
            "SET LOCAL search_path = pg_temp",
            "pin temporary_table | set local search_path=pg_temp",
        ),
    ]);
}

#[test]
fn trap_57_the_arguments_of_set_config_are_read() {
    check(&[
        ("SELECT set_config('x', 'y', false)", "pin setting | set session x=<y>"),
        (
            "SELECT set_config('X', 'it''s', false) AS a",
            "pin setting | set session x=<it's>",
        ),
        (
            "select pg_catalog.set_config('jit'::text, 'off', false)",
            "pin setting | set session jit=<off>",
        ),
        (
            "SELECT current_setting('jit') AS cur, set_config('jit', 'off', false) AS new",
            "pin setting | set session jit=<off>",
        ),
        (
            "select \"set_config\"('x', 'y', 'f')",
            "pin setting | set session x=<y>",
        ),
        ("select set_config('x', 'y', 't')", "set local x=<y>"),
        ("select set_config($1, $2, $3)", "pin custom_setting | set $3 $1=$2"),
        (
            "select set_config($1::text, $2::varchar, false)",
            "pin custom_setting | set session $1=$2",
        ),
        ("select set_config('x', $1, false)", "pin setting | set session x=$1"),
        ("select set_config('x', $1, $2)", "pin setting | set $2 x=$1"),
        (
            "select set_config('x', 'a' || 'b', false)",
            "pin setting | set session x=?",
        ),
        (
            "select set_config('x', lower('B'), false)",
            "pin setting | set session x=?",
        ),
        (
            "select set_config('x' || 'y', 'z', false)",
            "pin custom_setting | set session ?=<z>",
        ),
        ("select set_config('x', 'y', not true)", "pin setting | set ? x=<y>"),
        (
            "select set_config('x', 'y', true or false)",
            "pin setting | set ? x=<y>",
        ),
        (
            "select set_config('x', 'y', 'false'::bool)",
            "pin setting | set session x=<y>",
        ),
        (
            "select set_config('x', '1'::int, false)",
            "pin setting | set session x=?",
        ),
        (
            "select set_config(setting_name => 'x', new_value => 'y', is_local => true)",
            "pin custom_setting | set ? ?=?",
        ),
        (
            "select set_config(n, v, false) from t",
            "pin custom_setting | set session ?=?",
        ),
    ]);
}

#[test]
fn trap_57_set_config_is_found_wherever_it_stands() {
    check(&[
        (
            "select set_config('x', 'y', false) where false",
            "pin setting | set session x=?",
        ),
        (
            "select set_config('x', 'y', false) from t",
            "pin setting | set session x=?",
        ),
        (
            "select set_config('x', 'y', false) limit 0",
            "pin setting | set session x=?",
        ),
        (
            "select set_config('x', 'y', false), generate_series(1, 0)",
            "pin setting | set session x=?",
        ),
        (
            "select set_config('x', 'y', false), set_config('z', 'w', false)",
            "pin setting | set session x=<y> | set session z=<w>",
        ),
        (
            "select case when true then set_config('x', 'y', false) end",
            "pin setting | set session x=?",
        ),
        (
            "select coalesce('a', set_config('x', 'y', false))",
            "pin setting | set session x=?",
        ),
        ("select (set_config('x', 'y', false))", "pin setting | set session x=?"),
        ("(select set_config('x', 'y', false))", "pin setting | set session x=?"),
        (
            "with a as (select set_config('x', 'y', false)) select * from a",
            "pin setting | set session x=?",
        ),
        (
            "select 1 from t where set_config('x', 'y', false) = 'y'",
            "pin setting | set session x=?",
        ),
        (
            "update t set a = set_config('x', a, false)",
            "pin setting | set session x=?",
        ),
        (
            "insert into t values (set_config('x', 'y', false))",
            "pin setting | set session x=?",
        ),
        ("values (set_config('x', 'y', false))", "pin setting | set session x=?"),
        (
            "copy (select set_config('x', 'y', false)) to stdout",
            "pin setting | set session x=?",
        ),
        (
            "explain analyze select set_config('x', 'y', false)",
            "pin setting | set later x=?",
        ),
        (
            "prepare p as select set_config('x', 'y', false)",
            "pin setting,prepare | prepare p | set later x=?",
        ),
        (
            "declare c cursor for select set_config('x', 'y', false)",
            "pin setting | set later x=?",
        ),
        (
            "create table t as select set_config('x', 'y', false)",
            "pin setting | set session x=? | catalog",
        ),
        ("create view v as select set_config('x', 'y', false)", "catalog"),
    ]);
}

#[test]
fn trap_57_set_config_is_known_however_it_is_written() {
    check(&[
        (
            "select set_config ( 'x' , 'y' , false )",
            "pin setting | set session x=<y>",
        ),
        (
            "select set_config/**/('x', 'y', false)",
            "pin setting | set session x=<y>",
        ),
        (
            "select set_config --\n('x', 'y', false)",
            "pin setting | set session x=<y>",
        ),
        ("select U&\"set\\005fconfig\"('x', 'y', false)", "pin unlexable"),
        ("select 1set_config('x', 'y', false)", "pin setting | set session x=?"),
    ]);
}

#[test]
fn trap_57_settings_are_changed_by_other_ways_too() {
    check(&[
        ("update pg_settings set setting = 'y' where name = 'x'", "pin suspect"),
        ("UPDATE pg_catalog.\"pg_settings\" SET setting = 'y'", "pin suspect"),
        ("select * from pg_settings", ""),
        ("DO $$ begin perform set_config('x', 'y', false); end $$", "pin unknown"),
        ("DO LANGUAGE plpgsql 'begin end'", "pin unknown"),
        ("ALTER ROLE r SET x = 'y'", "roles"),
        ("ALTER DATABASE d SET x = 'y'", "database"),
        (
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET x = 'y' AS 'select 1'",
            "catalog",
        ),
        ("LOAD 'auto_explain'", "pin load"),
        ("CREATE EXTENSION hstore", "pin unknown | catalog"),
        ("ALTER EXTENSION hstore UPDATE", "pin unknown | catalog"),
        ("DROP EXTENSION hstore", "catalog"),
        (
            "CREATE OR REPLACE TRUSTED PROCEDURAL LANGUAGE plperl",
            "pin unknown | catalog",
        ),
    ]);
}

#[test]
fn trap_58_custom_settings_leave_a_trace_that_no_reset_removes() {
    check(&[
        (
            "SET app.tenant_id = '7'",
            "pin custom_setting | set session app.tenant_id='7'",
        ),
        (
            "SET App . \"Tenant\" TO 7",
            "pin custom_setting | set session app.tenant=7",
        ),
        (
            "SET \"app.tenant\" TO 7",
            "pin custom_setting | set session app.tenant=7",
        ),
        ("SET a.b.c = ''", "pin custom_setting | set session a.b.c=''"),
        (
            "SELECT set_config('app.tenant_id', $1, false)",
            "pin custom_setting | set session app.tenant_id=$1",
        ),
        ("RESET app.tenant_id", "pin custom_setting | reset app.tenant_id"),
    ]);
}

#[test]
fn trap_59_reset_all_resets_settings_only() {
    check(&[
        ("RESET ALL", "reset all"),
        ("reset all; -- done", "reset all"),
        ("RESET Search_Path", "reset search_path"),
        ("RESET \"TimeZone\"", "reset timezone"),
        ("RESET TIME ZONE", "reset timezone"),
        ("RESET SESSION AUTHORIZATION", "reset session_authorization"),
        ("RESET ROLE", "reset role"),
        ("RESET a b", "pin unknown"),
        ("RESET 'a'", "pin unknown"),
        (
            "SET x = 1; RESET ALL; SET y = 2",
            "pin setting | set session x=1 | reset all | set session y=2",
        ),
    ]);
}

#[test]
fn trap_64_listen_and_its_relatives() {
    check(&[
        ("LISTEN Chan", "pin listen | listen chan"),
        ("listen \"Chan\"", "pin listen | listen Chan"),
        ("LISTEN U&\"x\"", "pin listen,unlexable | listen ?"),
        ("UNLISTEN chan", "unlisten chan"),
        ("UNLISTEN *", "UnlistenAll"),
        ("UNLISTEN/**/*;", "UnlistenAll"),
        ("NOTIFY chan, 'payload'", "notifies"),
        ("SELECT pg_notify('a', 'b')", "notifies"),
        ("SELECT pg_listening_channels()", "reads session"),
    ]);
    // A channel may be called as a table is.
    for (text, expected) in [
        ("LISTEN t", "pin listen | listen t"),
        ("UNLISTEN \"t\"", "unlisten t"),
        ("NOTIFY t, 'x'", "notifies"),
    ] {
        let effects = classify(text.as_bytes(), Lexing::default(), &Suspects::every_mention());
        assert_eq!(summary(&effects), expected);
    }
}

#[test]
fn trap_65_session_level_advisory_locks_pin_in_every_form() {
    check(&[
        ("SELECT pg_advisory_lock(1)", "pin advisory_lock"),
        ("SELECT pg_advisory_lock(1, 2)", "pin advisory_lock"),
        ("SELECT pg_advisory_lock_shared(hashtext('a'))", "pin advisory_lock"),
        ("SELECT pg_try_advisory_lock($1)", "pin advisory_lock"),
        (
            "SELECT pg_catalog.pg_try_advisory_lock_shared(id) FROM t LIMIT 1",
            "pin advisory_lock",
        ),
        ("SELECT \"pg_advisory_lock\"(1)", "pin advisory_lock"),
        ("SELECT anything.PG_Advisory_Lock\n(1)", "pin advisory_lock"),
        ("SELECT 1 FROM t WHERE pg_try_advisory_lock(a)", "pin advisory_lock"),
        ("SELECT pg_advisory_unlock(1)", "AdvisoryUnlock"),
        ("SELECT pg_advisory_unlock_all()", "AdvisoryUnlock"),
        ("SELECT pg_advisory_xact_lock(1)", ""),
        ("SELECT * FROM pg_locks", "reads session"),
    ]);
}

#[test]
fn trap_66_temporary_objects_pin_unless_they_go_with_the_transaction() {
    check(&[
        ("CREATE TEMP TABLE t (a int)", "pin temporary_table"),
        ("create temporary table if not exists t (a int)", "pin temporary_table"),
        ("CREATE LOCAL TEMP TABLE t AS SELECT 1", "pin temporary_table"),
        (
            "CREATE GLOBAL TEMPORARY TABLE t (a int) ON COMMIT DELETE ROWS",
            "pin temporary_table",
        ),
        (
            "CREATE /* x */ TEMP /* y */ TABLE t (a int) ON COMMIT PRESERVE ROWS",
            "pin temporary_table",
        ),
        ("CREATE TEMP TABLE t (a int) ON COMMIT DROP", ""),
        ("CREATE TEMP TABLE t ON COMMIT DROP AS SELECT * FROM u", ""),
        ("CREATE TEMP VIEW v AS SELECT 1", "pin temporary_table"),
        (
            "CREATE OR REPLACE TEMP RECURSIVE VIEW v (a) AS SELECT 1",
            "pin temporary_table",
        ),
        ("CREATE TEMP SEQUENCE s", "pin temporary_table"),
        ("CREATE TABLE pg_temp.t (a int)", "pin temporary_table | catalog"),
        ("CREATE TABLE PG_TEMP . t (a int)", "pin temporary_table | catalog"),
        ("CREATE TABLE \"pg_temp\".t (a int)", "pin temporary_table | catalog"),
        (
            "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'select 1'",
            "pin temporary_table | catalog",
        ),
        (
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET search_path = a, pg_temp AS 'select 1'",
            "catalog",
        ),
        ("SELECT 1 INTO TEMP t", "pin temporary_table"),
        ("SELECT * INTO TEMPORARY TABLE t FROM u", "pin temporary_table"),
        ("SELECT * INTO LOCAL TEMP t FROM u", "pin temporary_table"),
        (
            "WITH a AS (SELECT 1) SELECT * INTO TEMP t FROM a",
            "pin temporary_table",
        ),
        ("INSERT INTO temporary (a) SELECT 1", ""),
        (
            "SET search_path = pg_temp, public",
            "pin setting,temporary_table | set session search_path=pg_temp, public",
        ),
        (
            "SET search_path = 'PG_temp'",
            "pin setting,temporary_table | set session search_path='PG_temp'",
        ),
        (
            "SELECT set_config('search_path', 'a,pg_temp', false)",
            "pin setting,temporary_table | set session search_path=<a,pg_temp>",
        ),
        ("INSERT INTO pg_temp.t VALUES (1)", "pin temporary_table"),
        ("DROP TABLE pg_temp.t", "pin temporary_table | catalog"),
        ("CREATE TABLE t (a int, b temp)", "catalog"),
        ("CREATE UNLOGGED TABLE t (a int)", "catalog"),
    ]);
}

#[test]
fn trap_67_holdable_cursors_pin() {
    check(&[
        ("DECLARE C CURSOR WITH HOLD FOR SELECT 1", "pin hold_cursor | hold c"),
        (
            "declare c binary no scroll cursor with hold for select * from t",
            "pin hold_cursor | hold c",
        ),
        ("DECLARE c CURSOR FOR SELECT 1 AS hold", ""),
        ("DECLARE c CURSOR FOR WITH hold AS (SELECT 1) SELECT * FROM hold", ""),
        ("CLOSE c", "close c"),
        ("CLOSE ALL", "CloseAll"),
        ("CLOSE \"ALL\"", "close ALL"),
    ]);
}

#[test]
fn trap_68_session_bound_functions_are_told() {
    check(&[
        ("SELECT nextval('s')", "Draws"),
        ("SELECT pg_catalog.nextval('s'::regclass)", "Draws"),
        ("SELECT setval('s', 1)", "Draws"),
        ("SELECT currval('s')", "Reads"),
        ("SELECT LASTVAL()", "Reads"),
        ("INSERT INTO t DEFAULT VALUES; SELECT lastval()", "Reads"),
        ("SELECT nextval('s'); SELECT currval('s')", "DrawsAndReads"),
        ("SELECT pg_backend_pid()", "reads session"),
        ("SELECT * FROM pg_cursors", "reads session"),
        ("SELECT name FROM pg_catalog.pg_prepared_statements", "lists statements"),
        ("SELECT * FROM pg_prepared_statement()", "lists statements"),
        ("SELECT setseed(0.5)", "pin setseed"),
        ("SELECT 1, setseed(.5), random()", "pin setseed"),
        ("SET seed = 0.5", "pin setting,setseed | set session seed=0.5"),
        ("SET LOCAL seed TO 0.5", "pin setseed | set local seed=0.5"),
        (
            "SELECT set_config('seed', '0.5', true)",
            "pin setseed | set local seed=<0.5>",
        ),
        ("SELECT dblink_connect('a', 'dbname=x')", "pin dblink"),
        ("SELECT * FROM dblink('c', 'select 1') AS t(a int)", "pin dblink"),
        ("SELECT ext.dblink_exec('c', 'x')", "pin dblink"),
        ("SELECT pg_backup_start('x')", "pin replication"),
        (
            "SELECT pg_create_logical_replication_slot('s', 'p', true)",
            "pin replication",
        ),
        ("SELECT pg_replication_origin_session_setup('x')", "pin replication"),
        (
            "SELECT query_to_xml('select set_config(1)', true, true, '')",
            "pin routine",
        ),
        ("SELECT * FROM ts_stat('select x from t')", "pin routine"),
        ("SELECT lo_open(1, 131072)", ""),
        (
            "CREATE FUNCTION f() RETURNS int LANGUAGE plpython3u AS 'x'",
            "pin procedural_language | catalog",
        ),
        ("CREATE FUNCTION f() RETURNS int AS 'x' LANGUAGE 'PLPGSQL'", "catalog"),
    ]);
}

#[test]
fn trap_30_sql_level_prepared_statements_pin_by_name() {
    check(&[
        ("PREPARE Plan AS SELECT 1", "pin prepare | prepare plan"),
        (
            "PREPARE p (int, numeric(10, 2)) AS INSERT INTO t VALUES ($1, $2)",
            "pin prepare | prepare p",
        ),
        (
            "PREPARE \"P\" AS SELECT nextval('s')",
            "pin prepare | prepare P | Draws",
        ),
        ("EXECUTE p", "pin prepare | execute p"),
        ("EXECUTE p (1, 'a')", "pin prepare | execute p"),
        ("EXPLAIN ANALYZE EXECUTE p(1)", "pin prepare | execute p"),
        ("EXPLAIN (COSTS OFF) EXECUTE \"P\"", "pin prepare | execute P"),
        ("CREATE TABLE t AS EXECUTE p(1)", "pin prepare | execute p | catalog"),
        (
            "EXPLAIN CREATE TABLE t AS EXECUTE p",
            "pin prepare | execute p | catalog",
        ),
        ("DEALLOCATE p", "deallocate p"),
        ("DEALLOCATE PREPARE p", "deallocate p"),
        ("DEALLOCATE prepare", "deallocate prepare"),
        ("DEALLOCATE ALL", "DeallocateAll"),
        ("DEALLOCATE PREPARE ALL", "DeallocateAll"),
        ("DEALLOCATE \"all\"", "deallocate all"),
        ("PREPARE transaction AS SELECT 1", "pin prepare | prepare transaction"),
    ]);
}

#[test]
fn trap_70_discards_are_told_apart() {
    check(&[
        ("DISCARD ALL", "DiscardAll"),
        ("discard all;", "DiscardAll"),
        ("DISCARD PLANS", "DiscardPlans"),
        ("DISCARD SEQUENCES", "DiscardSequences"),
        ("DISCARD TEMP", "DiscardTemporary"),
        ("DISCARD TEMPORARY", "DiscardTemporary"),
        ("DISCARD", "pin unknown"),
        (
            "CLOSE ALL; UNLISTEN *; RESET ALL; DEALLOCATE ALL",
            "CloseAll | UnlistenAll | reset all | DeallocateAll",
        ),
    ]);
}

#[test]
fn trap_69_a_call_beside_ordinality_is_a_call() {
    check(&[
        (
            "SELECT a FROM unheard_of('x') WITH ORDINALITY cols(b, c)",
            "pin routine",
        ),
        (
            "SELECT a FROM unnest(b) WITH ORDINALITY cols(c, d), unheard_of('x')",
            "pin routine",
        ),
        (
            "SELECT a FROM unnest(b) WITH ORDINALITY WHERE unheard_of('x')",
            "pin routine",
        ),
        (
            "WITH ordinality AS (SELECT unheard_of('x')) TABLE ordinality",
            "pin routine",
        ),
    ]);
}

#[test]
fn trap_69_unknown_commands_and_routines_pin() {
    check(&[
        ("FROBNICATE x", "pin unknown"),
        ("1", "pin unknown"),
        ("'set x = 1'", "pin unknown"),
        ("$1", "pin unknown"),
        ("SELECT unheard_of(1)", "pin routine"),
        ("SELECT public.unheard_of(1)", "pin routine"),
        ("SELECT public.lower('a')", "pin routine"),
        ("SELECT \"Lower2\"('a')", "pin routine"),
        ("SELECT x FROM t WHERE unheard_of(x)", "pin routine"),
        ("SELECT DISTINCT ON (a) unheard_of(b) FROM t", "pin routine"),
        ("SELECT a OPERATOR(pg_catalog.+) unheard_of(b) FROM t", "pin routine"),
        ("SELECT a, unheard_of(b) FROM t", "pin routine"),
        ("SELECT * FROM a, unheard_of(b) AS (c int)", "pin routine"),
        ("SELECT * FROM t JOIN u ON unheard_of(t.a)", "pin routine"),
        ("SELECT trim(both unheard_of(x) from y) FROM t", "pin routine"),
        (
            "CREATE TABLE t AS SELECT 1 FROM a JOIN b ON unheard_of(c)",
            "pin routine | catalog",
        ),
        (
            "ALTER TABLE t ALTER a TYPE int USING unheard_of(a)",
            "pin routine | catalog",
        ),
        (
            "CREATE INDEX i ON t USING hnsw (unheard_of(a) ops)",
            "pin routine | catalog",
        ),
        ("CALL unheard_of(1)", "pin routine"),
        ("SELECT \"values\"(1)", "pin routine"),
        ("SELECT public.values(1)", "pin routine"),
        ("VALUES (unheard_of(1))", "pin routine"),
        ("INSERT INTO t (a) VALUES (unheard_of(1))", "pin routine"),
        ("EXPLAIN SELECT unheard_of(1)", "pin routine"),
        ("EXPLAIN FROBNICATE", "pin unknown"),
        ("START SOMETHING", "pin unknown"),
    ]);
}

#[test]
fn trap_57_names_that_the_catalog_warns_of_pin() {
    check(&[
        ("SELECT become_tenant('a')", "pin routine,suspect"),
        ("SELECT t.Become_Tenant FROM t", "pin suspect"),
        ("SELECT \"become_tenant\" FROM t", "pin suspect"),
        ("SELECT 'become_tenant'", ""),
        ("SELECT * FROM sly_view", "pin suspect"),
        ("INSERT INTO sly_view VALUES (1)", "pin suspect"),
        ("SELECT * FROM \"odd name\"", "pin suspect"),
        ("SELECT * FROM audited WHERE a = 1", ""),
        ("INSERT INTO audited VALUES (1)", "pin suspect"),
        ("UPDATE public.audited SET a = 1", "pin suspect"),
        (
            "WITH x AS (DELETE FROM \"Audited\" RETURNING *) SELECT * FROM x",
            "pin suspect",
        ),
        ("SELECT * FROM audited; INSERT INTO other VALUES (1)", ""),
        ("COPY audited FROM STDIN", "pin suspect"),
        ("TRUNCATE audited", "pin suspect"),
        (
            "MERGE INTO audited a USING s ON true WHEN MATCHED THEN DELETE",
            "pin suspect",
        ),
        ("SELECT a <#> b FROM t", "pin suspect"),
        ("SELECT a OPERATOR(public.<#>) b FROM t", "pin suspect"),
        ("SELECT a <# b FROM t", ""),
        ("DROP FUNCTION become_tenant(text)", "catalog"),
        (
            "CREATE TRIGGER g AFTER INSERT ON t EXECUTE FUNCTION become_tenant()",
            "catalog",
        ),
    ]);
}

#[test]
fn definitions_change_the_catalog_and_evaluate_nothing() {
    check(&[
        (
            "CREATE TABLE t (id serial PRIMARY KEY, a numeric(10, 2) DEFAULT lower('x')::numeric CHECK (a > 0), b character varying(3), FOREIGN KEY (a) REFERENCES u (b), UNIQUE (a, b))",
            "catalog",
        ),
        (
            "CREATE TABLE IF NOT EXISTS s.t (a geometry(Point, 4326), b vector(3), EXCLUDE USING gist (a WITH &&))",
            "catalog",
        ),
        (
            "CREATE TABLE p PARTITION OF q (a) FOR VALUES FROM (1) TO (2) PARTITION BY RANGE (a)",
            "catalog",
        ),
        ("CREATE TABLE c (a int) INHERITS (t) WITH (fillfactor = 70)", "catalog"),
        (
            "ALTER TABLE t ADD COLUMN a vector(3), ALTER b TYPE geometry(Point), ADD CONSTRAINT x CHECK (a > 1), ADD PRIMARY KEY (b)",
            "catalog",
        ),
        (
            "CREATE UNIQUE INDEX CONCURRENTLY i ON t USING gin (lower(a) gin_trgm_ops, b) INCLUDE (c) WHERE d > 1",
            "catalog",
        ),
        ("CREATE INDEX ON t (a)", "catalog"),
        (
            "CREATE VIEW v (a, b) AS SELECT unheard_of(1), become_tenant('x')",
            "catalog",
        ),
        (
            "CREATE MATERIALIZED VIEW v AS SELECT unheard_of(1)",
            "pin routine | catalog",
        ),
        (
            "CREATE FUNCTION f(a int DEFAULT unheard_of(1)) RETURNS TABLE (b int) LANGUAGE plpgsql AS $$ begin set x = 1; end $$",
            "catalog",
        ),
        (
            "CREATE RULE r AS ON INSERT TO t DO ALSO (SELECT 1; SELECT 2)",
            "catalog",
        ),
        ("CREATE TYPE e AS ENUM ('a')", "catalog"),
        ("CREATE DOMAIN d AS numeric(3) CHECK (value > 0)", "catalog"),
        (
            "CREATE SCHEMA s CREATE TABLE t (a int) CREATE VIEW v AS SELECT 1",
            "catalog",
        ),
        ("CREATE POLICY p ON t USING (a = become_tenant('x'))", "catalog"),
        ("DROP TABLE t", "catalog"),
        ("DROP OWNED BY r", "catalog"),
        ("ALTER FUNCTION f(int) SET x = 'y'", "catalog"),
        ("SELECT a INTO t FROM u", "catalog"),
        ("CREATE FROBNICATE x", "pin unknown | catalog"),
        ("IMPORT FOREIGN SCHEMA s FROM SERVER r INTO t", "catalog"),
    ]);
}

/// A body ends where a statement of its could begin, whatever a column is called.
#[test]
fn what_follows_a_body_of_sql_is_read() {
    check(&[
        (
            "CREATE PROCEDURE p() LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 2 END; END",
            "catalog",
        ),
        (
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1 AS end; SELECT setseed(1); END; SET x = 1",
            "pin setting | set session x=1 | catalog",
        ),
        (
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1 case; END; SET x = 1",
            "pin setting | set session x=1 | catalog",
        ),
        (
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1 end; SELECT a.case, a.end FROM a; END",
            "catalog",
        ),
        (
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC END; SET x = 1",
            "pin setting | set session x=1 | catalog",
        ),
        // Words that a column and its alias may have.
        (
            "CREATE VIEW v AS SELECT begin atomic FROM t; SET x = 1",
            "pin setting | set session x=1 | catalog",
        ),
        (
            "CREATE FUNCTION f() RETURNS TABLE (begin atomic) LANGUAGE sql AS 'x'; SET x = 1",
            "pin setting | set session x=1 | catalog",
        ),
    ]);
}

#[test]
fn databases_that_are_changed_or_copied_are_named() {
    check(&[
        ("CREATE DATABASE d", "copies database template1 | database"),
        (
            "CREATE DATABASE d WITH OWNER o TEMPLATE = \"T\"",
            "copies database T | database",
        ),
        (
            "CREATE DATABASE d TEMPLATE template0",
            "copies database template0 | database",
        ),
        (
            "DROP DATABASE IF EXISTS D WITH (FORCE)",
            "changes database d | database",
        ),
        ("ALTER DATABASE d RENAME TO e", "changes database d | database"),
        ("ALTER DATABASE \"D\" SET TABLESPACE x", "changes database D | database"),
        ("ALTER DATABASE d OWNER TO x", "database"),
    ]);
}

#[test]
fn trap_39_statements_of_one_text_are_told_in_order() {
    check(&[
        ("select 1; set x=1", "pin setting | set session x=1"),
        ("select ';'; /* ; */ select \"a;b\"; -- ; \n select $a$;$a$", ""),
        (
            "BEGIN; SET x = 1; SAVEPOINT a; SET x = 2; ROLLBACK TO SAVEPOINT a; COMMIT",
            "pin setting | Begin | set session x=1 | Savepoint a | set session x=2 | RollbackTo a | Commit",
        ),
        ("SET x = 1; ROLLBACK", "pin setting | set session x=1 | Rollback"),
        ("COMMIT; BEGIN", "Commit | Begin"),
    ]);
    let text = b"; SELECT 1; ; SET x = 1;; SELECT 2; RESET y";
    let effects = classify(text, Lexing::default(), &catalog());
    assert_eq!(effects.statement_count, 4);
    assert_eq!(
        effects.steps.iter().map(|step| step.statement).collect::<Vec<_>>(),
        [1, 3]
    );
}

#[test]
fn trap_38_transaction_control_is_told_apart() {
    check(&[
        ("BEGIN", "Begin"),
        ("begin;", "Begin"),
        ("BEGIN WORK", "Begin"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE", "Begin"),
        ("START TRANSACTION READ ONLY", "Begin"),
        ("COMMIT", "Commit"),
        ("END", "Commit"),
        ("COMMIT WORK", "Commit"),
        ("COMMIT AND CHAIN", "CommitAndChain"),
        ("COMMIT TRANSACTION AND NO CHAIN", "Commit"),
        ("ROLLBACK", "Rollback"),
        ("ABORT", "Rollback"),
        ("ROLLBACK WORK AND CHAIN", "RollbackAndChain"),
        ("ROLLBACK TO a", "RollbackTo | RollbackTo a"),
        ("ROLLBACK WORK TO SAVEPOINT a", "RollbackTo | RollbackTo a"),
        ("ROLLBACK TRANSACTION TO \"A\"", "RollbackTo | RollbackTo A"),
        ("ROLLBACK TO savepoint", "RollbackTo | RollbackTo savepoint"),
        ("SAVEPOINT A", "Savepoint | Savepoint a"),
        ("RELEASE a", "Release | Release a"),
        ("RELEASE SAVEPOINT a", "Release | Release a"),
        ("PREPARE TRANSACTION 'gid'", "PrepareTransaction"),
    ]);
}

#[test]
fn trap_38_what_ends_a_block_or_leaves_a_failed_one_is_known() {
    let of = |text: &str| classify(text.as_bytes(), Lexing::default(), &catalog());
    for text in [
        "ROLLBACK",
        "ABORT",
        "COMMIT",
        "END",
        "ROLLBACK TO a",
        "PREPARE TRANSACTION 'x'",
        "; COMMIT",
        "COMMIT; SELECT 1",
    ] {
        assert!(of(text).exits_failed_block, "{text}");
    }
    for text in [
        "SELECT 1; ROLLBACK",
        "BEGIN",
        "SAVEPOINT a",
        "RELEASE a",
        "COMMIT PREPARED 'x'",
        "",
        "PREPARE p AS SELECT 1",
    ] {
        assert!(!of(text).exits_failed_block, "{text}");
    }
    for text in [
        "COMMIT",
        "SELECT 1; ROLLBACK",
        "BEGIN; COMMIT AND CHAIN",
        "PREPARE TRANSACTION 'x'",
    ] {
        assert!(of(text).ends_transaction, "{text}");
    }
    for text in ["ROLLBACK TO a", "SAVEPOINT a", "BEGIN", "ROLLBACK PREPARED 'x'"] {
        assert!(!of(text).ends_transaction, "{text}");
    }
    for (text, expected) in [
        ("BEGIN", true),
        ("begin; ;", true),
        ("BEGIN; BEGIN", false),
        ("SHOW x", false),
        ("BEGIN; SHOW x", false),
    ] {
        assert_eq!(of(text).is_begin_only, expected, "{text}");
    }
    for (text, expected) in [
        ("BEGIN", true),
        ("SHOW x", true),
        ("BEGIN; SHOW x", true),
        ("", true),
        ("SELECT 1", false),
        ("COMMIT", false),
        ("BEGIN; SET x = 1", false),
        ("FROB", false),
    ] {
        assert_eq!(of(text).without_effect, expected, "{text}");
    }
}

#[test]
fn only_what_reads_has_a_read_only_shape() {
    let of = |text: &str| classify(text.as_bytes(), Lexing::default(), &catalog()).is_read_only_shape;
    for text in [
        "SELECT 1",
        "SELECT lower(a) FROM t",
        "WITH a AS (SELECT 1) TABLE a",
        "SHOW x",
        "BEGIN",
        "VALUES (1)",
        "",
        "EXPLAIN SELECT 1",
        "SELECT currval('s')",
    ] {
        assert!(of(text), "{text}");
    }
    for text in [
        "INSERT INTO t VALUES (1)",
        "UPDATE t SET a = 1",
        "WITH a AS (INSERT INTO t VALUES (1) RETURNING 1) SELECT * FROM a",
        "SELECT * FROM t FOR UPDATE",
        "SELECT * FROM t FOR NO KEY UPDATE",
        "SELECT * FROM t FOR SHARE",
        "SELECT 1 INTO t",
        "SELECT tidy(1)",
        "SELECT nextval('s')",
        "SELECT lo_unlink(1)",
        "CALL tidy(1)",
        "COMMIT",
        "SELECT 1; DELETE FROM t",
        "SET x = 1",
        "COPY t FROM STDIN",
        "EXPLAIN ANALYZE DELETE FROM t",
        "CREATE TABLE t (a int)",
        "FROB",
        "SELECT 'a",
        "DO 'x'",
        "NOTIFY a",
        "TRUNCATE t",
        "SELECT pg_notify('a', 'b')",
    ] {
        assert!(!of(text), "{text}");
    }
}

#[test]
fn what_does_not_lex_may_have_done_anything() {
    for text in [
        "SELECT 'a",
        "SELECT \"a",
        "SELECT $a$ x",
        "/* a",
        "/* /* */",
        "SELECT E'\\'",
        "SELECT (1",
        "SELECT 1)",
        "\\d t",
        "SELECT {1}",
        "a\0b",
        "SELECT $a",
        "U&'a",
    ] {
        let effects = classify(text.as_bytes(), Lexing::default(), &catalog());
        assert_eq!(effects.pins, PinSet::of(PinReason::Unlexable), "{text}");
        assert!(effects.may_commit() && effects.exits_failed_block && !effects.without_effect && !effects.is_none());
    }
}

#[test]
fn backslashes_are_read_as_the_session_reads_them() {
    let with = |strings| Lexing {
        strings,
        encoding: EncodingClass::AsciiSafe,
    };
    let of = |text: &str, strings| summary(&classify(text.as_bytes(), with(strings), &catalog()));
    use StandardConformingStrings::{Off, On, Uncertain};
    let sly = r"select '\'; set x = 1; --'";
    assert_eq!(of(sly, On), "pin setting | set session x=1");
    assert_eq!(of(sly, Off), "");
    assert!(of(sly, Uncertain).starts_with("pin unlexable"));
    let other = r"select '\\'; set x = 1; --'";
    assert_eq!(of(other, Off), "pin setting | set session x=1");
    assert_eq!(
        of("select 'plain'; set x = 'y'", Uncertain),
        "pin setting | set session x='y'"
    );
    assert_eq!(of(r"select e'\'; set x = 1; --'", On), "");
    assert_eq!(of(r"select n'\'; set x = 1; --'", Off), "");
    assert_eq!(of(r"select b'\'; set x = 1; --'", Off), "pin setting | set session x=1");
    assert_eq!(of(r"set x = 'a\'b'", Off), "pin setting | set session x='a''b'");
    assert!(of(r"select U&'a'", Off).starts_with("pin unlexable"));
    // A continued literal is read as it began.
    assert_eq!(of("select E'a'\n'\\'; set x = 1; --'", On), "");
    assert_eq!(
        of("select 'a'\n'\\'; set x = 1; --'", On),
        "pin setting | set session x=1"
    );
    assert_eq!(
        of("select E'a' '\\'; set x = 1; --'", On),
        "pin setting | set session x=1"
    );
    assert_eq!(of("select E'a' -- b\n '\\'; set x = 1; --'", On), "");
}

#[test]
fn a_text_in_an_unsafe_encoding_is_read_only_if_it_is_ascii() {
    let lexing = Lexing {
        encoding: EncodingClass::of(b"SJIS"),
        ..Lexing::default()
    };
    assert!(classify(b"select 1", lexing, &catalog()).is_none());
    let text = b"select '\x95\\'; set x = 1; --'";
    assert_eq!(
        classify(text, lexing, &catalog()).pins,
        PinSet::of(PinReason::Unlexable)
    );
    assert!(
        classify(
            "select 'ü' as größe from täbel".as_bytes(),
            Lexing::default(),
            &catalog()
        )
        .is_none()
    );
}

#[test]
fn before_the_catalog_was_read_calls_or_all_names_are_suspicious() {
    let of = |text: &str, suspects: &Suspects| summary(&classify(text.as_bytes(), Lexing::default(), suspects));
    let calls = Suspects::everything();
    assert_eq!(of("SELECT lower(a), count(*) FROM t", &calls), "");
    assert_eq!(of("SELECT tidy(1)", &calls), "pin routine");
    let all = Suspects::every_mention();
    assert_eq!(of("SELECT 1", &all), "");
    assert_eq!(of("SELECT pg_catalog.now(), lower('A')", &all), "");
    assert_eq!(of("SELECT a", &all), "pin suspect");
    assert_eq!(of("SELECT * FROM t", &all), "pin suspect");
    assert_eq!(of("CREATE TYPE x", &all), "pin suspect | catalog");
}

#[test]
fn a_cast_or_an_event_trigger_suspects_whole_classes_of_statements() {
    let of = |text: &str, suspects: &Suspects| summary(&classify(text.as_bytes(), Lexing::default(), suspects));
    let any = Suspects::known([(SuspectKind::Statement, &b"x"[..])]);
    for text in [
        "SELECT 1",
        "INSERT INTO t VALUES (1)",
        "CALL f",
        "EXPLAIN SELECT 1",
        "VACUUM",
        "COPY t FROM STDIN",
        "(SELECT 1)",
    ] {
        assert!(of(text, &any).starts_with("pin suspect"), "{text}");
    }
    assert_eq!(of("BEGIN", &any), "Begin");
    assert_eq!(of("SHOW x", &any), "");
    let events = Suspects::known([(SuspectKind::Definition, &b"x"[..])]);
    for text in [
        "CREATE TABLE t (a int)",
        "DROP TABLE t",
        "GRANT a TO b",
        "COMMENT ON TABLE t IS 'x'",
        "ALTER TABLE t ADD a int",
        "SELECT 1 INTO t",
        "REFRESH MATERIALIZED VIEW m",
    ] {
        assert!(of(text, &events).contains("suspect"), "{text}");
    }
    assert_eq!(of("SELECT 1", &events), "");
}

/// A small generator, so that a failure is the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }
}

const FRAGMENTS: [&str; 60] = [
    "select ",
    "set ",
    "x",
    " = ",
    "'",
    "\"",
    "$$",
    "$a$",
    "(",
    ")",
    ";",
    "--",
    "\n",
    "/*",
    "*/",
    "E'",
    "\\",
    "U&\"",
    "u&'",
    "set_config(",
    "'a',",
    "'b',",
    "false",
    ")",
    "pg_temp.",
    ".",
    "::",
    "[",
    "]",
    "$1",
    "1e",
    "1.",
    "..",
    "é",
    "\0",
    "create ",
    "temp ",
    "table ",
    "into ",
    "function ",
    "begin atomic ",
    "end",
    "case ",
    "explain ",
    "analyze ",
    "prepare ",
    "as ",
    "declare ",
    "cursor ",
    "with ",
    "hold ",
    "for ",
    "rollback ",
    "to ",
    "savepoint ",
    "local ",
    "session ",
    "interval ",
    ",",
    "-",
];

const PLAIN_FRAGMENTS: [&str; 48] = [
    "select ",
    "insert into ",
    "update ",
    "delete ",
    "set ",
    "where ",
    "values ",
    "t",
    "audited",
    " a ",
    "a.b",
    "lower",
    "count",
    "set_config",
    "tidy",
    "in ",
    "into ",
    "share ",
    "copy ",
    "(",
    ")",
    ",",
    "'x'",
    "'",
    "\"q\"",
    "\"",
    ".",
    "::",
    "$1",
    "$",
    "1",
    "1.5",
    "-",
    "-",
    "/",
    "*",
    ";",
    "\n",
    " ",
    "e",
    "n",
    "pg_temp",
    "pg_settings",
    "as ",
    "from ",
    "é",
    "'\\'",
    "become_tenant",
];

#[test]
fn the_first_look_tells_what_the_full_scan_tells() {
    let suspects = [
        Suspects::known([]),
        catalog(),
        Suspects::everything(),
        Suspects::every_mention(),
    ];
    let leads = [
        "select ",
        "insert into t ",
        "update t set ",
        "delete from t ",
        "begin",
        "commit ",
        "",
    ];
    let mut random = Random(0x5eed_0f0f_0f0f_0f0f);
    let mut ordinary = 0;
    for _ in 0..100_000 {
        let mut text = leads[random.below(leads.len())].as_bytes().to_vec();
        for _ in 0..random.below(9) {
            text.extend_from_slice(PLAIN_FRAGMENTS[random.below(PLAIN_FRAGMENTS.len())].as_bytes());
        }
        let strings = [
            StandardConformingStrings::On,
            StandardConformingStrings::Off,
            StandardConformingStrings::Uncertain,
        ];
        let lexing = Lexing {
            strings: strings[random.below(3)],
            ..Lexing::default()
        };
        let suspects = &suspects[random.below(4)];
        classify(&text, lexing, suspects);
        ordinary += usize::from(ordinary_effects(&text, lexing, suspects).is_some());
    }
    assert!(ordinary > 10_000, "only {ordinary} were ordinary");
}

#[test]
fn no_bytes_make_it_panic() {
    let suspects = [catalog(), Suspects::everything(), Suspects::every_mention()];
    let mut random = Random(0x5eed_1234_5678_9abc);
    for round in 0..60_000 {
        let mut text = Vec::new();
        for _ in 0..random.below(24) {
            if random.below(12) == 0 {
                text.push(random.below(256) as u8);
            } else {
                text.extend_from_slice(FRAGMENTS[random.below(FRAGMENTS.len())].as_bytes());
            }
        }
        let strings = [
            StandardConformingStrings::On,
            StandardConformingStrings::Off,
            StandardConformingStrings::Uncertain,
        ];
        let encoding = if round % 7 == 0 {
            EncodingClass::Unsafe
        } else {
            EncodingClass::AsciiSafe
        };
        let lexing = Lexing {
            strings: strings[random.below(3)],
            encoding,
        };
        let effects = classify(&text, lexing, &suspects[random.below(3)]);
        effects.settings().for_each(|change| drop(change.to_sql()));
        assert!(
            effects
                .steps
                .iter()
                .all(|step| step.statement < effects.statement_count),
            "{}",
            lossy(&text)
        );
        for end in 0..text.len().min(3) {
            classify(&text[..text.len() - end], lexing, &suspects[0]);
        }
    }
}
