// The conversations of this browser: kept in localStorage, newest first.

const STORE = "exo.conversations", CURRENT = "exo.current";
const MAX_KEPT = 200, TITLE_CHARS = 60;

export class Conversations {
  constructor() {
    this.all = [];
    try {
      const stored = JSON.parse(localStorage.getItem(STORE) ?? "[]");
      this.all = stored.filter((c) => typeof c?.id === "string" && Array.isArray(c.messages));
    } catch { /* damaged: begin anew */ }
    this.current = this.all.find((c) => c.id === localStorage.getItem(CURRENT)) ?? this.all[0] ?? null;
    if (!this.current) this.begin();
  }

  /** A new one, unless the current one is still empty. */
  begin() {
    if (this.current && !this.current.messages.length) return this.current;
    // crypto.randomUUID is for secure contexts alone, and a page from another machine is none
    const id = Array.from(crypto.getRandomValues(new Uint32Array(3)), (n) => n.toString(36)).join("");
    this.current = { id, title: "", changed: Date.now(), messages: [] };
    this.all.unshift(this.current);
    this.save();
    return this.current;
  }

  open(id) {
    this.current = this.all.find((c) => c.id === id) ?? this.current;
    this.save();
  }

  remove(id) {
    this.all = this.all.filter((c) => c.id !== id);
    if (this.current.id === id) this.current = this.all[0] ?? null;
    if (!this.current) this.begin();
    this.save();
  }

  /** After any change of a conversation. */
  touch(conversation) {
    conversation.changed = Date.now();
    conversation.title ||= titleOf(conversation);
    this.all = [conversation, ...this.all.filter((c) => c !== conversation)];
    this.save();
  }

  save() {
    this.all.length = Math.min(this.all.length, MAX_KEPT);
    for (let kept = this.all.filter((c) => c.messages.length); ; kept = kept.slice(0, -1)) {
      try {
        localStorage.setItem(STORE, JSON.stringify(kept));
        localStorage.setItem(CURRENT, this.current?.id ?? "");
        return;
      } catch (error) { // the browser's room is used up: the oldest go
        if (kept.length <= 1 || error.name !== "QuotaExceededError") return;
      }
    }
  }
}

function titleOf(conversation) {
  const text = conversation.messages.find((m) => m.role === "user")?.content.trim().replace(/\s+/g, " ") ?? "";
  return text.length > TITLE_CHARS ? `${text.slice(0, TITLE_CHARS - 1)}…` : text;
}
