// Sentence vectors from a folder in the Hub's layout, by transformers.js: node feature.mjs FOLDER DTYPE texts.json out.json
//
// DTYPE: fp32, int8, q8, ... as transformers.js calls them. Nothing is fetched.

import fs from "node:fs";
import path from "node:path";
import { env, pipeline } from "@huggingface/transformers";

const [folder, dtype, texts, outputs] = process.argv.slice(2);

function fail(reason) {
  console.error(`feature.mjs: ${reason}`);
  process.exit(1);
}

if (!outputs) fail("give: a folder, a type, texts.json and out.json");
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder));

try {
  const extract = await pipeline("feature-extraction", path.basename(folder), { dtype });
  const found = await extract(JSON.parse(fs.readFileSync(texts, "utf8")), { pooling: "mean", normalize: true });
  fs.writeFileSync(outputs, JSON.stringify({ dims: found.dims, data: Array.from(found.data) }));
} catch (error) {
  fail(`${folder} does not run in transformers.js: ${String(error).slice(0, 300)}`);
}
