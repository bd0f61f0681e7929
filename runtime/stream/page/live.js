"use strict";
// Asks for the newest view, draws it, asks again: a slow viewer skips frames and delays nobody.

const $ = (id) => document.getElementById(id);
const image = $("image"), outline = $("outline"), chart = $("chart");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const TEXT_EVERY_MS = 250, CALM_EVERY_MS = 1000; // numbers that change faster cannot be read
const HISTORY = 120;
const view = { paused: false, contour: true, points: null, state: null, latencies: [], seen: -1 };
let textShown = 0;

async function follow() {
  let after = -1;
  for (;;) {
    try {
      const answer = await fetch(`/view?after=${after}`, { cache: "no-store" });
      if (!answer.ok) throw new Error(`the server says ${answer.status}`);
      const message = parse(await answer.arrayBuffer());
      after = message.state.serial;
      await show(message);
      if (message.state.state === "ended") return;
    } catch (error) {
      tell("lost", "connection lost");
      after = view.seen = -1; // another stream may answer next, from its frame 0
      await new Promise((resume) => setTimeout(resume, 1000));
    }
  }
}

function parse(buffer) {
  const head = new DataView(buffer, 0, 12);
  const [text, points, picture] = [0, 4, 8].map((at) => head.getUint32(at, true));
  const state = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 12, text)));
  const outlineAt = 12 + text;
  const pictureAt = outlineAt + 4 * points;
  return {
    state,
    points: new Uint16Array(buffer.slice(outlineAt, pictureAt)),
    picture: picture ? new Blob([new Uint8Array(buffer, pictureAt, picture)], { type: "image/jpeg" }) : null,
  };
}

async function show({ state, points, picture }) {
  tell(state.state, state.state);
  keepLatency(state);
  if (view.paused) return;
  view.state = state;
  if (picture) {
    const bitmap = await createImageBitmap(picture);
    if (image.width !== bitmap.width || image.height !== bitmap.height) {
      image.width = bitmap.width;
      image.height = bitmap.height;
    }
    image.getContext("2d").drawImage(bitmap, 0, 0);
    bitmap.close();
    view.points = points;
    drawOutline();
  }
  const now = performance.now();
  if (now - textShown > (calm.matches ? CALM_EVERY_MS : TEXT_EVERY_MS) || state.state === "ended") {
    textShown = now;
    showText(state);
    drawChart();
  }
}

function keepLatency(state) {
  const frame = state.frame;
  if (!frame || frame.latency_ms === undefined || frame.frame <= view.seen) return;
  view.seen = frame.frame;
  view.latencies.push({ ms: frame.latency_ms, missed: frame.missed });
  if (view.latencies.length > HISTORY) view.latencies.shift();
}

function tell(state, text) {
  if ($("state").dataset.state === state) return; // said once, for screen readers
  $("state").dataset.state = state;
  $("state").textContent = text;
}

const ms = (value) => (value === undefined || value === null ? "–" : value.toFixed(value < 100 ? 1 : 0));
const count = (value) => (value === undefined ? "–" : value.toLocaleString("en"));

function set(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

function showText(state) {
  set("engine", state.engine ?? "–");
  set("bundle", `${state.bundle ?? "–"} ${state.precision ?? ""}`);
  set("hash", state.bundle_sha256 ?? "–");
  if (!state.pace) return;
  const period = 1000 / state.pace.hz;
  set("p50", ms(state.latency_ms.p50));
  set("p99", ms(state.latency_ms.p99));
  set("period", ms(period));
  set("clock", `${+state.pace.hz.toFixed(2)} Hz, ${state.pace.policy}, queue ${state.pace.queue}`);
  const { due, failed } = state.frames;
  for (const name of ["answered", "missed", "dropped"]) set(name, count(state.frames[name]));
  for (const name of ["missed", "dropped"]) $(name).classList.toggle("late", state.frames[name] > 0);
  $("failed").hidden = failed === 0;
  set("failed", `${count(failed)} of ${count(due)} frames failed`);
  set("fps", state.fps.toFixed(1));
  set("source", state.source.name);
  const frame = state.frame;
  if (!frame || frame.outcome !== "answered") return;
  set("now", ms(frame.latency_ms));
  $("now").classList.toggle("late", frame.missed);
  const known = frame.lesion_area_mm2 !== undefined;
  set("area", known ? frame.lesion_area_mm2.toFixed(1) : count(frame.lesion_area_px));
  set("area-unit", known ? "mm²" : "px (no spacing)");
  set("lesions", count(frame.lesions.length));
  const total = state.source.frames === null ? "" : ` of ${state.source.frames}`;
  set("frame", `${frame.of_source + 1}${total}, ${image.width} × ${image.height} px`);
  const regions = frame.lesions.length === 1 ? "1 marked region" : `${frame.lesions.length} marked regions`;
  image.setAttribute("aria-label", `Frame ${frame.of_source + 1}: ${regions}, ${frame.lesion_area_px} px`);
}

function drawOutline() {
  // In screen pixels, so that the line keeps its width on a frame of any size.
  const { width, height } = image.getBoundingClientRect();
  const ratio = devicePixelRatio || 1;
  outline.width = Math.round(width * ratio);
  outline.height = Math.round(height * ratio);
  if (!view.contour || !view.points) return;
  const pen = outline.getContext("2d");
  const scale = Math.min(outline.width / image.width, outline.height / image.height); // object-fit
  const left = (outline.width - scale * image.width) / 2, top = (outline.height - scale * image.height) / 2;
  const dot = (extra, colour) => {
    const size = Math.max(1.2 * scale, 2.5 * ratio) + extra;
    pen.fillStyle = colour;
    for (let at = 0; at < view.points.length; at += 2) {
      const x = left + (view.points[at] + 0.5) * scale, y = top + (view.points[at + 1] + 0.5) * scale;
      pen.fillRect(x - size / 2, y - size / 2, size, size);
    }
  };
  dot(2 * ratio, "#000"); // seen on bright tissue too
  dot(0, "#ff8c00");
}

function drawChart() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const ratio = devicePixelRatio || 1;
  const width = (chart.width = Math.round(chart.clientWidth * ratio));
  const height = (chart.height = Math.round(chart.clientHeight * ratio));
  const period = view.state && view.state.pace ? 1000 / view.state.pace.hz : 0;
  const top = 1.15 * Math.max(period, ...view.latencies.map(({ ms }) => ms), 1);
  const pen = chart.getContext("2d");
  const step = width / HISTORY;
  view.latencies.forEach(({ ms, missed }, at) => {
    const tall = (ms / top) * height;
    pen.fillStyle = colour(missed ? "--bad" : "--bar");
    pen.fillRect(at * step, height - tall, Math.max(step - ratio, 1), tall);
  });
  pen.strokeStyle = colour("--text");
  pen.setLineDash([4 * ratio, 3 * ratio]);
  pen.lineWidth = ratio;
  pen.beginPath();
  pen.moveTo(0, height - (period / top) * height);
  pen.lineTo(width, height - (period / top) * height);
  pen.stroke();
}

function pause() {
  view.paused = !view.paused;
  $("pause").setAttribute("aria-pressed", view.paused);
  $("paused").hidden = !view.paused;
}

function contour() {
  view.contour = !view.contour;
  $("contour").setAttribute("aria-pressed", view.contour);
  drawOutline();
}

function adjust() {
  image.style.filter = `contrast(${$("contrast").value}%) brightness(${$("brightness").value}%)`;
}

function change(by) {
  $("contrast").value = +$("contrast").value + by;
  adjust();
}

function reset() {
  for (const id of ["contrast", "brightness"]) $(id).value = 100;
  adjust();
}

$("pause").addEventListener("click", pause);
$("contour").addEventListener("click", contour);
$("reset").addEventListener("click", reset);
for (const id of ["contrast", "brightness"]) $(id).addEventListener("input", adjust);
addEventListener("resize", () => { drawOutline(); drawChart(); });
const KEYS = { p: pause, c: contour, 0: reset, "+": () => change(10), "=": () => change(10), "-": () => change(-10) };
addEventListener("keydown", (event) => {
  const act = KEYS[event.key.toLowerCase()];
  if (act && !event.ctrlKey && !event.metaKey && !event.altKey) {
    act();
    event.preventDefault();
  }
});
follow();
