const assert = require("node:assert");
const test = require("node:test");

const { answer } = require("./server.js");

test("greets", () => {
  assert.ok(answer("/x").includes("/x"));
});
