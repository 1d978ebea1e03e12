// Answers requests over HTTP on the port that PORT names.

const http = require("node:http");

/** What is answered to a request for a path. */
function answer(path) {
  return `Hello from {{name}}, you asked for ${path}\n`;
}

if (require.main === module) {
  const port = Number(process.env.PORT ?? 8080);
  const server = http.createServer((request, response) => {
    response.writeHead(200, { "Content-Type": "text/plain" });
    response.end(answer(request.url));
  });
  server.listen(port, () => console.log(`listening on port ${port}`));
  process.on("SIGTERM", () => server.close(() => process.exit(0)));
}

module.exports = { answer };
