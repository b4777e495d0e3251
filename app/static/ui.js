// The live page. Law: it asks this server and no other, and turns no text into markup.

import { byId } from "./ui-dom.js";
import { startLive } from "./ui-live.js";
import { showModel } from "./ui-model.js";
import { startPlayground } from "./ui-playground.js";
import { key } from "./ui-server.js";

const playground = startPlayground();

async function refreshModel() {
  playground.setModel(await showModel());
}

byId("key").value = key.get();
byId("key").addEventListener("change", (event) => {
  key.set(event.target.value.trim());
  refreshModel();
});
startLive(refreshModel);
byId("main").hidden = false;
