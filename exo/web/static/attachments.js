// Files that go with the next question: text and code are read here, the text of a PDF is taken out by the node.

import { ApiError, request } from "./api.js";
import { $, bytes, h } from "./element.js";

const MAX_CHARS = 200_000, MAX_TEXT = 4e6, MAX_PDF = 11e6, MAX_FILES = 10;

export class Attachments {
  /** `changed()` is called when files begin and end to be read. */
  constructor(toast, changed) {
    Object.assign(this, { toast, changed, files: [], reading: 0 });
    $("attach").addEventListener("click", () => $("attach-file").click());
    $("attach-file").addEventListener("change", () => {
      this.add([...$("attach-file").files]);
      $("attach-file").value = "";
    });
    $("prompt").addEventListener("paste", (event) => {
      const files = [...event.clipboardData.files];
      if (!files.length) return;
      event.preventDefault();
      this.add(files);
    });
    const carries = (event) => event.dataTransfer?.types.includes("Files");
    document.addEventListener("dragover", (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      document.body.classList.add("dropping");
    });
    document.addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dropping"));
    document.addEventListener("drop", (event) => {
      document.body.classList.remove("dropping");
      if (!carries(event)) return;
      event.preventDefault();
      this.add([...event.dataTransfer.files]);
    });
  }

  clear() {
    this.files = [];
    this.draw();
  }

  async add(chosen) {
    for (const file of chosen) {
      if (this.files.length >= MAX_FILES) {
        this.toast(`At most ${MAX_FILES} files go with one question.`);
        break;
      }
      this.reading += 1;
      $("status").textContent = `Reading ${file.name}`;
      this.changed();
      try {
        this.files.push(await read(file));
        $("status").textContent = "";
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        $("status").textContent = "";
        this.toast(`${file.name}: ${error.message}`);
      } finally {
        this.reading -= 1;
        this.draw();
        this.changed();
      }
    }
  }

  draw() {
    $("attached").replaceChildren(...this.files.map((file) => h("li", {}, h("span", {}, `${file.name}, ${bytes(file.text.length)}`, file.note ? h("span", { class: "bad" }, `, ${file.note}`) : null),
      h("button", { type: "button", class: "quiet", "aria-label": `Remove ${file.name}`, onclick: () => {
        this.files = this.files.filter((f) => f !== file);
        this.draw();
        $("prompt").focus();
      } }, "×"))));
  }
}

/** {name, text, note} of a file; the note says what of it is missing. */
async function read(file) {
  const head = new Uint8Array(await file.slice(0, 1024).arrayBuffer());
  if (String.fromCharCode(...head.slice(0, 5)) === "%PDF-") return cut(file.name, ...await pdf(file));
  if (file.size > MAX_TEXT) throw new ApiError(`it has ${bytes(file.size)}; texts of up to ${bytes(MAX_TEXT)} can be attached.`);
  let text;
  try {
    text = decoded(new Uint8Array(await file.arrayBuffer()));
  } catch {
    throw new ApiError("this is no text and no PDF, and only those can be attached.");
  }
  if (!text.trim()) throw new ApiError("there is no text in it.");
  return cut(file.name, text);
}

function decoded(data) {
  const mark = data[0] === 0xff && data[1] === 0xfe ? "utf-16le" : data[0] === 0xfe && data[1] === 0xff ? "utf-16be" : "utf-8";
  const text = new TextDecoder(mark, { fatal: true }).decode(data);
  if (text.includes("\0")) throw new TypeError("not text");
  return text;
}

async function pdf(file) {
  if (file.size > MAX_PDF) throw new ApiError(`it has ${bytes(file.size)}; PDFs of up to ${bytes(MAX_PDF)} can be read.`);
  const data = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let at = 0; at < data.length; at += 0x8000) text += String.fromCharCode(...data.subarray(at, at + 0x8000));
  const answer = await (await request("v1/documents/text", { method: "POST", body: { name: file.name, data: btoa(text) } })).json();
  return [answer.text, answer.note ?? ""];
}

function cut(name, text, note = "") {
  if (text.length <= MAX_CHARS) return { name, text, ...(note ? { note } : {}) };
  const left = `cut: the first ${MAX_CHARS.toLocaleString("en")} of ${text.length.toLocaleString("en")} characters are sent`;
  return { name, text: text.slice(0, MAX_CHARS), note: [note, left].filter(Boolean).join("; ") };
}
