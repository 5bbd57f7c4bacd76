// A conversation is a tree: what is asked or answered anew stands beside what was there, and `leaf` is the end of what is shown.

// crypto.randomUUID is for secure contexts alone, and a page from another machine is none
export const newId = () => Array.from(crypto.getRandomValues(new Uint32Array(3)), (n) => n.toString(36)).join("");

/** The messages from the first one to the leaf. */
export function path(conversation) {
  const byId = new Map(conversation.messages.map((m) => [m.id, m]));
  const found = [];
  for (let m = byId.get(conversation.leaf); m && !found.includes(m); m = byId.get(m.parent)) found.push(m);
  return found.reverse();
}

/** A message after `parent` (an id, null at the beginning), which becomes the leaf. */
export function append(conversation, parent, fields) {
  const message = { id: newId(), parent, at: Date.now(), ...fields };
  conversation.messages.push(message);
  conversation.leaf = message.id;
  return message;
}

/** The versions of a message, oldest first, itself among them. */
export const versions = (conversation, message) =>
  conversation.messages.filter((m) => m.parent === message.parent && m.role === message.role);

/** Show the branch that goes through this message, to its newest end. */
export function show(conversation, message) {
  let end = message;
  for (let next = end; next; next = conversation.messages.findLast((m) => m.parent === end.id)) end = next;
  conversation.leaf = end.id;
}

/** A conversation as any version of this page or an export has it, in today's form; null where it is none. */
export function asTree(c) {
  if (typeof c?.id !== "string" || !Array.isArray(c.messages)) return null;
  const messages = c.messages.filter((m) => typeof m?.content === "string" && ["user", "assistant"].includes(m.role));
  let parent = null;
  for (const m of messages) {
    m.id ??= newId();
    m.parent = m.parent === undefined ? parent : m.parent;
    m.at ??= 0;
    parent = m.id;
  }
  const leaf = messages.some((m) => m.id === c.leaf) ? c.leaf : parent;
  return { ...c, title: String(c.title ?? ""), changed: Number(c.changed) || 0, messages, leaf };
}

/** Take into `mine` what another tab has of the same conversation; messages keep their identity. */
export function merge(mine, theirs) {
  const byId = new Map(mine.messages.map((m) => [m.id, m]));
  let changed = false;
  for (const m of theirs.messages) {
    const own = byId.get(m.id);
    if (own && own.at >= m.at) continue;
    changed = true;
    if (!own) mine.messages.push(m);
    else {
      for (const key of Object.keys(own)) delete own[key];
      Object.assign(own, m);
    }
  }
  if (theirs.changed > mine.changed) {
    changed = true;
    for (const key of ["title", "named", "changed", "leaf", "settings"]) mine[key] = theirs[key];
  }
  return changed;
}
