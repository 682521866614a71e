import java.io.*;
import java.util.*;
import java.util.stream.*;
import java.util.zip.CRC32;

public class Answers {
    public static void main(String[] arguments) throws IOException {
        System.out.println("ready");
        var input = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = input.readLine()) != null; ) {
            String words = line;
            var parts = IntStream.range(0, 20000).parallel().mapToObj(n -> words + n).collect(Collectors.toList());
            var sum = new CRC32();
            sum.update(String.join(",", parts).getBytes());
            System.out.println(parts.size() + " " + sum.getValue());
        }
    }
}
