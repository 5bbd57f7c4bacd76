// ollama-js: lists, shows, chats with and without a stream, embeds, and says in words what went wrong.
import { Ollama } from "ollama";

const model = process.env.EXO_TEST_MODEL;
const ollama = new Ollama({ host: process.env.EXO_TEST_URL });
const messages = [{ role: "user", content: "hello" }];
const options = { num_predict: 10 };
const check = (good, what) => { if (!good) throw new Error(what); };

check((await ollama.list()).models.some((m) => m.name === model), "list");
check((await ollama.show({ model })).capabilities.includes("completion"), "show");
const said = async (answer, what) => {  // noise may end before it begins
  for (let i = 0; i < 10; i++) if (await answer()) return;
  throw new Error(what);
};
await said(async () => (await ollama.chat({ model, messages, options })).message.content, "chat");
await said(async () => {
  let text = "";
  for await (const piece of await ollama.chat({ model, messages, options, stream: true })) text += piece.message.content;
  return text;
}, "stream");
check((await ollama.generate({ model, prompt: "hello", options })).context.length > 0, "generate");
check((await ollama.embed({ model, input: ["a", "b"] })).embeddings.length === 2, "embed");
check((await ollama.ps()).models.length > 0, "ps");
try {
  await ollama.chat({ model: "nosuch", messages });
  throw new Error("a model that there is not was taken");
} catch (error) {
  check(/nosuch/.test(error.message) && !/object Object/.test(error.message), `the error says: ${error.message}`);
}
