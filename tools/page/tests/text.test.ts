import assert from "node:assert/strict";
import { test } from "node:test";
import { folded, number, owner, pythonForms, share, shorter, size, span, tail } from "../src/text.ts";

test("template arguments and parameters fold", () => {
  const names: [string, string][] = [
    ["std::map<int, std::pair<long, char>>::at(int const&)", "std::map<>::at"],
    ["std::pair<int, int> make<int>(int)", "make<>"],
    ["void std::sort<int*>(int*, int*)", "std::sort<>"],
    ["operator new(unsigned long)", "operator new"],
    ["a::operator<<(std::ostream&)", "a::operator<<"],
    ["T::operator()(int) const", "T::operator()"],
    ["Cart::operator-><int>()", "Cart::operator-><>"],
    ["(anonymous namespace)::f(int)", "(anonymous namespace)::f"],
    ["<alloc::vec::Vec<u8> as core::clone::Clone>::clone", "<alloc::vec::Vec<> as core::clone::Clone>::clone"],
    ["app::main::{{closure}}", "app::main::{{closure}}"],
    ["Outer.method.<locals>.inner", "Outer.method.<>.inner"],
    ["<listcomp>", "<listcomp>"],
    ["<module>", "<module>"],
    ["main", "main"],
    ["f(", "f"],
    ["<<<", "<<<"],
    ["", ""],
  ];
  for (const [name, expected] of names) assert.equal(folded(name), expected, name);
});

test("any name folds to a text, and quickly", () => {
  for (const name of ["<".repeat(100_000), "a<".repeat(50_000), ">(<".repeat(9_999), "operator".repeat(9_999)]) assert.equal(typeof folded(name), "string");
});

test("shorter names lose their outer scopes first", () => {
  assert.deepEqual(shorter("std::vector<>::push_back"), ["std::vector<>::push_back", "vector<>::push_back", "push_back"]);
  assert.deepEqual(shorter("<Vec<a::b> as T>::clone"), ["<Vec<a::b> as T>::clone", "clone"]);
  assert.deepEqual(shorter("main"), ["main"]);
});

test("sizes are those of report", () => {
  const sizes = [0, 10_107, 10_240, 30_310, 1 << 20, 12.5 * (1 << 20), 123_456_789_012, -2048 * 10].map(size);
  assert.deepEqual(sizes, ["0 B", "10107 B", "10.0 KiB", "29.6 KiB", "1024 KiB", "12.5 MiB", "115 GiB", "−20.0 KiB"]);
});

test("numbers, shares, spans", () => {
  assert.equal(number(1234567), "1,234,567");
  assert.deepEqual([share(1, 3), share(1, 1), share(1, 100_000), share(0, 5), share(5, 0)], ["33.3 %", "100 %", "< 0.1 %", "0.0 %", ""]);
  assert.deepEqual([5, 1500, 90_000, 600_000, 9e6, 3e8].map(span), ["5 ms", "1.5 s", "90 s", "10 min", "2.5 h", "3.5 d"]);
  assert.equal(tail("/a/long/path.py", 8), "…path.py");
});

test("frames belong to libraries, packages and files", () => {
  assert.equal(owner("/usr/lib/libz.so.1", "/src/deflate.c", false), "libz.so.1");
  assert.equal(owner("", "", false), "generated code");
  assert.equal(owner("x", "/v/lib/python3.12/site-packages/polars/frame.py", true), "polars");
  assert.equal(owner("x", "/usr/lib/python3.11/json/decoder.py", true), "Python's library");
  assert.equal(owner("x", "<frozen importlib._bootstrap>", true), "Python's library");
  assert.equal(owner("x", "/home/me/service.py", true), "service.py");
});

test("names of Python are shortened from the outside, and code without a name has its file", () => {
  assert.deepEqual(pythonForms("Outer.method.<locals>.<listcomp>", "a.py"), ["Outer.method.<listcomp>", "method.<listcomp>", "<listcomp>"]);
  assert.deepEqual(pythonForms("<module>", "a.py"), ["a.py <module>", "a.py"]);
});
