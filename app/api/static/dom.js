// Elements in a line each. Text is always set as text: nothing a client wrote is ever read as markup.

export const byId = (id) => document.getElementById(id);

export function make(tag, content, name) {
  const element = document.createElement(tag);
  if (content != null) element.textContent = content;
  if (name) element.className = name;
  return element;
}

export function button(label, action) {
  const element = make("button", label, "quiet");
  element.type = "button";
  element.addEventListener("click", action);
  return element;
}

// Only touched when it changes: screen readers say aloud what is written into a live region.
export function say(element, sentence) {
  if (element.textContent !== sentence) element.textContent = sentence;
  element.hidden = !sentence;
}

export function fromTemplate(id) {
  return byId(id).content.firstElementChild.cloneNode(true);
}

export function debounced(action, milliseconds) {
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(action, milliseconds); };
}
