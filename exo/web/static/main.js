// Puts the page together: panels, dialogs, and the parts that know nothing of each other.

import { Answers } from "./answers.js";
import { onKeyNeeded } from "./api.js";
import { Attachments } from "./attachments.js";
import { Chat } from "./chat.js";
import { ChatList } from "./chat_list.js";
import { Conversations } from "./conversations.js";
import { $ } from "./element.js";
import { Models } from "./models.js";
import { Ring } from "./ring.js";
import { Settings } from "./settings.js";
import { toast } from "./toast.js";
import { Waits } from "./waits.js";

/** A dialog as a question: what `read` gives when it is sent, null when it is left. */
function asked(dialog, form, cancel, read) {
  return new Promise((resolve) => {
    const end = new AbortController();
    const finish = (value) => {
      end.abort();
      dialog.close();
      resolve(value);
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      finish(read());
    }, { signal: end.signal });
    cancel.addEventListener("click", () => finish(null), { signal: end.signal });
    dialog.addEventListener("cancel", () => finish(null), { signal: end.signal });
    dialog.showModal();
  });
}

onKeyNeeded((wrong) => {
  $("key-wrong").hidden = !wrong;
  $("key").value = "";
  return asked($("key-dialog"), $("key-form"), $("key-cancel"), () => $("key").value.trim() || null);
});

function confirm(question, action) {
  $("confirm-text").textContent = question;
  $("confirm-yes").textContent = action;
  return asked($("confirm"), $("confirm-form"), $("confirm-no"), () => true);
}

/** Side panels: beside the chat where there is room, over it where there is not. */
function panel(button, pane, wide) {
  const room = matchMedia(wide);
  const show = (open) => {
    pane.hidden = !open;
    button.setAttribute("aria-expanded", open);
  };
  button.addEventListener("click", () => {
    show(pane.hidden);
    if (!pane.hidden && !room.matches) pane.querySelector("button, summary, input")?.focus();
  });
  pane.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !room.matches) {
      show(false);
      button.focus();
    }
  });
  room.addEventListener("change", () => show(room.matches));
  show(room.matches);
  return { close: () => { if (!room.matches) show(false); } };
}

const conversations = new Conversations();
const settings = new Settings(conversations);
const ring = new Ring();
const models = new Models(ring, confirm);
const answers = new Answers(conversations, settings, models);
const attachments = new Attachments(toast, () => chat.state());
const chats = panel($("toggle-chats"), $("chats"), "(min-width: 60rem)");
panel($("toggle-side"), $("side"), "(min-width: 76rem)");
const chat = new Chat(conversations, settings, answers, attachments);

function open() {
  chat.open();
  list.draw();
  chats.close();
}
const list = new ChatList(conversations, answers, open, toast);
conversations.addEventListener("change", () => (chat.conversation === conversations.current ? chat.draw() : chat.open()));
$("new-chat").addEventListener("click", () => {
  conversations.begin();
  $("chat-search").value = "";
  open();
  $("prompt").focus();
});
new Waits(answers, models, ring);
answers.takeUp();

$("enlarge").addEventListener("click", () => {
  const large = document.body.classList.toggle("large-ring");
  $("enlarge").setAttribute("aria-pressed", large);
});
if (matchMedia("(min-width: 60rem)").matches) $("prompt").focus();
performance.mark("usable");
