import java.io.IOException;
import javax.servlet.http.*;
import org.eclipse.jetty.server.*;
import org.eclipse.jetty.server.handler.AbstractHandler;

/** An origin of the garden on Jetty. */
public class Jetty {
    public static void main(String[] args) throws Exception {
        Server s = new Server();
        HttpConfiguration config = new HttpConfiguration();
        config.setRequestHeaderSize(128 << 10);
        ServerConnector c = new ServerConnector(s, new HttpConnectionFactory(config));
        c.setHost("127.0.0.1");
        c.setPort(Record.port());
        s.addConnector(c);
        s.setHandler(new AbstractHandler() {
            @Override
            public void handle(String target, Request base, HttpServletRequest r, HttpServletResponse w) throws IOException {
                byte[] body = r.getInputStream().readAllBytes();
                String q = r.getQueryString();
                Record.add(r.getMethod(), r.getRequestURI() + (q == null ? "" : "?" + q), body);
                w.setHeader("x-garden", "seen");
                w.setContentLength(3);
                w.getOutputStream().write("ok\n".getBytes());
                base.setHandled(true);
            }
        });
        s.start();
        s.join();
    }
}
