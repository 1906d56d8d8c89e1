-- What of a database can change session state without the text of a statement saying so.
-- Rows (kind, schema, name, reason); see SuspectKind for the kinds. For PostgreSQL 12 to 18.
--
-- Seeds are routines whose language or body can touch the session, and expressions (defaults, checks, policies, rules,
-- indexes, trigger conditions) that call one of PostgreSQL's own functions that do. `reach` follows, from each of them,
-- pg_depend and the names in the bodies of SQL and PL/pgSQL routines. Too much is safe here, too little is not.
with recursive dangerous_name (name) as (
    values
        ('set_config'), ('setseed'), ('pg_advisory_lock'), ('pg_advisory_lock_shared'), ('pg_try_advisory_lock'),
        ('pg_try_advisory_lock_shared'), ('pg_backup_start'), ('pg_backup_stop'), ('pg_start_backup'),
        ('pg_stop_backup'), ('pg_create_logical_replication_slot'), ('pg_create_physical_replication_slot'),
        ('pg_copy_logical_replication_slot'), ('pg_copy_physical_replication_slot'), ('pg_replication_slot_advance'),
        ('pg_logical_slot_get_changes'), ('pg_logical_slot_get_binary_changes'), ('pg_logical_slot_peek_changes'),
        ('pg_logical_slot_peek_binary_changes'), ('pg_replication_origin_session_setup'),
        ('pg_replication_origin_session_reset'), ('pg_replication_origin_xact_setup'),
        ('pg_replication_origin_xact_reset'), ('query_to_xml'), ('query_to_xml_and_xmlschema'),
        ('query_to_xmlschema'), ('cursor_to_xml'), ('cursor_to_xmlschema'), ('table_to_xml'),
        ('table_to_xml_and_xmlschema'), ('table_to_xmlschema'), ('schema_to_xml'), ('schema_to_xml_and_xmlschema'),
        ('schema_to_xmlschema'), ('database_to_xml'), ('database_to_xml_and_xmlschema'), ('database_to_xmlschema'),
        ('ts_stat'), ('ts_rewrite')
),
dangerous as (
    select p.oid, p.prosrc
    from pg_catalog.pg_proc p
    join dangerous_name d on d.name = p.proname
    where p.oid < 16384
),
-- How an expression tree calls one of them, and how a rule reads pg_settings (whose own rule calls set_config).
call_pattern (of_function, of_settings) as (
    select
        ':(funcid|opfuncid|aggfnoid|winfnoid) (' || string_agg(oid::text, '|') || ') ',
        ':relid ' || 'pg_catalog.pg_settings'::regclass::oid::text || ' '
    from dangerous
),
body_pattern (words, statements, writes) as (
    select
        '\m(' || string_agg(name, '|')
            || '|dblink\w*|listen|unlisten|load|prepare|deallocate|discard|reset|temp|temporary|pg_temp\w*'
            || '|authorization|hold|pg_settings)\M',
        -- SET as a statement, not UPDATE's; dynamic SQL; anonymous blocks; definitions of what may be called later.
        '(^|;|\*/|>>|\m(begin|then|else|loop|atomic)\M)(\s|--[^\n\r]*[\n\r])*'
            || 'set\M(?!\s+(local|transaction|constraints)\M)'
            || '|\mseed\s*(=|to\M)'
            || '|\mexecute\M(?!\s+on\M)'
            || '|\mdo\M(?!\s+(nothing|update|also|instead)\M)'
            || '|\m(create|alter)\s+(or\s+replace\s+|constraint\s+|event\s+)*'
            || '(function|procedure|routine|trigger|rule|view|policy|operator|cast|domain|aggregate|extension|language)\M'
            || '|\mu&"',
        '\m(insert|update|delete|merge|copy|truncate|alter|refresh)\M'
    from dangerous_name
),
-- Extensions whose C functions are known to keep nothing in the session.
harmless_extension (name) as (
    values
        ('plpgsql'), ('adminpack'), ('amcheck'), ('autoinc'), ('bloom'), ('btree_gin'), ('btree_gist'), ('citext'),
        ('cube'), ('dict_int'), ('dict_xsyn'), ('earthdistance'), ('file_fdw'), ('fuzzystrmatch'), ('hstore'),
        ('insert_username'), ('intagg'), ('intarray'), ('isn'), ('lo'), ('ltree'), ('moddatetime'), ('old_snapshot'),
        ('pageinspect'), ('pg_buffercache'), ('pg_freespacemap'), ('pg_prewarm'), ('pg_stat_statements'),
        ('pg_surgery'), ('pg_trgm'), ('pg_visibility'), ('pg_walinspect'), ('pgcrypto'), ('pgrowlocks'),
        ('pgstattuple'), ('postgres_fdw'), ('refint'), ('seg'), ('sslinfo'), ('tcn'), ('tsm_system_rows'),
        ('tsm_system_time'), ('unaccent'), ('uuid-ossp'), ('vector'), ('postgis'), ('postgis_raster'),
        ('postgis_sfcgal'), ('postgis_topology'), ('postgis_tiger_geocoder'), ('address_standardizer'), ('pgrouting'),
        ('h3'), ('h3_postgis'), ('hll'), ('ip4r'), ('prefix'), ('semver'), ('pg_bigm'), ('rum'), ('pg_uuidv7'),
        ('pg_hashids'), ('pg_cron'), ('pg_net'), ('pg_jsonschema'), ('pg_similarity'), ('roaringbitmap'), ('topn'),
        ('zhparser'), ('pgaudit'), ('pg_stat_monitor'), ('pg_qualstats'), ('pg_stat_kcache'), ('pg_wait_sampling')
),
routine as (
    select
        p.oid, n.nspname, p.proname, p.prokind, l.lanname, p.prosrc, e.extname,
        -- set_config(…, true) ends with the transaction. Quotes are kept in pairs, so no string is read as code.
        regexp_replace(
            lower(p.prosrc collate "C"), 'set_config\s*\(([^;()'']|''[^'']*'')*,\s*true\s*\)', ' ', 'g'
        ) as body,
        coalesce(p.proargdefaults::text, '')
            || case when l.lanname = 'sql' and p.prosrc = '' then coalesce(to_jsonb(p) ->> 'prosqlbody', '') else '' end
            as tree
    from pg_catalog.pg_proc p
    join pg_catalog.pg_namespace n on n.oid = p.pronamespace
    join pg_catalog.pg_language l on l.oid = p.prolang
    left join pg_catalog.pg_depend d
        on d.classid = 'pg_catalog.pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
        and d.refclassid = 'pg_catalog.pg_extension'::regclass
    left join pg_catalog.pg_extension e on e.oid = d.refobjid
    where p.oid >= 16384
),
bad_routine as (
    select r.oid,
        case
            when r.tree ~ c.of_function then 'expression'
            when r.prokind = 'a' then null
            when r.lanname = 'internal' then case when r.prosrc in (select prosrc from dangerous) then 'alias' end
            when r.lanname = 'c' then
                case
                    when r.extname is null then 'c'
                    when r.proname in ('isn_weak', 'set_limit') then 'session'
                    when r.extname not in (select name from harmless_extension) then 'extension'
                end
            when r.lanname in ('sql', 'plpgsql') then
                case when r.body ~ b.words or r.body ~ b.statements then 'body' end
            else 'language'
        end as reason
    from routine r, call_pattern c, body_pattern b
),
-- (class, object) of all that is suspicious by itself.
seed (class, obj, on_write, reason) as (
    select 'pg_catalog.pg_proc'::regclass::oid, oid, false, reason from bad_routine where reason is not null
    union all
    select 'pg_catalog.pg_attrdef'::regclass::oid, a.oid, false, 'default'
    from pg_catalog.pg_attrdef a, call_pattern c where a.adbin::text ~ c.of_function
    union all
    select 'pg_catalog.pg_constraint'::regclass::oid, k.oid, false, 'check'
    from pg_catalog.pg_constraint k, call_pattern c where k.conbin::text ~ c.of_function
    union all
    select 'pg_catalog.pg_policy'::regclass::oid, p.oid, false, 'policy'
    from pg_catalog.pg_policy p, call_pattern c
    where p.polqual::text ~ c.of_function or p.polwithcheck::text ~ c.of_function
    union all
    select 'pg_catalog.pg_trigger'::regclass::oid, t.oid, false, 'trigger'
    from pg_catalog.pg_trigger t, call_pattern c where t.tgqual::text ~ c.of_function
    union all
    select 'pg_catalog.pg_class'::regclass::oid, i.indexrelid, false, 'index'
    from pg_catalog.pg_index i, call_pattern c
    where i.indexrelid >= 16384 and (i.indexprs::text ~ c.of_function or i.indpred::text ~ c.of_function)
    union all
    select 'pg_catalog.pg_rewrite'::regclass::oid, r.oid, not r.ev_action::text ~ c.of_function, 'rule'
    from pg_catalog.pg_rewrite r, call_pattern c
    where r.oid >= 16384
        and (r.ev_action::text ~ c.of_function or r.ev_qual::text ~ c.of_function or r.ev_action::text ~ c.of_settings)
),
-- What can be named in a statement or in a body.
named (class, obj, schema, name) as (
    select 'pg_catalog.pg_proc'::regclass::oid, oid, nspname, proname from routine
    union all
    select 'pg_catalog.pg_class'::regclass::oid, c.oid, n.nspname, c.relname
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.oid >= 16384 and c.relkind in ('r', 'p', 'v', 'm', 'f', 'c')
    union all
    select 'pg_catalog.pg_type'::regclass::oid, t.oid, n.nspname, t.typname
    from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid = t.typnamespace
    where t.oid >= 16384 and t.typrelid = 0 and t.typelem = 0
),
body as (
    select r.oid, r.body, case when r.body ~ b.writes then 'writes' else 'reads' end as through_body
    from routine r, body_pattern b
    where r.lanname in ('sql', 'plpgsql') and r.prokind <> 'a' and r.prosrc <> ''
),
word as (
    select distinct b.oid, b.through_body, w.word
    from body b, regexp_split_to_table(b.body, '[\x01-\x23\x25-\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x7f]+') as w (word)
    where w.word <> ''
),
-- Whatever reaches `from` is reached through `to`. `through_body`: 'writes' or 'reads' where `to` is a routine whose body
-- names `from`; what is suspicious on write is reached through a body that writes, then by any call.
edge (from_class, from_obj, to_class, to_obj, on_write, through_body) as (
    select refclassid, refobjid, classid, objid, false, null
    from pg_catalog.pg_depend
    where objid >= 16384 and deptype in ('n', 'a', 'i')
        and refclassid in (
            'pg_catalog.pg_proc'::regclass, 'pg_catalog.pg_type'::regclass, 'pg_catalog.pg_operator'::regclass,
            'pg_catalog.pg_foreign_data_wrapper'::regclass, 'pg_catalog.pg_foreign_server'::regclass,
            'pg_catalog.pg_opclass'::regclass, 'pg_catalog.pg_opfamily'::regclass, 'pg_catalog.pg_language'::regclass,
            'pg_catalog.pg_am'::regclass
        )
    union all
    select refclassid, refobjid, classid, objid, false,
        case when classid = 'pg_catalog.pg_proc'::regclass then 'writes' end
    from pg_catalog.pg_depend
    where objid >= 16384 and deptype = 'n' and refclassid = 'pg_catalog.pg_class'::regclass
        and classid in ('pg_catalog.pg_rewrite'::regclass, 'pg_catalog.pg_policy'::regclass, 'pg_catalog.pg_proc'::regclass)
    union all
    select 'pg_catalog.pg_trigger'::regclass, oid, 'pg_catalog.pg_class'::regclass, tgrelid, true, null
    from pg_catalog.pg_trigger where not tgisinternal
    union all
    select 'pg_catalog.pg_attrdef'::regclass, oid, 'pg_catalog.pg_class'::regclass, adrelid, true, null
    from pg_catalog.pg_attrdef
    union all
    select 'pg_catalog.pg_constraint'::regclass, oid, 'pg_catalog.pg_class'::regclass, conrelid, true, null
    from pg_catalog.pg_constraint where conrelid <> 0 and contype = 'c'
    union all
    select 'pg_catalog.pg_constraint'::regclass, oid, 'pg_catalog.pg_type'::regclass, contypid, false, null
    from pg_catalog.pg_constraint where contypid <> 0
    union all
    select 'pg_catalog.pg_policy'::regclass, oid, 'pg_catalog.pg_class'::regclass, polrelid, false, null
    from pg_catalog.pg_policy
    union all
    select 'pg_catalog.pg_rewrite'::regclass, oid, 'pg_catalog.pg_class'::regclass, ev_class, ev_type <> '1', null
    from pg_catalog.pg_rewrite where oid >= 16384
    union all
    select 'pg_catalog.pg_class'::regclass, indexrelid, 'pg_catalog.pg_class'::regclass, indrelid, true, null
    from pg_catalog.pg_index where indexrelid >= 16384
    union all
    -- A write to the referenced table may cascade to the referencing one.
    select 'pg_catalog.pg_class'::regclass, conrelid, 'pg_catalog.pg_class'::regclass, confrelid, true, null
    from pg_catalog.pg_constraint where contype = 'f'
    union all
    -- A statement on the parent runs on the children.
    select 'pg_catalog.pg_class'::regclass, inhrelid, 'pg_catalog.pg_class'::regclass, inhparent, false, null
    from pg_catalog.pg_inherits where inhrelid >= 16384
    union all
    select n.class, n.obj, 'pg_catalog.pg_proc'::regclass, w.oid, false, w.through_body
    from word w join named n on lower(n.name::text collate "C") = w.word
    union all
    -- Names that are no single word.
    select n.class, n.obj, 'pg_catalog.pg_proc'::regclass, b.oid, false, b.through_body
    from named n join body b on strpos(b.body, replace(lower(n.name::text collate "C"), '"', '""')) > 0
    where n.name::text collate "C" ~ '[\x01-\x23\x25-\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x7f]'
    union all
    select 'pg_catalog.pg_operator'::regclass, o.oid, 'pg_catalog.pg_proc'::regclass, b.oid, false, b.through_body
    from pg_catalog.pg_operator o
    join bad_routine r on r.oid = o.oprcode or r.oid = o.oprrest or r.oid = o.oprjoin
    join routine p on p.oid = r.oid and (p.lanname <> 'c' or r.reason is not null)
    join body b on strpos(b.body, o.oprname::text collate "C") > 0
),
reach (class, obj, on_write) as (
    select class, obj, on_write from seed
    union
    select e.to_class, e.to_obj, e.through_body is null and (r.on_write or e.on_write)
    from reach r
    join edge e on e.from_class = r.class and e.from_obj = r.obj
    where not r.on_write or e.through_body is distinct from 'reads'
),
reached as (
    select class, obj, bool_and(on_write) as on_write from reach group by class, obj
)
select case when r.on_write then 'write' else 'mention' end as kind, n.schema::text as schema, n.name::text as name,
    coalesce((select min(s.reason) from seed s where s.class = r.class and s.obj = r.obj), 'reaches') as reason
from reached r join named n on n.class = r.class and n.obj = r.obj
union all
select 'operator', n.nspname::text, o.oprname::text, 'reaches'
from reached r
join pg_catalog.pg_operator o on r.class = 'pg_catalog.pg_operator'::regclass and o.oid = r.obj
join pg_catalog.pg_namespace n on n.oid = o.oprnamespace
union all
select distinct
    case when r.class = 'pg_catalog.pg_event_trigger'::regclass then 'definition' else 'statement' end,
    '', r.class::regclass::text, 'reaches'
from reached r
where r.class in (
    'pg_catalog.pg_event_trigger'::regclass, 'pg_catalog.pg_cast'::regclass, 'pg_catalog.pg_opclass'::regclass,
    'pg_catalog.pg_amproc'::regclass, 'pg_catalog.pg_amop'::regclass, 'pg_catalog.pg_conversion'::regclass
)
union all
select distinct 'harmless_routine', '', n.name::text, ''
from named n
where n.class = 'pg_catalog.pg_proc'::regclass
    and not exists (select from reached r where r.class = n.class and r.obj = n.obj)
order by 1, 2, 3
