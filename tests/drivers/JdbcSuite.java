import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.Arrays;
import java.util.Properties;
import java.util.Timer;
import java.util.TimerTask;
import org.postgresql.PGConnection;
import org.postgresql.PGStatement;
import org.postgresql.copy.CopyManager;
import org.postgresql.largeobject.LargeObject;
import org.postgresql.largeobject.LargeObjectManager;

/** What pgjdbc does: run directly and through pgsidecar, the printed lines must be the same. */
public class JdbcSuite {
    interface Action {
        void run() throws Exception;
    }

    static void show(String name, Object value) {
        System.out.println(name + ": " + value);
    }

    static String errorOf(Action action) throws Exception {
        try {
            action.run();
            return "no error";
        } catch (SQLException error) {
            return error.getSQLState();
        }
    }

    static Object value(Connection connection, String sql, Object... parameters) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            for (int index = 0; index < parameters.length; index++) {
                statement.setObject(index + 1, parameters[index]);
            }
            try (ResultSet rows = statement.executeQuery()) {
                rows.next();
                return rows.getObject(1);
            }
        }
    }

    static Connection connect(String... more) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", System.getenv("SUITE_USER"));
        properties.setProperty("password", System.getenv("SUITE_PASSWORD"));
        properties.setProperty("sslmode", "require");
        for (int index = 0; index < more.length; index += 2) {
            properties.setProperty(more[index], more[index + 1]);
        }
        return DriverManager.getConnection(System.getenv("SUITE_JDBC_URL"), properties);
    }

    static void basics(Connection connection) throws Exception {
        show("product", connection.getMetaData().getDatabaseProductVersion());
        show("select", value(connection, "SELECT ?::int + 1", 41));
        show("text", value(connection, "SELECT ?", "grüße 🐘"));
        show("zone", value(connection, "SHOW timezone"));
        try (Statement statement = connection.createStatement()) {
            boolean first = statement.execute("SELECT 1; SELECT 2; UPDATE jdbc SET b = b");
            int results = 0;
            while (first || statement.getUpdateCount() != -1) {
                results++;
                first = statement.getMoreResults();
            }
            show("results", results);
        }
    }

    /** The fifth execution switches to a named statement, and binary transfer. */
    static void threshold(Connection connection) throws Exception {
        try (PreparedStatement statement = connection.prepareStatement("SELECT ?::int * 2")) {
            StringBuilder seen = new StringBuilder();
            for (int number = 0; number < 12; number++) {
                statement.setInt(1, number);
                try (ResultSet rows = statement.executeQuery()) {
                    rows.next();
                    seen.append(rows.getInt(1)).append(statement.unwrap(PGStatement.class).isUseServerPrepare() ? "s " : " ");
                }
            }
            show("threshold", seen);
        }
        int sum = 0;
        for (int number = 0; number < 300; number++) {
            for (int again = 0; again < 6; again++) {
                sum += (Integer) value(connection, "SELECT ?::int + " + number, again);
            }
        }
        show("many statements", sum);
    }

    static void batches(Connection connection) throws Exception {
        try (PreparedStatement statement =
                connection.prepareStatement("INSERT INTO jdbc (b) VALUES (?)", Statement.RETURN_GENERATED_KEYS)) {
            for (int number = 0; number < 300; number++) {
                statement.setString(1, "row " + number);
                statement.addBatch();
            }
            show("batch", Arrays.stream(statement.executeBatch()).sum());
            int keys = 0;
            try (ResultSet rows = statement.getGeneratedKeys()) {
                while (rows.next()) {
                    keys += rows.getInt(1);
                }
            }
            show("generated keys", keys);
        }
        show("batch error", errorOf(() -> {
            try (Statement statement = connection.createStatement()) {
                statement.addBatch("INSERT INTO jdbc (b) VALUES ('undone')");
                statement.addBatch("INSERT INTO jdbc (a) VALUES (1)");
                statement.executeBatch();
            }
        }));
        show("count", value(connection, "SELECT count(*) FROM jdbc"));
    }

    static void fetchSize(Connection connection) throws Exception {
        connection.setAutoCommit(false);
        try (PreparedStatement statement = connection.prepareStatement("SELECT generate_series(1, 1000)")) {
            statement.setFetchSize(37);
            long sum = 0;
            try (ResultSet rows = statement.executeQuery()) {
                while (rows.next()) {
                    sum += rows.getInt(1);
                }
            }
            show("fetch size", sum);
        }
        connection.commit();
        connection.setAutoCommit(true);
    }

    static void transactions(Connection connection) throws Exception {
        connection.setAutoCommit(false);
        try (Statement statement = connection.createStatement()) {
            statement.executeUpdate("INSERT INTO jdbc (b) VALUES ('kept')");
            Savepoint savepoint = connection.setSavepoint();
            show("error", errorOf(() -> statement.executeUpdate("INSERT INTO jdbc (a) VALUES (1)")));
            show("failed", errorOf(() -> statement.executeUpdate("SELECT 1")));
            connection.rollback(savepoint);
            statement.executeUpdate("INSERT INTO jdbc (b) VALUES ('kept too')");
        }
        connection.commit();
        connection.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
        show("isolation", value(connection, "SHOW transaction_isolation"));
        connection.commit();
        connection.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
        connection.setReadOnly(true);
        show("read only", errorOf(() -> connection.createStatement().executeUpdate("DELETE FROM jdbc")));
        connection.rollback();
        connection.setReadOnly(false);
        connection.setAutoCommit(true);
        show("kept", value(connection, "SELECT count(*) FROM jdbc WHERE b LIKE 'kept%'"));
    }

    /** Large objects go through FunctionCall. */
    static void largeObjects(Connection connection) throws Exception {
        connection.setAutoCommit(false);
        LargeObjectManager manager = connection.unwrap(PGConnection.class).getLargeObjectAPI();
        long identifier = manager.createLO(LargeObjectManager.READ | LargeObjectManager.WRITE);
        try (LargeObject object = manager.open(identifier, LargeObjectManager.WRITE)) {
            object.write(new byte[100_000]);
            object.write("tail".getBytes());
        }
        try (LargeObject object = manager.open(identifier, LargeObjectManager.READ)) {
            object.seek(100_000);
            show("large object", object.size() + " " + new String(object.read(10)));
        }
        manager.delete(identifier);
        connection.commit();
        connection.setAutoCommit(true);
    }

    static void copy(Connection connection) throws Exception {
        CopyManager manager = connection.unwrap(PGConnection.class).getCopyAPI();
        StringBuilder lines = new StringBuilder();
        for (int number = 0; number < 2000; number++) {
            lines.append("copied ").append(number).append('\n');
        }
        show("copy in", manager.copyIn("COPY jdbc (b) FROM STDIN", new java.io.StringReader(lines.toString())));
        java.io.StringWriter out = new java.io.StringWriter();
        manager.copyOut("COPY (SELECT b FROM jdbc WHERE b LIKE 'copied%') TO STDOUT", out);
        show("copy out", out.toString().length());
    }

    static void cancel(Connection connection) throws Exception {
        try (Statement statement = connection.createStatement()) {
            Timer timer = new Timer(true);
            timer.schedule(new TimerTask() {
                @Override
                public void run() {
                    try {
                        statement.cancel();
                    } catch (SQLException error) {
                        show("cancel", error);
                    }
                }
            }, 300);
            show("cancelled", errorOf(() -> statement.execute("SELECT pg_sleep(20)")));
            statement.setQueryTimeout(1);
            show("query timeout", errorOf(() -> statement.execute("SELECT pg_sleep(20)")));
        }
        show("and on", value(connection, "SELECT 1"));
    }

    static void settings() throws Exception {
        try (Connection other = connect("ApplicationName", "jdbc suite", "options", "-c statement_timeout=12345",
                "preferQueryMode", "simple", "currentSchema", "pg_catalog,public")) {
            show("name", value(other, "SHOW application_name"));
            show("options", value(other, "SHOW statement_timeout"));
            show("schema", value(other, "SHOW search_path"));
            show("ssl", value(other, "SELECT ?::int", 1));
        }
        try (Connection other = connect("prepareThreshold", "-1", "binaryTransfer", "true")) {
            show("always prepared", value(other, "SELECT ?::int", 2));
            show("isValid", other.isValid(5));
        }
    }

    public static void main(String[] arguments) throws Exception {
        try (Connection connection = connect()) {
            try (Statement statement = connection.createStatement()) {
                statement.execute("DROP TABLE IF EXISTS jdbc");
                statement.execute("CREATE TABLE jdbc (a serial PRIMARY KEY, b text)");
            }
            basics(connection);
            threshold(connection);
            batches(connection);
            fetchSize(connection);
            transactions(connection);
            largeObjects(connection);
            copy(connection);
            cancel(connection);
            settings();
            try (Statement statement = connection.createStatement()) {
                statement.execute("DROP TABLE jdbc");
            }
        }
    }
}
