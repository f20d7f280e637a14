// The drawing page: what is on the paper is sent to /predict, and what the model reads there is shown.
//
// There is one sheet at a time, the strokes of a drawing or a picture; turning to another one remembers the one of
// before, so undo works across strokes, pictures and clearing. A stroke on a picture begins a drawing of its own.

const TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const PAPER = "#fff";
const INK = "#000";
const NIB = 0.075; // of the paper's side: about the pen of MNIST
const PAUSE = 40; // milliseconds between two requests of a stroke
const PATIENCE = 30_000; // milliseconds that an answer may take
const UNREACHABLE = "The service cannot be reached. Draw on: every stroke asks it again.";

const [canvas, seen, note, digitText, confidenceText, bars, undoButton, clearButton] = [
  "canvas", "seen", "note", "digit", "confidence", "bars", "undo", "clear",
].map((id) => document.getElementById(id));
const [status, spoken, chooseButton, fileInput, keyForm, keyInput, curl, modelText] = [
  "status", "spoken", "choose", "file", "key-form", "key", "curl", "model",
].map((id) => document.getElementById(id));
const paper = canvas.getContext("2d", { alpha: false, willReadFrequently: true }); // read again for every request
const address = new URL("predict", document.baseURI);

let sheet = { strokes: [] }; // or { picture: File, image: ImageBitmap, null where it cannot be shown }
const past = [];
let pen = null; // the pointer that draws, while it does
let key = "";

// The paper

const isEmpty = () => !sheet.picture && sheet.strokes.length === 0;

// A dot is not asked about: it may become a stroke, and the service would refuse it.
function isDot() {
  const points = sheet.strokes?.flat() ?? [];
  const lengths = ["x", "y"].map((axis) => points.map((point) => point[axis]));
  return points.length > 0 && lengths.every((along) => Math.max(...along) - Math.min(...along) < NIB * canvas.width);
}

function turnTo(next) {
  pen = null;
  sheet = next;
  request?.abort(); // it asks about the sheet of before
  if (sheet.picture || isEmpty() || isDot()) showNothing(isEmpty() ? "The paper is empty." : "");
  say("");
  paint();
  ask();
}

function lay(next) {
  past.push(sheet);
  turnTo(next);
}

function undo() {
  if (past.length) turnTo(past.pop());
}

function clear() {
  if (!isEmpty()) lay({ strokes: [] });
}

function paint() {
  const side = canvas.width;
  paper.fillStyle = PAPER;
  paper.fillRect(0, 0, side, side);
  sheet.strokes?.forEach(draw);
  if (sheet.image) {
    const { width, height } = sheet.image;
    const scale = side / Math.max(width, height);
    paper.imageSmoothingEnabled = scale < 4; // a tiny picture is shown as the pixels that it is
    const [w, h] = [width * scale, height * scale];
    paper.drawImage(sheet.image, (side - w) / 2, (side - h) / 2, w, h);
  }
  let words = isEmpty() ? "Draw here" : "";
  if (sheet.image === null) words = `This browser cannot show ${sheet.picture.name}; it is sent as it is.`;
  note.textContent = words;
  const content = sheet.picture ? `the picture ${sheet.picture.name}` : isEmpty() ? "empty" : "a drawing";
  canvas.setAttribute("aria-label", `Paper: ${content}`);
  undoButton.setAttribute("aria-disabled", past.length === 0); // not `disabled`: that would take the focus away
  clearButton.setAttribute("aria-disabled", isEmpty());
}

function draw(points) {
  paper.strokeStyle = INK;
  paper.lineWidth = NIB * canvas.width;
  paper.lineCap = paper.lineJoin = "round";
  paper.beginPath();
  paper.moveTo(points[0].x + 0.01, points[0].y); // a line of no length might not be drawn: a tap is a dot
  for (const { x, y } of points) paper.lineTo(x, y);
  paper.stroke();
}

function place(event) {
  const { left, top, width, height } = canvas.getBoundingClientRect();
  return { x: ((event.clientX - left) / width) * canvas.width, y: ((event.clientY - top) / height) * canvas.height };
}

canvas.addEventListener("pointerdown", (event) => {
  if (pen !== null || event.button !== 0) return; // one pointer at a time: a palm beside the pen draws nothing
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  lay({ strokes: [...(sheet.strokes ?? []), [place(event)]] });
  pen = event.pointerId;
  clearTimeout(speaking);
});

canvas.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pen) return;
  const stroke = sheet.strokes.at(-1);
  const between = event.getCoalescedEvents?.() ?? [];
  const added = (between.length ? between : [event]).map(place);
  draw([stroke.at(-1), ...added]);
  stroke.push(...added);
  ask();
});

for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
  canvas.addEventListener(end, (event) => {
    if (event.pointerId !== pen) return;
    pen = null;
    paint(); // the stroke in one piece, as undo will paint it
    ask();
  });
}

// Pictures

async function take(file) {
  if (!TYPES.includes(file.type)) {
    say(`Expected a PNG, JPEG, WebP or GIF picture, found ${file.name}${file.type && `, ${file.type}`}.`);
    return;
  }
  const taken = { picture: file };
  lay(taken);
  taken.image = await createImageBitmap(file).catch(() => null);
  if (sheet === taken) paint();
}

function takeFrom(data) {
  if (data?.files.length) take(data.files[0]);
  else say("Expected a picture, found none.");
}

chooseButton.addEventListener("click", () => fileInput.click());
fileInput.addEventListener("change", () => {
  takeFrom(fileInput);
  fileInput.value = ""; // so that the same file can be chosen again
});
document.addEventListener("paste", (event) => {
  if (event.target !== keyInput) takeFrom(event.clipboardData);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  event.preventDefault(); // the browser would leave the page for the file
  document.body.classList.remove("dragging");
  takeFrom(event.dataTransfer);
});

// Buttons and keys

undoButton.addEventListener("click", undo);
clearButton.addEventListener("click", clear);
document.addEventListener("keydown", (event) => {
  if (event.target === keyInput || event.altKey || event.shiftKey) return;
  const command = event.ctrlKey || event.metaKey;
  if (command && event.key.toLowerCase() === "z") undo();
  else if (!command && (event.key === "Escape" || event.key === "Delete")) clear();
  else return;
  event.preventDefault();
});
keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  key = keyInput.value;
  ask();
});

// The service: one request at a time, and always a last one for what the paper shows then

let request = null; // aborts the request in flight
let asking = false;
let changed = false;

async function ask() {
  changed = true;
  if (asking) return;
  asking = true;
  bars.ariaBusy = "true";
  while (changed) {
    changed = false;
    if (isEmpty() || isDot()) continue;
    request = new AbortController();
    const { signal } = request;
    const slow = setTimeout(() => say("Reading …"), 500);
    try {
      const answer = await predict(signal);
      if (!signal.aborted) show(answer);
    } catch (error) {
      if (!signal.aborted) fail(error);
    }
    clearTimeout(slow);
    request = null;
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
  }
  asking = false;
  bars.ariaBusy = "false";
}

async function predict(signal) {
  const body = sheet.picture ?? (await new Promise((resolve) => canvas.toBlob(resolve, "image/png")));
  const headers = { "Content-Type": body.type };
  if (key) headers.Authorization = `Bearer ${key}`;
  const how = { method: "POST", headers, body, signal: AbortSignal.any([signal, AbortSignal.timeout(PATIENCE)]) };
  const response = await fetch(`${address}?pixels=true`, how).catch(() => {
    throw new Error(UNREACHABLE);
  });
  const answer = await response.json().catch(() => null); // a proxy may answer with a page of its own
  if (signal.aborted) throw new Error("another sheet is asked about");
  if (response.status === 401) askForKey();
  else keyForm.hidden = true;
  if (response.ok && answer?.predictions) return answer;
  throw new Error(answer?.detail ?? `The service answered ${response.status}, and nothing that can be read.`);
}

function askForKey() {
  keyForm.hidden = false;
  curl.textContent = curlLine(`-H "Authorization: Bearer $API_KEY" `);
  throw new Error(key ? "The service does not know this key." : "This service asks for a key.");
}

// What is shown and said

let speaking; // the timer of the next words

function show({ predictions: [{ digit, confidence, probabilities, pixels }], model }) {
  document.body.classList.remove("unread");
  digitText.textContent = digit;
  confidenceText.textContent = percent(confidence);
  showBars(probabilities, digit);
  showPixels(pixels);
  seen.setAttribute("aria-label", "What the model saw, 28 by 28 pixels");
  modelText.textContent = ` It serves ${model.name}, version ${model.version}.`;
  say("");
  speak(`${digit}, ${percent(confidence)}`);
}

function showNothing(words) {
  document.body.classList.add("unread");
  digitText.textContent = "–";
  confidenceText.textContent = "";
  showBars(Array(10).fill(0), null);
  showPixels([]);
  seen.setAttribute("aria-label", "What the model saw: nothing yet");
  speak(words);
}

function fail(error) {
  showNothing("");
  const words = error.message.replace(/^image 1 of 1: /, ""); // there is only one here
  say(words[0].toUpperCase() + words.slice(1));
}

function showBars(probabilities, digit) {
  probabilities.forEach((probability, index) => {
    const row = bars.rows[index];
    row.className = index === digit ? "found" : "";
    row.querySelector(".bar").style.setProperty("--share", probability);
    row.cells[2].textContent = digit === null ? "" : percent(probability);
  });
}

function showPixels(rows) {
  const image = new ImageData(28, 28); // see-through where there is nothing to show
  rows.flat().forEach((grey, index) => image.data.set([grey, grey, grey, 255], 4 * index));
  seen.getContext("2d").putImageData(image, 0, 0);
}

function percent(share) {
  return share >= 0.9995 ? "> 99.9 %" : `${(100 * share).toFixed(1)} %`; // never quite sure
}

function say(words) {
  if (status.textContent !== words) status.textContent = words;
}

// Spoken once the hand rests, not at every point of a stroke.
function speak(words) {
  clearTimeout(speaking);
  if (pen === null) speaking = setTimeout(() => (spoken.textContent = words), 600);
}

function curlLine(option = "") {
  return `curl --data-binary @digit.png -H 'Content-Type: image/png' ${option}${address}`;
}

for (let digit = 0; digit < 10; digit += 1) {
  const row = bars.insertRow();
  const name = document.createElement("th");
  name.scope = "row";
  name.textContent = digit;
  const bar = document.createElement("div");
  bar.className = "bar";
  row.append(name);
  row.insertCell().append(bar);
  row.insertCell();
}
curl.textContent = curlLine();
showNothing("");
paint();
