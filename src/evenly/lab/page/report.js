"use strict";
const root = document.documentElement;
const views = {};

function themeConfig(dark) {
  const ink = dark ? "#e8eaed" : "#1b1f24", soft = dark ? "#a8b0b8" : "#57606a", line = dark ? "#343b42" : "#d8dee4";
  const axis = { labelColor: soft, titleColor: ink, gridColor: line, domainColor: soft, tickColor: soft,
    titleFontWeight: "normal", labelFontSize: 12, titleFontSize: 13, labelOverlap: "greedy" };
  return {
    background: "transparent", font: "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", view: { stroke: null },
    axis, header: { labelColor: ink, titleColor: ink }, title: { color: ink },
    legend: { labelColor: ink, titleColor: ink, orient: "top", labelFontSize: 12, symbolSize: 160, labelLimit: 220,
      columns: window.innerWidth < 640 ? 2 : 4 },
    rule: { color: soft }, text: { color: ink },
  };
}

// The same colours, brighter: on a dark page the dark ones of the palette would sink. Mixed with white until light enough.
function brightened(color) {
  let rgb = [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));
  const light = () => rgb.reduce((sum, v, i) => sum + [0.2126, 0.7152, 0.0722][i] * (v / 255) ** 2.2, 0);
  while (light() < 0.3) rgb = rgb.map((v) => v + (255 - v) * 0.12);
  return "#" + rgb.map((v) => Math.round(v).toString(16).padStart(2, "0")).join("");
}
const brighter = (spec) => JSON.parse(JSON.stringify(spec).replace(/#[0-9A-F]{6}/g, brightened));

async function draw() {
  const dark = root.dataset.theme === "dark", config = themeConfig(dark);
  for (const element of document.querySelectorAll("[data-chart]")) {
    const name = element.dataset.chart, { spec, slider } = CHARTS[name];
    const position = slider && document.querySelector(`.slider[data-for="${name}"] input`).value;
    if (views[name]) views[name].finalize();
    views[name] = await vegaEmbed(element, dark ? brighter(spec) : spec, {
      config, renderer: "svg", downloadFileName: name,
      actions: { export: true, source: false, compiled: false, editor: false },
    });
    if (slider) await views[name].view.signal(slider.parameter, Number(position)).runAsync();
  }
}

function setTheme(theme, remember) {
  root.dataset.theme = theme;
  const next = theme === "dark" ? "light" : "dark";
  document.getElementById("theme").textContent = `Switch to ${next}`;
  if (remember) { try { localStorage.setItem("theme", theme); } catch { /* a page from disk may not remember */ } }
  return draw();
}

function startSlider(box) {
  const name = box.dataset.for, { parameter, labels } = CHARTS[name].slider;
  const [play, input, output] = [box.querySelector(".play"), box.querySelector("input"), box.querySelector("output")];
  let timer = null;
  function show() {
    output.textContent = labels[input.value];
    input.setAttribute("aria-valuetext", labels[input.value]);
    if (views[name]) views[name].view.signal(parameter, Number(input.value)).runAsync();
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "▶";
    play.setAttribute("aria-label", "Play");
  }
  function advance() {
    if (Number(input.value) >= labels.length - 1) return stop();
    input.value = Number(input.value) + 1;
    show();
  }
  input.addEventListener("input", () => { stop(); show(); });
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (Number(input.value) >= labels.length - 1) { input.value = 0; show(); }
    play.textContent = "❚❚";
    play.setAttribute("aria-label", "Pause");
    timer = setInterval(advance, 250);
  });
  show();
}

const preferred = window.matchMedia("(prefers-color-scheme: dark)");
let chosen = null;
try { chosen = localStorage.getItem("theme"); } catch { /* as above */ }
document.getElementById("theme").addEventListener("click", () =>
  setTheme(chosen = root.dataset.theme === "dark" ? "light" : "dark", true));
preferred.addEventListener("change", () => { if (!chosen) setTheme(preferred.matches ? "dark" : "light", false); });

// Paper is white: charts drawn for a dark page would be pale on it.
let beforePrinting = null;
window.addEventListener("beforeprint", () => {
  beforePrinting = root.dataset.theme;
  if (beforePrinting === "dark") setTheme("light", false);
});
window.addEventListener("afterprint", () => { if (beforePrinting === "dark") setTheme("dark", false); });

setTheme(chosen || (preferred.matches ? "dark" : "light"), false).then(() => {
  document.querySelectorAll(".slider").forEach(startSlider);
  root.dataset.ready = "yes";
});
