// Searches a built site as its own search page does: node search.js SITE QUERY... prints the addresses of each query's results, best first.
const fs = require("fs");
const path = require("path");
const vm = require("vm");

const [site, ...queries] = process.argv.slice(2);
const page = fs.readFileSync(path.join(site, "search.html"), "utf8");
const scripts = [...page.matchAll(/<script[^>]* src="([^"?]+)/g)].map((found) => found[1]);
const element = { classList: { add() {}, contains: () => false }, dataset: { content_root: "./" }, addEventListener() {} };
const context = vm.createContext({
  console,
  document: { readyState: "loading", documentElement: element, body: element, addEventListener() {}, getElementById: () => null },
  localStorage: { setItem() {}, getItem: () => null },
});
context.window = context;
for (const name of ["documentation_options", "doctools", "language_data", "searchtools"]) {
  const script = scripts.find((one) => one.endsWith(`/${name}.js`));
  if (script) vm.runInContext(fs.readFileSync(path.join(site, script), "utf8"), context);
}
vm.runInContext("var SPHINX_HIGHLIGHT_ENABLED = false; Search.init = () => {};", context);
vm.runInContext(fs.readFileSync(path.join(site, "searchindex.js"), "utf8"), context);
const search = (query) => `Search._performSearch(...Search._parseQuery(${JSON.stringify(query)})).reverse()`;
const found = queries.map((query) => vm.runInContext(search(query), context).map(([page, , anchor]) => page + anchor));
console.log(JSON.stringify(found));
