// Memory outside of the Java heap: direct buffers, and blocks of Unsafe.
import java.lang.reflect.Field;
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

    public static void main(String[] arguments) throws Exception {
        Field field = sun.misc.Unsafe.class.getDeclaredField("theUnsafe");
        field.setAccessible(true);
        unsafe = (sun.misc.Unsafe) field.get(null);
        for (int first = 0; first < 300_000; first += 1000) day(first);
        System.out.println("kept " + KEPT.size() + " " + (sum != 0));
    }
}
