// Tokens that a model with an encoder and a decoder in the Hub's layout writes, by transformers.js.
//
//     node decode.mjs FOLDER DTYPE COUNT feed.json out.json
//
// feed.json: what the encoder reads, {name: {type, dims, data}}. Nothing is fetched.

import fs from "node:fs";
import path from "node:path";
import { AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq, Tensor, env } from "@huggingface/transformers";

const [folder, dtype, count, inputs, outputs] = process.argv.slice(2);

function fail(reason) {
  console.error(`decode.mjs: ${reason}`);
  process.exit(1);
}

if (!outputs) fail("give: a folder, a type, how many tokens, feed.json and out.json");
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder));

const arrays = { int64: (data) => BigInt64Array.from(data, BigInt), float32: (data) => Float32Array.from(data) };

try {
  const feed = {};
  for (const [name, { type, dims, data }] of Object.entries(JSON.parse(fs.readFileSync(inputs, "utf8")))) {
    feed[name] = new Tensor(type, arrays[type](data), dims);
  }
  const kind = feed.input_features ? AutoModelForSpeechSeq2Seq : AutoModelForSeq2SeqLM;
  const model = await kind.from_pretrained(path.basename(folder), { dtype });
  const found = await model.generate({ ...feed, max_new_tokens: Number(count), do_sample: false });
  fs.writeFileSync(outputs, JSON.stringify({ dims: found.dims, data: Array.from(found.data, Number) }));
} catch (error) {
  fail(`${folder} does not generate in transformers.js: ${String(error).slice(0, 300)}`);
}
