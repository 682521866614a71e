// Buffers outside of the JavaScript heap, each kind kept by a function of its own.
const zlib = require("zlib");
const crypto = require("crypto");
const kept = [];

function keepBuffer(n) { kept.push(Buffer.alloc(10000 + n)); }
function keepShared(n) { kept.push(new SharedArrayBuffer(5000 + n)); }
function keepTyped(n) { kept.push(new Float64Array(1000 + n)); }
function keepText(n) { kept.push(Buffer.from("some text ".repeat(500 + n))); }
function keepPacked(n) { kept.push(zlib.deflateSync("some text ".repeat(2000 + n))); }
function keepHash(n) { const hash = crypto.createHash("sha256"); hash.update("text " + n); kept.push(hash); }
function keepStream() { kept.push(zlib.createGzip()); }

function orders(n) {
  keepBuffer(n);
  keepShared(n);
  keepTyped(n);
  keepText(n);
  if (n % 10 === 0) keepPacked(n);
  if (n % 10 === 0) keepHash(n);
  if (n % 100 === 0) keepStream();
}

function day(first) { for (let n = first; n < first + 100; n++) orders(n); }

let days = 0;

function nextDay() {
  day(100 * days++);
  return "kept " + kept.length + "\n";
}

// With a port, a day for each line of a client.
if (process.argv[2]) {
  const server = require("net").createServer((client) => {
    client.on("data", (lines) => { for (const line of lines.toString().trim().split("\n")) client.write(nextDay()); });
  });
  server.listen(Number(process.argv[2]), "127.0.0.1");
  process.on("SIGTERM", () => process.exit(0));
} else {
  let said;
  while (days < 20) said = nextDay();
  process.stdout.write(said);
}
