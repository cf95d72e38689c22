// Tokens that a causal language model in the Hub's layout goes on with, by transformers.js.
//
//     node generate.mjs FOLDER COUNT ids.json out.json
//
// ids.json: a list of token ids. Nothing is fetched.

import fs from "node:fs";
import path from "node:path";
import { AutoModelForCausalLM, Tensor, env } from "@huggingface/transformers";

const [folder, count, inputs, outputs] = process.argv.slice(2);

function fail(reason) {
  console.error(`generate.mjs: ${reason}`);
  process.exit(1);
}

if (!outputs) fail("give: a folder, how many tokens, ids.json and out.json");
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder));

try {
  const model = await AutoModelForCausalLM.from_pretrained(path.basename(folder), { dtype: "fp32" });
  const ids = JSON.parse(fs.readFileSync(inputs, "utf8"));
  const input_ids = new Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]);
  const attention_mask = new Tensor("int64", new BigInt64Array(ids.length).fill(1n), [1, ids.length]);
  const found = await model.generate({ input_ids, attention_mask, max_new_tokens: Number(count), do_sample: false });
  fs.writeFileSync(outputs, JSON.stringify(Array.from(found.data, Number)));
} catch (error) {
  fail(`${folder} does not generate in transformers.js: ${String(error).slice(0, 300)}`);
}
