const crypto = require("crypto");
const zlib = require("zlib");
console.log("ready");
require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const objects = Array.from({ length: 20000 }, (_, n) => ({ n, text: line + n }));
  const packed = zlib.gunzipSync(zlib.gzipSync(JSON.stringify(objects)));
  console.log(crypto.createHash("sha256").update(packed).digest("hex"));
});
