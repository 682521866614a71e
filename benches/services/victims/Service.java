import com.sun.net.httpserver.HttpServer;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.ArrayDeque;
import java.util.concurrent.Executors;

/** A small HTTP service that builds its answers and remembers the last thousand. */
public class Service {
    public static void main(String[] arguments) throws Exception {
        var remembered = new ArrayDeque<String>();
        var server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 64);
        server.createContext("/", exchange -> {
            var text = new StringBuilder();
            for (int i = 0; i < 200; i++) text.append(i).append(' ');
            synchronized (remembered) {
                remembered.add(text.toString());
                if (remembered.size() > 1000) remembered.poll();
            }
            var bytes = text.toString().getBytes();
            exchange.sendResponseHeaders(200, bytes.length);
            exchange.getResponseBody().write(bytes);
            exchange.close();
        });
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.start();
        System.out.println("port " + server.getAddress().getPort());
    }
}
