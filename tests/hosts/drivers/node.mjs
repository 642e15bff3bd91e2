// Driver for node-llama-cpp. Job on stdin (one line of JSON), JSON lines on stdout:
//   {"model", "prompts": [[id, …], …], "lengths": [n, …], "context", "threads",
//    "flash": true | false | "auto" (absent: the host's default), "stream"}
// First argument: node-llama-cpp's entry file, which lies outside this tree.
// The library comes in through the environment alone: GGML_BACKEND_PATH.
import {createInterface} from "node:readline";

import {pathToFileURL} from "node:url";

const {getLlama, LlamaLogLevel} = await import(pathToFileURL(process.argv[2]));
const emit = (fields) => process.stdout.write(JSON.stringify(fields) + "\n");
const job = await new Promise((resolve) => {
    const lines = createInterface({input: process.stdin});
    lines.once("line", (line) => { resolve(JSON.parse(line)); lines.close(); });
});

const llama = await getLlama({
    gpu: false, build: "never", skipDownload: true, maxThreads: job.threads ?? 1,
    logLevel: LlamaLogLevel.warn, logger: (level, text) => process.stderr.write(`[${level}] ${text}\n`)
});
const model = await llama.loadModel({modelPath: job.model});
if (job.text != null) emit({tokens: [model.tokens.bos, ...model.tokenize(job.text)]});
for (let i = 0; i < (job.prompts ?? []).length; i++) {
    const context = await model.createContext({
        contextSize: job.context ?? 2048, batchSize: 512,
        ...("flash" in job ? {flashAttention: job.flash} : {})
    });
    const sequence = context.getSequence();
    const out = [];
    const start = performance.now();
    for await (const token of sequence.evaluate(job.prompts[i], {temperature: 0, yieldEogToken: true})) {
        out.push(token);
        if (job.stream) emit({prompt: i, token});
        if (out.length >= job.lengths[i]) break;
    }
    emit({prompt: i, tokens: out, ms: performance.now() - start, flash: context.flashAttention});
    await context.dispose();
}
await model.dispose();
await llama.dispose();
