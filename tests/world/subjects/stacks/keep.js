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

for (let first = 0; first < 2000; first += 100) day(first);
console.log("kept", kept.length);
