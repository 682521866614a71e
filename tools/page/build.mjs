// Builds the page of report into one file, or the tests into target/tests.
//
//   node build.mjs            tools/src/export/page/page.html
//   node build.mjs --check    the same, compared with the file that is there
//   node build.mjs --tests    target/tests
import { build } from "esbuild";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const output = join(here, "../src/export/page/page.html");

async function bundle(entry, format) {
  const result = await build({
    entryPoints: [join(here, entry)], bundle: true, write: false, minify: true, lineLimit: 160, target: ["chrome110", "firefox113", "safari16.4"],
    charset: "utf8", legalComments: "none", ...(format && { format }),
  });
  // A tab is in a text of the program only. The page has no control characters.
  return result.outputFiles[0].text.trim().replaceAll("\t", "\\t");
}

/** Hash of an inline element, for the Content-Security-Policy. */
const hash = (text) => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;

async function page() {
  const [script, style] = [await bundle("src/main.ts", "iife"), await bundle("src/style.css")];
  // Nothing in the program may end its element, or look like a place for data.
  for (const sign of ["</script", "</style", "<!--", "/*head*/", "/*data*/"]) {
    if (script.includes(sign) || style.includes(sign)) throw new Error(`the page has ${sign} in its program`);
  }
  const parts = { "/*style-hash*/": hash(style), "/*script-hash*/": hash(script), "/*style*/": style, "/*script*/": script };
  let text = readFileSync(join(here, "src/page.html"), "utf8");
  for (const [place, part] of Object.entries(parts)) text = text.replace(place, () => part);
  return text;
}

if (process.argv.includes("--tests")) {
  const tests = readdirSync(join(here, "tests")).filter((name) => name.endsWith(".test.ts")).map((name) => join(here, "tests", name));
  await build({ entryPoints: tests, bundle: true, platform: "node", format: "esm", outdir: join(here, "target/tests"), outExtension: { ".js": ".mjs" } });
} else if (process.argv.includes("--check")) {
  if (readFileSync(output, "utf8") !== (await page())) {
    console.error("tools/src/export/page/page.html is not what tools/page builds: run npm run build there");
    process.exit(1);
  }
} else {
  writeFileSync(output, await page());
}
