// Vercel's AI SDK against a node: text, a stream, structured output and a tool. Ends with status 0 when all is well.
import { strict as assert } from "node:assert";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const [url, name] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "exo", baseURL: `${url}/v1`, supportsStructuredOutputs: true });
const model = provider.chatModel(name);

const { text, usage, finishReason } = await generateText({ model, prompt: "hello", maxOutputTokens: 12 });
assert.equal(finishReason, "length");
assert.equal(usage.outputTokens, 12);

let streamed = "";
for await (const part of streamText({ model, prompt: "hello", maxOutputTokens: 12 }).textStream) streamed += part;
assert.equal(streamed, text);

const schema = z.object({ city: z.string(), inhabitants: z.number().int() });
const { object } = await generateObject({ model, schema, prompt: "Describe Paris.", maxOutputTokens: 120 });
assert.ok(Number.isInteger(object.inhabitants));

const weather = tool({ description: "The weather of a city", inputSchema: z.object({ city: z.string() }) });
const called = await generateText({
  model, prompt: "The weather in Paris?", tools: { weather }, toolChoice: "required", maxOutputTokens: 200,
});
assert.equal(called.finishReason, "tool-calls");
assert.equal(called.toolCalls[0].toolName, "weather");
assert.equal(typeof called.toolCalls[0].input.city, "string");

const { embedding } = await provider.embeddingModel(name).doEmbed({ values: ["hello"] })
  .then(({ embeddings }) => ({ embedding: embeddings[0] }));
assert.ok(Math.abs(embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-4);
