// Requests to this node: the API key, errors in words, and server-sent events.

const KEY = "exo.key";
const ROOT = new URL("../", import.meta.url); // where this page is, under whatever path a proxy shows it

export class ApiError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let askForKey = null, asking = null;

/** `ask(wrong)` gets a key from the person at the page, or null. */
export function onKeyNeeded(ask) { askForKey = ask; }

const key = () => localStorage.getItem(KEY) ?? "";

async function newKey(used) {
  if (key() !== used) return true; // another request has asked meanwhile
  asking ??= askForKey(used !== "").finally(() => { asking = null; });
  const given = await asking;
  if (given) localStorage.setItem(KEY, given);
  return Boolean(given);
}

/** The response of a request that went well; asks for a key where one is needed. Throws `ApiError`. */
export async function request(path, { method = "GET", body, signal } = {}) {
  for (;;) {
    const used = key();
    const headers = used ? { Authorization: `Bearer ${used}` } : {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(new URL(path, ROOT), { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("This node does not answer. Is exo still running there, and is this machine still connected?");
    }
    if (response.ok) return response;
    if (response.status === 401 && askForKey && await newKey(used)) continue;
    throw await described(response);
  }
}

async function described(response) {
  let error = null;
  try {
    ({ error } = await response.json());
  } catch { /* not JSON: a proxy's page, perhaps */ }
  const message = error?.message ?? `The node answered ${response.status} ${response.statusText}.`;
  const wait = response.headers.get("Retry-After");
  return new ApiError(wait ? `${message} Try again in ${wait} s.` : message, response.status, error?.code ?? null);
}

export const json = async (path, options) => (await request(path, options)).json();

/** The JSON of each `data:` line, with its number as `seq` where it has one, and what a resumed stream tells as {notice}. */
export async function* events(path, options) {
  const response = await request(path, options);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", seq = 0;
  try {
    for (;;) {
      let chunk;
      try {
        chunk = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ApiError("The connection to this node broke off.");
      }
      if (chunk.done) return;
      const lines = (rest + chunk.value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("id: ")) seq = Number(line.slice(4));
        else if (line.startsWith("data: {")) yield seq ? { ...JSON.parse(line.slice(6)), seq } : JSON.parse(line.slice(6));
        else if (line.startsWith(": resumed")) yield { notice: line.slice(2) };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
