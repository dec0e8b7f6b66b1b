import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.concurrent.Executors;

/** An origin of the garden on the JDK's own server. */
public class Jdk {
    public static void main(String[] args) throws Exception {
        HttpServer s = HttpServer.create(new InetSocketAddress("127.0.0.1", Record.port()), 128);
        s.setExecutor(Executors.newFixedThreadPool(8));
        s.createContext("/", x -> {
            byte[] body = x.getRequestBody().readAllBytes();
            Record.add(x.getRequestMethod(), x.getRequestURI().toString(), body);
            x.getResponseHeaders().set("x-garden", "seen");
            byte[] ok = "ok\n".getBytes();
            boolean head = x.getRequestMethod().equals("HEAD");
            x.sendResponseHeaders(200, head ? -1 : ok.length);
            if (!head) x.getResponseBody().write(ok);
            x.close();
        });
        s.start();
    }
}
