// The list of inputs: texts and images, each a query or a document. The page's elements are its only state.

import { byId, el, say } from "./ui-dom.js";

export const MAX_INPUTS = 64;
const EXAMPLE = [
  ["query", "Where do great apes live?"],
  ["document", "Gorillas live in the forests of central Africa."],
  ["document", "Orangutans are found on Borneo and Sumatra."],
  ["document", "The Treaty of Westphalia ended the Thirty Years’ War."],
  ["document", "Embeddings turn text into vectors that can be compared."],
];

const list = () => byId("items");
const rows = () => [...list().children];
const numFree = () => MAX_INPUTS - rows().length;
// URLs of the images' pictures: each keeps its file in memory until it is revoked.
const pictures = new Set();
let readsImages = false;
let fusesText = false;

/** Draw the first inputs, and take more by typing, pasting, dropping and choosing. */
export function startInputs() {
  for (const [role, text] of EXAMPLE) addRow({ role, text });
  byId("add-text").addEventListener("click", () => addRow({ role: nextRole() })?.querySelector("textarea").focus());
  byId("add-image").addEventListener("click", () => byId("image-files").click());
  byId("image-files").addEventListener("change", (event) => {
    addImages([...event.target.files]);
    event.target.value = "";
  });
  byId("clear").addEventListener("click", () => {
    list().replaceChildren();
    releasePictures();
    addRow({ role: "query" }).querySelector("textarea").focus();
    tell("");
  });
  document.addEventListener("paste", takePasted);
  listenForDrops();
}

/** What the served model reads decides what may be added. */
export function allow(card) {
  readsImages = Boolean(card?.images);
  fusesText = Boolean(card?.images?.fused);
  byId("add-image").hidden = !readsImages;
  say(byId("inputs-hint"), readsImages
    ? "Paste lines to make a text of each. Drop or paste images anywhere."
    : "Paste lines to make a text of each.");
}

/** What is to be embedded, in order, without the texts that are empty. Each knows its row. */
export function readInputs() {
  return rows()
    .map((row) => ({
      row,
      role: row.querySelector("select").value,
      text: row.querySelector("textarea")?.value.trim() ?? "",
      image: row.image ?? null,
    }))
    .filter(({ text, image }) => text || image);
}

/** Mark the row that the server refused; null: none. */
export function markRow(refused) {
  for (const row of rows()) {
    row.classList.toggle("refused", row === refused);
    row.querySelector("textarea")?.setAttribute("aria-invalid", String(row === refused));
  }
}

/** Let go of the files whose pictures are neither in the list nor in the results, and will not be. */
export function releasePictures() {
  // The answer that is awaited shows them, even those of rows that are gone by then.
  if (byId("results").getAttribute("aria-busy") === "true") return;
  const shown = new Set([...document.images].map((image) => image.src));
  for (const url of [...pictures].filter((one) => !shown.has(one))) {
    URL.revokeObjectURL(url);
    pictures.delete(url);
  }
}

function tell(text, action = null) {
  byId("inputs-notice").replaceChildren(text, ...(action ? [" ", action] : []));
}

const nextRole = () => (rows().some((row) => row.querySelector("select").value === "query") ? "document" : "query");

// Rows ------------------------------------------------------------------------------------------------------

function addRow({ role, text = "", image = null, after = null }) {
  if (!numFree()) {
    tell(`The playground compares up to ${MAX_INPUTS} inputs.`);
    return null;
  }
  const row = el("li", { class: image ? "item of-image" : "item" });
  row.image = image;
  const choice = el("select", { class: "role", "aria-label": "Role" },
    el("option", { value: "query" }, "query"), el("option", { value: "document" }, "document"));
  choice.value = role;
  choice.addEventListener("change", () => (row.dataset.role = choice.value));
  row.dataset.role = role;
  const content = el("div", { class: "content" });
  if (image) content.append(el("img", { src: image.shown, alt: image.name, width: 56, height: 56 }), el("span", { class: "name" }, image.name));
  if (!image || fusesText) content.append(textBox(row, text, image ? "Text beside the image, if any" : "Text"));
  row.append(choice, content, el("button", { type: "button", class: "remove", "aria-label": "Remove this input", title: "Remove", onclick: () => removeRow(row) }, "×"));
  after ? after.after(row) : list().append(row);
  return row;
}

function textBox(row, text, label) {
  const box = el("textarea", { rows: 1, "aria-label": label, placeholder: label, spellcheck: "false" });
  box.value = text;
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.ctrlKey && !event.metaKey && !event.isComposing) {
      event.preventDefault();
      (row.nextElementSibling ?? addRow({ role: nextRole(), after: row }))?.querySelector("textarea")?.focus();
    } else if (event.key === "Backspace" && !box.value && !row.image && rows().length > 1) {
      event.preventDefault();
      removeRow(row);
    }
  });
  return box;
}

function removeRow(row) {
  const neighbour = row.nextElementSibling ?? row.previousElementSibling;
  row.remove();
  releasePictures();
  (neighbour?.querySelector("textarea, .remove") ?? byId("add-text")).focus();
}

// Pasting and dropping --------------------------------------------------------------------------------------

function takePasted(event) {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) {
    event.preventDefault();
    addImages(files);
    return;
  }
  const row = event.target.closest?.("#items > li");
  const text = event.clipboardData?.getData("text/plain") ?? "";
  const lines = text.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
  if (!row || row.image || lines.length < 2) return;
  // The first one goes where the text was pasted.
  if (lines.length - 1 > numFree()) {
    tell(`There is room for ${numFree() + 1} of these ${lines.length} lines, so they stay one text.`);
    return;
  }
  event.preventDefault();
  splitInto(row, lines, text);
}

/** Make a row of each line, the first one where the text was pasted; and offer to take it back. */
function splitInto(row, lines, text) {
  const box = row.querySelector("textarea");
  const before = box.value;
  const [start, end] = [box.selectionStart, box.selectionEnd];
  box.value = before.slice(0, start) + lines[0] + before.slice(end);
  const added = [];
  for (const line of lines.slice(1)) {
    added.push(addRow({ role: "document", text: line, after: added.at(-1) ?? row }));
  }
  added.at(-1).querySelector("textarea").focus();
  tell(`${lines.length} lines became ${lines.length} texts.`, el("button", { type: "button", class: "link", onclick: () => {
    added.forEach((one) => one.remove());
    box.value = before.slice(0, start) + text.trim() + before.slice(end);
    box.focus();
    tell("");
  } }, "Keep them as one text"));
}

function listenForDrops() {
  const target = byId("inputs");
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    target.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) target.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    // Else the browser would leave the page and open the file.
    event.preventDefault();
    target.classList.remove("dropping");
    addImages([...event.dataTransfer.files]);
  });
}

async function addImages(files) {
  if (!readsImages) {
    tell("This model reads texts only.");
    return;
  }
  const images = files.filter((file) => file.type.startsWith("image/"));
  let numUnreadable = 0;
  let numLeft = 0;
  for (const file of images) {
    if (!numFree()) {
      numLeft += 1;
      continue;
    }
    const data = await dataUri(file).catch(() => null);
    if (data === null) numUnreadable += 1;
    // Asked again: others may have come while the file was read.
    else if (numFree()) addImage(file, data);
    else numLeft += 1;
  }
  tell([
    images.length < files.length && `${files.length - images.length} of ${files.length} files are no images.`,
    numUnreadable && `${numUnreadable} of ${files.length} files could not be read.`,
    numLeft && `${numLeft} of ${files.length} files were left out: the playground compares up to ${MAX_INPUTS} inputs.`,
  ].filter(Boolean).join(" "));
}

function addImage(file, data) {
  // A first row that nobody has written in only stands in the way.
  if (rows().length === 1 && !readInputs().length) list().replaceChildren();
  const shown = URL.createObjectURL(file);
  pictures.add(shown);
  addRow({ role: nextRole(), image: { name: file.name || "image", data, shown } });
}

function dataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
