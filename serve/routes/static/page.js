// The drawing page: sends the drawing or picture to POST /predict and shows the prediction.
//
// The page shows one sheet at a time: the strokes of a drawing, or a picture. `past` has the earlier sheets, so that
// undo can also restore a picture or a cleared drawing. A stroke on a picture starts a new drawing.

const TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const PAPER = "#fff";
const INK = "#000";
const PEN_WIDTH = 0.075; // as a share of the canvas's side: about MNIST's stroke width
const PAUSE = 40; // milliseconds between two requests during a stroke
const TIMEOUT = 30_000; // milliseconds until the page cancels a request
const DOUBTFUL = "not sure that this is a digit";
const UNREACHABLE = "The service cannot be reached. The page tries again at the next stroke.";

const [canvas, seen, note, digitText, confidenceText, doubtfulText, bars, undoButton, clearButton] = [
  "canvas", "seen", "note", "digit", "confidence", "doubtful", "bars", "undo", "clear",
].map((id) => document.getElementById(id));
const [status, spoken, chooseButton, fileInput, keyForm, keyInput, curl, modelText] = [
  "status", "spoken", "choose", "file", "key-form", "key", "curl", "model",
].map((id) => document.getElementById(id));
const paper = canvas.getContext("2d", { alpha: false, willReadFrequently: true }); // every request reads the pixels
const address = new URL("predict", document.baseURI);

let sheet = { strokes: [] }; // or { picture: File, image: ImageBitmap }; if the browser cannot show it, image: null
const past = [];
let pen = null; // the id of the pointer that is drawing
let key = "";

// The canvas

const isEmpty = () => !sheet.picture && sheet.strokes.length === 0;

// A dot is not sent: the service would refuse a dot, and the dot may still become a stroke.
function isDot() {
  const points = sheet.strokes?.flat() ?? [];
  const lengths = ["x", "y"].map((axis) => points.map((point) => point[axis]));
  return points.length > 0 && lengths.every((along) => Math.max(...along) - Math.min(...along) < PEN_WIDTH * canvas.width);
}

function turnTo(next) {
  pen = null;
  sheet = next;
  request?.abort(); // cancels the request for the previous sheet
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
    paper.imageSmoothingEnabled = scale < 4; // a tiny picture is shown with sharp pixels
    const [w, h] = [width * scale, height * scale];
    paper.drawImage(sheet.image, (side - w) / 2, (side - h) / 2, w, h);
  }
  let words = isEmpty() ? "Draw here" : "";
  if (sheet.image === null) words = `This browser cannot show ${sheet.picture.name}. The file is sent unchanged.`;
  note.textContent = words;
  const content = sheet.picture ? `the picture ${sheet.picture.name}` : isEmpty() ? "empty" : "a drawing";
  canvas.setAttribute("aria-label", `Paper: ${content}`);
  undoButton.setAttribute("aria-disabled", past.length === 0); // with `disabled`, the button would lose the focus
  clearButton.setAttribute("aria-disabled", isEmpty());
}

function draw(points) {
  paper.strokeStyle = INK;
  paper.lineWidth = PEN_WIDTH * canvas.width;
  paper.lineCap = paper.lineJoin = "round";
  paper.beginPath();
  paper.moveTo(points[0].x + 0.01, points[0].y); // browsers may not draw a line of length 0, but a tap is a dot
  for (const { x, y } of points) paper.lineTo(x, y);
  paper.stroke();
}

function place(event) {
  const { left, top, width, height } = canvas.getBoundingClientRect();
  return { x: ((event.clientX - left) / width) * canvas.width, y: ((event.clientY - top) / height) * canvas.height };
}

canvas.addEventListener("pointerdown", (event) => {
  if (pen !== null || event.button !== 0) return; // one pointer at a time: a palm beside the pen does not draw
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
    paint(); // paints the stroke as one path: undo paints strokes in this way, too
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
  event.preventDefault(); // otherwise, the browser would leave the page and open the file
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

// Requests: one at a time. The last request contains the final state of the canvas.

let request = null; // AbortController of the request in flight
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
    const slow = setTimeout(() => signal.aborted || say("Reading …"), 500);
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
  const how = { method: "POST", headers, body, signal: AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT)]) };
  const response = await fetch(`${address}?pixels=true`, how).catch(() => {
    throw new Error(UNREACHABLE);
  });
  const answer = await response.json().catch(() => null); // a proxy may respond with an HTML page
  if (signal.aborted) throw new Error("the sheet has changed");
  if (response.status === 401) askForKey();
  else keyForm.hidden = true;
  if (response.ok && answer?.predictions) return answer;
  throw new Error(answer?.detail ?? `The service answered ${response.status} without a readable message.`);
}

function askForKey() {
  keyForm.hidden = false;
  curl.textContent = curlLine(`-H "Authorization: Bearer $API_KEY" `);
  throw new Error(key ? "The service does not know this key." : "This service asks for a key.");
}

// Output: the page shows the prediction and announces the prediction to screen readers

let speaking; // timer of the next announcement

function show({ predictions: [{ digit, confidence, doubtful, probabilities, pixels }], model }) {
  document.body.classList.remove("unread");
  digitText.textContent = digit;
  confidenceText.textContent = percent(confidence);
  doubtfulText.textContent = doubtful ? DOUBTFUL : "";
  showBars(probabilities, digit);
  showPixels(pixels);
  seen.setAttribute("aria-label", "What the model saw, 28 by 28 pixels");
  modelText.textContent = ` It serves ${model.name}, version ${model.version}.`;
  say("");
  speak(`${digit}, ${percent(confidence)}${doubtful ? `, ${DOUBTFUL}` : ""}`);
}

function showNothing(words) {
  document.body.classList.add("unread");
  digitText.textContent = "–";
  confidenceText.textContent = "";
  doubtfulText.textContent = "";
  showBars(Array(10).fill(0), null);
  showPixels([]);
  seen.setAttribute("aria-label", "What the model saw: nothing yet");
  speak(words);
}

function fail(error) {
  showNothing("");
  const words = error.message.replace(/^image 1 of 1: /, ""); // no number is needed: the page sends one image only
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
  const image = new ImageData(28, 28); // transparent if `rows` is empty
  rows.flat().forEach((grey, index) => image.data.set([grey, grey, grey, 255], 4 * index));
  seen.getContext("2d").putImageData(image, 0, 0);
}

function percent(share) {
  return share >= 0.9995 ? "> 99.9 %" : `${(100 * share).toFixed(1)} %`; // so that the page never shows 100 %
}

function say(words) {
  if (status.textContent !== words) status.textContent = words;
}

// Announce `words` when the user pauses, not at every point of a stroke.
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
