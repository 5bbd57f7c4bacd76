// What every request carries beside the conversation: system prompt and sampling, for all conversations or for one, and how
// this page behaves. Kept in this browser, one conversation's with the conversation.

import { $ } from "./element.js";

const STORE = "exo.settings", THEME = "exo.theme";
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "max_tokens"];

export class Settings {
  constructor(conversations) {
    this.conversations = conversations;
    this.chat = null; // the conversation whose settings the dialog shows, null for those of all
    this.values = {};
    this.load();
    const dialog = $("settings");
    const open = (chat) => {
      this.chat = chat;
      this.show();
      dialog.showModal();
    };
    $("open-settings").addEventListener("click", () => open(null));
    $("open-chat-settings").addEventListener("click", () => open(conversations.current));
    $("settings-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.read();
      dialog.close();
    });
    $("settings-reset").addEventListener("click", () => {
      for (const field of $("settings-form").querySelectorAll("input[id^=set-], textarea")) field.type === "checkbox" ? field.checked = false : field.value = "";
    });
    $("settings-cancel").addEventListener("click", () => dialog.close());
    $("theme").addEventListener("change", () => theme($("theme").value));
    theme(localStorage.getItem(THEME) ?? "system");
    addEventListener("storage", (event) => {
      if (event.key === STORE) this.load();
      if (event.key === THEME) theme(event.newValue ?? "system");
    });
  }

  load() {
    try {
      this.values = Object.assign({}, JSON.parse(localStorage.getItem(STORE) ?? "{}"));
    } catch { /* damaged: the defaults */ }
  }

  show() {
    const values = this.chat ? this.chat.settings ?? {} : this.values;
    $("settings-title").textContent = this.chat ? "Settings of this chat" : "Settings";
    $("settings-note").textContent = this.chat ? "For this conversation alone. What is left empty is as in the settings of all conversations."
      : "For all conversations of this browser. What is left empty is for the model and the node to decide.";
    for (const name of [...NUMBERS, "system"]) {
      $(`set-${name}`).value = values[name] ?? "";
      $(`set-${name}`).placeholder = this.chat ? this.values[name] ?? "" : "";
    }
    $("page-settings").hidden = Boolean(this.chat);
    $("set-stop").checked = Boolean(this.values.stop_on_switching);
    $("theme").value = localStorage.getItem(THEME) ?? "system";
  }

  read() {
    const values = {};
    for (const name of NUMBERS) {
      const input = $(`set-${name}`);
      if (input.value !== "" && !Number.isNaN(input.valueAsNumber)) values[name] = input.valueAsNumber;
    }
    if ($("set-system").value.trim()) values.system = $("set-system").value;
    if (this.chat) {
      this.chat.settings = values;
      this.conversations.touch(this.chat);
      return;
    }
    if ($("set-stop").checked) values.stop_on_switching = true;
    this.values = values;
    localStorage.setItem(STORE, JSON.stringify(values));
  }

  /** System prompt and fields of a request's body for a conversation; what is not set is the node's to decide. */
  of(conversation) {
    const { stop_on_switching: _, ...all } = this.values;
    return { ...all, ...conversation.settings };
  }

  get stopsOnSwitching() { return Boolean(this.values.stop_on_switching); }
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  localStorage.setItem(THEME, name);
}
