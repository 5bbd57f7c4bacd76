// A streamed chat in JavaScript without any package: node examples/chat.mjs "What is the sea?"  (Node 18 or newer)
// EXO_URL, EXO_MODEL and EXO_API_KEY are read from the environment.

const url = process.env.EXO_URL ?? "http://localhost:52415";
const headers = { "Content-Type": "application/json" };
if (process.env.EXO_API_KEY) headers.Authorization = `Bearer ${process.env.EXO_API_KEY}`;

const response = await fetch(`${url}/v1/chat/completions`, {
  method: "POST",
  headers,
  body: JSON.stringify({
    model: process.env.EXO_MODEL ?? "smollm2-135m",
    messages: [{ role: "user", content: process.argv.slice(2).join(" ") || "What is the sea?" }],
    max_tokens: 60,
    stream: true,
  }),
});
if (!response.ok) throw new Error((await response.json()).error.message);

let rest = "";
for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
  const lines = (rest + text).split("\n");
  rest = lines.pop();
  for (const line of lines) {
    if (!line.startsWith("data: {")) continue; // comments, and [DONE] at the end
    const event = JSON.parse(line.slice(6));
    if (event.error) throw new Error(event.error.message);
    process.stdout.write(event.choices[0]?.delta.content ?? "");
  }
}
process.stdout.write("\n");
