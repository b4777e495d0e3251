// The live page. Law: it asks this server and no other, and turns no text into markup.

import { byId } from "./ui-dom.js";
import { startLive } from "./ui-live.js";
import { showModel, showNoModel } from "./ui-model.js";
import { startPlayground } from "./ui-playground.js";
import { key, readModel } from "./ui-server.js";

const playground = startPlayground();

// The fingerprint that the card was asked for; undefined: never, or in vain.
let asked;
// Each question's number: an answer that is overtaken by a later question is not shown.
let turn = 0;

async function refreshModel(fingerprint) {
  const mine = ++turn;
  asked = fingerprint;
  let card = null;
  let trouble = "The model is loading. Its card will be here.";
  let isAnswered = false;
  try {
    card = await readModel();
    isAnswered = card !== null || fingerprint === null;
  } catch (error) {
    trouble = error.message;
  }
  if (mine !== turn) return;
  // The next of the live page's answers makes it ask again.
  if (!isAnswered) asked = undefined;
  if (card) showModel(card);
  else showNoModel(trouble);
  playground.setModel(card);
}

byId("key").value = key.get();
byId("key").addEventListener("change", (event) => {
  key.set(event.target.value.trim());
  refreshModel(asked);
});
startLive((fingerprint) => {
  if (fingerprint !== asked) refreshModel(fingerprint);
});
byId("main").hidden = false;
