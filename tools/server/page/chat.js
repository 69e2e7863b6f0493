"use strict";
// A chat over /v1/chat/completions. Text of the model only ever becomes text nodes.
const at = (id) => document.getElementById(id);
let turns = [];
let running = null;

function headers() {
  const key = at("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

// Fenced and inline code and bold text; everything else as it is.
function show(element, text) {
  element.replaceChildren();
  text.split(/```/).forEach((part, i) => {
    if (i % 2) {
      const pre = document.createElement("pre"), code = document.createElement("code");
      code.textContent = part.replace(/^[\w+-]*\n/, "").replace(/\n$/, "");
      pre.append(code);
      element.append(pre);
      return;
    }
    for (const piece of part.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/)) {
      const code = piece.length > 2 && piece.startsWith("`");
      const bold = piece.length > 4 && piece.startsWith("**");
      if (!code && !bold) { element.append(piece); continue; }
      const inner = document.createElement(code ? "code" : "strong");
      inner.textContent = code ? piece.slice(1, -1) : piece.slice(2, -2);
      element.append(inner);
    }
  });
}

function addTurn(role, text) {
  const element = document.createElement("div");
  element.className = `turn ${role}`;
  show(element, text);
  at("turns").append(element);
  element.scrollIntoView({ block: "end" });
  return element;
}

function setRunning(controller) {
  running = controller;
  at("send").hidden = controller !== null;
  at("stop").hidden = controller === null;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const lines = held.split("\n\n");
    held = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function ask(text) {
  // "New chat" puts another list in its place: what comes for this one is then nobody's.
  const chat = turns;
  turns.push({ role: "user", content: text });
  addTurn("user", text);
  const system = at("system").value.trim(), temperature = at("temperature").valueAsNumber;
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...chat];
  const body = { messages, stream: true, stream_options: { include_usage: true } };
  if (!Number.isNaN(temperature)) body.temperature = temperature;
  const controller = new AbortController(), element = addTurn("assistant", "…");
  let reply = "";
  setRunning(controller);
  at("figures").textContent = "reading…";
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(body), signal: controller.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response)) {
      if (chat !== turns) return;
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      if (choice && choice.delta.content) {
        reply += choice.delta.content;
        const near = window.innerHeight + window.scrollY > document.body.scrollHeight - 80;
        show(element, reply);
        if (near) element.scrollIntoView({ block: "end" });
        at("figures").textContent = "";
      }
      if (event.usage) {
        const used = event.usage, spent = event.timings.decode_s;
        const speed = spent > 0 ? `, ${(used.completion_tokens / spent).toFixed(1)} tokens/s` : "";
        const cached = used.prompt_tokens_details.cached_tokens;
        at("figures").textContent =
          `${used.prompt_tokens} tokens read (${cached} reused), ${used.completion_tokens} written${speed}`;
      }
    }
  } catch (error) {
    if (chat !== turns) return;
    if (error.name !== "AbortError") {
      addTurn("error", error.message);
      at("figures").textContent = "";
    } else {
      at("figures").textContent = "stopped";
    }
  }
  if (chat !== turns) return;
  if (reply) {
    show(element, reply);
    chat.push({ role: "assistant", content: reply });
  } else {
    element.remove();
    chat.pop();
    if (!at("text").value) at("text").value = text;
  }
  setRunning(null);
  at("text").focus();
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("text").value.trim();
  if (!text || running) return;
  at("text").value = "";
  ask(text);
});
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("form").requestSubmit();
  }
});
at("stop").addEventListener("click", () => running && running.abort());
at("new").addEventListener("click", () => {
  if (running) running.abort();
  setRunning(null);
  turns = [];
  at("turns").replaceChildren();
  at("figures").textContent = "";
  at("text").focus();
});

async function showModel() {
  try {
    const found = await (await fetch("v1/models", { headers: headers() })).json();
    if (found.data) at("model").textContent =
      `${found.data[0].id}, ${found.data[0].context_length.toLocaleString("en")} tokens`;
  } catch { /* The first message will say what is wrong. */ }
}
at("key").addEventListener("change", showModel);
showModel();
