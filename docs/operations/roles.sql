-- Least privileges for sa_durable: four roles without login. Grant them to the roles that log in:
--
--     GRANT durable_migrate TO deploy;  GRANT durable_spawn TO web;
--     GRANT durable_work TO worker;     GRANT durable_view TO dashboard;
--
-- Run this script after each migration that adds a queue. It finds queues by their tables' comments, in every
-- schema, and can be run any number of times. Run it the first time as a superuser, or as the owner of the
-- tables with CREATEROLE. Afterwards, run it as a role that has durable_migrate, which then owns the library's
-- tables.

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['durable_migrate', 'durable_spawn', 'durable_work', 'durable_view'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
    END LOOP;
    IF NOT pg_has_role(current_user, 'durable_migrate', 'USAGE') THEN
        EXECUTE format('GRANT durable_migrate TO %I', current_user);
    END IF;
END $$;

DO $$
DECLARE
    durable record;
    needs record;
BEGIN
    FOR durable IN
        SELECT
            c.oid::regclass AS table,
            n.nspname AS schema,
            split_part(d.description, ':', 3) AS part,
            -- The columns of a task that an application may change. It neither runs tasks nor writes outcomes.
            (SELECT string_agg(quote_ident(a.attname), ', ')
             FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attname NOT IN
                ('id', 'name', 'created_at', 'first_started_at', 'result', 'parent_queue', 'parent_id')
            ) AS changeable
        FROM pg_class c
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_description d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0
        WHERE c.relkind IN ('r', 'p') AND d.description ~ '^sa_durable:[^:]*:[a-z]+$'
    LOOP
        -- durable_migrate owns the tables, because only the owner may change them. It creates new tables, and
        -- temporary tables for schema comparisons and backfills.
        IF NOT has_schema_privilege('durable_migrate', durable.schema, 'CREATE') THEN
            EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %I TO durable_migrate', durable.schema);
        END IF;
        IF NOT has_database_privilege('durable_migrate', current_database(), 'TEMPORARY') THEN
            EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO durable_migrate', current_database());
        END IF;
        EXECUTE format('ALTER TABLE %s OWNER TO durable_migrate', durable.table);
        FOR needs IN
            SELECT role, privileges FROM (VALUES
                -- The application: spawn, emit, cancel, retry, release keys, wait for tasks, read results.
                ('tasks', 'durable_spawn', format('SELECT, INSERT, UPDATE (%s)', durable.changeable)),
                ('runs', 'durable_spawn', 'SELECT, INSERT'),
                ('events', 'durable_spawn', 'INSERT'),
                ('waits', 'durable_spawn', 'SELECT, UPDATE (settled), DELETE'),  -- retry
                ('queues', 'durable_spawn', 'SELECT'),
                -- Workers: run, sweep, clean up, spawn and emit. An idle worker turns notifications on.
                ('tasks', 'durable_work', 'SELECT, INSERT, UPDATE, DELETE'),
                ('runs', 'durable_work', 'SELECT, INSERT'),
                ('checkpoints', 'durable_work', 'SELECT, INSERT'),
                ('events', 'durable_work', 'SELECT, INSERT, UPDATE, DELETE'),
                ('waits', 'durable_work', 'SELECT, INSERT, UPDATE, DELETE'),
                ('queues', 'durable_work', 'SELECT, INSERT (name, notify_until), UPDATE (notify_until)'),
                -- Dashboards and people: read.
                ('tasks', 'durable_view', 'SELECT'),
                ('runs', 'durable_view', 'SELECT'),
                ('checkpoints', 'durable_view', 'SELECT'),
                ('events', 'durable_view', 'SELECT'),
                ('waits', 'durable_view', 'SELECT'),
                ('queues', 'durable_view', 'SELECT')
            ) AS list (part, role, privileges)
            WHERE list.part = durable.part
        LOOP
            IF NOT has_schema_privilege(needs.role, durable.schema, 'USAGE') THEN
                EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', durable.schema, needs.role);
            END IF;
            EXECUTE format('REVOKE ALL ON %s FROM %I', durable.table, needs.role);
            EXECUTE format('GRANT %s ON %s TO %I', needs.privileges, durable.table, needs.role);
        END LOOP;
    END LOOP;
END $$;
