// Memory outside of the Java heap: direct buffers, and blocks of Unsafe.
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.lang.reflect.Field;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.zip.Deflater;

public class Keep {
    static final List<Object> KEPT = new ArrayList<>();
    static sun.misc.Unsafe unsafe;
    static long sum;

    static void keepBlock() { sum += unsafe.allocateMemory(77_777); }
    static void keepBuffer() { KEPT.add(ByteBuffer.allocateDirect(33_333)); }
    static void keepDeflater() { KEPT.add(new Deflater()); }
    static void churn() { long p = unsafe.allocateMemory(1000); unsafe.freeMemory(p); }

    static void order(int i) {
        churn();
        if (i % 1000 == 0) keepBlock();
        if (i % 1000 == 1) keepBuffer();
        if (i % 10_000 == 2) keepDeflater();
    }

    static void day(int first) { for (int i = first; i < first + 1000; i++) order(i); }

    static int days = 0;

    static String nextDay() {
        for (int i = 0; i < 10; i++) day(1000 * days++);
        return "kept " + KEPT.size() + " " + (sum != 0);
    }

    // With a port, ten days for each line of a client.
    static void serve(int port) throws Exception {
        try (ServerSocket server = new ServerSocket(port, 1, InetAddress.getLoopbackAddress())) {
            while (true) {
                try (Socket client = server.accept()) {
                    BufferedReader lines = new BufferedReader(new InputStreamReader(client.getInputStream()));
                    while (lines.readLine() != null) client.getOutputStream().write((nextDay() + "\n").getBytes());
                }
            }
        }
    }

    public static void main(String[] arguments) throws Exception {
        Field field = sun.misc.Unsafe.class.getDeclaredField("theUnsafe");
        field.setAccessible(true);
        unsafe = (sun.misc.Unsafe) field.get(null);
        if (arguments.length > 0) serve(Integer.parseInt(arguments[0]));
        String said = "";
        while (days < 300) said = nextDay();
        System.out.println(said);
    }
}
