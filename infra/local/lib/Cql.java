// Runs statements on a node: java Cql.java HOST PORT USER PASSWORD STATEMENT…
// The driver is the one that comes with the server's jars, so that neither cqlsh nor a download is needed.
import com.datastax.driver.core.Cluster;
import com.datastax.driver.core.Row;
import com.datastax.driver.core.Session;
import com.datastax.driver.core.exceptions.AuthenticationException;
import com.datastax.driver.core.exceptions.NoHostAvailableException;

class Cql {
    public static void main(String[] args) throws Exception {
        // The first superuser is written a moment after the port opens.
        long deadline = System.nanoTime() + 60_000_000_000L;
        while (true) {
            // JMX would need a class that the server's version of the metrics library no longer has.
            try (Cluster cluster = Cluster.builder().addContactPoint(args[0]).withPort(Integer.parseInt(args[1]))
                    .withCredentials(args[2], args[3]).withoutJMXReporting().build();
                    Session session = cluster.connect()) {
                for (int i = 4; i < args.length; i++) {
                    for (Row row : session.execute(args[i])) {
                        System.out.println(row);
                    }
                }
                // Closing the driver in an orderly way takes two seconds.
                System.out.flush();
                Runtime.getRuntime().halt(0);
            } catch (AuthenticationException | NoHostAvailableException e) {
                if (System.nanoTime() > deadline) {
                    throw e;
                }
                Thread.sleep(500);
            }
        }
    }
}
