// Short helpers to make and update elements. They set text as text, so that client input is never parsed as HTML.

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

// Writes the text only if it changed: screen readers announce every write to a live region.
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
