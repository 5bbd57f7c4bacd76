// Conversations as files: JSON keeps everything, Markdown is for reading, and both are read again.

import { asTree, newId, path } from "./branches.js";
import { h } from "./element.js";

const MARK = /^<!-- exo:(user|assistant|system) -->$/;
const HEADING = /^#{1,3} (You|User|Human|Model|Assistant|System)\s*:?\s*$/i;
const NAMES = { user: "You", assistant: "Model", system: "System" };
const MAX_FILE = 20e6;

export const asJson = (conversations) => JSON.stringify({ format: "exo conversations", version: 2, conversations }, null, 1);

/** The branch that is shown. Lines that look like marks are kept apart by a backslash. */
export function asMarkdown(conversation) {
  const part = (role, text) => `<!-- exo:${role} -->\n## ${NAMES[role]}\n\n${text.replace(/^(?=\\*<!-- exo:)/gm, "\\")}\n`;
  const said = path(conversation).map((m) => part(m.role, [...(m.files ?? []).map(fileAsText), m.content].join("\n\n")));
  const system = conversation.settings?.system;
  return [`# ${conversation.title || "Chat"}\n`, ...(system ? [part("system", system)] : []), ...said].join("\n");
}

/** A file of a message in the words that the model reads. */
export function fileAsText(file) {
  const fence = "`".repeat(Math.max(3, ...[...file.text.matchAll(/`+/g)].map((run) => run[0].length + 1)));
  return `${file.name}:\n\n${fence}\n${file.text.replace(/\n$/, "")}\n${fence}`;
}

/** The conversations of a file. Throws an `Error` in words for what is none. */
export function parse(text, name) {
  const found = text.trimStart().startsWith("{") || text.trimStart().startsWith("[") ? parseJson(text) : parseMarkdown(text, name);
  if (!found.length) throw new Error(`${name} has no conversation in it: exported ones are .json or .md files.`);
  return found;
}

function parseJson(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Error("This JSON is damaged: it ends or breaks off in the middle.");
  }
  const list = Array.isArray(value) ? value : value.conversations ?? [value];
  // others' exports, as they are sent to the API, have messages alone
  return list.map((c) => asTree({ id: newId(), title: "", ...c })).filter((c) => c?.messages.length)
    .map((c) => ({ ...c, messages: c.messages.map(({ run, ...m }) => m) }));
}

function parseMarkdown(text, name) {
  const lines = text.split(/\r?\n/), mark = lines.some((line) => MARK.test(line)) ? MARK : HEADING;
  const title = /^# (.+)$/m.exec(text)?.[1] ?? name.replace(/\.\w+$/, "");
  const parts = [];
  for (const line of lines) {
    const begin = mark.exec(line);
    if (begin) parts.push({ role: { you: "user", human: "user", model: "assistant" }[begin[1].toLowerCase()] ?? begin[1].toLowerCase(), lines: [] });
    else parts.at(-1)?.lines.push(line.replace(/^\\(?=\\*<!-- exo:)/, ""));
  }
  const said = parts.map(({ role, lines: body }) => {
    if (mark === MARK && HEADING.test(body[0] ?? "")) body.shift();
    return { role, content: body.join("\n").trim() };
  });
  const system = said.find((m) => m.role === "system")?.content;
  const messages = said.filter((m) => m.role !== "system");
  return messages.length ? [asTree({ id: newId(), title, changed: Date.now(), messages, ...(system ? { settings: { system } } : {}) })] : [];
}

/** Let the browser save a text. */
export function save(text, name, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

export const fileName = (title) => title.replace(/[^\p{L}\p{N} _-]+/gu, "").trim().slice(0, 60) || "chat";

/** The conversations of files that a person has chosen; `failed(words)` for each that has none. */
export async function load(files, failed) {
  const found = [];
  for (const file of files) {
    try {
      if (file.size > MAX_FILE) throw new Error(`${file.name} is larger than 20 MB.`);
      found.push(...parse(await file.text(), file.name));
    } catch (error) {
      failed(error.message);
    }
  }
  return found;
}
