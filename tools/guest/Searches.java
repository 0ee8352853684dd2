// Searches strings as Java does, with the processor's string instructions where it has them, and letter by letter.

import java.util.Random;

public class Searches {
    static int naive(String text, String wanted, int from) {
        for (int at = from; at + wanted.length() <= text.length(); at++) {
            int matched = 0;
            while (matched < wanted.length() && text.charAt(at + matched) == wanted.charAt(matched)) matched++;
            if (matched == wanted.length()) return at;
        }
        return -1;
    }

    // Few letters, so that beginnings of a match are many; above 255, so that strings have two bytes a letter.
    static String letters(Random random, int length, int kinds, int first) {
        StringBuilder text = new StringBuilder();
        for (int at = 0; at < length; at++) text.append((char) (first + random.nextInt(kinds)));
        return text.toString();
    }

    public static void main(String[] arguments) {
        Random random = new Random(1);
        int wrong = 0, searches = Integer.parseInt(arguments[0]);
        for (int round = 0; round < searches; round++) {
            int first = round % 3 == 0 ? 0x3B1 : 'a', kinds = 1 + random.nextInt(4);
            String text = letters(random, random.nextInt(200), kinds, first);
            String wanted;
            if (random.nextBoolean() && text.length() > 1) {
                int from = random.nextInt(text.length() - 1);
                wanted = text.substring(from, from + 1 + random.nextInt(Math.min(40, text.length() - from)));
            } else {
                wanted = letters(random, random.nextInt(20), kinds, first);
            }
            int from = random.nextInt(4) == 0 ? random.nextInt(text.length() + 1) : 0;
            if (text.indexOf(wanted, from) != naive(text, wanted, from)) wrong++;
            if (text.compareTo(wanted) == 0 != text.equals(wanted)) wrong++;
        }
        System.out.println("searches " + searches);
        System.out.println("wrong " + wrong);
        double sum = 0;
        long mixed = 1;
        for (int round = 1; round < 2_000_000; round++) {
            sum += Math.sqrt(round) / (round % 7 + 1) - (float) round * 1e-3f;
            mixed = mixed * 6364136223846793005L + (mixed >>> 17) + Long.bitCount(mixed) + round;
        }
        System.out.println("sum " + Double.doubleToLongBits(sum) / 1024); // fits into a number of JSON
        System.out.println("mixed " + (mixed >>> 12));
    }
}
