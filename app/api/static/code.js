// The dialog that shows a job as a program, to be copied.

import { byId, say } from "./dom.js";
import { curl, python } from "./snippets.js";

const LANGUAGES = { curl, python };
const [dialog, text, language, said] = ["code-dialog", "code-text", "code-language", "code-said"].map(byId);
let job = null;
let needsKey = false;

export function start(who) {
  needsKey = who.needs_key;
  language.addEventListener("change", show);
  byId("code-copy").addEventListener("click", copy);
  byId("code-close").addEventListener("click", () => dialog.close());
}

export function open(theJob) {
  job = theJob;
  show();
  dialog.showModal();
}

function show() {
  text.value = LANGUAGES[language.value](job, needsKey);
  text.scrollTop = 0;
  say(byId("code-key"), needsKey ? "Your API key is not in it: put it into the variable FRAMEFIT_API_KEY." : "");
  say(said, "");
}

// Without https a browser lets no page write to the clipboard but by this older command.
async function copy() {
  let copied = false;
  try {
    await navigator.clipboard.writeText(text.value);
    copied = true;
  } catch {
    text.select();
    copied = document.execCommand("copy");
  }
  say(said, copied ? "Copied." : "The browser does not let the page copy: press Ctrl+C.");
}
