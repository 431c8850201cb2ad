// The page: conversations at the side, messages in the middle. Text from the model is only ever put into text nodes.
import { fetchModel, streamAnswer } from "./api.js";
import * as store from "./store.js";

const SAVE_EVERY_MS = 500;
const $ = (id) => document.getElementById(id);
const conversations = store.loadConversations();
const settings = store.loadSettings();
let current = conversations[0] ?? store.newConversation();
let model = null;
let writing = null; // {controller, conversation} while an answer comes

// Building

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function button(text, onclick, label = text) {
  const made = element("button", { type: "button", onclick }, text);
  made.setAttribute("aria-label", label);
  return made;
}

function showAll() {
  showConversations();
  $("log").replaceChildren(...current.messages.map(messageElement));
  $("title").textContent = model ? `${store.titleOf(current)} · ${model.id}` : "jaxgpt";
  $("log").scrollTop = $("log").scrollHeight;
  showWriting();
}

function showConversations() {
  const items = conversations.map((one) => {
    const title = store.titleOf(one);
    const open = element("button", { type: "button", className: "open", onclick: () => choose(one) }, title);
    if (one === current) open.setAttribute("aria-current", "true");
    return element("li", {}, open, button("✕", () => remove(one), `Delete ${title}`));
  });
  $("conversations").replaceChildren(...items);
}

function showWriting() {
  const isWriting = writing !== null;
  $("send").hidden = isWriting;
  $("stop").hidden = !isWriting;
  $("log").setAttribute("aria-busy", String(isWriting));
  for (const one of document.querySelectorAll(".edit, .again")) one.disabled = isWriting;
}

function nameOf(role) {
  if (model && !model.is_chat) return role === "user" ? "Text" : "Continued";
  return role === "user" ? "You" : "Model";
}

function messageElement(message, index) {
  const text = element("div", { className: "text" }, message.content);
  const actions = element("div", { className: "actions" }, button("Copy", (event) => copy(event, message)));
  if (message.role === "user") {
    const edit = button("Edit", () => startEdit(index));
    edit.classList.add("edit");
    actions.append(edit);
  } else {
    const again = button("Regenerate", () => regenerate(index));
    again.classList.add("again");
    actions.append(again, element("span", { className: "speed" }, message.speed ?? ""));
  }
  const name = element("h2", {}, nameOf(message.role));
  return element("article", { className: message.role }, name, text, actions);
}

function notify(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function save() {
  if (!store.saveConversations(conversations)) notify("The browser has no room left: delete a conversation.");
}

// Conversations

function choose(conversation) {
  stop();
  current = conversation;
  closeMenu();
  notify("");
  showAll();
  $("question").focus();
}

function remove(conversation) {
  if (writing?.conversation === conversation) stop();
  conversations.splice(conversations.indexOf(conversation), 1);
  if (conversation === current) current = conversations[0] ?? store.newConversation();
  save();
  showAll();
  $("question").focus();
}

async function copy(event, message) {
  const pressed = event.currentTarget;
  try {
    await navigator.clipboard.writeText(message.content);
    pressed.textContent = "Copied";
    setTimeout(() => (pressed.textContent = "Copy"), 1500);
  } catch {
    notify("The browser does not allow this page to copy.");
  }
}

function startEdit(index) {
  if (writing) return;
  const article = $("log").children[index];
  const area = element("textarea", { value: current.messages[index].content, rows: 3 });
  area.setAttribute("aria-label", "Edit your message");
  const finish = () => {
    if (!area.value.trim()) return;
    current.messages.splice(index);
    send(area.value);
  };
  area.onkeydown = (event) => {
    if (isEnter(event)) {
      event.preventDefault();
      finish();
    } else if (event.key === "Escape") {
      showAll();
      $("question").focus();
    }
  };
  article.querySelector(".text").replaceWith(area);
  article.querySelector(".actions").replaceChildren(button("Send", finish, "Send the edited message"), button("Cancel", showAll));
  area.focus();
}

function regenerate(index) {
  if (writing) return;
  current.messages.splice(index);
  answer();
}

// Asking

function isEnter(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}

function send(text) {
  if (!conversations.includes(current)) conversations.unshift(current);
  current.messages.push({ role: "user", content: text });
  answer();
}

function stop() {
  writing?.controller.abort();
}

async function answer() {
  const conversation = current;
  const asked = conversation.messages.slice();
  const message = { role: "assistant", content: "" };
  conversation.messages.push(message);
  const mine = { controller: new AbortController(), conversation };
  writing = mine;
  notify("");
  save();
  showAll();
  const article = $("log").lastElementChild;
  const shown = article.querySelector(".text").appendChild(document.createTextNode(""));
  article.classList.add("writing");
  let first = 0;
  let last = 0;
  let saved = performance.now();
  let usage = null;
  try {
    model ??= await fetchModel(settings.key);
    for await (const piece of answerThatFits(asked, mine.controller.signal)) {
      usage = piece.usage ?? usage;
      if (!piece.text) continue;
      last = performance.now();
      first ||= last;
      message.content += piece.text;
      append(shown, piece.text);
      if (last - saved > SAVE_EVERY_MS) {
        saved = last;
        save();
      }
    }
    if (usage) message.speed = speedOf(usage.completion_tokens, last - first);
  } catch (error) {
    if (error.name !== "AbortError") notify(`No answer: ${error.message}`);
    if (!message.content) conversation.messages.splice(conversation.messages.indexOf(message), 1);
  } finally {
    if (writing === mine) writing = null;
    save();
    if (conversation === current) showAll();
  }
}

/** As streamAnswer; turns that no longer fit the context are left out, the oldest first, and that is said. */
async function* answerThatFits(asked, signal) {
  for (;;) {
    try {
      yield* streamAnswer(model, asked, settings, signal);
      return;
    } catch (error) {
      if (error.code !== "context_length_exceeded" || asked.length < 3) throw error;
      asked.splice(0, 2);
      notify("The conversation is longer than the model's context: its oldest messages were left out.");
    }
  }
}

function append(node, text) {
  const log = $("log");
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  node.appendData(text);
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}

function speedOf(tokens, milliseconds) {
  const rate = tokens > 1 && milliseconds > 0 ? ` · ${((1000 * (tokens - 1)) / milliseconds).toFixed(1)} tokens/s` : "";
  return `${tokens} token${tokens === 1 ? "" : "s"}${rate}`;
}

// Controls

function ask() {
  const text = $("question").value;
  if (!text.trim() || writing) return;
  $("question").value = "";
  grow();
  send(text);
}

function grow() {
  $("question").style.height = "auto";
  $("question").style.height = `${$("question").scrollHeight + 2}px`;
}

function closeMenu() {
  $("sidebar").classList.remove("open");
  $("menu").setAttribute("aria-expanded", "false");
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light" : "Dark";
  settings.theme = theme;
}

function readSettings() {
  for (const name of ["temperature", "top_p", "top_k", "max_tokens", "seed"]) {
    const value = $(name).valueAsNumber;
    if ($(name).validity.valid) settings[name] = Number.isFinite(value) ? value : null;
  }
  settings.system = $("system").value;
  settings.key = $("key").value.trim();
  store.saveSettings(settings);
}

$("ask").onsubmit = (event) => {
  event.preventDefault();
  ask();
};
$("question").oninput = grow;
$("question").onkeydown = (event) => {
  if (isEnter(event)) {
    event.preventDefault();
    ask();
  } else if (event.key === "ArrowUp" && !$("question").value) {
    const index = current.messages.findLastIndex((message) => message.role === "user");
    if (index >= 0) startEdit(index);
  }
};
$("stop").onclick = stop;
$("new").onclick = () => choose(store.newConversation());
$("menu").onclick = () => {
  const isOpen = $("sidebar").classList.toggle("open");
  $("menu").setAttribute("aria-expanded", String(isOpen));
};
$("theme").onclick = () => {
  setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  store.saveSettings(settings);
};
$("open-settings").onclick = () => $("settings").showModal();
$("settings").oninput = readSettings;
document.onkeydown = (event) => {
  if (event.key === "Escape" && !$("settings").open) {
    stop();
    closeMenu();
  }
  if (event.altKey && event.code === "KeyN") {
    event.preventDefault();
    choose(store.newConversation());
  }
};
window.onpagehide = save;

for (const name of [...Object.keys(store.DEFAULTS), "key"]) $(name).value = settings[name] ?? "";
setTheme(settings.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
showAll();
$("question").focus();
fetchModel(settings.key).then(
  (found) => {
    model = found;
    showAll();
  },
  (error) => notify(`The server does not answer: ${error.message}`),
);
