// The conversations of this browser: each under a key of its own in localStorage, so that several tabs can write at once.

import { asTree, merge, newId } from "./branches.js";

const PREFIX = "exo.chat.", CURRENT = "exo.current", BEFORE = "exo.conversations"; // the last: all under one key, as once
const TITLE_CHARS = 60;

export class Conversations extends EventTarget {
  /** `busy(message)`: this tab is writing it, and knows it better than any other. Tells of others' changes by `change`. */
  constructor() {
    super();
    this.all = [];
    this.busy = () => false;
    this.written = new Map(); // what of each this tab has read or written last
    this.adopt();
    for (const key of Object.keys(localStorage)) if (key.startsWith(PREFIX)) this.read(key);
    this.sort();
    const id = sessionStorage.getItem(CURRENT) ?? localStorage.getItem(CURRENT);
    this.current = this.find(id) ?? this.all[0] ?? null;
    if (!this.current) this.begin();
    addEventListener("storage", (event) => this.heard(event));
  }

  find(id) { return this.all.find((c) => c.id === id); }

  adopt() {
    let old = [];
    try {
      old = JSON.parse(localStorage.getItem(BEFORE) ?? "[]").map(asTree).filter(Boolean);
    } catch { /* damaged: there is nothing to adopt */ }
    for (const c of old) if (localStorage.getItem(PREFIX + c.id) === null) this.save(c);
    localStorage.removeItem(BEFORE);
  }

  /** A stored conversation, new or taken into the one that is here. */
  read(key) {
    const text = localStorage.getItem(key);
    let stored = null;
    try {
      stored = asTree(JSON.parse(text));
    } catch { /* damaged: it is passed over, and not written over */ }
    if (!stored || PREFIX + stored.id !== key) return;
    this.written.set(stored.id, text);
    const own = this.find(stored.id);
    if (!own) this.all.push(stored);
    else {
      stored.messages = stored.messages.filter((m) => !this.busy(m));
      merge(own, stored);
      own.gone = false;
    }
  }

  /** Another tab has written. */
  heard({ key, newValue }) {
    if (key === null) for (const c of this.all) c.gone = true;
    else if (!key.startsWith(PREFIX)) return;
    else if (newValue === null) {
      const gone = this.find(key.slice(PREFIX.length));
      if (gone) gone.gone = true;
    } else this.read(key);
    this.all = this.all.filter((c) => !c.gone);
    if (this.current.gone) this.current = this.all[0] ?? null;
    if (!this.current) this.begin();
    this.sort();
    this.dispatchEvent(new Event("change"));
  }

  sort() { this.all.sort((a, b) => b.changed - a.changed); }

  /** A new one, unless the current one is still empty. */
  begin(fields = {}) {
    if (this.current && !this.current.messages.length && !fields.messages) return this.current;
    this.current = { id: newId(), title: "", changed: Date.now(), messages: [], leaf: null, ...fields };
    this.all.unshift(this.current);
    this.remember();
    return this.current;
  }

  open(id) {
    this.current = this.find(id) ?? this.current;
    this.remember();
  }

  /** Which one is open: for this tab when it is loaded again, and for the next new one. */
  remember() {
    for (const store of [sessionStorage, localStorage]) {
      try {
        store.setItem(CURRENT, this.current.id);
      } catch { /* no room: the newest one is opened next time */ }
    }
  }

  /** What undoes it is returned. */
  remove(id) {
    const gone = this.find(id), wasCurrent = this.current === gone;
    gone.gone = true;
    this.all = this.all.filter((c) => c !== gone);
    localStorage.removeItem(PREFIX + id);
    if (wasCurrent) this.current = this.all[0] ?? null;
    if (!this.current) this.begin();
    this.remember();
    return () => {
      gone.gone = false;
      if (!this.find(id)) this.all.push(gone);
      this.save(gone);
      this.sort();
      if (wasCurrent) this.open(id);
    };
  }

  rename(conversation, title) {
    Object.assign(conversation, { title: title.slice(0, 200) || titleOf(conversation), named: Boolean(title) });
    this.touch(conversation);
  }

  /** After any change of a conversation: it is the newest. */
  touch(conversation) {
    conversation.changed = Date.now();
    conversation.title ||= titleOf(conversation);
    this.sort();
    this.save(conversation);
  }

  /** False where the browser has no room for it. */
  save(conversation) {
    if (conversation.gone || !conversation.messages.length) return true;
    const key = PREFIX + conversation.id;
    const stored = localStorage.getItem(key);
    if (stored !== null && stored !== this.written.get(conversation.id)) this.read(key); // another tab was there meanwhile
    const text = JSON.stringify(conversation);
    try {
      localStorage.setItem(key, text);
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
      this.dispatchEvent(new CustomEvent("full", { detail: conversation }));
      return false;
    }
    this.written.set(conversation.id, text);
    return true;
  }

  /** Those in whose title or messages all words are, newest first. */
  search(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    return this.all.filter((c) => words.every((word) => c.title.toLowerCase().includes(word)
      || c.messages.some((m) => m.content.toLowerCase().includes(word))));
  }
}

export function titleOf(conversation) {
  const text = conversation.messages.find((m) => m.role === "user")?.content.trim().replace(/\s+/g, " ") ?? "";
  return text.length > TITLE_CHARS ? `${text.slice(0, TITLE_CHARS - 1)}…` : text;
}
