// The list of conversations at the side: open, find, rename, delete and have back, export and import.

import { $, h } from "./element.js";
import { asJson, asMarkdown, fileName, load, save } from "./transfer.js";

export class ChatList {
  /** `open()` shows the current conversation; `toast(text, label, act)` says something, with something to be done about it. */
  constructor(conversations, answers, open, toast) {
    Object.assign(this, { conversations, answers, open, toast, renaming: null });
    $("chat-search").addEventListener("input", () => this.draw());
    $("export").addEventListener("click", () => save(asJson(conversations.all.filter((c) => c.messages.length)), "exo conversations.json", "application/json"));
    $("export-chat").addEventListener("click", () => {
      const chat = conversations.current;
      save(asMarkdown(chat), `${fileName(chat.title)}.md`, "text/markdown");
    });
    $("import").addEventListener("click", () => $("import-file").click());
    $("import-file").addEventListener("change", () => this.import());
    conversations.addEventListener("change", () => this.draw());
    conversations.addEventListener("list", () => this.draw());
    conversations.addEventListener("full", ({ detail }) =>
      toast(`This browser has no room for more: “${detail.title}” is not saved any further. Export and delete conversations that are no longer wanted.`));
    for (const name of ["begin", "end"]) answers.addEventListener(name, () => this.draw());
    this.draw();
  }

  draw() {
    if (this.renaming) return; // when it is over
    const { conversations } = this, words = $("chat-search").value.trim();
    const found = (words ? conversations.search(words) : conversations.all).filter((c) => c.messages.length || (c === conversations.current && !words));
    const focused = document.activeElement?.closest("#chat-list [data-action]")?.dataset.action;
    $("chat-list").replaceChildren(...found.map((c) => this.item(c)));
    if (focused) $("chat-list").querySelector(`[data-action="${CSS.escape(focused)}"]`)?.focus();
    $("no-chats").hidden = found.length > 0;
    $("export").disabled = !conversations.all.some((c) => c.messages.length);
    $("export-chat").disabled = !conversations.current.messages.length;
  }

  item(c) {
    const { conversations } = this, title = c.title || "New chat", running = this.answers.isRunning(c);
    const name = h("button", { type: "button", class: "chat-name", dir: "auto", "data-action": `open ${c.id}`, "aria-current": c === conversations.current ? "true" : null,
      onclick: () => { conversations.open(c.id); this.open(); } }, title, running ? h("span", { class: "busy-mark", role: "img", "aria-label": ", answering" }, " ●") : null);
    if (!c.messages.length) return h("li", {}, name);
    const item = h("li", {}, name,
      h("button", { type: "button", class: "quiet", "data-action": `rename ${c.id}`, "aria-label": `Rename “${title}”`, title: "Rename", onclick: () => this.rename(item, c) }, "✎"),
      h("button", { type: "button", class: "quiet", "data-action": `delete ${c.id}`, "aria-label": `Delete “${title}”`, title: "Delete", onclick: () => this.remove(c) }, "×"));
    return item;
  }

  rename(item, c) {
    const box = h("input", { "aria-label": "Name of the conversation", maxlength: "200" });
    box.value = c.title;
    this.renaming = c;
    const close = (keep) => {
      if (this.renaming !== c) return;
      this.renaming = null;
      if (keep && box.value.trim() !== c.title) this.conversations.rename(c, box.value.trim());
      this.draw();
      $("chat-list").querySelector(`[data-action="${CSS.escape(`rename ${c.id}`)}"]`)?.focus();
    };
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.preventDefault();
      event.stopPropagation();
      close(event.key === "Enter");
    });
    box.addEventListener("blur", () => close(true));
    item.replaceChildren(box);
    box.focus();
    box.select();
  }

  remove(c) {
    for (const run of this.answers.runs.values()) if (run.conversation === c) this.answers.stop(run);
    const undo = this.conversations.remove(c.id);
    this.open();
    this.toast(`“${c.title}” is deleted.`, "Undo", () => {
      undo();
      this.open();
    });
  }

  async import() {
    const files = [...$("import-file").files];
    $("import-file").value = "";
    const { conversations } = this, failed = [];
    const found = await load(files, (words) => failed.push(words));
    for (const c of found) {
      const own = conversations.find(c.id);
      if (own) c.id = `${c.id}-${Date.now().toString(36)}`; // what is here stays as it is
      conversations.begin(c);
      conversations.touch(c);
    }
    if (found.length) this.open();
    this.toast([...failed, found.length ? `${found.length} ${found.length === 1 ? "conversation" : "conversations"} imported.` : ""].filter(Boolean).join(" "));
  }
}
