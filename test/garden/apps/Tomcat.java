import jakarta.servlet.http.*;
import java.io.*;
import org.apache.catalina.Context;

/** An origin of the garden on Tomcat. */
public class Tomcat {
    public static void main(String[] args) throws Exception {
        var t = new org.apache.catalina.startup.Tomcat();
        t.setBaseDir(args[0]);
        t.setHostname("127.0.0.1");
        t.setPort(Record.port());
        var c = t.getConnector();
        c.setProperty("address", "127.0.0.1");
        c.setProperty("maxHttpRequestHeaderSize", "131072");
        c.setProperty("maxKeepAliveRequests", "-1");
        c.setAllowTrace(true);
        Context x = t.addContext("", args[0]);
        org.apache.catalina.startup.Tomcat.addServlet(x, "echo", new HttpServlet() {
            @Override
            protected void service(HttpServletRequest r, HttpServletResponse w) throws IOException {
                byte[] body = r.getInputStream().readAllBytes();
                String q = r.getQueryString();
                Record.add(r.getMethod(), r.getRequestURI() + (q == null ? "" : "?" + q), body);
                w.setHeader("x-garden", "seen");
                w.setContentLength(3);
                w.getOutputStream().write("ok\n".getBytes());
            }
        });
        x.addServletMappingDecoded("/", "echo");
        t.start();
        t.getServer().await();
    }
}
