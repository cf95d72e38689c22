// Token ids of texts by the tokenizer of a folder, by transformers.js: node tokens.mjs FOLDER texts.json out.json
//
// out.json has for each text its ids, and what they stand for. Nothing is fetched.

import fs from "node:fs";
import path from "node:path";
import { AutoTokenizer, env } from "@huggingface/transformers";

const [folder, texts, outputs] = process.argv.slice(2);

function fail(reason) {
  console.error(`tokens.mjs: ${reason}`);
  process.exit(1);
}

if (!outputs) fail("give: a folder, texts.json and out.json");
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder));

try {
  const tokenizer = await AutoTokenizer.from_pretrained(path.basename(folder));
  const found = JSON.parse(fs.readFileSync(texts, "utf8")).map((text) => {
    const ids = Array.from(tokenizer.encode(text), Number);
    return { ids, text: tokenizer.decode(ids, { skip_special_tokens: true }) };
  });
  fs.writeFileSync(outputs, JSON.stringify(found));
} catch (error) {
  fail(`${folder} has no tokenizer that transformers.js reads: ${String(error).slice(0, 300)}`);
}
