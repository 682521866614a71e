const http = require("http");
const server = http.createServer((request, response) => {
  const found = request.url === "/text.txt";
  response.writeHead(found ? 200 : 404, { "Content-Type": "text/plain" });
  response.end(found ? "some text that a server sends\n" : "");
});
server.listen(Number(process.argv[2]), "127.0.0.1");
process.on("SIGTERM", () => server.close(() => console.log("closed")));
