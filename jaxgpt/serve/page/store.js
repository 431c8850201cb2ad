// What the browser keeps: conversations and settings in localStorage, the API key for as long as the tab is open.

const CONVERSATIONS = "jaxgpt.conversations";
const SETTINGS = "jaxgpt.settings";
const KEY = "jaxgpt.key";
export const DEFAULTS = { system: "", temperature: 0.8, top_p: 1, top_k: 50, max_tokens: null, seed: null };

function read(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? fallback;
  } catch {
    return fallback;
  }
}

/** Newest first: {id, messages: [{role, content, speed?}]}. */
export function loadConversations() {
  const found = read(CONVERSATIONS, []);
  const isGood = (one) => typeof one?.id === "string" && Array.isArray(one.messages);
  return Array.isArray(found) ? found.filter(isGood) : [];
}

/** @returns {boolean} false where the browser's room is used up */
export function saveConversations(conversations) {
  try {
    localStorage.setItem(CONVERSATIONS, JSON.stringify(conversations.filter((one) => one.messages.length)));
    return true;
  } catch {
    return false;
  }
}

export function loadSettings() {
  return { ...DEFAULTS, ...read(SETTINGS, {}), key: sessionStorage.getItem(KEY) ?? "" };
}

export function saveSettings({ key, ...settings }) {
  localStorage.setItem(SETTINGS, JSON.stringify(settings));
  sessionStorage.setItem(KEY, key);
}

export function newConversation() {
  return { id: `${Date.now()}-${Math.random().toString(36).slice(2)}`, messages: [] };
}

export function titleOf(conversation) {
  return conversation.messages[0]?.content.trim().slice(0, 60) || "New conversation";
}
