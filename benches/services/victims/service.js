// A small HTTP service that builds its answers and remembers the last thousand.
const remembered = [];
const server = require("http").createServer((request, response) => {
  const document = Object.fromEntries(Array.from({ length: 200 }, (_, i) => [`key${i}`, [i, String(i)]]));
  remembered.push(document);
  if (remembered.length > 1000) remembered.shift();
  response.end(JSON.stringify(document));
});
server.listen(0, "127.0.0.1", () => console.log("port", server.address().port));
