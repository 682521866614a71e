<?php
// Strings and arrays, and libraries in C that allocate beside PHP's own heap.
$kept = [];

function keep_text(int $n): string { return str_repeat("some text ", 500 + $n); }
function keep_array(int $n): array { return range(0, 300 + $n); }
function keep_table(int $n): array { return array_fill_keys(array_map(fn($i) => "key $i", range(0, 200 + $n % 7)), $n); }
function keep_json(int $n): array { return json_decode(json_encode(array_fill(0, 100, "text $n")), true); }
function keep_words(int $n): array { preg_match_all("/w(or)d(\\d+)/", str_repeat("word$n ", 50), $found); return $found; }

function order(array &$kept, int $n): void {
    $kept[] = keep_text($n);
    $kept[] = keep_array($n);
    $kept[] = keep_table($n);
    if ($n % 20 === 0) $kept[] = keep_json($n);
    if ($n % 20 === 0) $kept[] = keep_words($n);
}

function day(array &$kept, int $first): void { for ($n = $first; $n < $first + 100; $n++) order($kept, $n); }

for ($first = 0; $first < 1000; $first += 100) day($kept, $first);
echo "kept ", count($kept), "\n";
