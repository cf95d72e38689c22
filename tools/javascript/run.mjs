// Runs a model in onnxruntime-web (WASM, as in a browser) or onnxruntime-node.
//
//     node run.mjs web|node model.onnx in.json out.json
//
// in.json: {"input_ids": {"dims": [1, 2], "data": [5, 6]}, ...}, all of 64-bit integers. out.json: the outputs alike.
// Weights beside the graph are read from model.onnx.data.

import fs from "node:fs";
import path from "node:path";

const [kind, model, inputs, outputs] = process.argv.slice(2);

function fail(reason) {
  console.error(`run.mjs: ${reason}`);
  process.exit(1);
}

if (!["web", "node"].includes(kind) || !outputs) fail("give: web or node, a model, in.json and out.json");
if (!fs.existsSync(model)) fail(`there is no ${model}`);

const ort = kind === "web" ? await import("onnxruntime-web") : (await import("onnxruntime-node")).default;
const options = { executionProviders: [kind === "web" ? "wasm" : "cpu"], logSeverityLevel: 3 };
let source = model;
if (kind === "web") {
  ort.env.wasm.numThreads = 1;
  source = new Uint8Array(fs.readFileSync(model));
  const data = `${model}.data`;
  if (fs.existsSync(data)) {
    options.externalData = [{ path: path.basename(data), data: new Uint8Array(fs.readFileSync(data)) }];
  }
}

try {
  const session = await ort.InferenceSession.create(source, options);
  const given = JSON.parse(fs.readFileSync(inputs, "utf8"));
  const feeds = {};
  for (const name of session.inputNames) {
    if (!(name in given)) fail(`${inputs} lacks ${name}`);
    feeds[name] = new ort.Tensor("int64", BigInt64Array.from(given[name].data, BigInt), given[name].dims);
  }
  const found = await session.run(feeds);
  const told = {};
  for (const name of session.outputNames) told[name] = { dims: found[name].dims, data: Array.from(found[name].data) };
  fs.writeFileSync(outputs, JSON.stringify(told));
} catch (error) {
  fail(`${path.basename(model)} does not run in onnxruntime-${kind}: ${String(error).slice(0, 300)}`);
}
