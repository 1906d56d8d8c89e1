import java.sql.DriverManager;
import java.util.Arrays;

/** Connect HOST PORT USER PASSWORD DATABASE: the median of ten connects in milliseconds, or the driver's refusal. */
public class Connect {
    public static void main(String[] given) {
        String url = "jdbc:postgresql://" + given[0] + ":" + given[1] + "/" + given[4] + "?sslmode=disable";
        try {
            // What is compiled while it runs is not the driver's cost.
            for (int i = 0; i < 20; i++) timed(url, given);
            double[] taken = new double[10];
            for (int i = 0; i < taken.length; i++) taken[i] = timed(url, given);
            Arrays.sort(taken);
            System.out.printf("%.1f%n", (taken[4] + taken[5]) / 2);
        } catch (Exception refusal) {
            System.out.println("refused: " + refusal.getMessage().lines().findFirst().orElse(""));
        }
    }

    private static double timed(String url, String[] given) throws Exception {
        long began = System.nanoTime();
        DriverManager.getConnection(url, given[2], given[3]).close();
        return (System.nanoTime() - began) / 1e6;
    }
}
